"""Brax 0.14 behind the protocol of `rgpo_jax.environment`, without Brax's own wrappers.

Those restart every episode from one cached state, and lose the observation in which it ended.
"""

import contextlib
import io
import operator
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs import BRAX_BACKENDS, carry
from rgpo_jax.environment import Box, Discrete, TimeStep

Array = jax.Array


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Holds back what imports print and warn of; exceptions pass."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


with _quietly():  # tells of optional packages that are not there
    import mujoco
    from brax import envs as brax_envs


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Holds back also what MuJoCo says of a model file.

    It would go past Python to stderr, and to a MUJOCO_LOG.TXT in the working directory.
    """
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with _quietly():
            yield
    finally:
        mujoco.set_mju_user_warning(before)


class BraxState(NamedTuple):
    """Where an environment stands.

    Attributes:
      brax: Brax's own state.
      time: steps since the reset, int32 [].
    """

    brax: Any
    time: Array


class BraxEnvironment:
    """One Brax environment, cut after `max_steps_in_episode` steps (1000).

    Actions are in [-1, 1] per element, which Brax scales to the actuators where they differ. What
    Brax calls `done` is a death: `terminated`, and it wins where it falls together with the limit.
    """

    def __init__(self, name: str, params: Mapping[str, Any]):
        known: dict[str, Any] = {"backend": BRAX_BACKENDS[0], "max_steps_in_episode": 1000}
        for param in params:
            if param not in known:
                raise ValueError(f"{name} has no parameter {param!r}; it has {', '.join(known)}")
        backend, limit = (known | dict(params)).values()
        if backend not in BRAX_BACKENDS:
            raise ValueError(f"backend = {backend!r}: expected one of {', '.join(BRAX_BACKENDS)}")
        try:
            limit = operator.index(limit)
        except TypeError:
            raise ValueError(f"max_steps_in_episode = {limit!r}: expected an int") from None
        if limit < 1:
            raise ValueError(f"max_steps_in_episode = {limit}: expected at least 1")
        with _loading():
            self._env = brax_envs.get_environment(name.removeprefix("brax/"), backend=backend)
        self._limit = limit
        self.name = name
        size = self._env.action_size
        self.action_space: Discrete | Box = Box((size,), (-1.0,) * size, (1.0,) * size)
        self.observation_shape = jax.eval_shape(self.reset, jax.random.key(0))[1].shape
        self.max_episode_steps: int | None = limit

    def reset(self, key: Array) -> tuple[BraxState, Array]:
        state = carry.definite(self._env.reset(jax.random.key_data(key)))  # Brax splits raw keys
        return BraxState(state, jnp.int32(0)), state.obs

    def step(self, key: Array, state: BraxState, action: Array) -> tuple[BraxState, TimeStep]:
        before, time = state.brax, state.time + 1
        # Brax writes into the dict of metrics that it is given: it gets a copy.
        after = self._env.step(before.replace(metrics=dict(before.metrics)), action)
        after = carry.like(after, before)
        terminated = after.done > 0
        truncated = (time >= self._limit) & ~terminated
        timestep = TimeStep(after.obs, after.reward, terminated, truncated, after.obs)
        return BraxState(after, time), timestep

    @property
    def seconds_per_step(self) -> float:
        """The time that passes in a step."""
        return float(self._env.dt)

    def place(self, state: BraxState) -> Any:
        """Where the bodies are, in NumPy arrays."""
        return jax.device_get(state.brax.pipeline_state.x)

    def describe(self, places: Sequence[Any], seconds: float) -> str:
        """Bodies and where they were, every so many seconds, in the JSON of Brax's viewer."""
        from brax.io import json

        def rounded(place: Any) -> Any:  # to what can be seen: a fifth of the text
            return jax.tree.map(lambda x: np.round(x.astype(float), 4), place)

        system = self._env.sys.tree_replace({"opt.timestep": seconds})
        return json.dumps(system, [types.SimpleNamespace(x=rounded(place)) for place in places])
