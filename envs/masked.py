"""Environments of which a policy sees a part: what is hidden must be remembered, or inferred."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rgpo_jax.environment import Environment, ObservationShape, TimeStep

Array = jax.Array


class MaskedEnvironment:
    """A compiled environment that shows the elements `keep` of its observation, in that order.

    Raises:
      ValueError: observations are not vectors, or have no such element, or none is kept.
    """

    def __init__(self, env: Environment, keep: Sequence[int], name: str | None = None):
        shape = env.observation_shape
        if isinstance(shape, dict) or len(shape) != 1:
            raise ValueError(f"{env.name}: expected observations that are vectors, not {shape}")
        size = shape[0]
        if not keep or not all(0 <= index < size for index in keep):
            raise ValueError(
                f"keep = {tuple(keep)}: expected indices from 0 to {size - 1}, at least one"
            )
        self.wraps = self._env = env
        self._keep = jnp.asarray(keep, jnp.int32)
        self.name = f"{env.name}-masked" if name is None else name
        self.observation_shape: ObservationShape = (len(keep),)
        self.action_space = env.action_space
        self.max_episode_steps = env.max_episode_steps

    def reset(self, key: Array) -> tuple[Any, Array]:
        state, observation = self._env.reset(key)
        return state, observation[self._keep]

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        state, timestep = self._env.step(key, state, action)
        return state, timestep._replace(
            observation=timestep.observation[self._keep],
            final_observation=timestep.final_observation[self._keep],
        )

    def picture(self, state: Any, observation: Array, size: int) -> np.ndarray:
        """Draws a state as the whole environment does, hidden elements included."""
        from envs import pictures

        return pictures.of(self._env, state, observation, size)
