r"""Bradley and Terry's model of preferences, and how well probabilities of it foretell them.

    P(a is preferred to b) = sigmoid(r(a) - r(b))

Rewards are known up to a constant. The loss is for JAX, and is differentiated; what is measured of
predictions is computed on the host, in float64. Source: Bradley and Terry 1952; as a reward for
language models Stiennon et al., arXiv 2009.01325.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array

_QUANTILE = 1.959963984540054  # of the normal distribution, for intervals of 95 %


def loss(margin: Array, label: Any = 1.0) -> Array:
    """-p log sigmoid(m) - (1 - p) log sigmoid(-m), elementwise; its gradient is sigmoid(m) - p.

    Args:
      margin: m = r(first) - r(second).
      label: p, the probability that the first is preferred.
    """
    return jax.nn.softplus(-margin) + (1.0 - label) * margin


class Estimate(NamedTuple):
    """A number and its interval of 95 %; all NaN where nothing was counted."""

    value: float
    low: float
    high: float


def wilson(successes: float, number: float) -> Estimate:
    """A share and Wilson's interval of it, which stays within 0 and 1 (Wilson 1927).

    Args:
      successes: how many; half a one is a tie.
      number: of all.
    """
    if not number:
        return Estimate(*[float("nan")] * 3)
    share, z = successes / number, _QUANTILE
    middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * np.sqrt(share * (1 - share) / number + (z / number / 2) ** 2)
    return Estimate(float(share), max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def right(margin: Any, label: Any = 1.0) -> np.ndarray:
    """Whether predictions are right, [n]: 1, 0, and a half where the margin is 0.

    Args:
      margin: [n].
      label: probability that the first is preferred; above a half it is expected to be.
    """
    margin = np.asarray(margin, float)
    first = np.where(margin == 0, 0.5, margin > 0)
    return np.where(np.asarray(label) >= 0.5, first, 1.0 - first)


def accuracy(margin: Any, label: Any = 1.0) -> Estimate:
    """The share of predictions that are `right`, with Wilson's interval."""
    found = right(margin, label)
    return wilson(float(found.sum()), len(found))


def gain(ours: Any, theirs: Any) -> Estimate:
    """By how much one is `right` more often than another on the same pairs.

    The interval is the normal one of the mean of the paired differences [n].
    """
    difference = np.asarray(ours, float) - np.asarray(theirs, float)
    if len(difference) < 2:
        return Estimate(float(difference.sum()), float("nan"), float("nan"))
    half = _QUANTILE * float(difference.std(ddof=1)) / np.sqrt(len(difference))
    mean = float(difference.mean())
    return Estimate(mean, mean - half, mean + half)


def log_loss(margin: Any, label: Any = 1.0) -> float:
    """The mean of `loss`, in nats; that of guessing is log 2."""
    margin = np.asarray(margin, float)
    return float(np.mean(np.logaddexp(0.0, -margin) + (1.0 - np.asarray(label)) * margin))


def brier(margin: Any, label: Any = 1.0) -> float:
    """The mean square of probability minus label; that of guessing is 1/4 (Brier 1950)."""
    return float(np.mean((probability(margin) - np.asarray(label)) ** 2))


def probability(margin: Any) -> np.ndarray:
    """That the first is preferred, float64 [n]."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(margin, float)))


class Bin(NamedTuple):
    """Predictions of about the same confidence.

    Attributes:
      lower: the least confidence of the bin.
      upper: the largest.
      number: of predictions.
      confidence: their mean.
      accuracy: the share that was right, with Wilson's interval.
    """

    lower: float
    upper: float
    number: int
    confidence: float
    accuracy: Estimate


class Calibration(NamedTuple):
    """How confidence and accuracy agree.

    Attributes:
      error: expected calibration error, the mean of |accuracy - confidence| over bins, weighted by
        their numbers (Naeini et al. 2015).
      bins: of equal width, from 1/2 to 1; those without predictions have NaN.
    """

    error: float
    bins: tuple[Bin, ...]


def calibration(margin: Any, label: Any = 1.0, num_bins: int = 10) -> Calibration:
    """Compares confidence, max(P, 1 - P), with the share of predictions that are right.

    Which answer comes first says nothing, so that P and 1 - P are one prediction; hence bins begin
    at 1/2. A label that is a probability counts as that share of right ones.

    Args:
      margin: [n].
      label: [n], or one for all.
      num_bins: how many.
    """
    margin = np.asarray(margin, float)
    label = np.broadcast_to(np.asarray(label, float), margin.shape)
    confidence = probability(np.abs(margin))
    outcome = np.where(margin == 0, 0.5, np.where(margin > 0, label, 1.0 - label))
    edges = np.linspace(0.5, 1.0, num_bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, num_bins - 1)
    bins, error = [], 0.0
    for i in range(num_bins):
        inside = place == i
        count = int(inside.sum())
        mean = float(confidence[inside].mean()) if count else float("nan")
        share = wilson(float(outcome[inside].sum()), count)
        bins.append(Bin(float(edges[i]), float(edges[i + 1]), count, mean, share))
        error += abs(share.value - mean) * count / len(margin) if count else 0.0
    return Calibration(error, tuple(bins))
