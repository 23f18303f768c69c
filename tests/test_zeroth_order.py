"""Zeroth-order policy gradients against the gradient, and what few judges do to them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from agents import language as methods
from envs.language import bandit, tree
from rgpo_jax.language import zeroth_order
from rgpo_jax.language.world import all_log_probs

ARMS = 5
MU = 0.01


def problem():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=ARMS)), jnp.asarray(rng.normal(size=ARMS))


def value(theta):
    return jax.nn.softmax(theta) @ problem()[1]


def gradient():
    return np.asarray(jax.grad(value)(problem()[0]))


def compare(estimate):
    """The cosine to the gradient, and the scale: the projection over the gradient's length."""
    true = gradient()
    dot = float(estimate @ true)
    return dot / np.linalg.norm(estimate) / np.linalg.norm(true), dot / float(true @ true)


def directions_of(kind, number):
    direction = zeroth_order.on_sphere if kind is None else zeroth_order.on_coordinates(kind)
    keys = jax.random.split(jax.random.key(1), number)
    return jax.vmap(lambda key: direction(key, ARMS))(keys)


@pytest.mark.parametrize("kind", [None, 2, ARMS])
def test_directions_have_length_1_and_cover_all_equally(kind):
    found = directions_of(kind, 20_000)
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(ARMS) / ARMS, atol=6e-3)
    if kind is not None:
        assert np.all(np.sum(np.asarray(found) != 0, axis=1) == kind)


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("kind", [None, 2])
def test_exact_values_along_many_directions_give_the_gradient(kind, central):
    with jax.enable_x64(True):
        theta = problem()[0]
        directions = directions_of(kind, 20_000)
        ahead = jax.vmap(lambda v: value(theta + MU * v))(directions)
        behind = jax.vmap(lambda v: value(theta - MU * v))(directions) if central else value(theta)
        estimate = zeroth_order.estimate(directions, ahead - behind, MU, central)
        cosine, scale = compare(estimate)
    assert cosine > 0.9998
    assert abs(scale - 1.0) < 0.02


@functools.cache
def judged(num_judges, feedback, trim, num_directions=1000, pairs=64):
    """Scale of the estimate where answers are sampled, N = 64 pairs a direction."""
    theta, reward = problem()
    mu = 1.0  # far enough for the difference to be seen through the noise

    def of_direction(key):
        v_key, first_key, second_key, judge_key = jax.random.split(key, 4)
        v = zeroth_order.on_sphere(v_key, ARMS)
        first = jax.random.categorical(first_key, theta + mu * v, shape=(pairs,))
        second = jax.random.categorical(second_key, theta, shape=(pairs,))
        gap = reward[first] - reward[second]
        wins = zeroth_order.share_of_wins(judge_key, gap, num_judges)
        return v, zeroth_order.advantage_of(wins, feedback, trim), value(theta + mu * v)

    keys = jax.random.split(jax.random.key(3), num_directions)
    v, advantage, ahead = jax.jit(jax.vmap(of_direction))(keys)
    true = zeroth_order.estimate(v, ahead - value(theta), mu)
    found = zeroth_order.estimate(v, advantage, mu)
    return float(found @ true / (true @ true))


def expected_advantage(gap, num_judges, trim):
    """The mean of the logit of a share of wins, over all that judges may say."""
    wins = np.arange(num_judges + 1)
    share = np.clip(wins / num_judges, trim, 1 - trim)
    return stats.binom.pmf(wins, num_judges, expit(gap)) @ np.log(share / (1 - share))


def test_many_judges_give_the_gradient_and_few_a_biased_one():
    """What users must know: the logit of a share is not the share of a logit, and trim cuts it."""
    assert abs(judged(1001, "each", 1e-3) - 1.0) < 0.1
    assert abs(judged(31, "each", 0.05) - 1.0) < 0.15
    assert judged(3, "each", 0.2) < 0.75
    # By the closed form, of a small difference: too much or too little, as trim says.
    slopes = [expected_advantage(0.01, 3, trim) / 0.01 for trim in (0.05, 0.2, 0.4)]
    np.testing.assert_allclose(slopes, [1.364, 0.779, 0.304], atol=2e-3)


def test_the_advantage_of_many_pairs_is_that_of_the_closed_form():
    wins = zeroth_order.share_of_wins(jax.random.key(0), jnp.full(100_000, 0.7), 3)
    found = zeroth_order.advantage_of(wins, "each", 0.2)
    assert abs(found - expected_advantage(0.7, 3, 0.2)) < 0.02


def test_one_judge_a_pair_says_nothing_where_the_trim_is_a_half_and_little_below():
    assert abs(judged(1, "each", 0.4999)) < 1e-2
    # Pooled, the same judges say something.
    assert judged(1, "pooled", 0.01) > 0.3


def test_the_logit_of_a_share_of_wins_by_hand():
    wins = jnp.array([[0.0, 1 / 3, 1.0]])
    each = zeroth_order.advantage_of(wins, "each", 0.1)
    expected = (np.log(0.1 / 0.9) + np.log(0.5) + np.log(0.9 / 0.1)) / 3
    np.testing.assert_allclose(each, [expected], rtol=1e-5)
    pooled = zeroth_order.advantage_of(wins, "pooled", 0.1)
    share = float(jnp.mean(wins))
    np.testing.assert_allclose(pooled, [np.log(share / (1 - share))], rtol=1e-5)
    np.testing.assert_array_equal(zeroth_order.advantage_of(wins, "sign", 0.1), [-1.0])
    np.testing.assert_array_equal(zeroth_order.advantage_of(1 - wins, "sign", 0.1), [1.0])


def test_judges_of_a_known_difference_win_as_often_as_the_model_says():
    gap = jnp.full(50_000, 0.8)
    for number in (1, 7):
        wins = zeroth_order.share_of_wins(jax.random.key(0), gap, number)
        assert abs(float(jnp.mean(wins)) - 1 / (1 + np.exp(-0.8))) < 0.01
        assert set(np.unique(np.round(wins * number, 5))) <= set(range(number + 1))
    exact = zeroth_order.share_of_wins(jax.random.key(0), gap, None)
    np.testing.assert_allclose(exact, jax.nn.sigmoid(gap))


@pytest.mark.parametrize("method", methods.FROM_WINS)
def test_an_update_moves_along_the_directions_that_its_answers_were_sampled_by(method):
    world = tree.make()
    module = methods.load(method)
    config = module.Config(num_prompts=8, num_directions=2, learning_rate=1.0, max_grad_norm=1e9)
    agent = module.make(world, config)
    state = agent.init(jax.random.key(0), world.frozen)
    after, metrics = agent.step(state, world.frozen, world.prompts)
    change = np.asarray(after.learner.params["actor"] - state.learner.params["actor"]).ravel()
    direction = zeroth_order.on_sphere
    if method == "zbcpg":
        direction = zeroth_order.on_coordinates(config.num_coordinates)
    key = jax.random.fold_in(state.prompt_key, zeroth_order._DIRECTION_STREAM)
    keys = jax.random.split(jax.random.fold_in(key, 0), 2)
    spanned = np.stack([direction(k, change.size) for k in keys])
    along = np.linalg.lstsq(spanned.T, change, rcond=None)[0]
    np.testing.assert_allclose(spanned.T @ along, change, atol=1e-4 * np.abs(change).max())
    np.testing.assert_allclose(np.linalg.norm(change), metrics["grad_norm"], rtol=1e-4)


def test_common_random_numbers_differ_by_parameters_alone():
    world = bandit.make()
    module = methods.load("zpg")
    config = module.Config(common_random_numbers=True, smoothing=1e-6, num_prompts=32)
    agent = module.make(world, config)
    state = agent.init(jax.random.key(0), world.frozen)
    _, _, answers = agent.sample(state, world.frozen, world.prompts)
    by_pair = np.asarray(answers.tokens).reshape(32, 2)
    np.testing.assert_array_equal(by_pair[:, 0], by_pair[:, 1])
    apart = module.make(world, module.Config(smoothing=1e-6, num_prompts=32))
    _, _, answers = apart.sample(state, world.frozen, world.prompts)
    by_pair = np.asarray(answers.tokens).reshape(32, 2)
    assert np.any(by_pair[:, 0] != by_pair[:, 1])


@pytest.mark.parametrize("method", methods.FROM_WINS)
def test_it_learns_in_a_bandit(method):
    world = bandit.make(num_prompts=2)
    module = methods.load(method)
    config = module.Config(num_updates=1000, learning_rate=0.3, max_grad_norm=1.0)
    agent = module.make(world, config)

    def train(key):
        state = agent.init(key, world.frozen)
        state, _ = jax.lax.scan(
            lambda s, _: (agent.step(s, world.frozen, world.prompts)[0], None),
            state,
            length=config.num_updates,
        )
        policy = jnp.exp(all_log_probs(world, state.learner.params, world.frozen))
        return jnp.mean(jnp.sum(policy * world.enumeration.reward, axis=-1))

    rewards = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 2))
    start = np.exp(np.asarray(all_log_probs(world, None, world.frozen)))
    reward = np.asarray(world.enumeration.reward)
    before, best = np.mean(np.sum(start * reward, axis=-1)), np.mean(reward.max(axis=-1))
    assert np.all(rewards > before + 0.5 * (best - before))
