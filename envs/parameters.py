"""Parameters of environments, by name: checked alike for all libraries."""

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

LIMIT = "max_episode_steps"  # every environment has it, whatever its library calls it
GYMNAX_LIMIT = "max_steps_in_episode"


def check(name: str, params: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for a parameter that the environment does not have."""
    known = list(dict.fromkeys(known))
    for param in params:
        if param not in known:
            nearest = difflib.get_close_matches(param, known, n=1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise ValueError(f"{name} has no parameter {param!r}; {hint}it has {', '.join(known)}")


def taken_by(make: Callable[..., Any]) -> tuple[list[str], bool]:
    """What a class or function takes by name, and whether it takes any name, or does not say."""
    try:
        signature = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return [], True
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature)
    return [p.name for p in signature if p.kind in kinds], takes_all


def with_limit(name: str, params: Mapping[str, Any], word: str) -> dict[str, Any]:
    """The parameters with one word for the limit, LIMIT or GYMNAX_LIMIT, of which either is given.

    Raises:
      ValueError: both are.
    """
    other = GYMNAX_LIMIT if word == LIMIT else LIMIT
    renamed = dict(params)
    if other in renamed:
        if word in renamed:
            raise ValueError(f"{name}: {LIMIT} and {GYMNAX_LIMIT} are one; give one of them")
        renamed[word] = renamed.pop(other)
    return renamed


def limit(value: Any) -> int:
    """Checks a number of steps; raises ValueError."""
    try:
        steps = operator.index(value)
    except TypeError:
        raise ValueError(f"{LIMIT} = {value!r}: expected an int") from None
    if steps < 1:
        raise ValueError(f"{LIMIT} = {steps}: expected at least 1")
    return steps
