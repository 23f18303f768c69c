"""Brax 0.14 behind the protocol of `rgpo_jax.environment`."""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from envs import BRAX, BRAX_BACKENDS, parameters, physics
from envs.words import one_line

with physics.quietly():  # tells of optional packages that are not there
    from brax import envs as brax_envs

LIMIT = 1000  # steps


class BraxEnvironment(physics.PhysicsEnvironment):
    """A task of Brax, with what its viewer wants to know."""

    @property
    def is_on_mjx(self) -> bool:
        """Whether MJX computes its physics."""
        return getattr(self._env, "backend", None) == "mjx"

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
    """A task of Brax, cut after `max_episode_steps` steps (1000).

    One that an imported module has registered has the parameters of its class.

    Raises:
      ValueError: no task has this name, an unknown parameter, or a value that it cannot have.
    """
    registered: Any = brax_envs._envs.get(task)  # what get_environment looks it up in
    if registered is None:
        raise ValueError(f"{name}: its module registers no {task!r} with Brax")
    if f"brax/{task}" not in BRAX:
        own, _ = parameters.taken_by(registered)
        params, limit = physics.check_params(name, params, own, LIMIT)
        return of_environment(_build(name, registered, params), name, limit)
    params, limit = physics.check_params(name, params, ["backend"], LIMIT)
    backend = params.get("backend", BRAX_BACKENDS[0])
    if backend not in BRAX_BACKENDS:
        raise ValueError(f"backend = {backend!r}: expected one of {', '.join(BRAX_BACKENDS)}")
    return BraxEnvironment(name, _build(name, registered, {"backend": backend}), limit)


def _build(name: str, make: Callable[..., Any], params: Mapping[str, Any]) -> Any:
    with physics.loading():
        try:
            return make(**params)
        except (TypeError, ValueError, AssertionError, OSError) as error:
            raise ValueError(f"{name} does not load: {one_line(error)}") from None


def of_environment(env: Any, name: str, limit: int | None) -> BraxEnvironment:
    """An environment of Brax's class, cut after `limit` steps (1000)."""
    return BraxEnvironment(name, env, LIMIT if limit is None else parameters.limit(limit))
