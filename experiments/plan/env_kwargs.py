"""Parameters of an environment, as flags have them: key=value."""

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rgpo_jax.config import ConfigError

FIELD = "env_kwargs"
_WORDS = {"true": True, "false": False, "none": None, "null": None}
_KEY = re.compile(r"[A-Za-z_][\w.]*")  # Playground's have dots


def parse(items: Iterable[str]) -> dict[str, Any]:
    """The parameters by name: numbers, truth values, lists, and strings for all else.

    Raises:
      ConfigError: one is not key=value, or two have one key.
    """
    params: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise ConfigError(FIELD, f"{item}: expected key=value")
        if key in params:
            raise ConfigError(FIELD, f"{item}: {key} is there twice")
        params[key] = _value(value)
    return params


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def items(params: Mapping[str, Any]) -> list[str]:
    """The inverse of `parse`, as a file or a sweep has them."""
    return [f"{key}={value}" for key, value in params.items()]


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which each parameter is one: env_kwargs.length = "0.5"."""
    flattened = {name: value for name, value in settings.items() if name != FIELD}
    for item in settings.get(FIELD) or ():
        key, _, value = str(item).partition("=")
        flattened[f"{FIELD}.{key}"] = value
    return flattened


def describe(env: str, backend: str | None, given: Iterable[str]) -> str:
    """An environment in words: "brax/ant (mjx, max_episode_steps=500)"."""
    differing = [*([backend] if backend else []), *given]
    return f"{env} ({', '.join(differing)})" if differing else env
