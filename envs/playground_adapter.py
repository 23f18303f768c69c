"""MuJoCo Playground 0.2 behind the protocol of `rgpo_jax.environment`, on MJX in JAX.

Its manipulation tasks are left out: some end at the time limit by themselves, as if that were a
death, some count on a wrapper that repeats actions, and some do not start on jax 0.10 and later.
"""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from envs import parameters, physics
from envs.words import one_line

with physics.quietly():  # tells of optional packages that are not there
    from mujoco_playground import locomotion, registry
    from mujoco_playground._src import mjx_env

Array = jax.Array

_MENAGERIE = "https://github.com/google-deepmind/mujoco_menagerie"
PATIENCE = 30.0  # seconds for its host to answer
# Overrides that are ours to choose, that a wrapper reads, or that MJX in JAX has no use for.
_RESERVED = (
    "impl",
    "episode_length",
    "action_repeat",
    "vision",
    "vision_config",
    "naconmax",
    "naccdmax",
    "njmax",
)


class PlaygroundEnvironment(physics.PhysicsEnvironment):
    """A task of Playground.

    Where it has several observations, the policy and the critic see the one called "state", and
    not what only a simulator knows ("privileged_state").
    """

    is_on_mjx = True

    def _observation(self, inner: Any) -> Array:
        return inner.obs["state"] if isinstance(inner.obs, Mapping) else inner.obs

    def _coordinates(self, inner: Any) -> tuple[Array, Array]:
        return inner.data.qpos, inner.data.qvel


def make(name: str, task: str, params: Mapping[str, Any]) -> PlaygroundEnvironment:
    """A task of Playground, cut after `max_episode_steps` steps (its own `episode_length`).

    Other parameters override Playground's config; "reward_config.scales.feet_slip" is one within.

    Raises:
      ValueError: an unknown parameter, or a value that it cannot have, or the models of robots are
        not there and cannot be fetched.
    """
    try:
        config = registry.get_default_config(task)
    except ValueError:
        raise ValueError(f"{name}: its module registers no {task!r} with Playground") from None
    own = _overridable(config)
    overrides, limit = physics.check_params(name, params, own, config.episode_length)
    if task in locomotion.ALL_ENVS:
        _fetch_menagerie(name)
    with physics.loading():
        try:
            env = registry.load(task, config, {**overrides, "impl": "jax"})
        except (TypeError, ValueError, OSError) as error:
            raise ValueError(f"{name} does not load: {one_line(error)}") from None
        return PlaygroundEnvironment(name, env, limit)


def of_environment(env: Any, name: str, limit: int | None) -> PlaygroundEnvironment:
    """An environment of Playground's class, cut after `limit` steps (its `episode_length`)."""
    limit = env._config.episode_length if limit is None else limit
    return PlaygroundEnvironment(name, env, parameters.limit(limit))


def _overridable(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Names of the numbers in a nested config, joined by dots."""
    for key, value in config.items():
        if prefix + key in _RESERVED:
            continue
        if hasattr(value, "items"):
            yield from _overridable(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _fetch_menagerie(name: str) -> None:
    """Lets Playground clone the models of robots, which its package does not hold, once."""
    path = mjx_env.MENAGERIE_PATH
    if path.exists():
        return
    look = ["git", "ls-remote", "--exit-code", _MENAGERIE, "HEAD"]
    unattended = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        # A clone without a network might wait for minutes.
        subprocess.run(look, env=unattended, check=True, capture_output=True, timeout=PATIENCE)
        print(f"cloning the robots of mujoco_menagerie, once, into {path}", file=sys.stderr)
        with physics.quietly(), contextlib.redirect_stderr(io.StringIO()):
            mjx_env.ensure_menagerie_exists()
    except (OSError, subprocess.SubprocessError):
        raise ValueError(
            f"{name} needs the robots of mujoco_menagerie, which could not be cloned; by hand: "
            f"git clone {_MENAGERIE} {path} && git -C {path} checkout "
            f"{mjx_env.MENAGERIE_COMMIT_SHA}"
        ) from None
