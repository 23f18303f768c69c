"""Rollouts: what a trajectory holds, and where its episodes start."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import envs
from rgpo_jax import networks, rollout
from rgpo_jax.config import Config
from rgpo_jax.distributions import Categorical
from rgpo_jax.environment import Discrete, TimeStep

# Nearly all of the time here is spent in compiling programs that run once.
# Seeds are fixed, so that a test of a true statement passes always or never.
LEAST_P_VALUE = 1e-3
NUM_ENVS, NUM_STEPS = 3, 80
EPISODE_LIMIT = 30  # of Pendulum here: two or three episodes in each rollout


def make(name):
    limit = {"max_steps_in_episode": EPISODE_LIMIT} if name == "Pendulum-v1" else {}
    env = envs.make(name, **limit)
    config = Config(hidden_sizes=(8,), num_envs=NUM_ENVS)
    return env, networks.make(env.observation_shape, env.action_space, config)


@functools.cache
def two_rollouts(name, reset_pool_size=2, num_envs=NUM_ENVS):
    """Two consecutive rollouts: [(state before, trajectory, state after, totals), ...]."""
    env, network = make(name)

    @jax.jit
    def run():
        params_key, env_key, *keys = jax.random.split(jax.random.key(1), 4)
        params = network.init(params_key)["actor"]
        state = rollout.init(env, num_envs, env_key)
        records = []
        for key in keys:
            before = state
            state, trajectory, totals = rollout.collect(
                env, partial(network.policy, params), before, key, NUM_STEPS, reset_pool_size
            )
            records.append((before, trajectory, state, totals))
        return params, records

    params, records = run()
    return env, network, params, jax.tree.map(np.asarray, records)


def done_of(trajectory):
    return trajectory.terminated | trajectory.truncated


def next_observation(trajectory, state):
    """What was acted on after each step: of the next episode, where one ended."""
    return np.concatenate([trajectory.observation[1:], state.observation[None]])


both_environments = pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
both_reset_modes = pytest.mark.parametrize("reset_pool_size", [0, 2])


@both_environments
def test_shapes_and_types(name):
    env, _, _, records = two_rollouts(name)
    discrete = isinstance(env.action_space, Discrete)
    for before, trajectory, after, totals in records:
        for leaf, shape, dtype in (
            (trajectory.observation, env.observation_shape, np.float32),
            (trajectory.final_observation, env.observation_shape, np.float32),
            (
                trajectory.action,
                () if discrete else env.action_space.shape,
                np.int32 if discrete else np.float32,
            ),
            (trajectory.log_prob, (), np.float32),
            (trajectory.reward, (), np.float32),
            (trajectory.terminated, (), bool),
            (trajectory.truncated, (), bool),
        ):
            assert leaf.shape == (NUM_STEPS, NUM_ENVS, *shape)
            assert leaf.dtype == dtype
        jax.tree.map(np.testing.assert_array_equal, *jax.tree.map(np.shape, (before, after)))
        assert all(total.shape == () for total in totals)
        assert after.episode_length.dtype == np.int32


@both_environments
@both_reset_modes
def test_an_episode_goes_on_from_where_the_step_led(name, reset_pool_size):
    for _, trajectory, after, _ in two_rollouts(name, reset_pool_size)[3]:
        on = ~done_of(trajectory)
        assert on.any()
        np.testing.assert_allclose(  # the compiler may round the two copies differently
            trajectory.final_observation[on], next_observation(trajectory, after)[on], atol=1e-5
        )


@both_environments
@both_reset_modes
def test_an_ended_episode_keeps_its_last_observation_beside_a_fresh_start(name, reset_pool_size):
    for _, trajectory, after, _ in two_rollouts(name, reset_pool_size)[3]:
        done = done_of(trajectory)
        assert done.sum() >= NUM_ENVS
        start, final = next_observation(trajectory, after)[done], trajectory.final_observation[done]
        if name == "CartPole-v1":
            assert np.all(np.abs(start) <= 0.05)
            assert np.all(np.abs(final[:, 2]) > np.deg2rad(12))  # fallen
        else:
            assert np.all(np.abs(start[:, 2]) <= 1.0)  # angular velocity
            assert not np.any(np.all(start == final, axis=-1))


@both_environments
def test_the_second_rollout_starts_where_the_first_stopped(name):
    (_, _, after, _), (_, trajectory, _, _) = two_rollouts(name)[3]
    np.testing.assert_array_equal(trajectory.observation[0], after.observation)


@both_environments
@both_reset_modes
def test_state_and_observation_restart_together(name, reset_pool_size):
    # The step after a restart must follow from the start that was shown.
    _, _, _, records = two_rollouts(name, reset_pool_size)
    for _, trajectory, after, _ in records:
        state = after.env_state
        shown = (
            np.stack([state.x, state.x_dot, state.theta, state.theta_dot], -1)
            if name == "CartPole-v1"
            else np.stack([np.cos(state.theta), np.sin(state.theta), state.theta_dot], -1)
        )
        np.testing.assert_allclose(after.observation, shown, atol=1e-6)
        np.testing.assert_array_equal(state.time, after.episode_length)
        if name == "CartPole-v1":  # x moves by tau * x_dot, whatever the action
            x = trajectory.observation[..., 0] + 0.02 * trajectory.observation[..., 1]
            np.testing.assert_allclose(trajectory.final_observation[..., 0], x, atol=1e-6)


@both_environments
@both_reset_modes
def test_totals_are_those_of_the_episodes_that_ended(name, reset_pool_size):
    running_return, running_length = np.zeros(NUM_ENVS), np.zeros(NUM_ENVS, int)
    carried = 0
    for before, trajectory, after, totals in two_rollouts(name, reset_pool_size)[3]:
        np.testing.assert_allclose(before.episode_return, running_return, rtol=1e-5)
        np.testing.assert_array_equal(before.episode_length, running_length)
        carried += np.sum(running_length > 0)
        returns, lengths = [], []
        for reward, done in zip(trajectory.reward, done_of(trajectory), strict=True):
            running_return += reward
            running_length += 1
            returns += list(running_return[done])
            lengths += list(running_length[done])
            running_return[done], running_length[done] = 0.0, 0
        assert totals.episodes == len(returns) > 0
        np.testing.assert_allclose(totals.returns, sum(returns), rtol=1e-5)
        assert totals.lengths == sum(lengths)
        np.testing.assert_allclose(after.episode_return, running_return, rtol=1e-5)
        np.testing.assert_array_equal(after.episode_length, running_length)
    assert carried > 0  # else no episode spanned the two rollouts


def test_pendulum_is_only_ever_truncated_and_after_its_limit():
    trajectories = [record[1] for record in two_rollouts("Pendulum-v1")[3]]
    assert not any(t.terminated.any() for t in trajectories)
    truncated = np.concatenate([t.truncated for t in trajectories])
    step = np.arange(1, len(truncated) + 1)
    np.testing.assert_array_equal(truncated, np.repeat((step % EPISODE_LIMIT == 0)[:, None], 3, 1))


@both_environments
def test_log_prob_is_that_of_the_stored_action(name):
    _, network, params, records = two_rollouts(name)
    for _, trajectory, _, _ in records:
        log_prob = network.policy(params, trajectory.observation).log_prob(trajectory.action)
        np.testing.assert_allclose(trajectory.log_prob, log_prob, rtol=1e-5, atol=1e-6)


def test_the_stored_action_is_the_policys_and_not_the_environments():
    # Clipped to the bounds, its log-density would be another's.
    _, _, _, records = two_rollouts("Pendulum-v1")
    assert np.abs(records[0][1].action).max() > 1.0


def test_the_environment_feels_the_action_in_its_own_units():
    # Pendulum's reward shows the torque: 0.001 u^2, with u = 2 clip(action, -1, 1).
    _, _, _, records = two_rollouts("Pendulum-v1")
    trajectory = records[0][1]
    cos, sin, velocity = np.moveaxis(trajectory.observation.astype(float), -1, 0)
    torque = 2.0 * np.clip(trajectory.action[..., 0], -1.0, 1.0)
    expected = -(np.arctan2(sin, cos) ** 2 + 0.1 * velocity**2 + 0.001 * torque**2)
    np.testing.assert_allclose(trajectory.reward, expected, rtol=1e-4, atol=1e-5)


def test_a_tanh_normal_action_is_stored_before_the_tanh_and_felt_after_it():
    config = Config(hidden_sizes=(8,), policy="tanh_normal", state_dependent_std=True)
    env = envs.make("Pendulum-v1")
    network = networks.make(env.observation_shape, env.action_space, config)

    @jax.jit
    def collect(key):
        params = network.init(key)["actor"]
        state = rollout.init(env, 8, key)
        policy = partial(network.policy, params)
        _, trajectory, _ = rollout.collect(env, policy, state, key, 16, 1)
        return trajectory, policy(trajectory.observation)

    trajectory, policy = collect(jax.random.key(0))
    assert np.abs(trajectory.action).max() > 1.0
    again = policy.log_prob(trajectory.action)
    np.testing.assert_allclose(np.exp(again - trajectory.log_prob), 1.0, rtol=0, atol=1e-5)
    # As above, with u = 2 tanh(action).
    cos, sin, velocity = np.moveaxis(trajectory.observation.astype(float), -1, 0)
    torque = 2.0 * np.tanh(trajectory.action[..., 0])
    expected = -(np.arctan2(sin, cos) ** 2 + 0.1 * velocity**2 + 0.001 * torque**2)
    np.testing.assert_allclose(trajectory.reward, expected, rtol=1e-4, atol=1e-5)


def test_every_environment_and_step_has_noise_of_its_own():
    _, network, params, records = two_rollouts("Pendulum-v1")
    noises = []
    for _, trajectory, _, _ in records:
        policy = network.policy(params, trajectory.observation)
        noises.append((trajectory.action - policy.mean) / np.exp(policy.log_std))
    noise = np.concatenate(noises)[..., 0]
    assert np.unique(noise.round(5)).size > 0.98 * noise.size  # but for chance
    for one, other in ((noise[:, 0], noise[:, 1]), (noise[:-1, 0], noise[1:, 0])):
        assert stats.pearsonr(one, other).pvalue > LEAST_P_VALUE
    assert stats.kstest(noise.ravel(), "norm").pvalue > LEAST_P_VALUE


@both_reset_modes
def test_the_key_decides(reset_pool_size):
    env, network = make("Pendulum-v1")
    params = network.init(jax.random.key(0))["actor"]
    state = rollout.init(env, NUM_ENVS, jax.random.key(1))
    collect = jax.jit(
        lambda key: rollout.collect(
            env, partial(network.policy, params), state, key, 40, reset_pool_size
        )
    )
    first, again, other = (collect(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first[1].action, other[1].action)
    assert not np.array_equal(first[1].reward, other[1].reward)


def test_environments_are_initialised_apart():
    env, _ = make("CartPole-v1")
    observation = rollout.init(env, 16, jax.random.key(0)).observation
    assert np.unique(observation).size == observation.size


def starts_of(record):
    """Starts of the episodes that began in a rollout, one list per environment."""
    _, trajectory, after, _ = record
    done, start = done_of(trajectory), next_observation(trajectory, after)
    return [start[done[:, b], b] for b in range(done.shape[1])]


@pytest.mark.parametrize("reset_pool_size", [0, 1, 2])
def test_starts_are_fresh_in_every_rollout_and_environment(reset_pool_size):
    records = two_rollouts("CartPole-v1", reset_pool_size)[3]
    starts = [env_starts for record in records for env_starts in starts_of(record)]
    starts.append(records[0][0].observation)  # the very first ones are not used again either
    distinct = [{tuple(start) for start in env_starts} for env_starts in starts]
    assert all(distinct)
    assert len(set.union(*distinct)) == sum(map(len, distinct))  # none shared
    for env_starts, of_env in zip(starts[:-1], distinct[:-1], strict=True):
        assert len(of_env) <= (reset_pool_size or len(env_starts))
        if reset_pool_size == 0:
            assert len(of_env) == len(env_starts)
    if reset_pool_size == 2:
        assert any(len(of_env) == 2 for of_env in distinct[:-1])  # more than one row is used


# Where episodes start, as a distribution. Two starts of one environment in one rollout come from
# one pool and are not independent; the first starts after the pool was made are: of each rollout
# and environment the tests below count that one.


def collect_many(env, policy, key, num_rollouts, num_envs, num_steps, reset_pool_size):
    """Consecutive rollouts: done [R, T, B], start [R, T, B, ...], observation [R, T, B, ...]."""

    @jax.jit
    def run(key):
        env_key, key = jax.random.split(key)

        def body(state, key):
            state, trajectory, _ = rollout.collect(
                env, policy, state, key, num_steps, reset_pool_size
            )
            start = jnp.concatenate([trajectory.observation[1:], state.observation[None]])
            return state, (done_of(trajectory), start, trajectory.observation)

        state = rollout.init(env, num_envs, env_key)
        return jax.lax.scan(body, state, jax.random.split(key, num_rollouts))[1]

    return jax.tree.map(np.asarray, run(key))


def first_starts(done, start):
    """The first start of each rollout and environment, of those in which an episode ended."""
    t = np.argmax(done, axis=1)
    rollouts, columns = np.nonzero(done.any(axis=1))
    return start[rollouts, t[rollouts, columns], columns]


@functools.cache
def cartpole_starts(reset_pool_size):
    env, network = make("CartPole-v1")
    params = network.init(jax.random.key(0))["actor"]
    key = jax.random.key(10 + reset_pool_size)
    done, start, _ = collect_many(
        env, partial(network.policy, params), key, 20, 64, 64, reset_pool_size
    )
    return first_starts(done, start)


def test_both_reset_modes_start_cartpole_alike():
    pooled, computed = cartpole_starts(8), cartpole_starts(0)
    assert min(len(pooled), len(computed)) > 1200
    for i in range(4):
        assert stats.ks_2samp(pooled[:, i], computed[:, i]).pvalue > LEAST_P_VALUE


@pytest.mark.parametrize("reset_pool_size", [0, 8])
def test_cartpole_starts_uniformly_within_five_hundredths(reset_pool_size):
    starts = cartpole_starts(reset_pool_size)
    for i in range(4):
        uniform = stats.uniform(-0.05, 0.1)
        assert stats.kstest(starts[:, i], uniform.cdf).pvalue > LEAST_P_VALUE
    # Nor do coordinates, or neighbouring environments, go together.
    for one, other in ((starts[:, 0], starts[:, 2]), (starts[:-1, 0], starts[1:, 0])):
        assert stats.pearsonr(one, other).pvalue > LEAST_P_VALUE


LENGTHS = np.array([1, 2, 4, 8])  # an episode's length, by its kind


class Countdown:
    """Episodes whose length is drawn with their start, uniformly from LENGTHS.

    Observations are a number of the start, unique but for chance: its kind is the number mod 4.
    Rewards are noise, and show the keys that steps are given.
    A way of restarting that depends on how long episodes last shows in the kinds.
    """

    name = "Countdown"
    observation_shape = (1,)
    action_space = Discrete(2)
    max_episode_steps = 8

    def reset(self, key):
        number = jax.random.randint(key, (), 0, 2**24)  # all exact in float32
        return (number, jnp.asarray(LENGTHS)[number % 4]), number[None].astype(jnp.float32)

    def step(self, key, state, action):
        number, left = state[0], state[1] - 1
        observation = number[None].astype(jnp.float32)
        never = jnp.array(False)
        reward = jax.random.uniform(key)
        return (number, left), TimeStep(observation, reward, left == 0, never, observation)


# Its actions change nothing, and a trivial policy compiles at once.
def indifferent(observation):
    return Categorical.from_logits(jnp.zeros((*observation.shape[:-1], 2)))


def test_every_environment_and_step_has_a_key_of_its_own():
    state = rollout.init(Countdown(), 16, jax.random.key(0))
    _, trajectory, _ = jax.jit(
        lambda key: rollout.collect(Countdown(), indifferent, state, key, 64, 2)
    )(jax.random.key(1))
    reward = np.asarray(trajectory.reward)
    assert np.unique(reward).size > 0.99 * reward.size
    assert stats.kstest(reward.ravel(), "uniform").pvalue > LEAST_P_VALUE


def is_uniform(numbers):
    counts = np.bincount(np.asarray(numbers, int) % 4, minlength=4)
    return stats.chisquare(counts).pvalue > LEAST_P_VALUE


@pytest.mark.parametrize("reset_pool_size", [0, 1, 4, 8])
def test_starts_do_not_depend_on_how_long_episodes_last(reset_pool_size):
    done, start, _ = collect_many(
        Countdown(), indifferent, jax.random.key(reset_pool_size), 64, 64, 13, reset_pool_size
    )
    firsts = first_starts(done, start[..., 0])
    assert len(firsts) == 64 * 64  # no episode outlasts a rollout
    assert is_uniform(firsts)
    # Also at each time of the rollout, which tells of the episode before.
    t = np.argmax(done, axis=1).ravel()
    assert np.bincount(t).min() > 50
    assert all(is_uniform(firsts[t == when]) for when in range(8))
    if reset_pool_size == 0:
        assert is_uniform(start[done][:, 0])  # every start is independent of all others


@functools.cache
def lone_rollouts(reset_pool_size):
    """512 independent rollouts of one environment each: done [512, T], number [512, T]."""

    @jax.jit
    @jax.vmap
    def run(key):
        env_key, key = jax.random.split(key)
        state = rollout.init(Countdown(), 1, env_key)
        state, trajectory, _ = rollout.collect(
            Countdown(), indifferent, state, key, 256, reset_pool_size
        )
        start = jnp.concatenate([trajectory.observation[1:], state.observation[None]])
        return done_of(trajectory)[:, 0], start[:, 0, 0]

    done, start = run(jax.random.split(jax.random.key(reset_pool_size), 512))
    return np.asarray(done), np.asarray(start, int)


@pytest.mark.parametrize("reset_pool_size", [2, 4, 8])
def test_a_pool_is_used_in_order_and_then_again(reset_pool_size):
    for done, start in zip(*lone_rollouts(reset_pool_size), strict=True):
        numbers = start[done]
        assert len(numbers) > 2 * reset_pool_size
        np.testing.assert_array_equal(numbers[reset_pool_size:], numbers[:-reset_pool_size])
    firsts = [start[done][:reset_pool_size] for done, start in zip(*lone_rollouts(8), strict=True)]
    assert np.mean([len(np.unique(pool)) == len(pool) for pool in firsts]) > 0.99


def test_every_start_of_a_pool_that_suffices_is_a_draw_of_its_own():
    # Lengths differ eightfold with the start: a pool that is drawn from more often where episodes
    # are short, or started from in step with time, would not be uniform over all starts.
    num_steps = Config().reset_pool_size
    done, start, _ = collect_many(
        Countdown(), indifferent, jax.random.key(5), 64, 64, num_steps, num_steps
    )
    numbers = start[done][:, 0]
    assert len(numbers) > 10_000
    assert is_uniform(numbers)
