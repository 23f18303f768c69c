"""Methods at equal KL: reward along a path, searches, noise, rows, and gates near the reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import language as methods
from envs.language import bandit, tiny, tree
from experiments.comparing import intervals
from experiments.comparing.frontier import Frontier, reward_within
from experiments.theory import (
    alignment,
    dual_ascent,
    dual_gates,
    dual_verdicts,
    equal_kl,
    tiny_gates,
    tiny_steps,
)
from experiments.theory.equal_kl import Paths
from rgpo_jax import gates
from rgpo_jax.gates import weight
from rgpo_jax.language import targets


def frontiers_of(seeds, module=bandit):
    return [Frontier.of(module.of(*module.draw(seed))) for seed in seeds]


# Reward at a KL.


def test_the_reward_within_a_kl_by_hand():
    kl, reward = np.array([0.0, 0.04, 0.16, 0.09]), np.array([1.0, 3.0, 2.0, 6.0])
    found = reward_within(kl, reward, np.array([0.01, 0.0625, 0.1225, 1.0]))
    # Halfway, in the root, to the second point; a quarter past it, where the second is still the
    # best; past the last point, on the way to it from 0.16; all.
    np.testing.assert_allclose(found, [2.0, 3.0, 6.0, 6.0])


def test_a_path_that_never_comes_so_far_keeps_its_best():
    found = reward_within(np.array([0.0, 0.1]), np.array([0.0, 1.0]), np.array([0.5, 2.0]))
    np.testing.assert_allclose(found, [1.0, 1.0])


def test_a_path_along_the_frontier_has_all_of_its_gain():
    (frontier,) = frontiers_of([0])
    inverse = np.geomspace(1e-3, 10.0, 400)
    kl, reward = frontier.at(inverse)
    kl, reward = np.concatenate([[0.0], kl]), np.concatenate([[frontier.origin], reward])
    levels = np.array([0.03, 0.3, 1.0])
    gain = (reward_within(kl, reward, levels) - frontier.origin) / (
        frontier.reward_at(levels) - frontier.origin
    )
    np.testing.assert_allclose(gain, 1.0, atol=2e-4)


# Searches.


def test_settings_are_chosen_by_the_first_seeds_at_each_kl():
    frontiers = frontiers_of(range(4))
    origin = np.array([f.origin for f in frontiers])
    gain = np.zeros((2, 4, 3))  # of two settings, at three points of a path
    gain[0, :2] = [0.0, 0.2, 0.2]  # the first is the better one early, for those that choose
    gain[1, :2] = [0.0, 0.1, 0.4]
    gain[:, 2:, 1:] = np.array([0.01, 0.02])[:, None, None]
    kl = np.broadcast_to([0.0, 0.1, 0.5], gain.shape)
    paths = Paths(kl, gain + origin[None, :, None])
    found = equal_kl.choose(paths, frontiers, np.array([0.1, 0.5]), tuning_seeds=2)
    np.testing.assert_array_equal(found.settings, [0, 1])
    np.testing.assert_allclose(found.reward - origin[2:, None], [[0.01, 0.02]] * 2)
    most = np.stack([f.reward_at(np.array([0.1, 0.5])) for f in frontiers[2:]])
    np.testing.assert_allclose(found.share, np.array([0.01, 0.02]) / (most - origin[2:, None]))


def test_every_row_is_searched_over_the_same_combinations():
    grid = equal_kl.settings_of(dual_gates.COEFFICIENTS, dual_gates.RATES)
    pairs = set(zip(grid["kl_coefficient"], grid["learning_rate"], strict=True))
    assert len(pairs) == len(dual_gates.COEFFICIENTS) * len(dual_gates.RATES)
    for method, settings in equal_kl.ROWS.values():
        config = methods.load(method).Config(**settings)
        assert set(grid) <= set(config.traced())


# Noise.


def test_noise_is_on_rewards_alone_and_anew_each_time():
    world = bandit.make()
    same = {"num_prompts": 64, "group_size": 16, "num_updates": 2}
    rewards = {}
    for noise in (0.0, 0.5):
        seen = []
        setup = equal_kl.build("rloo", world, noise, **same)
        state = setup.agent.init(jax.random.key(0), world.frozen)
        sampled = setup.agent._replace(
            update=lambda state, frozen, batch, seen=seen: (
                seen.append((batch.answers.tokens, batch.reward)) or (state, {})
            )
        )
        step = equal_kl.noisy(sampled, world, noise).step
        state, _ = step(state, world.frozen, world.prompts)
        step(state, world.frozen, world.prompts)
        rewards[noise] = seen
    for (tokens, exact), (again, noisy) in zip(*rewards.values(), strict=True):
        np.testing.assert_array_equal(tokens, again)
        difference = np.asarray(noisy - exact)
        assert abs(difference.mean()) < 0.1
        assert difference.std() == pytest.approx(0.5, rel=0.1)
    first, second = (
        np.asarray(noisy - exact) for (_, exact), (_, noisy) in zip(*rewards.values(), strict=True)
    )
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


def test_without_noise_a_row_is_its_method():
    world = bandit.make(num_prompts=2)
    settings = {"num_updates": 3, "num_prompts": 4, "group_size": 4, "num_minibatches": 2}
    numbers = {"kl_coefficient": np.array([0.3]), "learning_rate": np.array([0.1])}
    found = equal_kl.learn(
        lambda _: (world, 0.0), "rebel", jnp.zeros(1), alignment.keys_of(3, 1), settings, numbers
    )
    method, own = equal_kl.ROWS["rebel"]
    made = alignment.setup(
        methods.load(method), world, kl_coefficient=0.3, learning_rate=0.1, **own, **settings
    )
    alone = alignment.train(lambda _: made, jnp.zeros(1), alignment.keys_of(3, 1), 3, 3)
    np.testing.assert_allclose(found, alone, atol=1e-6)
    assert np.abs(found[0, 0, -1] - found[0, 0, 0]).max() > 0.01


def test_a_row_of_the_study_learns(monkeypatch):
    monkeypatch.setattr(dual_gates, "COEFFICIENTS", (0.2, 0.8))
    monkeypatch.setattr(dual_gates, "RATES", (0.1,))
    known, problems = equal_kl.draw(tree, range(4))
    keys = alignment.keys_of(0, 4)
    found = dual_gates.learn("rgpo-product", "tree", 1, known, problems, keys, 1, updates=20)
    assert [case.noise for case in found] == list(dual_gates.NOISES)
    exact, noisy = (value.chosen.share for value in found.values())
    assert exact.shape == (3, len(dual_gates.LEVELS))
    assert np.all(exact[:, 4] > 0.5)  # at 0.3 nats
    assert np.all(exact < 1.0 + 1e-6)
    assert np.abs(exact - noisy).max() > 1e-3
    for value in found.values():
        assert value.last.kl.shape == (2, 3)


@pytest.fixture(scope="module")
def programs():
    return []


@pytest.fixture
def short_answers(programs, monkeypatch):
    """Of transformers of one layer: 57 in the place of 2,801; all runs are one program."""
    compile_anew = alignment._compile

    def compiled(function, *args):
        if not programs:
            programs.append(compile_anew(function, *args))
        return programs[0]

    monkeypatch.setattr(alignment, "_compile", compiled)
    monkeypatch.setattr(tiny, "LENGTH", 2)
    one_layer = dataclasses.replace(tiny.ARCHITECTURE, num_layers=1)
    monkeypatch.setattr(tiny, "ARCHITECTURE", one_layer)
    monkeypatch.setattr(tiny_gates, "UPDATES", 6)
    monkeypatch.setattr(tiny_gates, "POINTS", 2)


def test_a_transformers_row_is_searched_by_some_and_told_of_others(short_answers, monkeypatch):
    monkeypatch.setattr(tiny_gates, "TUNING_SEEDS", 1)
    monkeypatch.setattr(tiny_gates, "COEFFICIENTS", (0.0, 0.3))
    monkeypatch.setattr(tiny_gates, "RATES", (1e-3,))
    frontiers, problems = equal_kl.draw(tiny, [7, 8, 9])
    assert len({f.origin for f in frontiers}) == 3
    told = []
    keys = alignment.keys_of(0, 3)
    found = tiny_gates.learn("rloo", frontiers, problems, keys, told.append, updates=6)
    assert told[:2] == [0.25, 0.5]  # after each run: two settings, one seed that chooses
    assert told == sorted(told) and told[-1] == 1.0
    assert found.chosen.share.shape == (2, len(tiny_gates.LEVELS))
    assert found.path.shape == (2, 2, 3)
    np.testing.assert_allclose(found.path[0, :, 0], 0.0, atol=1e-6)
    origin = [f.origin for f in frontiers[1:]]
    np.testing.assert_allclose(found.path[1, :, 0], origin, atol=1e-5)
    assert np.all(found.path[1, :, -1] > found.path[1, :, 0])
    assert np.all(found.chosen.share < 1.05)


def test_where_a_transformers_row_ends_depends_on_its_coefficient(short_answers, monkeypatch):
    monkeypatch.setattr(tiny_steps, "COEFFICIENTS", (0.0, 1.0))
    monkeypatch.setattr(tiny_steps, "RATE", 1e-3)
    frontiers, problems = equal_kl.draw(tiny, [7, 8])
    told = []
    last = tiny_steps.learn("rloo", frontiers, problems, alignment.keys_of(0, 2), told.append)
    assert told == [0.25, 0.5, 0.75, 1.0]
    assert last.kl.shape == last.reward.shape == (2, 2)
    assert np.all(last.kl[1] < last.kl[0])
    assert np.all(last.reward > [f.origin for f in frontiers])


# Gates near the reference (docs/theory.md, section 5).


def test_near_the_reference_every_dual_gate_earns_what_the_plain_gradient_does(monkeypatch):
    """The share is the correlation of the reward with the direction, under the reference."""
    monkeypatch.setattr(dual_ascent, "SHARPNESSES", (1.0, 16.0))
    frontiers = frontiers_of(range(3))
    shares = dual_ascent.exact_shares(frontiers, np.array([1e-6, 1.0]))
    expected = []
    for frontier in frontiers:
        q, r = frontier.reference, frontier.reward
        ascent = q * (r - np.sum(q * r, axis=-1, keepdims=True))

        def covariance(x, y, q=q):
            mean = np.sum(q * x, axis=-1, keepdims=True), np.sum(q * y, axis=-1, keepdims=True)
            return np.sum(q * (x - mean[0]) * (y - mean[1])) / len(q)

        both = covariance(ascent, ascent) * covariance(r, r)
        expected.append(covariance(ascent, r) / np.sqrt(both))
    for share in shares.values():
        np.testing.assert_allclose(share[:, 0], expected, atol=2e-3)
    assert np.all(np.array(expected) < 0.99)
    far = np.stack([share[:, 1] for share in shares.values()])
    assert np.ptp(far, axis=0).min() > 0.1  # and later they differ


def test_what_rests_with_a_dual_gate_is_on_the_frontier_only_where_its_weight_is_level():
    """With the KL in the loss: w(rho) A - beta log rho is the same for all answers."""
    q, reward = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.0, 1.0, -0.5, 2.0])
    weigh = jax.jit(weight(gates.make("dual_product", sharpness=4.0, normalize=True)))

    def field(policy):
        advantage = reward - policy @ reward
        log_ratio = np.log(policy / q)
        return np.asarray(weigh(0.0 * policy, advantage, log_ratio)) * advantage - log_ratio

    with jax.enable_x64(True):
        rests = targets.settle(q, field, rate=0.1)
        log_ratio, advantage = np.log(rests / q), reward - rests @ reward
        w = np.asarray(weigh(0.0 * rests, advantage, log_ratio))
    assert np.ptp(w * advantage - log_ratio) < 1e-9
    # On the frontier w would be beta / b + c / A: two numbers for four answers.
    terms = np.stack([np.ones(4), 1.0 / advantage], axis=1)
    fitted = terms @ np.linalg.lstsq(terms, w, rcond=None)[0]
    assert np.abs(fitted - w).max() > 0.05
    frontier = Frontier(q[None], reward[None])
    kl = float(rests @ np.log(rests / q))
    assert float(frontier.reward_at(kl)) - rests @ reward > 1e-3
    # One arm against one other: every policy is on the frontier.
    two = Frontier(q[None, :2] / 0.7, reward[None, :2])
    for p in (0.5, 0.7):
        policy = np.array([1 - p, p])
        kl = float(policy @ np.log(policy / two.reference[0]))
        assert float(two.reward_at(kl)) == pytest.approx(policy @ reward[:2], abs=1e-9)


def test_mirror_descent_without_a_kl_walks_along_the_frontier():
    frontier = frontiers_of([5], tree)[0]
    policy = frontier.reference
    for _ in range(6):  # each an exact fit of REBEL's loss with eta = 0.7
        policy = policy * np.exp(0.7 * frontier.reward)
        policy /= policy.sum(axis=-1, keepdims=True)
        kl = alignment.divergence(policy, frontier.reference).mean()
        reward = np.sum(policy * frontier.reward, axis=-1).mean()
        assert float(frontier.reward_at(kl)) == pytest.approx(reward, abs=1e-9)


def test_the_maximum_with_two_kls_is_the_mixture_of_both_policies():
    rng = np.random.default_rng(0)
    q, old = alignment.softmax(rng.normal(size=(2, 6)))
    reward, a, c = rng.normal(size=6), 0.3, 0.9

    def value(p):
        return p @ reward - a * alignment.divergence(p, q) - c * alignment.divergence(p, old)

    best = q ** (a / (a + c)) * old ** (c / (a + c)) * np.exp(reward / (a + c))
    best /= best.sum()
    for _ in range(50):
        near = alignment.softmax(np.log(best) + 1e-3 * rng.normal(size=6))
        assert value(near) < value(best)
    # Again and again it comes to q exp(R / a) / Z, by the factor c / (a + c) each time.
    limit, p = targets.gibbs(q, reward, a), old
    errors = []
    for _ in range(30):
        p = q ** (a / (a + c)) * p ** (c / (a + c)) * np.exp(reward / (a + c))
        p /= p.sum()
        errors.append(np.ptp(np.log(p / limit)))
    np.testing.assert_allclose(np.array(errors[1:]) / np.array(errors[:-1]), c / (a + c), rtol=1e-6)


def test_a_claim_of_all_worlds_is_refuted_in_one():
    def test(mean):
        rng = np.random.default_rng(0)
        return intervals.compare({"": mean + 1e-4 * rng.normal(size=20)})[0]

    assert dual_verdicts.in_all([[test(0.1), test(-0.1)], [test(0.1), test(0.1)]]) is True
    assert dual_verdicts.in_all([[test(0.1), test(-0.1)], [test(0.0), test(0.1)]]) is False
    unsure = intervals.compare({"": np.random.default_rng(0).normal(size=20)})[0]
    assert dual_verdicts.in_all([[unsure, test(0.1)], [test(-0.1), test(0.1)]]) is None


def test_gains_need_to_be_shown_and_to_matter():
    def tests(*means, spread=1e-4):
        rng = np.random.default_rng(0)
        return intervals.compare({str(m): m + spread * rng.normal(size=20) for m in means})

    assert dual_verdicts.gains(tests(0.05, -0.01)) is True
    assert dual_verdicts.gains(tests(0.01, -0.01)) is False  # shown, and of no use
    assert dual_verdicts.gains(tests(-0.05, -0.01)) is False
    assert dual_verdicts.gains(tests(-0.05, 0.0, spread=1.0)) is None
