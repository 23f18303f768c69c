"""Alignment methods away from the policy that sampled: the weight of each token of a single batch.

"The ascent" is by what one plain gradient step of the library's learner changes the logits. In
float64.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from language_probes import largest
from method_probes import DUALS, Met, answers_that_end, arms

from agents.language import dapo, gspo, rgpo
from rgpo_jax.gates import weight

pytestmark = pytest.mark.usefixtures("float64")


def test_dapos_weight_is_the_ratio_up_to_its_wider_clip():
    config = dapo.Config()
    for r, a, expected in (
        (1.25, 1.0, 1.25),
        (1.3, 1.0, 0.0),
        (0.85, -1.0, 0.85),
        (0.75, -1.0, 0.0),
    ):
        assert float(weight(dapo.gate(config))(math.log(r), a)) == pytest.approx(
            expected, rel=1e-12
        )
        met = Met(arms(2), [0, 1], np.log([[r], [1.0]]), reward=[a, -a])
        weights = np.array([[expected * a], [-a]])
        np.testing.assert_allclose(met.ascent("dapo"), met.along(weights / 2), atol=1e-7)


def test_groups_of_equal_reward_change_neither_loss_nor_denominator():
    world = answers_that_end()
    long, short = 0, len(world.enumeration.answers.tokens) - 1
    lengths = np.asarray(jnp.sum(world.enumeration.answers.mask, axis=-1))
    assert lengths[long] == 2
    assert lengths[short] == 1
    alone = Met(world, [long, short], 0.1, reward=[1.0, 0.0])
    both = Met(world, [long, short, long, long], 0.1, reward=[1.0, 0.0, 0.5, 0.5])
    expected = alone.ascent("dapo")
    assert largest(expected) > 0.01
    twice = {"num_prompts": 2, "group_size": 2}
    np.testing.assert_allclose(both.ascent("dapo", **twice), expected, atol=1e-15)
    kept = both.ascent("dapo", **twice, drop_equal_groups=False)
    np.testing.assert_allclose(kept, expected * 3 / 7, atol=1e-15)  # 3 of its 7 tokens


def test_gspo_gives_an_answer_the_geometric_mean_of_its_ratios():
    world = answers_that_end()
    log_ratio = [[0.1, 0.2], [0.3, -0.1], [-0.2, 0.0], [0.05, 0.0]]
    met = Met(world, [0, 1, 6, 4], log_ratio, reward=[3.0, 1.0, 0.0, -1.0])
    length = met.mask.sum(axis=1, keepdims=True)
    assert sorted(length.ravel()) == [1, 2, 2, 2]
    s = np.exp(met.log_ratio.sum(axis=1, keepdims=True) / length)
    a = np.asarray(met.reward - met.reward.mean())[:, None] / np.std(met.reward)
    expected = met.along(s * a / length / 4)  # nothing is clipped
    wide = {"clip": 0.75, "clip_high": 0.75}
    np.testing.assert_allclose(met.ascent("gspo", **wide), expected, atol=1e-15)
    # Its own clip is so narrow that of these only answers that come back count.
    back = np.where(a > 0, s <= 1 + gspo.Config().clip_high, s >= 1 - gspo.Config().clip)
    assert 0 < back.sum() < 4
    np.testing.assert_allclose(met.ascent("gspo"), met.along(s * a * back / length / 4), atol=1e-15)


def test_gspo_of_single_tokens_is_the_ppo_clip():
    met = Met(arms(), [0, 1, 2, 3], np.array([[0.3], [-0.1], [0.1], [-0.3]]))
    clip = {"clip": 0.25, "clip_high": 0.25, "kl_coefficient": 0.0}
    expected = met.ascent("grpo", **clip)
    assert largest(expected) > 0.01
    np.testing.assert_allclose(met.ascent("gspo", **clip), expected, atol=1e-15)


def test_cispos_weight_is_the_ratio_cut_off_from_above():
    r = np.array([[7.0], [0.1], [3.0], [1.0]])
    met = Met(arms(), [0, 1, 2, 3], np.log(r))
    a = np.asarray(met.reward - met.reward.mean())[:, None] / np.std(met.reward)
    expected = met.along(np.minimum(r, 5.0) * a / 4)
    np.testing.assert_allclose(met.ascent("cispo"), expected, atol=1e-14)
    on_policy = Met(arms(), [0, 1, 2, 3], 0.0)
    expected = on_policy.ascent("reinforce", scale="group", kl_coefficient=0.0)
    np.testing.assert_allclose(on_policy.ascent("cispo"), expected, atol=1e-15)


def test_sapo_is_rgpos_gate_normalised():
    met = Met(arms(), [0, 1, 2, 3], np.array([[0.5], [-0.7], [0.2], [-0.1]]))
    same = {"baseline": "group", "scale": "group", "kl_coefficient": 0.0}
    same |= {"aggregation": "answer_mean"}
    expected = met.ascent("rgpo", dual="none", sharpness=2.0, normalize=True, **same)
    actual = met.ascent("sapo", temperature_positive=2.0, temperature_negative=2.0)
    np.testing.assert_allclose(actual, expected, atol=1e-15)
    assert largest(actual - met.ascent("sapo")) > 1e-3


@pytest.mark.parametrize("dual", DUALS)
def test_both_ratios_of_a_dual_gate_move_with_the_policy(dual):
    met = Met(arms(), [0, 1, 2, 3], np.array([[0.5], [-0.7], [0.2], [-0.1]]))
    gate = rgpo.gate(rgpo.Config(dual=dual))
    w = np.asarray(weight(gate)(met.log_ratio, np.ones((4, 1)), met.log_ratio_ref))
    a = np.asarray(met.reward - met.reward.mean())[:, None] * 4 / 3
    np.testing.assert_allclose(
        met.ascent("rgpo", dual=dual, kl_coefficient=0.0), met.along(w * a / 4), atol=1e-15
    )


def test_the_kl_to_the_policy_that_sampled_pulls_an_answer_back_by_its_log_ratio():
    """And that to the reference by the other: the weight is A - c l - a m, of whole answers."""
    world = answers_that_end()
    log_ratio = [[0.1, 0.2], [0.3, -0.1], [-0.2, 0.0], [0.05, 0.0]]
    met = Met(world, [0, 1, 6, 4], log_ratio, reward=[3.0, 1.0, 0.0, -1.0])
    advantage = np.asarray(met.reward - met.reward.mean())[:, None] * 4 / 3
    to_old = met.log_ratio.sum(axis=1, keepdims=True)
    to_reference = np.where(met.mask, met.log_ratio_ref, 0.0).sum(axis=1, keepdims=True)
    pulled = advantage - 0.7 * to_old - 0.3 * to_reference
    actual = met.ascent("dual_kl", old_kl_coefficient=0.7, kl_coefficient=0.3)
    np.testing.assert_allclose(actual, met.along(pulled / 4), atol=1e-15)
