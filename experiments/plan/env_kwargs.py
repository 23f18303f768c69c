"""Parameters of an environment, as flags have them: key=value."""

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rgpo_jax.config import ConfigError

FIELD, DRAWN = "env_kwargs", "randomize"
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


def ranges(items: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Parameters that are drawn, by name: the lowest and the highest value.

    Raises:
      ConfigError: one is not key=low..high, or two have one key.
    """
    found: dict[str, tuple[float, float]] = {}
    for item in items:
        key, _, value = item.partition("=")
        low, dots, high = value.partition("..")
        try:
            if not dots or not _KEY.fullmatch(key):
                raise ValueError
            bounds = float(low), float(high)
        except ValueError:
            raise ConfigError(DRAWN, f"{item}: expected key=low..high") from None
        if key in found:
            raise ConfigError(DRAWN, f"{item}: {key} is there twice")
        found[key] = bounds
    return found


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def items(params: Mapping[str, Any]) -> list[str]:
    """As flags have them; strings that read as a number or a truth value become one."""
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
