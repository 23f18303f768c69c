"""Estimates of a gradient through a gate: their exact bias and variance, and the best sharpness."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.theory import ratios
from rgpo_jax import gates
from rgpo_jax.tunable import Tunable

SHARPNESSES = np.geomspace(0.003, 100.0, 121)  # of which one has the least error
SHOWN = (1.0, 2.0, 4.0, 8.0, 16.0)
TAIL_SHARPNESSES = (0.003, 0.1, *SHOWN)
SMALL = (1e-4, 1e-3)  # between which the bias under a tail is a power of k
NEAR = 0.1  # KL up to which (r - 1)^2 is 2 KL, about
WITHIN = 0.05  # an error that is larger by no more than this is as good
# Mean advantages of an action x of the old policy N(0, 1) other than the study's own, tanh(x).
SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sign(x)": np.sign,
    "x": np.positive,
    "exp(x)": np.exp,
}


class Moments(NamedTuple):
    """Of one sample's gradient estimate.

    Attributes:
      bias: E_old[w A s] - E_old[r A s].
      variance: of w A s.
    """

    bias: float
    variance: float

    def error(self, n: float) -> float:
        """Mean squared error of the mean of n samples."""
        return self.bias**2 + self.variance / n


def _moments(w: np.ndarray, samples: ratios.Samples) -> Moments:
    sample = w * samples.advantage * samples.score
    truth = np.exp(samples.log_ratio) * samples.advantage * samples.score
    mean = float(np.sum(samples.mass * sample))
    variance = float(np.sum(samples.mass * np.square(sample))) - mean**2
    return Moments(float(np.sum(samples.mass * (sample - truth))), variance)


def true_gradient(samples: ratios.Samples) -> float:
    """E_old[r A s], what importance sampling estimates without bias."""
    return float(
        np.sum(samples.mass * np.exp(samples.log_ratio) * samples.advantage * samples.score)
    )


def of_sharpness(sharpness: float, samples: ratios.Samples) -> Moments:
    """Of the normalised gate, whose w(1) is 1 for every k."""
    return of_gate(gates.rgpo(sharpness, normalize=True), samples)


def of_gate(gate: Tunable, samples: ratios.Samples) -> Moments:
    """Of any gate."""
    return _moments(ratios.weights(gate, samples.log_ratio, samples.advantage), samples)


def share_of_bias(
    mean_advantage: Callable[[np.ndarray], np.ndarray], kl: float, sharpness: float
) -> float:
    """|bias| over the gradient, of the normalised gate between normal policies of equal width.

    Args:
      mean_advantage: function of the action x; its mean under the old policy N(0, 1) is taken off.
      kl: of old to new, in nats.
      sharpness: k.
    """
    model = ratios.Normals.at_distance(kl, 1.0)
    samples = model.quadrature()
    advantage = mean_advantage(samples.score + model.shift)  # the score is x - shift
    advantage = advantage - np.sum(samples.mass * advantage)
    samples = samples._replace(advantage=advantage)
    return abs(of_sharpness(sharpness, samples).bias / true_gradient(samples))


def bound(sharpness: float, samples: ratios.Samples) -> float:
    """(k^2/4) E_pi[(r-1)^2 |A| |s|], which the normalised gate's |bias| does not exceed."""
    r = np.exp(samples.log_ratio)
    size = np.abs(samples.advantage * samples.score)
    return sharpness**2 / 4.0 * float(np.sum(samples.mass * r * np.square(r - 1.0) * size))


def capped_bound(sharpness: float, samples: ratios.Samples) -> float:
    """E_pi[min(1, k^2/4 (r-1)^2) |A| |s|], a bound as well: finite where E_pi[(r-1)^2] is not."""
    r = np.exp(samples.log_ratio)
    share = np.minimum(1.0, np.square(sharpness * (r - 1.0) / 2.0))
    size = np.abs(samples.advantage * samples.score)
    return float(np.sum(samples.mass * r * share * size))


class Tail(NamedTuple):
    """Bias under a Pareto ratio.

    Attributes:
      tail: its index a.
      truth: the gradient.
      bias, bound: for each k of `TAIL_SHARPNESSES`.
      power: p where |bias| falls as k^p for small k.
    """

    tail: float
    truth: float
    bias: list[float]
    bound: list[float]
    power: float


def under_tail(tail: float) -> Tail:
    """Exact values, and the power between two small k."""
    samples = ratios.ParetoBandit(tail).quadrature()
    near, far = (abs(of_sharpness(k, samples).bias) for k in SMALL)
    return Tail(
        tail,
        true_gradient(samples),
        [of_sharpness(k, samples).bias for k in TAIL_SHARPNESSES],
        [capped_bound(k, samples) for k in TAIL_SHARPNESSES],
        math.log(far / near) / math.log(SMALL[1] / SMALL[0]),
    )


def identity_error() -> float:
    """Largest |w - r + r tanh^2(k(r-1)/2)| / r of the normalised gate, over k and r in float64."""
    log_ratio = np.linspace(-8.0, 5.0, 20_001)
    r, worst = np.exp(log_ratio), 0.0
    for sharpness in (0.05, *SHOWN, 100.0):
        w = ratios.weights(gates.rgpo(sharpness, normalize=True), log_ratio, np.ones_like(r))
        expected = -r * np.square(np.tanh(sharpness * (r - 1.0) / 2.0))
        worst = max(worst, float(np.max(np.abs(w - r - expected) / r)))
    return worst


def rule(choices: "Sequence[Choice]") -> tuple[float, float]:
    """The rule k = C / (signal sqrt(n KL)), fitted where KL and the best k are small.

    For k^2 KL << 1 the squared bias grows as (signal k^2 KL)^2, and the variance falls by a share
    k^2 KL of it: the sum is least where k^2 KL is in proportion to 1 / (signal^2 n).

    Returns:
      C, and the largest factor by which a best k is off the rule.
    """
    products = [
        c.best * c.signal * math.sqrt(c.n * c.kl)
        for c in choices
        if c.kl <= NEAR and c.best > 0.0 and c.best * math.sqrt(2.0 * c.kl) < 1.0
    ]
    constant = math.exp(float(np.mean(np.log(products))))
    return constant, max(max(p / constant, constant / p) for p in products)


class Choice(NamedTuple):
    """The sharpness of least error at one distance, sample size and signal.

    Attributes:
      signal, kl, n: where.
      best: the sharpness; 0 stands for importance sampling, which no k > 0 beats, and inf for an
        estimate of 0, which none beats by more.
      low, high: sharpnesses within 5 % of the least error; high inf where any large one is.
      error: the least mean squared error, over the squared true gradient.
      over: that of other estimators, over the least.
    """

    signal: float
    kl: float
    n: int
    best: float
    low: float
    high: float
    error: float
    over: dict[str, float]


OTHERS: dict[str, Tunable] = {
    "rgpo k=4": gates.rgpo(4.0),
    "importance": gates.importance(),
    "ppo": gates.ppo(),
    "reinforce": gates.reinforce(),
}


def choose(signal: float, kl: float, sizes: Sequence[int], samples: ratios.Samples) -> list[Choice]:
    """The sharpness of least error, for each number of samples."""
    scanned = [of_sharpness(k, samples) for k in SHARPNESSES]
    others = {name: of_gate(gate, samples) for name, gate in OTHERS.items()}
    truth = true_gradient(samples)
    found = []
    for n in sizes:
        errors = np.array([moments.error(n) for moments in scanned])
        i = int(np.argmin(errors))
        least = min(float(errors[i]), others["importance"].error(n))
        best = float(SHARPNESSES[i]) if errors[i] <= least and i else 0.0
        (good,) = np.nonzero(errors <= least * (1.0 + WITHIN))
        found.append(
            Choice(
                signal,
                kl,
                n,
                math.inf if i == len(SHARPNESSES) - 1 else best,
                0.0 if good[0] == 0 else float(SHARPNESSES[good[0]]),
                math.inf if good[-1] == len(SHARPNESSES) - 1 else float(SHARPNESSES[good[-1]]),
                least / truth**2,
                {name: moments.error(n) / least for name, moments in others.items()},
            )
        )
    return found
