"""Summary statistics over seeds, by SciPy."""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats


def interquartile_mean(scores: Sequence[float] | np.ndarray) -> float:
    """Mean of the middle half of the scores; a quarter of them is dropped at either end.

    Source: Agarwal et al., "Deep RL at the edge of the statistical precipice", arXiv 2108.13264.
    """
    return float(stats.trim_mean(np.asarray(scores, float), 0.25))


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
    scores = np.asarray(scores, float)
    if len(scores) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # identical scores: a degenerate interval, and right
        result = stats.bootstrap(
            (scores,),
            lambda x, axis=-1: stats.trim_mean(x, 0.25, axis=axis),
            confidence_level=confidence,
            n_resamples=resamples,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(0),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
