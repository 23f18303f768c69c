"""Environments whose parameters are drawn anew for every episode (domain randomisation)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rgpo_jax.environment import AnyEnvironment, HostEnvironment, TimeStep

Array = jax.Array


class RandomizedState(NamedTuple):
    """Where an environment stands.

    Attributes:
      inner: its own state.
      drawn: name of a parameter -> its value in this episode, float32 [].
    """

    inner: Any
    drawn: dict[str, Array]


class RandomizedEnvironment:
    """A compiled environment with uniform draws of real-valued parameters.

    Those of an episode are drawn by the key of its reset. They are not observed.

    Attributes:
      ranges: name of a parameter -> its lowest and highest value.
    """

    def __init__(
        self,
        make: Callable[..., AnyEnvironment],
        ranges: Mapping[str, tuple[float, float]],
        name: str | None = None,
    ):
        """Looks at both ends of the ranges.

        Args:
          make: the environment with these parameters, which may be traced.
          ranges: as said.
          name: for messages; None: the environment's own.

        Raises:
          ValueError: a range is empty, or a parameter changes what the environment says of itself,
            or cannot be traced.
        """
        for param, (low, high) in ranges.items():
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ValueError(f"{param} = {low:g}..{high:g}: expected a low below its high")
        self._make: Callable[..., Any] = make
        self.ranges = dict(ranges)
        ends = [
            make(**{param: float(range_[end]) for param, range_ in ranges.items()})
            for end in (0, 1)
        ]
        self.wraps = ends[0]
        self.name = ends[0].name if name is None else name
        for field in ("observation_shape", "action_space", "max_episode_steps"):
            low, high = (getattr(env, field) for env in ends)
            if low != high:
                raise ValueError(f"{self.name}: its {field} depends on {', '.join(ranges)}")
        if any(isinstance(env, HostEnvironment) for env in ends):
            raise ValueError(f"{self.name} lives on the host: its parameters cannot be drawn")
        self.observation_shape = ends[0].observation_shape
        self.action_space = ends[0].action_space
        self.max_episode_steps = ends[0].max_episode_steps
        try:
            jax.eval_shape(self.reset, jax.random.key(0))
        except (TypeError, jax.errors.JAXTypeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{self.name}: {', '.join(ranges)} cannot be traced: {reason}"
            ) from None

    def _draw(self, key: Array) -> dict[str, Array]:
        keys = jax.random.split(key, len(self.ranges))
        return {
            param: jax.random.uniform(key, (), minval=low, maxval=high)
            for key, (param, (low, high)) in zip(keys, self.ranges.items(), strict=True)
        }

    def reset(self, key: Array) -> tuple[RandomizedState, Array]:
        draw_key, key = jax.random.split(key)
        drawn = self._draw(draw_key)
        inner, observation = self._make(**drawn).reset(key)
        return RandomizedState(inner, drawn), observation

    def step(
        self, key: Array, state: RandomizedState, action: Array
    ) -> tuple[RandomizedState, TimeStep]:
        inner, timestep = self._make(**state.drawn).step(key, state.inner, action)
        return RandomizedState(inner, state.drawn), timestep

    def picture(self, state: RandomizedState, observation: Array, size: int) -> np.ndarray:
        """Draws a state as the environment with this episode's parameters does."""
        env: Any = self._make(**{param: float(value) for param, value in state.drawn.items()})
        from envs import pictures

        return pictures.of(env, state.inner, observation, size)
