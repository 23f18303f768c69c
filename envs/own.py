"""Environments of a user's own: of our protocols, or of a library's, put behind them."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from envs import parameters
from envs.parameters import LIMIT
from rgpo_jax import importing
from rgpo_jax.environment import AnyEnvironment, HostEnvironment

_EXPECTED = (
    "expected a class or a function that makes an environment: of rgpo_jax.environment, Gymnasium, "
    "gymnax, Brax or Playground"
)

_GYMNAX = "gymnax.environments.environment", "Environment"


def make(name: str, params: Mapping[str, Any]) -> AnyEnvironment:
    """Imports MODULE:NAME, and adapts what it finds.

    Raises:
      ValueError: as `adapt`, or it cannot be imported.
    """
    try:
        found = importing.load(name)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return adapt(found, name, params)


def adapt(found: Any, name: str, params: Mapping[str, Any]) -> AnyEnvironment:
    """Makes an environment, and puts it behind the protocols.

    Args:
      found: a class or function that makes one; or an environment.
      name: for messages.
      params: of the class or function, and LIMIT.

    Raises:
      ValueError: it is no environment, or has no such parameter, or cannot be made.
    """
    if not _is_environment(found):
        if not callable(found):
            raise ValueError(f"{name} is a {type(found).__name__}: {_EXPECTED}")
        if _is_of("gymnasium", "Env", found):
            return _of_gymnasium(found, name, params)
        params = dict(params)
        own, takes_all = parameters.taken_by(found)
        limit = None if LIMIT in own else params.pop(LIMIT, None)
        theirs: dict[str, Any] = {}
        if isinstance(found, type) and _is_of(*_GYMNAX, found):  # what it simulates is apart
            theirs = {k: params.pop(k) for k in list(params) if k not in own}
        if not takes_all:
            parameters.check(name, params, (*own, LIMIT))
        make = found

        def again(**how: Any) -> Any:  # such as render_mode
            return make(**params, **{k: x for k, x in how.items() if takes_all or k in own})

        try:
            found = again()
        except (Exception, SystemExit) as error:  # it may be anything
            raise ValueError(f"{name} cannot be made: {type(error).__name__}: {error}") from error
        if _is_of("gymnasium", "Env", found):
            found.close()
            return _of_gymnasium(again, name, {} if limit is None else {LIMIT: limit})
        return _limited(_behind_protocol(found, name, limit, theirs), name, limit)
    if _is_of("gymnasium", "Env", found):
        raise ValueError(
            f"{name} is one environment of Gymnasium, and training needs many: expected its class, "
            "a function that makes it, or its name, as gymnasium/NAME"
        )
    limit = dict(params).pop(LIMIT, None)
    parameters.check(name, params, (LIMIT,))
    return _limited(_behind_protocol(found, name, limit), name, limit)


def _is_of(package: str, class_name: str, found: Any) -> bool:
    """Whether it is, or makes, an object of a package's class; the package is not imported."""
    module = sys.modules.get(package)
    base = None if module is None else getattr(module, class_name, None)
    if base is None:
        return False
    return issubclass(found, base) if isinstance(found, type) else isinstance(found, base)


def _is_environment(found: Any) -> bool:
    makes = ("step", "make_pool")  # a compiled one; one on the host
    return not isinstance(found, type) and any(hasattr(found, name) for name in makes)


def _of_gymnasium(make: Callable[..., Any], name: str, params: Mapping[str, Any]) -> AnyEnvironment:
    from envs import gymnasium_adapter

    return gymnasium_adapter.of_callable(make, name, params)


def _behind_protocol(
    env: Any, name: str, limit: int | None, params: Mapping[str, Any] | None = None
) -> AnyEnvironment:
    """An environment as one of our protocols, with a library's adapter where it is one of its.

    `params` are gymnax's, of one of its kind.
    """
    if _is_of(*_GYMNAX, env):
        from envs import gymnax_adapter

        limits = {} if limit is None else {LIMIT: limit}
        return gymnax_adapter.of_environment(env, name, {**(params or {}), **limits})
    if _is_of("brax.envs.base", "Env", env):
        from envs import brax_adapter

        return brax_adapter.of_environment(env, name, limit)
    if _is_of("mujoco_playground._src.mjx_env", "MjxEnv", env):
        from envs import playground_adapter

        return playground_adapter.of_environment(env, name, limit)
    if hasattr(env, "observation_shape"):  # what else is missing, its agent says by name
        return env
    raise ValueError(f"{name} makes a {type(env).__name__}: {_EXPECTED}")


def _limited(env: AnyEnvironment, name: str, limit: int | None) -> AnyEnvironment:
    """With a limit to its episodes, where one is asked for and none is there."""
    if limit is None:
        return env
    limit = parameters.limit(limit)
    own = getattr(env, LIMIT, None)
    if own == limit:
        return env
    if own is not None and limit > own:
        raise ValueError(f"{LIMIT} = {limit}: expected at most {own}, the limit of {name}")
    if isinstance(env, HostEnvironment):
        raise ValueError(f"{name} lives on the host, and has no parameter {LIMIT!r} to limit it by")
    from envs.limited import LimitedEnvironment

    return LimitedEnvironment(env, limit)
