"""Metrics that know how they are reduced over updates, and that reduction.

An update says what each of its numbers is, where it computes it:

    metrics = means({"entropy": entropy}) | maxima({"weight_max": jnp.max(w)})
    metrics |= means({"episode_return": total / count}, weight=count)

Whoever trains for many updates takes them into an `Accumulator`, and knows none by name.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Reduction = Literal["mean", "maximum", "sum"]
"""What becomes of a metric over updates."""


@jax.tree_util.register_pytree_node_class
class Metrics(Mapping[str, Array]):
    """The numbers of one update by name, float32; a pytree, to be vmapped and stacked.

    `a | b` has those of both; those of a plain dict are means.

    Attributes:
      weights: name -> of how many samples a mean is, a whole number; 1 where a name is missing.
        Where it is 0 the number is undefined, and no part of any mean or maximum.
      reductions: name -> how it is reduced over updates; "mean" where a name is missing.
    """

    def __init__(
        self,
        numbers: Mapping[str, Any],
        weights: Mapping[str, Any] | None = None,
        reductions: Mapping[str, Reduction] | None = None,
    ):
        self._numbers = dict(numbers)
        self.weights = dict(weights or {})
        self.reductions = dict(reductions or {})

    def __getitem__(self, name: str) -> Array:
        return self._numbers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __repr__(self) -> str:
        return f"Metrics({self._numbers})"

    def __or__(self, other: Mapping[str, Any]) -> "Metrics":
        if not isinstance(other, Metrics):
            other = means(other)

        def without(kept: Mapping[str, Any]) -> dict[str, Any]:
            return {name: x for name, x in kept.items() if name not in other}

        return Metrics(
            self._numbers | other._numbers,
            without(self.weights) | other.weights,
            without(self.reductions) | other.reductions,
        )

    def __ror__(self, other: Mapping[str, Any]) -> "Metrics":
        return means(other) | self

    def tree_flatten(self) -> tuple[tuple[dict, dict], tuple]:
        """Numbers and weights are leaves; reductions are static."""
        return (self._numbers, self.weights), tuple(sorted(self.reductions.items()))

    @classmethod
    def tree_unflatten(cls, reductions: tuple, children: tuple[dict, dict]) -> "Metrics":
        """The inverse of `tree_flatten`."""
        return cls(*children, dict(reductions))


def means(numbers: Mapping[str, Any], weight: Any = None) -> Metrics:
    """Means over samples: over updates their mean, by the number of samples of each.

    Args:
      numbers: name -> scalar; the mean of booleans is a share.
      weight: number of samples, where it differs from update to update, or may be 0.
    """
    return Metrics(numbers, {} if weight is None else dict.fromkeys(numbers, weight))


def maxima(numbers: Mapping[str, Any], weight: Any = None) -> Metrics:
    """Largest values: over updates their maximum. A `weight` of 0 says that there is none."""
    weights = {} if weight is None else dict.fromkeys(numbers, weight)
    return Metrics(numbers, weights, dict.fromkeys(numbers, "maximum"))


def sums(numbers: Mapping[str, Any]) -> Metrics:
    """Totals: over updates their sum."""
    return Metrics(numbers, {}, dict.fromkeys(numbers, "sum"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Accumulator:
    """Metrics of many updates, reduced as they come, in memory that does not grow with them.

    All in two arrays: an operation or two per metric would take longer, to compile above all.

    Attributes:
      names: of n metrics.
      reductions: of each.
      values: their weighted sums, maxima or sums so far [n].
      counts: their weights so far, int32 [n].
    """

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    reductions: tuple[Reduction, ...] = dataclasses.field(metadata={"static": True})
    values: Array
    counts: Array

    def which(self, reduction: Reduction) -> np.ndarray:
        """Which of them are reduced in this way [n]."""
        return np.array([own == reduction for own in self.reductions])

    def emptied(self) -> "Accumulator":
        """One for the same metrics, of no update yet."""
        return _empty(self.names, self.reductions)


def _empty(names: tuple[str, ...], reductions: tuple[Reduction, ...]) -> Accumulator:
    values = [-jnp.inf if reduction == "maximum" else 0.0 for reduction in reductions]
    return Accumulator(
        names, reductions, jnp.array(values, jnp.float32), jnp.zeros(len(names), jnp.int32)
    )


def empty(metrics: Metrics) -> Accumulator:
    """An accumulator for metrics like these (their shapes alone will do), of no update yet."""
    names = tuple(sorted(metrics))
    return _empty(names, tuple(metrics.reductions.get(name, "mean") for name in names))


def accumulate(accumulator: Accumulator, metrics: Metrics) -> Accumulator:
    """Takes one update's metrics in."""
    names, one = accumulator.names, jnp.int32(1)
    news = jnp.stack([jnp.asarray(metrics[name], jnp.float32) for name in names])
    counts = jnp.stack([jnp.asarray(metrics.weights.get(name, one), jnp.int32) for name in names])
    # NaN wins a maximum: a run that broke must not report its last good one.
    largest = jnp.maximum(accumulator.values, news)
    if any(accumulator.which("maximum")[names.index(name)] for name in metrics.weights):
        largest = jnp.where(counts > 0, largest, accumulator.values)
    values = jnp.where(
        accumulator.which("maximum"),
        largest,
        accumulator.values + jnp.where(counts > 0, news * counts, 0.0),
    )
    return dataclasses.replace(accumulator, values=values, counts=accumulator.counts + counts)


def reduce(accumulator: Accumulator) -> dict[str, Array]:
    """What was accumulated, by name; NaN where nothing was defined, and 0 for a sum of nothing.

    Its arrays may be batched [..., n], and NumPy's: then NumPy reduces them.
    """
    values, counts = accumulator.values, accumulator.counts
    xp = values.__array_namespace__()
    divisors = xp.where(accumulator.which("mean"), xp.maximum(counts, 1), 1)
    reduced = values / divisors.astype(values.dtype)
    defined = (counts > 0) | accumulator.which("sum")
    rows = xp.moveaxis(xp.where(defined, reduced, xp.nan), -1, 0)
    return dict(zip(accumulator.names, rows, strict=True))
