"""Brax 0.14 behind the protocol of `rgpo_jax.environment`."""

from collections.abc import Mapping
from typing import Any

from envs import BRAX_BACKENDS, physics

with physics.quietly():  # tells of optional packages that are not there
    from brax import envs as brax_envs


def make(name: str, task: str, params: Mapping[str, Any]) -> physics.PhysicsEnvironment:
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
    return physics.PhysicsEnvironment(name, env, limit)
