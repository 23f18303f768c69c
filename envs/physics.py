"""What Brax and MuJoCo Playground share: their states are alike, and neither's wrappers are used.

Their wrappers restart every episode from one cached state, and lose the observation in which the
episode ended.
"""

import abc
import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs import carry, parameters
from envs.parameters import LIMIT
from rgpo_jax import keys
from rgpo_jax.environment import ActionSpace, Box, TimeStep

Array = jax.Array


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Holds back what imports print and warn of; exceptions pass."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


with quietly():  # tells of optional packages that are not there
    import mujoco


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Holds back also what MuJoCo says of a model file.

    It would go past Python to stderr, and to a MUJOCO_LOG.TXT in the working directory.
    """
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with quietly():
            yield
    finally:
        mujoco.set_mju_user_warning(before)


def check_params(
    name: str, params: Mapping[str, Any], known: Iterable[str], limit: int
) -> tuple[dict[str, Any], int]:
    """Checks the names of parameters, and parts the limit from the others.

    Args:
      name: of the environment.
      params: given, among them the limit by our word or by gymnax's.
      known: names of others that there are.
      limit: where none is given.

    Raises:
      ValueError: there is no such parameter, or the limit is no whole number of at least 1.
    """
    rest = parameters.with_limit(name, params, LIMIT)
    parameters.check(name, rest, (LIMIT, *known))
    return rest, parameters.limit(rest.pop(LIMIT, limit))


class PhysicsState(NamedTuple):
    """Where an environment stands.

    Attributes:
      inner: the library's own state.
      time: steps since the reset, int32 [].
    """

    inner: Any
    time: Array


class PhysicsEnvironment(abc.ABC):
    """An environment of such a library, cut after `limit` steps.

    Actions are in [-1, 1] per element, which the library scales to the actuators where they differ.
    What it calls `done` is a death: `terminated`, and it wins where it falls together with the
    limit. Physics that has become NaN or infinite ends an episode as a death does, with a reward
    of 0, and what is not finite is seen as 0: where rewards are negative that is a way out.
    """

    def __init__(self, name: str, env: Any, limit: int):
        self._env = env
        # Physics takes seconds to trace: once, for all programs. The library writes into dicts of a
        # state, and here into a traced one.
        self._reset, self._step = jax.jit(env.reset), jax.jit(env.step)
        self._limit = limit
        self.name = name
        size = env.action_size
        self.action_space: ActionSpace = Box((size,), (-1.0,) * size, (1.0,) * size)
        self.observation_shape = jax.eval_shape(self.reset, jax.random.key(0))[1].shape
        self.max_episode_steps: int | None = limit

    def _observation(self, inner: Any) -> Array:
        return inner.obs

    @abc.abstractmethod
    def _coordinates(self, inner: Any) -> tuple[Array, Array]:
        """Positions and velocities."""

    def reset(self, key: Array) -> tuple[PhysicsState, Array]:
        inner = carry.definite(self._reset(keys.as_raw(key)))
        return PhysicsState(inner, jnp.int32(0)), self._observation(inner)

    def step(self, key: Array, state: PhysicsState, action: Array) -> tuple[PhysicsState, TimeStep]:
        after = carry.like(self._step(state.inner, action), state.inner)
        time = state.time + 1
        observation = self._observation(after)
        seen = (*self._coordinates(after), observation, after.reward)
        broken = ~jnp.stack([jnp.isfinite(x).all() for x in seen]).all()
        terminated = (after.done > 0) | broken
        truncated = (time >= self._limit) & ~terminated
        observation, reward = (
            jnp.where(jnp.isfinite(x), x, 0.0) for x in (observation, after.reward)
        )
        timestep = TimeStep(observation, reward, terminated, truncated, observation)
        return PhysicsState(after, time), timestep
