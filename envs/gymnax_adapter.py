"""gymnax 1.x behind the protocol of `rgpo_jax.environment`."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import carry, lazy, parameters
from envs.parameters import GYMNAX_LIMIT
from rgpo_jax.environment import ActionSpace, Box, Discrete, TimeStep

# gymnax draws with these, and we do not: two of the seconds that a run waits to begin.
with lazy.imports("matplotlib.pyplot", "seaborn"):
    import gymnax
    from gymnax import registration
    from gymnax.environments import spaces

Array = jax.Array

# Environment -> parameter -> what it follows from. gymnax keeps them apart: there a cart of another
# mass moves like the old one.
_DERIVED: dict[str, dict[str, Callable[[Any], Any]]] = {
    "CartPole": {
        "total_mass": lambda p: p.masscart + p.masspole,
        "polemass_length": lambda p: p.masspole * p.length,
    },
    "BernoulliBandit": {"t_max": lambda p: math.ceil(p.max_steps_in_episode)},
}

# Masses, lengths and steps of time: without them, or with negative ones, there is no physics.
_POSITIVE = re.compile("mass|length|^(l|m|dt|tau)$")


def _is_gymnaxs(kind: type) -> bool:
    return kind.__module__.startswith("gymnax.")


def _derived(env: Any) -> dict[str, Callable[[Any], Any]]:
    """What follows from parameters, as of gymnax's class that an environment is or extends."""
    for kind in type(env).__mro__:
        if _is_gymnaxs(kind) and kind.__name__ in _DERIVED:
            return _DERIVED[kind.__name__]
    return {}


def _action_space(space: Any) -> ActionSpace:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    low, high = (
        np.broadcast_to(np.asarray(bound), space.shape) for bound in (space.low, space.high)
    )
    return Box(tuple(space.shape), tuple(map(float, low.flat)), tuple(map(float, high.flat)))


def _like(default: Any, name: str, value: Any) -> Any:
    """The value in the type of the default, on which the environment's arithmetic relies.

    Where the default is a real number the value may be an array, traced or not.
    """
    try:
        if type(default) is float and isinstance(value, Array):
            return jnp.asarray(value, jnp.float32)
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError
        if isinstance(default, int | float):
            like = type(default)(value)
            if like != value:  # NaN, or a fraction where there is none
                raise ValueError
            return like
        return jnp.asarray(value, jnp.asarray(default).dtype)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} = {value!r}: expected a {type(default).__name__}") from None


class GymnaxEnvironment:
    """An environment of gymnax, without its auto-reset.

    Observations become float32; a discrete observation in {0, ..., n - 1} becomes one-hot [n].
    Rewards become float32. Termination wins where it falls together with the time limit.
    """

    def __init__(self, name: str, env: Any, params: Mapping[str, Any]):
        is_gymnaxs = _is_gymnaxs(type(env))
        defaults = env.default_params
        params = parameters.with_limit(name, params, GYMNAX_LIMIT)
        derived = _derived(env)
        for param in derived:
            if param in params:
                raise ValueError(f"{name}: {param} = {params[param]}: it follows from the others")
        known = [field.name for field in dataclasses.fields(defaults) if field.name not in derived]
        parameters.check(name, params, known)
        self._env = env
        if not is_gymnaxs:
            self.wraps = env  # a user's own
        self._params = dataclasses.replace(
            defaults, **{k: _like(getattr(defaults, k), k, v) for k, v in params.items()}
        )
        for param in filter(_POSITIVE.search, params) if is_gymnaxs else ():
            value = getattr(self._params, param)
            if isinstance(value, float) and value <= 0:
                raise ValueError(f"{name}: {param} = {value:g}: expected more than 0")
        if params:
            following = {param: follow(self._params) for param, follow in derived.items()}
            self._params = dataclasses.replace(self._params, **following)
        if self._params.max_steps_in_episode < 1:
            raise ValueError(
                f"{GYMNAX_LIMIT} = {self._params.max_steps_in_episode}: expected at least 1"
            )
        self.name = name
        try:
            self.action_space = _action_space(env.action_space(self._params))
        except jax.errors.ConcretizationTypeError:
            raise ValueError(
                f"{name}: what bounds its actions must be a number, not traced"
            ) from None
        space = env.observation_space(self._params)
        self._one_hot = int(space.n) if isinstance(space, spaces.Discrete) else None
        self.observation_shape = jax.eval_shape(self.reset, jax.random.key(0))[1].shape
        # One environment states its limit as a float.
        self.max_episode_steps: int | None = math.ceil(self._params.max_steps_in_episode)

    def _observation(self, observation: Array) -> Array:
        if self._one_hot is not None:
            return jax.nn.one_hot(observation, self._one_hot)
        return jnp.asarray(observation, jnp.float32)

    def reset(self, key: Array) -> tuple[Any, Array]:
        observation, state = self._env.reset_env(key, self._params)
        return carry.definite(state), self._observation(observation)

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        observation, new_state, reward, terminated, _ = self._env.step_env(
            key, state, action, self._params
        )
        truncated = self._env.is_truncated(new_state, self._params) & ~terminated
        observation = self._observation(observation)
        timestep = TimeStep(
            observation, jnp.asarray(reward, jnp.float32), terminated, truncated, observation
        )
        return carry.like(new_state, state), timestep

    def picture(self, state: Any, observation: Array, size: int) -> np.ndarray:
        """Draws a state: RGB, uint8 [height, width, 3], of which the longer side has `size` pixels.

        Not to be compiled. It may be a little smaller, where squares must fit.
        """
        from envs import pictures

        state, observation = jax.device_get((state, observation))
        return pictures.draw(
            self.name, self._env, self._params, state, np.asarray(observation), size
        )


def make(name: str, task: str, params: Mapping[str, Any]) -> GymnaxEnvironment:
    """A registered environment, its own or one that an imported module has registered.

    Raises:
      ValueError: none has this name, or it has no such parameter or one out of range.
    """
    known = registration.registered_envs
    if task not in known:
        raise ValueError(f"{name}: its module registers no {task!r} with gymnax")
    return GymnaxEnvironment(name, gymnax.make(task)[0], params)


def of_environment(env: Any, name: str, params: Mapping[str, Any]) -> GymnaxEnvironment:
    """An environment of gymnax's classes; ValueError for parameters that it does not have."""
    return GymnaxEnvironment(name, env, params)
