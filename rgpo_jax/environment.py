"""The protocols between the library and environments; adapters live in `envs`."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


# The shape of an observation: of one array, or of each part of a dict of arrays.
ObservationShape: TypeAlias = tuple[int, ...] | dict[str, tuple[int, ...]]
Observation: TypeAlias = Any  # an array or a dict of arrays, of such shapes under batch axes


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions start, ..., start + n - 1."""

    n: int
    start: int = 0


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """Arrays of whole numbers, each chosen apart.

    Attributes:
      nvec: element i is one of start[i], ..., start[i] + nvec[i] - 1.
      start: the least values; left empty, zeros.
      shape: of an array, which holds the elements in C order; left empty, a vector of them.
    """

    nvec: tuple[int, ...]
    start: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.start:
            object.__setattr__(self, "start", (0,) * len(self.nvec))
        if not self.shape:
            object.__setattr__(self, "shape", (len(self.nvec),))


@dataclasses.dataclass(frozen=True)
class Box:
    """Arrays of a shape. Bounds are per element, in the environment's units; arrays are taken."""

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("low", "high"):  # as numbers they can be compared, hashed and saved
            bounds: Any = getattr(self, name)
            if isinstance(bounds, jax.core.Tracer):
                continue  # of an environment that is made while tracing; who needs a number says so
            if isinstance(bounds, np.ndarray | jax.Array | list):
                object.__setattr__(self, name, tuple(map(float, np.ravel(bounds))))


ActionSpace: TypeAlias = Discrete | MultiDiscrete | Box


class TimeStep(NamedTuple):
    """What one step gives. Shapes are those of one environment.

    Attributes:
      observation: to act on next; after an auto-reset, the first of the next episode.
      reward: float32 [].
      terminated: bool []; the episode ended by its own rules, the value of what follows is 0.
      truncated: bool []; the episode was cut (a time limit), what follows has a value.
        Never true together with `terminated`.
      final_observation: what the step itself led to, before any reset.
    """

    observation: Observation
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: Observation

    @property
    def done(self) -> Array:
        """bool []; the episode ended, either way."""
        return self.terminated | self.truncated


class Environment(Protocol):
    """A pure environment: `reset` and `step` of one instance, neither of which auto-resets.

    Attributes:
      name: as `envs.make` knows it.
      observation_shape: shape of one observation; where that is a dict of arrays, a dict of theirs.
        Arrays [height, width, channels] are read as images.
      action_space: of one action, in the environment's units.
      max_episode_steps: the step at which a running episode is truncated, and never before; None
        if there is no limit, or if episodes may be truncated earlier.
    """

    name: str
    observation_shape: ObservationShape
    action_space: ActionSpace
    max_episode_steps: int | None

    def reset(self, key: Array) -> tuple[Any, Observation]:
        """Returns (state, observation) at the start of an episode."""
        ...

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        """Returns (state, time step). Actions are in the environment's units."""
        ...


class Pool(Protocol):
    """n environments that live on the host and step together, in NumPy arrays.

    Where an episode ends the next one starts within the same step: every step is a transition of
    an episode, and none is a mere reset.
    """

    def reset(self) -> Observation:
        """Starts an episode in every environment; returns observations [n, ...]."""
        ...

    def send(self, action: np.ndarray) -> None:
        """Begins a step of all; actions [n, ...] are in the environment's units.

        Returns before the step is done where the pool has threads of its own.
        """
        ...

    def receive(self) -> TimeStep:
        """Waits for the step that `send` began; every field is batched [n, ...]."""
        ...


@runtime_checkable
class HostEnvironment(Protocol):
    """An environment that cannot be compiled: it lives on the host, in pools.

    Attributes:
      name: as `envs.make` knows it.
      observation_shape: as of an `Environment`.
      observation_dtype: float32, or uint8 for the pixels of an image; of a dict of arrays a dict.
      action_space: of one action, in the environment's units.
      max_episode_steps: the step at which a running episode is truncated at the latest; None if
        there is no limit.
    """

    name: str
    observation_shape: ObservationShape
    observation_dtype: Any
    action_space: ActionSpace
    max_episode_steps: int | None

    def make_pool(self, seeds: Sequence[int]) -> Pool:
        """Environments with these seeds, in [0, 2^31); equal seeds repeat each other's episodes."""
        ...


@dataclasses.dataclass(eq=False)
class Spaces:
    """A `HostEnvironment` of which only the spaces are known: a world that you step yourself.

    It takes an environment's place in `agent.make` where neither protocol fits: `agent.sample`,
    `agent.act` and `agent.learner` work as with any other.

    Attributes:
      observation_shape: as of an `Environment`.
      action_space: of one action, in the environment's units.
      observation_dtype: float32, or uint8 for the pixels of an image; of a dict of arrays a dict.
      max_episode_steps: the step at which an episode is truncated at the latest; None: unknown.
      name: for messages.
    """

    observation_shape: ObservationShape
    action_space: ActionSpace
    observation_dtype: Any = np.float32
    max_episode_steps: int | None = None
    name: str = "an environment of your own"

    def make_pool(self, seeds: Sequence[int]) -> Pool:
        """Raises TypeError: nobody but you can step it."""
        raise TypeError(f"{self.name}: only its spaces are known; step it yourself (agent.sample)")


AnyEnvironment: TypeAlias = Environment | HostEnvironment
"""An environment of either protocol."""


def for_evaluation(env: HostEnvironment) -> HostEnvironment:
    """The environment as its score is told: what its `for_evaluation()` returns, if it has one.

    Some are trained with clipped rewards, or with a life in the place of an episode.
    """
    choose = getattr(env, "for_evaluation", None)
    return env if choose is None else choose()


def zeros(shape: ObservationShape, dtype: Any = np.float32) -> Observation:
    """An observation of zeros; dtype is one for all, or a dict where the shape is one."""
    if not isinstance(shape, dict):
        return jnp.zeros(shape, dtype)
    dtypes = dtype if isinstance(dtype, dict) else dict.fromkeys(shape, dtype)
    return {name: jnp.zeros(part, dtypes[name]) for name, part in shape.items()}


def restart_where_done(
    state: Any, timestep: TimeStep, start: tuple[Any, Array]
) -> tuple[Any, TimeStep]:
    """Goes to `start`, a fresh (state, observation), where the episode ended.

    All arguments are batched over environments [B, ...]. `final_observation` is kept.
    """
    done = timestep.done

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(done.reshape(done.shape + (1,) * (old.ndim - done.ndim)), new, old)

    state, observation = jax.tree.map(choose, start, (state, timestep.observation))
    return state, timestep._replace(observation=observation)


def to_environment_units(space: ActionSpace, action: Array) -> Array:
    """Maps a policy's action, squashed by its `Distribution`, to the environment's units.

    Policies count discrete actions from 0: the space's start is added. Actions [..., d], discrete
    or continuous, take the space's shape. Continuous ones are in [-1, 1] per element: they are
    clipped to that interval (squashed ones are inside) and mapped affinely onto [low, high].
    Elements without two bounds are clipped to the one they have, if any.
    """
    if isinstance(space, Discrete):
        return action + space.start
    if isinstance(space, MultiDiscrete):
        action = action + jnp.asarray(space.start, action.dtype)
        return action.reshape(*action.shape[:-1], *space.shape)
    low = jnp.asarray(space.low, jnp.float32).reshape(space.shape)
    high = jnp.asarray(space.high, jnp.float32).reshape(space.shape)
    action = action.reshape(*action.shape[:-1], *space.shape)
    bounded = jnp.isfinite(low) & jnp.isfinite(high)
    # Halved first: the sum or difference of the largest numbers is infinite.
    centre = jnp.where(bounded, low / 2 + high / 2, 0.0)
    half_width = jnp.where(bounded, high / 2 - low / 2, 1.0)
    mapped = centre + half_width * jnp.clip(action, -1.0, 1.0)
    # Bounded elements are clipped as well: rounding may lead a last bit beyond a bound.
    return jnp.clip(jnp.where(bounded, mapped, action), low, high)
