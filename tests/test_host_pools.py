"""Pools of one's own: what they may do with their arrays, and what of episodes without end."""

import jax
import numpy as np
import pytest

from agents import ppo
from rgpo_jax import host
from rgpo_jax.environment import Discrete, TimeStep
from rgpo_jax.inspection import EnvironmentFailed

CONFIG = ppo.Config(
    num_envs=2, num_steps=6, num_minibatches=1, num_epochs=1, hidden_sizes=(4,), total_steps=12
)


class CountingPool:
    """Observations count steps since the reset; all arrays are new, or the same ones each time."""

    def __init__(self, number, length, reuses):
        self._length, self._reuses = length, reuses
        self._time = np.zeros(number, int)
        self._arrays = None

    def _give(self, *values):
        if self._arrays is None or not self._reuses:
            self._arrays = [np.array(value) for value in values]
        for array, value in zip(self._arrays, values, strict=True):
            array[...] = value
        return self._arrays

    def reset(self):
        self._time[:] = 0
        return np.array(self._time[:, None], np.float32)

    def send(self, action):
        self._time += 1
        done = self._time >= self._length
        final = np.float32(self._time[:, None])
        self._time[done] = 0
        observation = np.float32(self._time[:, None])
        reward = np.float32(final[:, 0])
        self._step = self._give(observation, reward, np.zeros_like(done), done, final)

    def receive(self):
        return TimeStep(*self._step)


class Counting:
    observation_shape = (1,)
    observation_dtype = np.float32
    action_space = Discrete(2)
    name = "counting"
    max_episode_steps = 4

    def __init__(self, length=4, reuses=False):
        self._length, self._reuses = length, reuses

    def make_pool(self, seeds):
        return CountingPool(len(seeds), self._length, self._reuses)


def rollout_of(env):
    agent = ppo.make(env, CONFIG)
    states = jax.vmap(agent.learner.init)(jax.random.split(jax.random.key(0), 1))
    collector = host.Collector(agent, (5,))
    return collector.collect(states, jax.random.split(jax.random.key(1), 1))


def test_a_pool_may_write_its_next_step_over_the_last():
    ours, totals = rollout_of(Counting(reuses=True))
    fresh, same_totals = rollout_of(Counting())
    jax.tree.map(np.testing.assert_array_equal, ours, fresh)
    jax.tree.map(np.testing.assert_array_equal, totals, same_totals)
    np.testing.assert_array_equal(ours.observation[0, :, 0, 0], [0, 1, 2, 3, 0, 1])
    np.testing.assert_array_equal(ours.final_observation[0, :, 0, 0], [1, 2, 3, 4, 1, 2])
    np.testing.assert_array_equal(ours.reward[0, :, 0], [1, 2, 3, 4, 1, 2])


def test_an_evaluation_of_episodes_without_end_is_given_up():
    agent = ppo.make(Counting(length=10**9), CONFIG)
    states = jax.vmap(agent.learner.init)(jax.random.split(jax.random.key(0), 1))
    evaluator = host.Evaluator(agent, (5,), 2)
    with pytest.raises(EnvironmentFailed, match=r"counting: episodes go on after 8 steps.* = 4 at"):
        evaluator.run(states, jax.random.split(jax.random.key(1), 1), deterministic=True)
