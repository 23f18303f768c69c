"""Functions whose numbers are pytree leaves."""

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from rgpo_jax.ranges import Above, Range


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tunable:
    """A pure function together with the numbers it is called with.

    The numbers are pytree leaves: they can be traced, batched by `jax.vmap`, stored in a
    training state and differentiated, so a sweep over them is one compiled program.
    The function and its options are static: they select the program.

    Attributes:
      function: called as `function(*args, **numbers, **options)`; hashable.
      numbers: name -> scalar (or None for a number that is switched off).
      options: (name, value) pairs that are not numbers, such as the form of a gate.
    """

    function: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), metadata={"static": True})

    def __call__(self, *args: Any) -> Any:
        return self.function(*args, **self.numbers, **dict(self.options))

    def replace(self, **numbers: Any) -> "Tunable":
        """Returns a copy with some numbers replaced; raises KeyError for an unknown name."""
        for name in numbers:
            if name not in self.numbers:
                raise KeyError(
                    f"{name}: not a number of this function, which has {list(self.numbers)}"
                )
        return dataclasses.replace(self, numbers={**self.numbers, **numbers})


_SUITE = ("rgpo_jax", "envs", "agents")
_ROOT = Path(__file__).parents[1]


def is_of_suite(thing: Any) -> bool:
    """Whether a function, or the class of an object, is defined in this project.

    By its file, since others have packages called envs and agents.
    """
    defined = thing if hasattr(thing, "__qualname__") else type(thing)
    module = str(getattr(defined, "__module__", ""))
    package = module.partition(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    return package in _SUITE and file is not None and Path(file).is_relative_to(_ROOT / package)


def as_tunable(function: "Callable[..., Any] | Tunable") -> Tunable:
    """Wraps a plain function as a `Tunable` without numbers; leaves a `Tunable` as it is."""
    return function if isinstance(function, Tunable) else Tunable(function)


def require(name: str, value: Any, accepted: Range) -> None:
    """Raises ValueError unless a number, or every number of an array, is finite and in range.

    A traced value cannot be looked at, and passes.
    """
    if isinstance(value, jax.core.Tracer):
        return
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {value!r}: expected {accepted.accepted}") from None
    if not (np.all(np.isfinite(array)) and np.all(accepted.contains(array))):
        raise ValueError(f"{name} = {value}: expected {accepted.accepted}")


def constructor(function: Callable[..., Any], settings: type) -> Callable[..., Tunable]:
    """Returns what builds the Tunable of a function from the settings that a dataclass declares.

    Args:
      function: called as `function(*args, **settings)`.
      settings: dataclass; fields with a `Range` are numbers, switches and words are options. Its
        instances are not made: a number may be an array, or traced.

    Returns:
      Function of the settings, in the order of the fields, by position or name. It raises
      ValueError for a value that is not admitted, and TypeError for a name that is none.
    """
    hints = typing.get_type_hints(settings, include_extras=True)
    options = [name for name, hint in hints.items() if _choices(hint)]
    signature = inspect.Signature(
        [
            field.replace(
                kind=inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=inspect.Parameter.empty
            )
            for field in inspect.signature(settings).parameters.values()
        ]
    )

    def construct(*args: Any, **kwargs: Any) -> Tunable:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        for name in given:
            _admit(name, given, hints[name])
        numbers = {name: value for name, value in given.items() if name not in options}
        return Tunable(function, numbers, tuple((name, given[name]) for name in options))

    construct.__signature__ = signature  # type: ignore[attr-defined]
    return construct


def describe(settings: type) -> str:
    """The settings that a dataclass declares, one a line: name, what is accepted, default."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return "\n".join(
        f"  {field.name}: {_accepted(hints[field.name])}; {field.default!r} by default."
        for field in dataclasses.fields(settings)
    )


def _choices(hint: Any) -> tuple[Any, ...]:
    """What an option may be; empty for a number."""
    if hint is bool:
        return (True, False)
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def constraints(hint: Any) -> list[Any]:
    """The ranges of a number, whether or not it may be None."""
    options = (hint, *typing.get_args(hint))
    return [c for option in options for c in getattr(option, "__metadata__", ())]


def _accepted(hint: Any) -> str:
    """In words, what a setting may be."""
    if choices := _choices(hint):
        return f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
    words = [
        constraint.accepted if isinstance(constraint, Range) else f"above {constraint.setting}"
        for constraint in constraints(hint)
    ]
    return ", ".join(words) + (" or None" if type(None) in typing.get_args(hint) else "")


def _admit(name: str, given: Mapping[str, Any], hint: Any) -> None:
    """Raises ValueError unless a setting is what its annotation admits beside the others."""
    value = given[name]
    choices = _choices(hint)
    if choices and not any(type(value) is type(c) and value == c for c in choices):
        raise ValueError(f"{name} = {value!r}: expected {_accepted(hint)}")
    if value is None and type(None) in typing.get_args(hint):
        return
    for constraint in constraints(hint):
        if isinstance(constraint, Range):
            require(name, value, constraint)
        elif isinstance(constraint, Above):
            other = given[constraint.setting]
            if not isinstance(other, jax.core.Tracer):
                require(name, value, constraint.beyond(other))
