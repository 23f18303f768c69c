"""Summary statistics over seeds and environments, with bootstrap intervals; Holm's correction.

The statistics are the recommendations of Agarwal et al., "Deep RL at the edge of the statistical
precipice", arXiv 2108.13264. Its own library, rliable 1.2, does not import beside pandas 3 (it
needs arch < 8, which does not), and its `random_state` has no effect on stratified resampling.
SciPy's bootstrap gives the same numbers, but takes longer to load than JAX. Tests hold this module
against both.

Scores come as strata: one array per environment, each with a leading axis of seeds, which may
differ in length. Resampling draws seeds within each stratum.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts load where they are first used

Strata = Sequence[np.ndarray]
"""Scores, an array of seeds [n_i, ...] for each environment i."""
Statistic = Callable[..., Any]
"""(*strata, axis) -> values without that axis."""


class Estimate(NamedTuple):
    """A statistic and its interval; `low` and `high` are NaN where a stratum has one seed only."""

    value: Any
    low: Any
    high: Any

    @property
    def has_interval(self) -> bool:
        """Whether there were seeds enough for one."""
        return bool(np.isfinite(self.low).all())


def estimate(
    statistic: Statistic,
    strata: Strata,
    confidence: float = 0.95,
    resamples: int = 5000,
) -> Estimate:
    """A statistic with its stratified percentile bootstrap interval.

    Args:
      statistic: (*strata, axis) -> values without that axis.
      strata: arrays [n_i, ...], n_i seeds of stratum i; the other axes are carried along.
      confidence: coverage, in (0, 1).
      resamples: bootstrap samples; drawn from a fixed seed, so the interval is reproducible.

    Raises:
      ValueError: there is no stratum, or one without scores.
    """
    strata = [np.asarray(stratum, float) for stratum in strata]
    if not strata or not all(len(stratum) for stratum in strata):
        raise ValueError("every stratum needs at least one score")
    value = statistic(*strata, axis=0)
    if min(map(len, strata)) < 2:
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    rng = np.random.default_rng(0)
    drawn = [
        np.moveaxis(stratum, 0, -1)[..., rng.integers(0, len(stratum), (resamples, len(stratum)))]
        for stratum in strata
    ]
    tail = (1.0 - confidence) / 2
    low, high = np.percentile(statistic(*drawn, axis=-1), [100 * tail, 100 * (1 - tail)], axis=-1)
    return Estimate(value, low, high)


def pooled_mean(*strata: np.ndarray, axis: int = -1) -> Any:
    """Mean over the seeds of all strata."""
    return np.mean(np.concatenate(strata, axis), axis)


def pooled_iqm(*strata: np.ndarray, axis: int = -1) -> Any:
    """Interquartile mean over the seeds of all strata: a quarter is dropped at either end."""
    scores = np.moveaxis(np.concatenate(strata, axis), axis, -1)
    cut = scores.shape[-1] // 4
    kept = slice(cut, scores.shape[-1] - cut)
    return np.mean(np.partition(scores, (kept.start, kept.stop - 1), axis=-1)[..., kept], axis=-1)


def pooled_optimality_gap(*strata: np.ndarray, axis: int = -1) -> Any:
    """1 minus the mean of normalised scores cut at 1: by how much 1 is missed on average."""
    return 1.0 - np.mean(np.minimum(np.concatenate(strata, axis), 1.0), axis)


def probability_of_improvement(scores: Strata, baseline: Strata, **how: Any) -> Estimate:
    """P(a seed scores above a seed of the baseline), ties counted half, mean over environments.

    Per environment this is Mann and Whitney's U over the number of pairs.

    Args:
      scores: [n_i] of each environment i.
      baseline: [m_i] of the same environments.
      **how: `confidence` and `resamples` of `estimate`.
    """

    def mean_probability(*strata: np.ndarray, axis: int) -> Any:
        ours, theirs = strata[: len(scores)], strata[len(scores) :]
        return np.mean(
            [
                scipy.stats.mannwhitneyu(x, y, axis=axis, method="asymptotic").statistic
                / (x.shape[axis] * y.shape[axis])
                for x, y in zip(ours, theirs, strict=True)
            ],
            axis=0,
        )

    return estimate(mean_probability, [*scores, *baseline], **how)


def performance_profile(scores: Strata, thresholds: np.ndarray, **how: Any) -> Estimate:
    """Fraction of runs, over all environments, whose score is above each threshold.

    Args:
      scores: [n_i] of each environment i.
      thresholds: [k].
      **how: `confidence` and `resamples` of `estimate`.

    Returns:
      Fractions and their pointwise intervals [k].
    """
    above = [np.asarray(stratum, float)[:, None] > thresholds for stratum in scores]
    return estimate(pooled_mean, above, **how)


def coefficient_of_variation(scores: Sequence[float] | np.ndarray) -> float:
    """Standard deviation over |mean|; NaN for fewer than two scores, or where the mean is 0."""
    scores = np.asarray(scores, float)
    if len(scores) < 2 or np.mean(scores) == 0:
        return float("nan")
    return float(np.std(scores, ddof=1) / abs(np.mean(scores)))


def interquartile_mean(scores: Sequence[float] | np.ndarray) -> float:
    """Mean of the middle half of the scores; a quarter of them is dropped at either end."""
    return float(pooled_iqm(np.asarray(scores, float)))


def bootstrap_interval(
    scores: Sequence[float] | np.ndarray, confidence: float = 0.95, resamples: int = 5000
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the interquartile mean over seeds.

    Args:
      scores: one per seed.
      confidence: coverage, in (0, 1).
      resamples: bootstrap samples; drawn from a fixed seed, so the interval is reproducible.

    Returns:
      (low, high), or None for fewer than two scores, which say nothing about spread.
    """
    if len(scores) < 2:
        return None
    interval = estimate(pooled_iqm, [np.asarray(scores)], confidence, resamples)
    return float(interval.low), float(interval.high)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that bound the chance of any false discovery.

    The i-th smallest of m is multiplied by m + 1 - i; none may fall below one before it, or
    exceed 1 (Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected
