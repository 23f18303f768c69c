"""Environments behind one protocol (`rgpo_jax.environment.Environment`).

An adapter's library is imported when one of its environments is asked for, never before.
"""

import difflib
from typing import TYPE_CHECKING, Any

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


def check_name(name: str) -> str:
    """Returns the name; raises ValueError with the nearest names if no environment has it."""
    if name in GYMNAX:
        return name
    lowered = {known.lower(): known for known in GYMNAX}
    nearest = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(lowered[near] for near in nearest)}?" if nearest else ""
    raise ValueError(f"unknown environment {name!r}: {hint or 'known are ' + ', '.join(GYMNAX)}")


def make(name: str, **params: Any) -> "Environment":
    """Builds an environment by name.

    Args:
      name: such as "CartPole-v1" or "Breakout-MinAtar"; see `GYMNAX`.
      **params: parameters of the environment, such as `max_steps_in_episode=200`.

    Raises:
      ValueError: no environment has this name (the message has the nearest), or it has no such
        parameter.
    """
    check_name(name)
    from envs.gymnax_adapter import GymnaxEnvironment

    return GymnaxEnvironment(name, params)
