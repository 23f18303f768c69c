"""gymnax 1.x behind the protocol of `rgpo_jax.environment`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import carry, lazy
from rgpo_jax.environment import ActionSpace, Box, Discrete, TimeStep

# gymnax draws with these, and we do not: two of the seconds that a run waits to begin.
with lazy.imports("matplotlib.pyplot", "seaborn"):
    import gymnax
    from gymnax.environments import spaces

Array = jax.Array


def _action_space(space: Any) -> ActionSpace:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    low, high = (
        np.broadcast_to(np.asarray(bound), space.shape) for bound in (space.low, space.high)
    )
    return Box(tuple(space.shape), tuple(map(float, low.flat)), tuple(map(float, high.flat)))


def _like(default: Any, name: str, value: Any) -> Any:
    """The value in the type of the default, on which the environment's arithmetic relies."""
    try:
        if isinstance(default, bool | int | float):
            return type(default)(value)
        return jnp.asarray(value, jnp.asarray(default).dtype)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} = {value!r}: expected a {type(default).__name__}") from None


class GymnaxEnvironment:
    """One gymnax environment, without its auto-reset.

    Observations become float32; a discrete observation in {0, ..., n - 1} becomes one-hot [n].
    Rewards become float32. Termination wins where it falls together with the time limit.
    """

    def __init__(self, name: str, params: Mapping[str, Any]):
        env, defaults = gymnax.make(name)
        known = [field.name for field in dataclasses.fields(defaults)]
        for param in params:
            if param not in known:
                raise ValueError(f"{name} has no parameter {param!r}; it has {', '.join(known)}")
        self._env = env
        self._params = dataclasses.replace(
            defaults, **{k: _like(getattr(defaults, k), k, v) for k, v in params.items()}
        )
        if self._params.max_steps_in_episode < 1:
            raise ValueError(
                f"max_steps_in_episode = {self._params.max_steps_in_episode}: expected at least 1"
            )
        self.name = name
        self.action_space = _action_space(env.action_space(self._params))
        space = env.observation_space(self._params)
        self._one_hot = int(space.n) if isinstance(space, spaces.Discrete) else None
        self.observation_shape = jax.eval_shape(self.reset, jax.random.key(0))[1].shape
        # One environment states its limit as a float.
        self.max_episode_steps: int | None = math.ceil(self._params.max_steps_in_episode)

    def _observation(self, observation: Array) -> Array:
        if self._one_hot is not None:
            return jax.nn.one_hot(observation, self._one_hot)
        return jnp.asarray(observation, jnp.float32)

    def reset(self, key: Array) -> tuple[Any, Array]:
        observation, state = self._env.reset_env(key, self._params)
        return carry.definite(state), self._observation(observation)

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        observation, new_state, reward, terminated, _ = self._env.step_env(
            key, state, action, self._params
        )
        truncated = self._env.is_truncated(new_state, self._params) & ~terminated
        observation = self._observation(observation)
        timestep = TimeStep(
            observation, jnp.asarray(reward, jnp.float32), terminated, truncated, observation
        )
        return carry.like(new_state, state), timestep

    def picture(self, state: Any, observation: Array, size: int) -> np.ndarray:
        """Draws a state: RGB, uint8 [height, width, 3], of which the longer side has `size` pixels.

        Not to be compiled. It may be a little smaller, where squares must fit.
        """
        from envs import pictures

        state, observation = jax.device_get((state, observation))
        return pictures.draw(
            self.name, self._env, self._params, state, np.asarray(observation), size
        )
