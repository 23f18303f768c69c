"""Environments behind the protocols of `rgpo_jax.environment`.

The prefix of a name says which library brings it; none is gymnax. `envpool/NAME` and
`gymnasium/NAME` live on the host, all others are compiled. A library is imported when one of its
environments is asked for, never before.
"""

import difflib
import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

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

# The DM-control and locomotion tasks of MuJoCo Playground; a test holds the list against its own.
PLAYGROUND = (
    "playground/AcrobotSwingup",
    "playground/AcrobotSwingupSparse",
    "playground/BallInCup",
    "playground/CartpoleBalance",
    "playground/CartpoleBalanceSparse",
    "playground/CartpoleSwingup",
    "playground/CartpoleSwingupSparse",
    "playground/CheetahRun",
    "playground/FingerSpin",
    "playground/FingerTurnEasy",
    "playground/FingerTurnHard",
    "playground/FishSwim",
    "playground/HopperHop",
    "playground/HopperStand",
    "playground/HumanoidStand",
    "playground/HumanoidWalk",
    "playground/HumanoidRun",
    "playground/PendulumSwingup",
    "playground/PointMass",
    "playground/ReacherEasy",
    "playground/ReacherHard",
    "playground/SwimmerSwimmer6",
    "playground/WalkerRun",
    "playground/WalkerStand",
    "playground/WalkerWalk",
    "playground/ApolloJoystickFlatTerrain",
    "playground/BarkourJoystick",
    "playground/BerkeleyHumanoidJoystickFlatTerrain",
    "playground/BerkeleyHumanoidJoystickRoughTerrain",
    "playground/G1JoystickFlatTerrain",
    "playground/G1JoystickRoughTerrain",
    "playground/Go1JoystickFlatTerrain",
    "playground/Go1JoystickRoughTerrain",
    "playground/Go1Getup",
    "playground/Go1Handstand",
    "playground/Go1Footstand",
    "playground/H1InplaceGaitTracking",
    "playground/H1JoystickGaitTracking",
    "playground/Op3Joystick",
    "playground/SpotFlatTerrainJoystick",
    "playground/SpotGetup",
    "playground/SpotJoystickGaitTracking",
    "playground/T1JoystickFlatTerrain",
    "playground/T1JoystickRoughTerrain",
)

# Tasks with hidden state: of which environment a policy sees which elements of the observation.
MASKED = {"CartPole-v1-masked": ("CartPole-v1", (0, 2))}  # positions, no velocities

NAMES = (*GYMNAX, *MASKED, *BRAX, *PLAYGROUND)
_BROKEN = {"brax/swimmer": "Brax 0.14 offers it on one backend, which fails to load it"}


class Adapter(NamedTuple):
    """What stands behind a prefix.

    Attributes:
      module: has `make(name, task, params)`; on the host also `names()`.
      library: what it imports.
      extra: of this package, which brings the library.
    """

    module: str
    library: str
    extra: str


ADAPTERS = {
    "brax": Adapter("envs.brax_adapter", "brax", "brax"),
    "playground": Adapter("envs.playground_adapter", "mujoco_playground", "playground"),
    "envpool": Adapter("envs.envpool_adapter", "envpool", "envpool"),
    "gymnasium": Adapter("envs.gymnasium_adapter", "gymnasium", "envpool"),
}
ON_HOST = ("envpool", "gymnasium")


def split(name: str) -> tuple[str, str]:
    """The prefix, empty where there is none, and the rest: ("envpool", "Walker2d-v4")."""
    first, slash, rest = name.partition("/")  # gymnasium's own may have another: ALE/Pong-v5
    return (first, rest) if slash and first in ADAPTERS else ("", name)


def is_on_host(name: str) -> bool:
    """Whether the environment of this name lives on the host, and is not compiled."""
    return split(name)[0] in ON_HOST


def is_on_mjx(name: str, **params: Any) -> bool:
    """Whether MJX computes the physics of the environment that `make` builds from these."""
    return split(name)[0] == "playground" or params.get("backend") == "mjx"


def listing() -> str:
    """The compiled environments in words, each prefix once."""
    groups = [
        f"{prefix}/ with one of {', '.join(split(name)[1] for name in names)}"
        for prefix, names in (("brax", BRAX), ("playground", PLAYGROUND))
    ]
    return "; ".join([", ".join((*GYMNAX, *MASKED)), *groups])


def _require(prefix: str) -> None:
    """Raises ValueError, which names the extra, where the library of a prefix is missing."""
    if prefix and importlib.util.find_spec(ADAPTERS[prefix].library) is None:
        _, library, extra = ADAPTERS[prefix]
        raise ValueError(f"{library} is not installed: pip install 'rgpo-jax[{extra}]'")


def _adapter(prefix: str) -> Any:
    """The module behind a prefix."""
    _require(prefix)
    return importlib.import_module(ADAPTERS[prefix].module)


def check_name(name: str) -> str:
    """Returns the name.

    Raises:
      ValueError: no environment has it (the message has the nearest), it is one that does not run,
        or its library is missing (the message has the extra that brings it).
    """
    if name in _BROKEN:
        raise ValueError(f"{name} does not run: {_BROKEN[name]}")
    prefix, task = split(name)
    known: Sequence[str] = NAMES
    if prefix in ON_HOST:
        known = _adapter(prefix).names()
    elif prefix:
        known = [split(other)[1] for other in NAMES if split(other)[0] == prefix]
    if task in known:
        _require(prefix)
        return name
    lowered = {other.lower(): other for other in known}
    nearest = difflib.get_close_matches(task.lower(), lowered, n=3, cutoff=0.4)
    full = [f"{prefix}/{lowered[near]}" if prefix else lowered[near] for near in nearest]
    hint = f"did you mean {', '.join(full)}?" if full else ""
    if not hint:
        hint = f"{prefix} has {len(known)} others" if prefix else f"known are {listing()}"
    raise ValueError(f"unknown environment {name!r}: {hint}")


def make(name: str, **params: Any) -> "AnyEnvironment":
    """Builds an environment by name.

    Args:
      name: such as "CartPole-v1", "Breakout-MinAtar" or "brax/ant", see `NAMES`; or of the host,
        such as "envpool/Walker2d-v4" or "gymnasium/CartPole-v1".
      **params: parameters of the environment, such as `max_steps_in_episode=200`, or Brax's
        `backend="mjx"`, or Playground's `ctrl_dt=0.02` and others of its config; on the host what
        EnvPool or Gymnasium take, such as `max_episode_steps=200`.

    Raises:
      ValueError: no environment has this name (the message has the nearest), or it has no such
        parameter or one out of range, or the extra that it needs is not installed (the message
        names it), or its observations or actions are of other kinds.
    """
    check_name(name)
    prefix, task = split(name)
    if prefix:
        return _adapter(prefix).make(name, task, params)
    from envs.gymnax_adapter import GymnaxEnvironment

    if name in MASKED:
        from envs.masked import MaskedEnvironment

        whole, keep = MASKED[name]
        return MaskedEnvironment(GymnaxEnvironment(whole, params), keep, name)
    return GymnaxEnvironment(name, params)
