"""Running statistics, against two passes over everything in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import OBSERVATION_ACTION, Tabular

import envs
from agents import ppo, trpo
from rgpo_jax import normalization
from rgpo_jax.config import Config
from rgpo_jax.rollout import Trajectory


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (7, 1, 300), (1000, 2)])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_moments_do_not_depend_on_how_values_are_cut(sizes, shift):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(sum(sizes), 3)) * [1.0, 1e-2, 50.0] + shift).astype(np.float32)
    moments = normalization.empty((3,))
    for part in np.split(values, np.cumsum(sizes)[:-1]):
        moments = normalization.include(moments, jnp.asarray(part))
    exact = values.astype(np.float64)
    assert float(moments.num_values) == len(values)
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-5, atol=1e-6)
    if len(values) > 1:
        np.testing.assert_allclose(moments.variance, exact.var(0), rtol=2e-3)


def test_many_batches_lose_nothing():
    rng = np.random.default_rng(1)
    values = rng.normal(3.0, 2.0, size=(2000, 64)).astype(np.float32)
    moments, _ = jax.lax.scan(
        lambda moments, batch: (normalization.include(moments, batch[:, None]), None),
        normalization.empty((1,)),
        jnp.asarray(values),
    )
    np.testing.assert_allclose(moments.mean, [values.astype(np.float64).mean()], rtol=1e-5)
    np.testing.assert_allclose(moments.variance, [values.astype(np.float64).var()], rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int8, jnp.uint8])
def test_moments_of_coarse_numbers_are_not_coarse(dtype):
    """In float16 512 squares of 12 are beyond its range, and in int8 two of 12."""
    values = (12 * jax.random.normal(jax.random.key(0), (512, 1))).astype(dtype)
    moments = functools.reduce(normalization.include, [values] * 50, normalization.empty((1,)))
    exact = np.asarray(values).astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, exact.var(axis=0), rtol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7e6, 1e-30])
def test_what_does_not_vary_is_only_shifted(constant):
    values = jnp.full((100, 1), constant, jnp.float32)
    moments = normalization.include(normalization.empty((1,)), values)
    z = normalization.standardize(moments, values)
    np.testing.assert_allclose(z, 0.0, atol=1.0)
    assert np.isfinite(z).all()


def test_without_anything_seen_values_pass():
    x = jnp.array([[-3.0, 0.0, 9.0]])
    np.testing.assert_array_equal(normalization.standardize(normalization.empty((3,)), x), x)


def test_outliers_are_clipped():
    moments = normalization.include(normalization.empty(()), jnp.array([-1.0, 1.0]))
    np.testing.assert_allclose(
        normalization.standardize(moments, jnp.array([-1e9, -2.0, 1e9])), [-10.0, -2.0, 10.0]
    )


def test_returns_are_scaled_and_nothing_leaks_across_episodes():
    rng = np.random.default_rng(2)
    discount, steps, num_envs = 0.9, 50, 4
    reward = rng.normal(2.0, 5.0, size=(3 * steps, num_envs)).astype(np.float32)
    done = rng.random(reward.shape) < 0.1
    state, scaled = normalization.initial_return_scale(num_envs), []
    for rows in np.split(np.arange(3 * steps), 3):
        state, part = normalization.scale_rewards(state, reward[rows], done[rows], discount)
        scaled.append(part)

    running, returns = np.zeros(num_envs), []
    for t in range(3 * steps):
        running = discount * running + reward[t].astype(np.float64)
        returns.append(running.copy())
        running[done[t]] = 0.0
    np.testing.assert_allclose(state.moments.variance, np.var(returns), rtol=1e-5)
    np.testing.assert_allclose(state.running_return, running, rtol=1e-4, atol=1e-4)
    # Each batch by the spread up to and with itself.
    for i, part in enumerate(scaled):
        expected = reward[i * steps : (i + 1) * steps] / np.std(returns[: (i + 1) * steps])
        np.testing.assert_allclose(part, np.clip(expected, -10, 10), rtol=1e-4)


def test_rewards_of_zero_stay_zero():
    state = normalization.initial_return_scale(2)
    state, scaled = normalization.scale_rewards(
        state, jnp.zeros((5, 2)), jnp.zeros((5, 2), bool), 0.99
    )
    np.testing.assert_array_equal(scaled, 0.0)


# The agent.

SETTINGS = {
    "num_envs": 3,
    "num_steps": 16,
    "num_epochs": 2,
    "num_minibatches": 2,
    "hidden_sizes": (8,),
    "learning_rate": 1e-2,
    "total_steps": 4800,
    "normalize_observations": True,
    "normalize_rewards": True,
}
UPDATES = 4


@functools.cache
def trained(module, env="Pendulum-v1"):
    """An agent, its states after 0, 1, ... updates, and the metrics of the updates."""
    agent = module.make(envs.make(env, max_steps_in_episode=10), module.Config(**SETTINGS))

    def body(state, _):
        following, metrics = agent.step(state)
        return following, (following, metrics)

    start = jax.jit(agent.init)(jax.random.key(0))
    _, (states, metrics) = jax.jit(lambda s: jax.lax.scan(body, s, length=UPDATES))(start)
    following = [jax.tree.map(lambda x: x[i], states) for i in range(UPDATES)]  # noqa: B023
    return agent, [start, *following], metrics


@pytest.mark.parametrize("module", [ppo, trpo])
def test_the_first_ratio_is_one(module):
    _, _, metrics = trained(module)
    assert np.max(metrics["first_ratio_deviation"]) < 1e-5


def test_every_observation_and_return_counts_once():
    agent, states, _ = trained(ppo)
    # A user's own trajectories: the environment's numbers, and the result is known.
    learner, rng = agent.learner, np.random.default_rng(3)
    state, seen, rewards = states[0].learner, [], []
    for _ in range(2):
        observation = rng.normal(5.0, 3.0, size=(17, 3, 3)).astype(np.float32)
        trajectory = Trajectory(
            observation=observation[:-1],
            action=rng.normal(size=(16, 3, 1)).astype(np.float32),
            log_prob=np.full((16, 3), -1.0, np.float32),
            reward=rng.normal(size=(16, 3)).astype(np.float32),
            terminated=np.zeros((16, 3), bool),
            truncated=np.zeros((16, 3), bool),
            final_observation=observation[1:],
        )
        state, _ = jax.jit(learner.update)(state, jax.tree.map(jnp.asarray, trajectory))
        seen.append(observation[:-1].reshape(-1, 3))
        rewards.append(trajectory.reward)
    exact = np.concatenate(seen).astype(np.float64)
    np.testing.assert_allclose(state.observation_moments.mean, exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.observation_moments.variance, exact.var(0), rtol=1e-4)
    running, returns = np.zeros(3), []
    for reward in np.concatenate(rewards):
        running = 0.99 * running + reward
        returns.append(running)
    np.testing.assert_allclose(state.return_scale.moments.variance, np.var(returns), rtol=1e-4)


def test_acting_and_evaluation_see_what_training_saw():
    agent, states, _ = trained(ppo)
    state = states[-1]
    observation = state.rollout.observation
    moments = state.learner.observation_moments
    assert float(moments.num_values) == UPDATES * 48
    assert not np.allclose(moments.mean, 0.0, atol=1e-3)
    z = (observation - moments.mean) / np.sqrt(moments.variance)
    expected = agent.learner.network.policy(state.learner.params["actor"], z).mode()
    policy = agent.learner.policy(state.learner, observation)
    np.testing.assert_allclose(policy.mode(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        agent.act(state, observation), 2.0 * np.clip(expected, -1, 1), rtol=1e-5, atol=1e-6
    )


def test_what_is_learnt_does_not_depend_on_the_units():
    """Observations in other units: the very same learning, once the first rollout is seen."""

    class InOtherUnits(Tabular):
        def _convert(self, x):
            return 1000.0 * x - 300.0

        def reset(self, key):
            state, observation = super().reset(key)
            return state, self._convert(observation)

        def step(self, key, state, action):
            state, timestep = super().step(key, state, action)
            return state, timestep._replace(
                observation=self._convert(timestep.observation),
                final_observation=self._convert(timestep.final_observation),
            )

    settings = SETTINGS | {"num_envs": 16, "total_steps": 16 * 16 * 40, "normalize_rewards": False}

    @jax.jit
    def final_return(key):
        agent = ppo.make(InOtherUnits(OBSERVATION_ACTION), ppo.Config(**settings))
        _, metrics = jax.lax.scan(agent.step, agent.init(key), length=40)
        return metrics["episode_return"][-1]

    assert final_return(jax.random.key(0)) > 0.9


def test_without_the_flags_nothing_is_carried():
    learner = ppo.make(envs.make("CartPole-v1"), ppo.Config()).learner
    state = jax.eval_shape(learner.init, jax.random.key(0), learner.hyperparameters)
    assert state.observation_moments is None
    assert state.return_scale is None
    assert not Config().normalize_observations
