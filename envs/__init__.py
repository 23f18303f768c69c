"""Environments behind the protocols of `rgpo_jax.environment`.

A name without a prefix is a compiled environment. `envpool/NAME` and `gymnasium/NAME` live on the
host. An adapter's library is imported when one of its environments is asked for, never before.
"""

import difflib
import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from rgpo_jax.environment import AnyEnvironment

# The environments of gymnax that run without a network; a test holds the list against gymnax's.
GYMNAX = (
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "MemoryChain-bsuite",
    "UmbrellaChain-bsuite",
    "DiscountingChain-bsuite",
    "SimpleBandit-bsuite",
    "FourRooms-misc",
    "MetaMaze-misc",
    "PointRobot-misc",
    "BernoulliBandit-misc",
    "GaussianBandit-misc",
    "Reacher-misc",
    "Swimmer-misc",
    "Pong-misc",
    "FrozenLake-misc",
)

# The environments of Brax; a test holds the list against Brax's own.
BRAX = (
    "brax/ant",
    "brax/fast",
    "brax/halfcheetah",
    "brax/hopper",
    "brax/humanoid",
    "brax/humanoidstandup",
    "brax/inverted_pendulum",
    "brax/inverted_double_pendulum",
    "brax/pusher",
    "brax/reacher",
    "brax/walker2d",
)
BraxBackend = Literal["spring", "positional", "generalized", "mjx"]
BRAX_BACKENDS: tuple[str, ...] = get_args(BraxBackend)

# Tasks with hidden state: of which environment a policy sees which elements of the observation.
MASKED = {"CartPole-v1-masked": ("CartPole-v1", (0, 2))}  # positions, no velocities

NAMES = (*GYMNAX, *MASKED, *BRAX)
_BROKEN = {"brax/swimmer": "Brax 0.14 offers it on one backend, which fails to load it"}


# Prefix of a name -> the adapter's module.
ON_HOST = {"envpool": "envs.envpool_adapter", "gymnasium": "envs.gymnasium_adapter"}


def split(name: str) -> tuple[str, str]:
    """The prefix, empty where there is none, and the rest: ("envpool", "Walker2d-v4")."""
    prefix, _, task = name.rpartition("/")
    if prefix in ("", *ON_HOST):
        return prefix, task
    first = name.partition("/")[0]  # gymnasium's own names may have a slash: gymnasium/ALE/Pong-v5
    return (first, name[len(first) + 1 :]) if first in ON_HOST else ("", name)


def is_on_host(name: str) -> bool:
    """Whether the environment of this name lives on the host, and is not compiled."""
    return bool(split(name)[0])


def _host_adapter(prefix: str) -> Any:
    """The adapter's module; its library is the one of the prefix."""
    if importlib.util.find_spec(prefix) is None:
        raise ValueError(f"{prefix} is not installed: pip install 'rgpo-jax[envpool]'")
    return importlib.import_module(ON_HOST[prefix])


def check_name(name: str) -> str:
    """Returns the name.

    Raises:
      ValueError: no environment has it (the message has the nearest), it is one that does not run,
        or its library is missing.
    """
    if name in _BROKEN:
        raise ValueError(f"{name} does not run: {_BROKEN[name]}")
    prefix, task = split(name)
    known: Sequence[str] = _host_adapter(prefix).names() if prefix else NAMES
    if task in known:
        return name
    lowered = {other.lower(): other for other in known}
    nearest = difflib.get_close_matches(task.lower(), lowered, n=3, cutoff=0.4)
    full = [f"{prefix}/{lowered[near]}" if prefix else lowered[near] for near in nearest]
    hint = f"did you mean {', '.join(full)}?" if full else ""
    if not hint:
        hint = f"{prefix} has {len(known)} others" if prefix else f"known are {', '.join(known)}"
    raise ValueError(f"unknown environment {name!r}: {hint}")


def make(name: str, **params: Any) -> "AnyEnvironment":
    """Builds an environment by name.

    Args:
      name: such as "CartPole-v1", "Breakout-MinAtar" or "brax/ant", see `NAMES`; or of the host,
        such as "envpool/Walker2d-v4" or "gymnasium/CartPole-v1".
      **params: parameters of the environment, such as `max_steps_in_episode=200`, or Brax's
        `backend="mjx"`; on the host what EnvPool or Gymnasium take, such as
        `max_episode_steps=200`.

    Raises:
      ValueError: no environment has this name (the message has the nearest), or it has no such
        parameter or one out of range, or the extra that it needs is not installed (the message
        names it), or its observations or actions are of other kinds.
    """
    check_name(name)
    prefix, task = split(name)
    if prefix:
        return _host_adapter(prefix).make(name, task, params)
    if name in BRAX:
        try:
            from envs.brax_adapter import BraxEnvironment
        except ModuleNotFoundError as error:
            if error.name not in ("brax", "mujoco"):
                raise
            line = f"{name} needs Brax, which an extra brings: pip install 'rgpo-jax[brax]'"
            raise ModuleNotFoundError(line, name=error.name) from None
        return BraxEnvironment(name, params)
    from envs.gymnax_adapter import GymnaxEnvironment

    if name in MASKED:
        from envs.masked import MaskedEnvironment

        whole, keep = MASKED[name]
        return MaskedEnvironment(GymnaxEnvironment(whole, params), keep, name)
    return GymnaxEnvironment(name, params)
