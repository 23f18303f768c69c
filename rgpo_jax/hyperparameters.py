"""Traced numbers of an update, that a Config gives and vmapped members override."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from rgpo_jax.ranges import Above, Range
from rgpo_jax.tunable import Tunable, constraints, require


def _as_float32(tree: Any) -> Any:
    """Numbers and arrays in a tree as arrays of one type, so that all are one program."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


@dataclasses.dataclass(frozen=True)
class TracedNumbers:
    """A dataclass, registered as a pytree, whose fields are scalars, or Tunables and their numbers.

    Kinds of training subclass it; `learner.Hyperparameters` is that of control.
    """

    @classmethod
    def from_settings(cls, config: Any, **functions: Any) -> Self:
        """Fields of a Config as float32 scalars, and functions beside them; the rest by default."""
        numbers = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(cls)
            if hasattr(config, field.name) and field.name not in functions
        }
        return _as_float32(cls(**numbers, **functions))

    @classmethod
    def functions(cls) -> set[str]:
        """The names of the fields that are Tunables, or may be."""
        hints = typing.get_type_hints(cls)
        return {name for name, hint in hints.items() if Tunable in (hint, *typing.get_args(hint))}

    def replace(self, **overrides: Any) -> Self:
        """Returns a copy with fields replaced, or numbers of its functions by name.

        `replace(learning_rate=1e-3, sharpness=2.0)` sets the gate's sharpness. Numbers become
        float32 arrays, so that no other program is needed. Raises TypeError for a name that neither
        has.
        """
        numbers = (int, float, np.ndarray, np.generic, jax.Array)
        overrides = jax.tree.map(
            lambda x: _as_float32(x) if isinstance(x, numbers) else x, overrides
        )
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        # Functions first: a number beside a new gate is the new gate's.
        fields |= {name: value for name, value in overrides.items() if name in fields}
        for name in overrides.keys() - fields.keys():
            functions = {f: x for f, x in fields.items() if isinstance(x, Tunable)}
            owner = next((f for f, function in functions.items() if name in function.numbers), None)
            if owner is None:
                known = [n for n, x in fields.items() if n not in functions and x is not None]
                known += [number for function in functions.values() for number in function.numbers]
                raise TypeError(f"no hyper-parameter {name!r}; there are {', '.join(known)}")
            fields[owner] = functions[owner].replace(**{name: overrides[name]})
        return dataclasses.replace(self, **fields)


def check_overrides(
    config: Any, overrides: Mapping[str, Any], kind: type[TracedNumbers]
) -> dict[str, Any]:
    """Checks overrides as far as they can be looked at, and gives them definite types.

    Args:
      config: of the agent, whose numbers they take the place of.
      overrides: by name.
      kind: of the agent's hyper-parameters, which tells its functions.

    Raises:
      ValueError: a number is out of range, or not above another as it should be.
      TypeError: a function is none.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for name in kind.functions() & overrides.keys():
        if not isinstance(overrides[name], Tunable):
            raise TypeError(
                f"{name} = {overrides[name]!r}: expected a Tunable, such as gates.rgpo(2.0)"
            )
    checked = {name: _checked(hints.get(name), name, x) for name, x in overrides.items()}
    for name, hint in hints.items():
        for above in (c for c in constraints(hint) if isinstance(c, Above)):
            if name in overrides or above.setting in overrides:
                value, least = (overrides.get(n, getattr(config, n)) for n in (name, above.setting))
                if value is not None and not isinstance(least, jax.core.Tracer):
                    require(name, value, above.beyond(least))
    return checked


def _checked(hint: Any, name: str, value: Any) -> Any:
    if value is None and type(None) in typing.get_args(hint):
        return None
    for constraint in constraints(hint):
        if isinstance(constraint, Range):
            require(name, value, constraint)
    return _as_float32(value)
