"""A limit for the episodes of a compiled environment that has none."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.parameters import limit as checked
from rgpo_jax.environment import Environment, TimeStep

Array = jax.Array


class LimitedState(NamedTuple):
    """Where an environment stands.

    Attributes:
      inner: its own state.
      time: steps since the reset, int32 [].
    """

    inner: Any
    time: Array


class LimitedEnvironment:
    """A compiled environment whose episodes are truncated after `limit` steps.

    An end of its own wins where it falls together with the limit.

    Raises:
      ValueError: the limit is no whole number of at least 1.
    """

    def __init__(self, env: Environment, limit: int):
        self.wraps = self._env = env
        self.name = env.name
        self.observation_shape = env.observation_shape
        self.action_space = env.action_space
        self._limit = checked(limit)
        self.max_episode_steps: int | None = self._limit

    def reset(self, key: Array) -> tuple[LimitedState, Array]:
        state, observation = self._env.reset(key)
        return LimitedState(state, jnp.int32(0)), observation

    def step(self, key: Array, state: LimitedState, action: Array) -> tuple[LimitedState, TimeStep]:
        inner, timestep = self._env.step(key, state.inner, action)
        time = state.time + 1
        cut = (time >= self._limit) & ~timestep.terminated
        timestep = timestep._replace(truncated=timestep.truncated | cut)
        return LimitedState(inner, time), timestep

    def picture(self, state: LimitedState, observation: Array, size: int) -> np.ndarray:
        """Draws a state as the environment itself does."""
        from envs import pictures

        return pictures.of(self._env, state.inner, observation, size)
