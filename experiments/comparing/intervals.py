"""What is told of seeds: means with intervals, and differences with a test of each."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its parts load where they are first used

from rgpo_jax.statistics import holm

LEVEL = 0.05  # of tests, after Holm's correction


class Interval(NamedTuple):
    """A mean over seeds and its 95 % interval; low and high are NaN for fewer than two."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Interval":
        """By Student's t: the bootstrap of a handful of seeds is too narrow."""
        mean, number = float(np.mean(values)), len(values)
        if number < 2:
            return cls(mean, math.nan, math.nan)
        quantile = float(scipy.stats.t.ppf(0.975, number - 1))
        half = quantile * float(np.std(values, ddof=1)) / math.sqrt(number)
        return cls(mean, mean - half, mean + half)

    def show(self, digits: int, scale: float = 1.0) -> str:
        mean, low, high = (f"{x * scale:.{digits}f}" for x in self)
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Differences of one and the same seed, and a test of their mean.

    Attributes:
      name: what is compared.
      interval: mean and 95 % interval over seeds, by Student's t.
      p: two-sided, by Holm's correction for all that were made with it.
    """

    name: str
    interval: Interval
    p: float

    @property
    def sign(self) -> int:
        """1 or -1 where the corrected test shows the difference, else 0."""
        if not self.p < LEVEL:
            return 0
        return 1 if self.interval.mean > 0 else -1


def compare(differences: Mapping[str, np.ndarray]) -> list[Comparison]:
    """Tests by Student's t of paired differences [S], corrected together."""
    values = {name: np.asarray(x, float) for name, x in differences.items()}
    tests = []
    for x in values.values():
        p = float(scipy.stats.ttest_1samp(x, 0.0).pvalue) if np.ptp(x) > 0 else float(not np.any(x))
        tests.append(p)
    return [
        Comparison(name, Interval.of(x), p)
        for (name, x), p in zip(values.items(), holm(tests), strict=True)
    ]


def agree(comparisons: Sequence[Comparison], sign: int) -> bool | None:
    """Whether all differences have this sign: False if one is shown to have the other."""
    signs = [c.sign for c in comparisons]
    if all(s == sign for s in signs):
        return True
    return False if -sign in signs else None


def covers(interval: Interval, value: float) -> bool:
    """Whether the value lies in the interval."""
    return bool(interval.low <= value <= interval.high)
