"""Environments and gates of a user's own are looked at where they come in, before they are run.

Nothing is computed for it: shapes and types follow from `jax.eval_shape`.
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rgpo_jax.environment import (
    AnyEnvironment,
    Box,
    Discrete,
    Environment,
    HostEnvironment,
    MultiDiscrete,
    Observation,
    TimeStep,
    restart_where_done,
    to_environment_units,
)
from rgpo_jax.tunable import is_of_suite

_LEAST_INT = -(2**31)  # actions are int32


class EnvironmentFailed(ValueError):
    """An environment does what it may not; the message has its name, the field and what it was."""


def _is_whole(value: Any, least: int) -> bool:
    is_number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_number and int(value) >= least


def _refuse(env: Any, field: str, found: Any, expected: str) -> None:
    name = getattr(env, "name", type(env).__name__)
    raise EnvironmentFailed(f"environment {name}: {field} is {found}: expected {expected}")


def check_spaces(env: AnyEnvironment) -> None:
    """Raises ValueError, naming environment and field, where what it says of itself cannot be."""
    for field in ("name", "observation_shape", "action_space", "max_episode_steps"):
        if not hasattr(env, field):
            expected = (
                "an environment of rgpo_jax.environment; envs.make builds those of libraries by "
                "name, and envs.adapt takes a user's own, of Gymnasium its class"
            )
            _refuse(env, field, "missing", expected)
    shape, space, limit = env.observation_shape, env.action_space, env.max_episode_steps
    if isinstance(shape, dict):
        if not shape or not all(isinstance(name, str) and name for name in shape):
            _refuse(env, "observation_shape", shape, "a dict of names and shapes, at least one")
        for name, part in shape.items():
            _check_shape(env, f"observation_shape[{name!r}]", part)
    else:
        _check_shape(env, "observation_shape", shape)
    if limit is not None and not _is_whole(limit, 1):
        _refuse(env, "max_episode_steps", limit, "a whole number of at least 1, or None")
    if isinstance(space, Discrete):
        if not _is_whole(space.n, 1):
            _refuse(env, "action_space.n", space.n, "a whole number of at least 1")
        if not _is_whole(space.start, _LEAST_INT):
            _refuse(env, "action_space.start", space.start, "a whole number")
    elif isinstance(space, MultiDiscrete):
        _check_multi_discrete(env, space)
    elif isinstance(space, Box):
        _check_box(env, space)
    else:
        expected = "a Discrete, a MultiDiscrete or a Box"
        _refuse(env, "action_space", f"a {type(space).__name__}", expected)


def _check_shape(env: Any, field: str, shape: Any) -> None:
    if not isinstance(shape, tuple) or not all(_is_whole(size, 1) for size in shape):
        _refuse(env, field, shape, "a tuple of sizes of at least 1")


def _check_elements(env: Any, field: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    if values.shape != (size,):
        expected = f"{size} numbers, one for each element of shape {shape}"
        _refuse(env, field, f"of shape {values.shape}", expected)


def _check_multi_discrete(env: Any, space: MultiDiscrete) -> None:
    _check_shape(env, "action_space.shape", space.shape)
    for field, least in (("nvec", 1), ("start", _LEAST_INT)):
        values = getattr(space, field)
        _check_elements(env, f"action_space.{field}", np.asarray(values), space.shape)
        if not all(_is_whole(value, least) for value in values):
            expected = "whole numbers" + (" of at least 1" if least == 1 else "")
            _refuse(env, f"action_space.{field}", values, expected)


def _check_box(env: Any, space: Box) -> None:
    shape = space.shape
    _check_shape(env, "action_space.shape", shape)
    bounds = {}
    for field in ("low", "high"):
        bound = np.asarray(getattr(space, field), np.float64)
        _check_elements(env, f"action_space.{field}", bound, shape)
        if np.isnan(bound).any():
            _refuse(env, f"action_space.{field}", "NaN", "a bound, or an infinity for none")
        bounds[field] = bound
    above = np.flatnonzero(bounds["low"] > bounds["high"])
    if above.size:
        i = int(above[0])
        low, high = bounds["low"][i], bounds["high"][i]
        _refuse(env, "action_space.low", f"{low:g} in element {i}", f"at most its high, {high:g}")


def is_known(env: Any) -> bool:
    """Whether an environment is the suite's own; of one that `wraps` another, whether that is."""
    while hasattr(env, "wraps"):
        env = env.wraps
    return is_of_suite(env)


def check_environment(env: AnyEnvironment) -> None:
    """Raises ValueError, naming environment and field, for one that cannot be trained on.

    A compiled one's `reset` and `step` are traced, and not run; those of the suite are not traced.
    """
    check_spaces(env)
    if isinstance(env, HostEnvironment) or is_known(env):
        return
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        state, observation = jax.eval_shape(env.reset, key)
    except Exception as error:  # it may be anything
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"environment {env.name}: reset(key) failed: {said}") from error
    _check_observation(env, "the observation of reset", observation, None)
    space = env.action_space
    action = jax.ShapeDtypeStruct((), jnp.int32)
    if isinstance(space, MultiDiscrete):
        action = jax.ShapeDtypeStruct(space.shape, jnp.int32)
    if isinstance(space, Box):
        action = jax.ShapeDtypeStruct(space.shape, jnp.float32)
    try:
        after, timestep = jax.eval_shape(env.step, key, state, action)
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"environment {env.name}: step failed: {said}") from error
    if not isinstance(timestep, TimeStep):
        _refuse(env, "the second result of step", f"a {type(timestep).__name__}", "a TimeStep")
    _check_timestep(env, timestep, jax.tree.map(lambda x: x.dtype, observation))
    structures: list[Any] = [jax.tree.structure(tree) for tree in (after, state)]
    if structures[0] != structures[1]:
        _refuse(env, "the state after step", "of another structure than reset's", "the same one")

    def described(tree: Any) -> list[str]:
        return [f"{x.dtype.name}{list(x.shape)}" for x in jax.tree.leaves(tree)]

    for found, expected in zip(described(after), described(state), strict=True):
        if found != expected:
            _refuse(env, "a part of the state after step", found, f"{expected}, as of reset")


def find_nonfinite(
    env: Environment, key: jax.Array, num_envs: int = 64, num_steps: int = 256
) -> str | None:
    """Looks for what is NaN or infinite in a compiled environment's steps, under random actions.

    Args:
      env: one environment; it is vmapped and compiled here.
      key: a typed key.
      num_envs: side by side.
      num_steps: of each, over as many episodes as these are.

    Returns:
      The first such field and its step, in words; None where all numbers were finite.
    """
    space = env.action_space

    def drawn(key: jax.Array) -> jax.Array:
        if isinstance(space, Discrete):
            action = jax.random.randint(key, (), 0, space.n)
            return to_environment_units(space, action)
        if isinstance(space, MultiDiscrete):
            action = jax.random.randint(key, (len(space.nvec),), 0, jnp.asarray(space.nvec))
            return to_environment_units(space, action)
        action = jax.random.uniform(key, (math.prod(space.shape),), minval=-1.0, maxval=1.0)
        return to_environment_units(space, action)

    def is_finite(tree: Any) -> jax.Array:
        leaves = jax.tree.leaves(tree)
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))

    def episode(key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        start_key, key = jax.random.split(key)
        start, observation = env.reset(start_key)

        def step(state: Any, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            action_key, step_key, reset_key = jax.random.split(key, 3)
            state, timestep = env.step(step_key, state, drawn(action_key))
            found = {
                "reward": is_finite(timestep.reward),
                "observation": is_finite(timestep.final_observation)
                & is_finite(timestep.observation),
            }
            return restart_where_done(state, timestep, env.reset(reset_key))[0], found

        _, steps = jax.lax.scan(step, start, jax.random.split(key, num_steps))
        return is_finite(observation), steps

    started, steps = jax.jit(jax.vmap(episode))(jax.random.split(key, num_envs))
    if not np.all(started):
        return f"environment {env.name}: the observation of reset is NaN or infinite"
    first = {
        field: int(np.argmin(np.all(finite, axis=0)))
        for field, finite in steps.items()
        if not np.all(finite)
    }
    if not first:
        return None
    field = min(first, key=lambda name: first[name])
    return f"environment {env.name}: {field} of step {first[field] + 1} is NaN or infinite"


def first_nonfinite(env: HostEnvironment, timestep: TimeStep, number: int) -> str | None:
    """Which field of a step is NaN or infinite, in words; None where all numbers are finite.

    Args:
      env: whose step it is.
      timestep: arrays batched over environments.
      number: of the step, from 1.
    """
    for field in ("reward", "observation", "final_observation"):
        for array in map(np.asarray, jax.tree.leaves(getattr(timestep, field))):
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                return f"environment {env.name}: {field} of step {number} is NaN or infinite"
    return None


def check_observations(env: HostEnvironment, observations: Any) -> None:
    """Raises ValueError for what a pool's reset gave, batched over environments."""
    _check_observation(env, "the observation of reset", _of_one(observations), None)


def check_first_step(env: HostEnvironment, timestep: TimeStep) -> None:
    """Raises ValueError for what a pool's first step gave; arrays are batched over environments."""
    _check_timestep(env, _of_one(timestep), jax.tree.map(np.dtype, env.observation_dtype))
    for field in ("reward", "observation", "final_observation"):
        for value in map(np.asarray, jax.tree.leaves(getattr(timestep, field))):
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                _refuse(env, f"{field} of its first step", "NaN or infinite", "finite numbers")


def _of_one(batches: Any) -> Any:
    """Shapes and types of one environment's part of batches."""

    def describe(batch: Any) -> jax.ShapeDtypeStruct:
        array = np.asarray(batch)
        return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)

    return jax.tree.map(describe, batches)


def _check_observation(env: Any, field: str, found: Observation, dtype: Any) -> None:
    """A dtype is one, or a dict where the observation is one; None: any will do."""
    shape = env.observation_shape
    if not isinstance(shape, dict):
        _check_array(env, field, found, shape, dtype)
        return
    if not isinstance(found, dict) or found.keys() != shape.keys():
        kind = (
            f"of parts {sorted(found)}" if isinstance(found, dict) else f"a {type(found).__name__}"
        )
        _refuse(env, field, kind, f"a dict of {', '.join(sorted(shape))}")
    for name, part in shape.items():
        part_dtype = dtype[name] if isinstance(dtype, dict) else dtype
        _check_array(env, f"{field}[{name!r}]", found[name], part, part_dtype)


def _check_timestep(env: Any, timestep: TimeStep, dtype: Any) -> None:
    for field in ("observation", "final_observation"):
        _check_observation(env, field, getattr(timestep, field), dtype)
    reward = timestep.reward
    _check_array(env, "reward", reward, (), None)
    if not jnp.issubdtype(reward.dtype, jnp.floating):
        _refuse(env, "reward", reward.dtype, "a float")
    for field in ("terminated", "truncated"):
        _check_array(env, field, getattr(timestep, field), (), np.dtype(bool))


def _check_array(env: Any, field: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        _refuse(env, field, f"a {type(array).__name__}", "an array")
    if tuple(array.shape) != tuple(shape):
        _refuse(env, field, f"of shape {tuple(array.shape)}", f"{tuple(shape)}")
    if dtype is not None and array.dtype != dtype:
        _refuse(env, field, array.dtype, str(np.dtype(dtype)))
