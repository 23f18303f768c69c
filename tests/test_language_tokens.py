"""Tokens of answers: returns and advantages of each, whitening, KL, and their shares of the loss.

In float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_probes import BETA, Met, answers_of_two_tokens, answers_that_end, somewhere

from rgpo_jax.language import advantages, objective, samples, tabular
from rgpo_jax.language.world import expectations

pytestmark = pytest.mark.usefixtures("float64")


# PPO: tokens, padding, critic

MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)


def test_returns_to_go_are_hand_sums_and_padding_is_in_none():
    reward = jnp.array([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 9.0, 9.0], [7.0, 9.0, 9.0, 9.0]])
    reward = jnp.where(MASK, reward, 0.0)
    garbage = jnp.where(MASK, 0.0, jnp.nan)  # of a critic that looked at padding
    for value in (jnp.zeros((3, 4)), garbage):
        advantage, aim = advantages.token_advantages(reward, value, MASK, 1.0)
        expected = [[15, 14, 12, 8], [8, 5, 0, 0], [7, 0, 0, 0]]
        np.testing.assert_array_equal(advantage, expected)
        np.testing.assert_array_equal(aim, expected)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_a_perfect_critic_leaves_no_advantage(gae_lambda):
    rng = np.random.default_rng(0)
    reward = np.where(MASK, rng.normal(size=(3, 4)), 0.0)
    value = np.cumsum(reward[:, ::-1], axis=1)[:, ::-1]
    padded = jnp.where(MASK, value, 100.0)
    advantage, aim = advantages.token_advantages(jnp.asarray(reward), padded, MASK, gae_lambda)
    np.testing.assert_allclose(advantage, 0.0, atol=1e-15)
    np.testing.assert_allclose(aim, np.where(MASK, value, 0.0), atol=1e-15)


def test_generalised_advantages_are_the_recursion():
    rng = np.random.default_rng(1)
    reward, value = np.where(MASK, rng.normal(size=(2, 3, 4)), 0.0)
    actual, _ = advantages.token_advantages(jnp.asarray(reward), jnp.asarray(value), MASK, 0.7)
    expected = np.zeros((3, 4))
    for row, length in enumerate(MASK.sum(axis=1)):
        later = following = 0.0
        for t in reversed(range(length)):
            later = reward[row, t] + following - value[row, t] + 0.7 * later
            expected[row, t], following = later, value[row, t]
    np.testing.assert_allclose(actual, expected, atol=1e-15)


@pytest.mark.parametrize("number", [1, 4, 7, 8, 9])
def test_parts_are_of_one_size_and_as_large_as_may_be(number):
    sizes = []

    def double(part):
        sizes.append(len(part["x"]))
        return {"y": 2 * part["x"]}

    tree = {"x": jnp.arange(3.0 * number).reshape(number, 3)}
    found = samples.in_parts(double, tree, 4)
    np.testing.assert_array_equal(found["y"], 2 * tree["x"])
    assert set(sizes) == {{1: 1, 4: 4, 7: 4, 8: 4, 9: 3}[number]}


def test_whitening_is_over_the_mask_alone():
    advantage = jnp.where(MASK, jnp.arange(12.0).reshape(3, 4), 1e6)
    actual = np.asarray(advantages.whiten(advantage, MASK))
    inside = np.asarray(advantage)[MASK]
    np.testing.assert_allclose(actual[MASK], (inside - inside.mean()) / inside.std(), atol=1e-14)
    assert np.all(actual[~MASK] == 0.0)
    for constant in (0.0, 0.1, 1e6):
        flat = jnp.where(MASK, constant, jnp.nan)
        np.testing.assert_array_equal(advantages.whiten(flat, MASK), 0.0)


@pytest.mark.parametrize("whitened", [False, True])
def test_ppos_advantage_of_a_token_is_what_comes_from_there_on(whitened):
    world = answers_that_end()
    met = Met(world, [0, 1, 6, 4], [[0.1, 0.1], [-0.1, 0.1], [0.05, 0.0], [0.0, 0.1]])
    # The reward at the last token, and each token's KL of the policy that sampled.
    reward = -BETA * np.where(met.mask, met.answers.log_prob - met.log_prob_ref, 0.0)
    last = met.mask.sum(axis=1) - 1
    reward[np.arange(4), last] += met.reward
    advantage = np.where(met.mask, np.cumsum(reward[:, ::-1], axis=1)[:, ::-1], 0.0)
    if whitened:
        inside = advantage[met.mask]
        advantage = np.where(met.mask, (advantage - inside.mean()) / inside.std(), 0.0)
    expected = met.along(np.exp(met.log_ratio) * advantage / met.mask.sum())
    scale = "batch" if whitened else "none"
    actual = met.ascent("ppo", gae_lambda=1.0, kl_coefficient=BETA, scale=scale, clip=0.5)
    np.testing.assert_allclose(actual, expected, atol=1e-14)


# Aggregation, and KL of tokens and answers


def test_an_answers_share_of_the_loss_is_that_of_its_aggregation():
    lengths, answers, tokens, constant = MASK.sum(axis=1), 3, MASK.sum(), 4.0
    shares = {
        "token_mean": lengths / tokens,
        "answer_mean": np.ones(3) / answers,
        "token_sum": lengths / (answers * constant),
    }
    value = np.array([1.0, 10.0, 100.0])
    by_token = jnp.where(MASK, value[:, None], jnp.nan)
    for name, share in shares.items():
        actual = objective.aggregate(by_token, MASK, name, constant)
        assert actual == pytest.approx(share @ value, rel=1e-14), name
        nothing = objective.aggregate(by_token, np.zeros_like(MASK), name, constant)
        assert nothing == 0.0
    for name in ("sequence", "sequence_mean"):
        assert objective.aggregate(value, np.ones(3, bool), name) == pytest.approx(37.0)
        assert objective.aggregate(value, np.array([1, 0, 1], bool), name) == pytest.approx(50.5)


@pytest.mark.parametrize(
    ("aggregation", "shares"),
    [
        ("token_mean", [2 / 3, 1 / 3]),
        ("answer_mean", [1 / 2, 1 / 2]),
        ("token_sum", [2 / 8, 1 / 8]),
        ("sequence", [2 / 2, 1 / 2]),
        ("sequence_mean", [1 / 2, 1 / 2]),
    ],
)
def test_answers_of_equal_reward_weigh_by_their_length_as_the_aggregation_says(aggregation, shares):
    met = Met(answers_that_end(), [0, 6], 0.0, reward=[1.0, 1.0])
    length = met.mask.sum(axis=1, keepdims=True)
    expected = met.along(np.array(shares)[:, None] / length)
    settings = {"baseline": "none", "kl_coefficient": 0.0, "length_constant": 4.0}
    actual = met.ascent("reinforce", aggregation=aggregation, **settings)
    np.testing.assert_allclose(actual, expected, atol=1e-15)


@pytest.mark.parametrize("make", [answers_that_end, answers_of_two_tokens])
def test_the_kl_of_answers_is_the_expected_sum_of_that_of_their_tokens(make):
    world, params = make(), somewhere(make())
    answers = world.enumeration.answers
    prompts = jnp.zeros(len(answers.tokens), jnp.int32)
    log_prob = world.policy.predict(params, world.frozen, prompts, answers, 1.0).log_prob
    log_ref = world.policy.reference(world.frozen, prompts, answers, 1.0)
    mask, tokens = np.asarray(answers.mask), np.asarray(answers.tokens)
    # Of a token's whole distribution, by the probability to come to where it is chosen.
    table, reference = (
        np.asarray(jax.nn.log_softmax(x))[0] for x in (params["actor"], world.frozen["logits"])
    )
    vocabulary, length = table.shape[-1], mask.shape[-1]
    visits = np.zeros(len(table))
    probability = np.exp(np.where(mask, log_prob, 0.0).sum(axis=1))
    for p, answer, counts in zip(probability, tokens, mask, strict=True):
        prefix = 0
        for t in range(length):
            if counts[t]:
                visits[tabular.num_prefixes(vocabulary, t) + prefix] += p
            prefix = prefix * vocabulary + answer[t]
    chained = visits @ np.sum(np.exp(table) * (table - reference), axis=-1)
    k1 = probability @ np.where(mask, log_prob - log_ref, 0.0).sum(axis=1)
    exact = float(expectations(world, params, world.frozen).kl_ref)
    assert probability.sum() == pytest.approx(1.0, abs=1e-14)
    assert chained == pytest.approx(exact, abs=1e-14)
    assert k1 == pytest.approx(exact, abs=1e-14)
