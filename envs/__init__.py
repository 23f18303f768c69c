"""Environments behind the protocols of `rgpo_jax.environment`.

The prefix of a name says which library brings it; none is gymnax. `envpool/NAME` and
`gymnasium/NAME` live on the host. MODULE:NAME is a user's own, and PREFIX/MODULE:NAME one that a
library has once the module is imported. A library is imported when one of its environments is asked
for, never before.
"""

import difflib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from rgpo_jax import importing

if TYPE_CHECKING:
    from envs.randomized import RandomizedEnvironment
    from rgpo_jax.environment import AnyEnvironment

# A test holds these lists against the libraries' own.
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
"""The environments of gymnax that run without a network."""

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
"""The environments of Brax."""
BraxBackend = Literal["spring", "positional", "generalized", "mjx"]
"""What simulates them."""
BRAX_BACKENDS: tuple[str, ...] = get_args(BraxBackend)
"""Its names."""

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
"""The DM-control and locomotion tasks of MuJoCo Playground."""

MASKED = {"CartPole-v1-masked": ("CartPole-v1", (0, 2))}  # positions, no velocities
"""Tasks with hidden state: of which environment a policy sees which elements of the observation."""

NAMES = (*GYMNAX, *MASKED, *BRAX, *PLAYGROUND)
"""The compiled environments that are known by name."""
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
    "gymnax": Adapter("envs.gymnax_adapter", "gymnax", ""),
    "brax": Adapter("envs.brax_adapter", "brax", "brax"),
    "playground": Adapter("envs.playground_adapter", "mujoco_playground", "playground"),
    "envpool": Adapter("envs.envpool_adapter", "envpool", "envpool"),
    "gymnasium": Adapter("envs.gymnasium_adapter", "gymnasium", "envpool"),
}
"""Prefix of a name -> what stands behind it."""
ON_HOST = ("envpool", "gymnasium")
"""Prefixes of those that live on the host."""
# Gymnasium has these once a package is imported: how their names begin, and which one.
_REGISTERED_BY = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
_MOST_SUGGESTIONS = 3


def split(name: str) -> tuple[str, str]:
    """The prefix, empty where there is none, and the rest: ("envpool", "Walker2d-v4")."""
    first, slash, rest = name.partition("/")  # gymnasium's own may have another: ALE/Pong-v5
    return (first, rest) if slash and first in ADAPTERS else ("", name)


def module_of(name: str) -> str | None:
    """The module of a user's own that is imported for an environment; None: none is."""
    module, colon, _ = split(name)[1].partition(":")
    return module if colon else None


def is_own(name: str) -> bool:
    """Whether it is MODULE:NAME, an environment that no library has registered."""
    return not split(name)[0] and module_of(name) is not None


class Place(NamedTuple):
    """Where an environment is computed: on the host, or compiled; and if so, whether by MJX."""

    on_host: bool
    on_mjx: bool


def place(name: str, **params: Any) -> Place:
    """Where the environment is computed that `make` builds from these.

    One of a user's own is built to know it; raises ValueError as `make` does.
    """
    if not is_own(name):
        prefix = split(name)[0]
        return Place(prefix in ON_HOST, prefix == "playground" or params.get("backend") == "mjx")
    return place_of(make(name, **params))


def place_of(env: "AnyEnvironment") -> Place:
    """Where an environment of a user's own is computed."""
    from rgpo_jax.environment import HostEnvironment

    return Place(isinstance(env, HostEnvironment), getattr(env, "is_on_mjx", False))


def is_on_mjx(name: str, **params: Any) -> bool:
    """Whether MJX computes the physics of the environment that `make` builds from these."""
    return place(name, **params).on_mjx


def names(prefix: str = "") -> list[str]:
    """Names that are known by now and begin so; without a prefix, those that are compiled.

    Args:
      prefix: a library, such as "gymnax" or "brax/", or the first letters of a name or of a task,
        such as "brax/h" or "cartpole", which is looked for in all libraries that are installed.

    Raises:
      ValueError: no name begins so, or the library is missing.
    """
    if not prefix:
        return list(NAMES)
    library, _, task = prefix.rstrip("/").partition("/")
    if library in ADAPTERS:
        found = [n for n in _names_of(library) if split(n)[1].lower().startswith(task.lower())]
    else:
        installed = filter(_is_installed, ADAPTERS)
        of_all = dict.fromkeys(n for x in installed for n in _names_of(x))
        found = [n for n in of_all if split(n)[1].lower().startswith(prefix.lower())]
    if not found:
        raise ValueError(
            f"{prefix}: expected one of {', '.join(ADAPTERS)}, the beginning of a name, or nothing"
        )
    return found


def _names_of(library: str) -> list[str]:
    """All names of a library, with their prefix."""
    if library in ON_HOST:
        return [f"{library}/{task}" for task in _adapter(library).names()]
    if library == "gymnax":
        return [*GYMNAX, *MASKED]
    return [n for n in NAMES if split(n)[0] == library]


def _is_installed(prefix: str) -> bool:
    """Whether the library of a prefix is there; it is not imported."""
    return importlib.util.find_spec(ADAPTERS[prefix].library) is not None


def _require(prefix: str) -> None:
    """Raises ValueError, which names the extra, where the library of a prefix is missing."""
    if prefix and not _is_installed(prefix):
        _, library, extra = ADAPTERS[prefix]
        raise ValueError(f"{library} is not installed: {importing.install_hint(extra)}")


def _adapter(prefix: str) -> Any:
    """The module behind a prefix."""
    _require(prefix)
    return importlib.import_module(ADAPTERS[prefix].module)


def check_name(name: str) -> str:
    """Returns the name. Imports no module of a user's own, but looks whether it is there.

    Raises:
      ValueError: no environment has it (the message has the nearest), it is one that does not run,
        or its library is missing (the message has the extra that brings it).
    """
    if name in _BROKEN:
        raise ValueError(f"{name} does not run: {_BROKEN[name]}")
    prefix, task = split(name)
    module = module_of(name)
    if module is not None:
        _require(prefix)
        if not importing.exists(module):
            raise ValueError(f"no module named {module!r}, here or among those installed")
        if prefix == "envpool":
            raise ValueError("EnvPool has no environments of others")
        return name
    if prefix == "gymnax":
        raise ValueError(f"gymnax's own have no prefix: {task}; or gymnax/MODULE:NAME")
    known: Sequence[str] = [n for n in NAMES if not split(n)[0]]
    if prefix in ON_HOST:
        known = _adapter(prefix).names()
    elif prefix:
        known = [split(other)[1] for other in NAMES if split(other)[0] == prefix]
    if task in known:
        _require(prefix)
        return name
    hint = _nearest(prefix, task, known)
    if prefix == "gymnasium":
        missing = next((m for start, m in _REGISTERED_BY.items() if task.startswith(start)), None)
        if missing:
            hint = f"{missing} brings it: gymnasium/{missing}:{task}"
        else:
            hint += "; one that a module registers is gymnasium/MODULE:NAME"
    elif not prefix:
        hint += "; your own is MODULE:NAME"
    raise ValueError(f"unknown environment {name!r}: {hint}; --list-envs lists them")


def _nearest(prefix: str, task: str, known: Sequence[str]) -> str:
    """A question whether one of these was meant; else how many there are."""
    lowered = {other.lower(): other for other in known}
    if not prefix:  # it may be a task of a library, whose prefix was left out
        lowered |= {split(n)[1].lower(): n for n in NAMES if split(n)[1].lower() not in lowered}
    near = difflib.get_close_matches(task.lower(), lowered, n=_MOST_SUGGESTIONS, cutoff=0.4)
    full = [f"{prefix}/{lowered[name]}" if prefix else lowered[name] for name in near]
    if full:
        return f"did you mean {', '.join(full)}?"
    return f"{prefix} has {len(known)} others" if prefix else f"{len(NAMES)} are compiled"


def make(name: str, **params: Any) -> "AnyEnvironment":
    """Builds an environment by name.

    Args:
      name: such as "CartPole-v1", "Breakout-MinAtar" or "brax/ant", see `NAMES`; or of the host,
        such as "envpool/Walker2d-v4" or "gymnasium/CartPole-v1"; or a user's own,
        "my_module:MyEnv", see `adapt`; or "gymnasium/my_module:Mine-v0", and with gymnax/, brax/ or
        playground/ likewise, which that library has once the module is imported.
      **params: parameters of the environment, such as `max_episode_steps=200`, which all have, or
        gymnax's `gravity=5.0`, Brax's `backend="mjx"`, Playground's `ctrl_dt=0.02` and others of
        its config, or what EnvPool, Gymnasium or a user's own class take.

    Raises:
      ValueError: no environment has this name (the message has the nearest), or it has no such
        parameter or one out of range, or the extra that it needs is not installed (the message
        names it), or its observations or actions are of other kinds; or a module of a user's own
        does not run.
    """
    check_name(name)
    if is_own(name):
        from envs import own

        return own.make(name, params)
    prefix, task = split(name)
    module = module_of(name)
    if module is not None:
        try:
            importing.load(module)
        except ValueError as error:
            raise ValueError(f"module {module}: {error}") from error
        task = task.partition(":")[2]
    if prefix:
        return _adapter(prefix).make(name, task, params)
    from envs import gymnax_adapter

    if name in MASKED:
        from envs.masked import MaskedEnvironment

        whole, keep = MASKED[name]
        return MaskedEnvironment(gymnax_adapter.make(whole, whole, params), keep, name)
    return gymnax_adapter.make(name, task, params)


def randomize(
    name: str, ranges: Mapping[str, tuple[float, float]], **params: Any
) -> "RandomizedEnvironment":
    """An environment of which some parameters are drawn anew for every episode.

    Args:
      name: of a compiled one, as `make` knows it.
      ranges: a real-valued parameter -> its lowest and highest value, between which it is uniform.
      **params: the others, as `make` takes them.

    Raises:
      ValueError: as `make`; or a parameter cannot be drawn: of an environment on the host, of Brax
        or of Playground, or one on which spaces depend.
    """
    from envs.randomized import RandomizedEnvironment

    prefix = split(name)[0]
    if prefix not in ("", "gymnax"):
        raise ValueError(
            f"{name}: its parameters cannot be drawn; those of gymnax's can, and yours"
        )
    both = sorted(set(ranges) & set(params))
    if both:
        raise ValueError(f"{name}: {', '.join(both)} is given, and drawn")
    check_name(name)
    return RandomizedEnvironment(lambda **drawn: make(name, **params, **drawn), ranges)


def adapt(found: Any, name: str | None = None, **params: Any) -> "AnyEnvironment":
    """Puts an environment of a user's own behind the protocols of `rgpo_jax.environment`.

    Args:
      found: a class or a function that makes one, which takes `params`; or an environment. It may
        be of this suite's protocols, or of gymnax, Brax or Playground. Of Gymnasium it is a class
        or a function, since training needs many.
      name: for messages; None: that of the class or function.
      **params: `max_episode_steps` among them, where it has no limit of its own.

    Raises:
      ValueError: it is no environment, or has no such parameter, or cannot be made.
    """
    from envs import own

    if name is None:
        name = str(getattr(found, "__name__", type(found).__name__))
    return own.adapt(found, name, params)
