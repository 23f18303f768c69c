"""Environments behind one protocol (`rgpo_jax.environment.Environment`).

An adapter's library is imported when one of its environments is asked for, never before.
"""

import difflib
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from rgpo_jax.environment import Environment

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

NAMES = (*GYMNAX, *BRAX)
_BROKEN = {"brax/swimmer": "Brax 0.14 offers it on one backend, which fails to load it"}


def check_name(name: str) -> str:
    """Returns the name; raises ValueError with the nearest names if no environment has it."""
    if name in NAMES:
        return name
    if name in _BROKEN:
        raise ValueError(f"{name} does not run: {_BROKEN[name]}")
    lowered = {known.lower(): known for known in NAMES}
    nearest = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(lowered[near] for near in nearest)}?" if nearest else ""
    raise ValueError(f"unknown environment {name!r}: {hint or 'known are ' + ', '.join(NAMES)}")


def make(name: str, **params: Any) -> "Environment":
    """Builds an environment by name.

    Args:
      name: such as "CartPole-v1", "Breakout-MinAtar" or "brax/ant"; see `NAMES`.
      **params: parameters of the environment, such as `max_steps_in_episode=200`, or Brax's
        `backend="mjx"`.

    Raises:
      ValueError: no environment has this name (the message has the nearest), or it has no such
        parameter, or one out of range.
      ModuleNotFoundError: the extra that it needs is not installed (the message names it).
    """
    check_name(name)
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

    return GymnaxEnvironment(name, params)
