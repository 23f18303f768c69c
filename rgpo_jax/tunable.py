"""Functions whose numbers are pytree leaves."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rgpo_jax.ranges import Range


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
