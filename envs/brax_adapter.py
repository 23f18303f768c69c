"""Brax 0.14 behind the protocol of `rgpo_jax.environment`."""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from envs import BRAX_BACKENDS, physics

with physics.quietly():  # tells of optional packages that are not there
    from brax import envs as brax_envs


class BraxEnvironment(physics.PhysicsEnvironment):
    """A task of Brax, with what its viewer wants to know."""

    @property
    def seconds_per_step(self) -> float:
        """The time that passes in a step."""
        return float(self._env.dt)

    def _coordinates(self, inner: Any) -> tuple[jax.Array, jax.Array]:
        return inner.pipeline_state.q, inner.pipeline_state.qd

    def place(self, state: physics.PhysicsState) -> Any:
        """Where the bodies are, in NumPy arrays."""
        return jax.device_get(state.inner.pipeline_state.x)

    def describe(self, places: Sequence[Any], seconds: float) -> str:
        """Bodies and where they were, every so many seconds, in the JSON of Brax's viewer."""
        from brax.io import json

        def rounded(place: Any) -> Any:  # to what can be seen: a fifth of the text
            return jax.tree.map(lambda x: np.round(x.astype(float), 4), place)

        system = self._env.sys.tree_replace({"opt.timestep": seconds})
        return json.dumps(system, [types.SimpleNamespace(x=rounded(place)) for place in places])


def make(name: str, task: str, params: Mapping[str, Any]) -> BraxEnvironment:
    """A task of Brax, cut after `max_steps_in_episode` steps (1000).

    Raises:
      ValueError: an unknown parameter, or a value that it cannot have.
    """
    known: dict[str, Any] = {"backend": BRAX_BACKENDS[0], "max_steps_in_episode": 1000}
    physics.check_params(name, params, known)
    backend, limit = (known | dict(params)).values()
    if backend not in BRAX_BACKENDS:
        raise ValueError(f"backend = {backend!r}: expected one of {', '.join(BRAX_BACKENDS)}")
    limit = physics.time_limit(limit)
    with physics.loading():
        env = brax_envs.get_environment(task, backend=backend)
    return BraxEnvironment(name, env, limit)
