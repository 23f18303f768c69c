"""Ratios whose distribution is known: samples of them, and exact expectations by quadrature.

A model is an old and a new policy over one state's actions, with rewards that are +1 or -1, more
often +1 for one half of the actions. A sample is what a policy gradient sees of it: log-ratio,
advantage and score. A quadrature is a weighted sample of the same form, exact to rounding where
an expectation is finite; so whatever is measured on draws is known on the quadrature.
"""

import dataclasses
import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rgpo_jax.gates import Gate, weight

Array = np.ndarray

TAILS = (1.2, 1.5, 2.0, 2.5, 4.0)  # indices of ratios' tails that are looked at

# Gates follow the ratio up to e^20; beyond, a weight is continued by its power of r.
_LAST_LOG_RATIO = 19.0


class Samples(NamedTuple):
    """Actions of the old policy [n].

    Attributes:
      log_ratio: log pi(a) - log pi_old(a).
      advantage: +1 or -1; its mean under the old policy is 0.
      score: d log pi(a) / d theta, for the one parameter theta that the gradient is about.
      mass: probability of each; 1/n of draws.
    """

    log_ratio: Array
    advantage: Array
    score: Array
    mass: Array


class Model(Protocol):
    """Two policies, of which `draw` and `quadrature` are samples of the old one."""

    @property
    def tail(self) -> float:
        """The ratio's tail index a: E_old[r^p] is finite for p < a alone; inf if for all p."""
        ...

    def draw(self, rng: np.random.Generator, n: int) -> Samples:
        """n independent samples."""
        ...

    def quadrature(self) -> Samples:
        """Nodes and masses: sum(mass f) is E_old[f] for f piecewise smooth."""
        ...


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def _panels(edges: Array) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on the intervals between sorted edges."""
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return (
        (middle[:, None] + half[:, None] * _NODES).ravel(),
        (half[:, None] * _WEIGHTS).ravel(),
    )


def _with_both_advantages(log_ratio: Array, score: Array, mass: Array, positive: Array) -> Samples:
    """Each action twice, with A = +1 of the given probability and A = -1."""
    ones = np.ones_like(log_ratio)
    return Samples(
        np.concatenate([log_ratio, log_ratio]),
        np.concatenate([ones, -ones]),
        np.concatenate([score, score]),
        np.concatenate([mass * positive, mass * (1.0 - positive)]),
    )


@dataclasses.dataclass(frozen=True)
class ParetoBandit:
    """A bandit whose ratio has a Pareto tail: P(r > t) = (m/t)^a for t >= m = (a-1)/a.

    Actions are y in [0, inf), the old policy is Exp(a) and the new one Exp(a-1), so that
    r = m e^y and E_old[r] = 1. The gradient is that of tilting the new policy between the halves
    above and below its median: score +1 or -1.

    Attributes:
      tail: a > 1; E_old[r^2] is finite for a > 2 alone.
      signal: in (0, 1], the mean advantage above the old policy's median, and minus that below.
      kinks: log-ratios at which a gate may have a kink.
    """

    tail: float
    signal: float = 0.5
    kinks: tuple[float, ...] = ()

    @property
    def least(self) -> float:
        """m, the least ratio."""
        return (self.tail - 1.0) / self.tail

    def _score(self, y: Array) -> Array:
        return np.where(y > math.log(2.0) / (self.tail - 1.0), 1.0, -1.0)

    def _positive(self, y: Array) -> Array:
        return 0.5 + 0.5 * self.signal * np.where(y > math.log(2.0) / self.tail, 1.0, -1.0)

    def draw(self, rng: np.random.Generator, n: int) -> Samples:
        y = rng.standard_exponential(n) / self.tail
        advantage = np.where(rng.random(n) < self._positive(y), 1.0, -1.0)
        return Samples(math.log(self.least) + y, advantage, self._score(y), np.full(n, 1.0 / n))

    def quadrature(self) -> Samples:
        shift = math.log(self.least)
        # Beyond the last edge even r^2 under a = 2.5 weighs less than 1e-30.
        edges = np.concatenate(
            [
                np.arange(0.0, 30.0, 0.02),
                np.linspace(30.0, 300.0, 541),
                [math.log(2.0) / self.tail, math.log(2.0) / (self.tail - 1.0)],
                [kink - shift for kink in self.kinks if kink > shift],
            ]
        )
        y, weights = _panels(np.unique(edges))
        mass = weights * self.tail * np.exp(-self.tail * y)
        return _with_both_advantages(shift + y, self._score(y), mass, self._positive(y))


@dataclasses.dataclass(frozen=True)
class Normals:
    """Two normal policies: N(0, 1) and N(shift, std^2), with the score of the new one's mean.

    With shift = 0 and std^2 = a/(a-1) the ratio's tail is Pareto's with index a but for a
    logarithm: log r = x^2 / (2 a) - log std. With std = 1 its KL(old || new) is shift^2 / 2, and
    log r is normal with mean -KL and variance 2 KL, in however many dimensions of action.

    Attributes:
      shift: mean of the new policy.
      std: standard deviation of the new policy.
      signal: in (0, 1], scale of the mean advantage signal * tanh(x).
      kinks: log-ratios at which a gate may have a kink.
    """

    shift: float = 0.0
    std: float = 1.0
    signal: float = 0.5
    kinks: tuple[float, ...] = ()

    @classmethod
    def with_tail(cls, tail: float, kinks: tuple[float, ...] = ()) -> "Normals":
        """The wider policy of which the ratio has this tail index, a > 1."""
        return cls(std=math.sqrt(tail / (tail - 1.0)), kinks=kinks)

    @classmethod
    def at_distance(cls, kl: float, signal: float) -> "Normals":
        """The policy of equal width at this KL(old || new), in nats."""
        return cls(shift=math.sqrt(2.0 * kl), signal=signal)

    @property
    def tail(self) -> float:
        """The index a; a policy that is not wider than the old one has lighter tails than any."""
        return self.std**2 / (self.std**2 - 1.0) if self.std > 1.0 else math.inf

    def _samples(self, x: Array) -> tuple[Array, Array, Array]:
        z = (x - self.shift) / self.std
        log_ratio = (x * x - z * z) / 2.0 - math.log(self.std)
        return log_ratio, z / self.std, 0.5 + 0.5 * self.signal * np.tanh(x)

    def draw(self, rng: np.random.Generator, n: int) -> Samples:
        x = rng.standard_normal(n)
        log_ratio, score, positive = self._samples(x)
        advantage = np.where(rng.random(n) < positive, 1.0, -1.0)
        return Samples(log_ratio, advantage, score, np.full(n, 1.0 / n))

    def _crossings(self, log_ratio: float) -> list[float]:
        """Actions at which the log-ratio has this value."""
        # (x^2 - (x - shift)^2 / std^2) / 2 - log std = log_ratio, a quadratic in x.
        precision = 1.0 / self.std**2
        roots = np.roots(
            [
                1.0 - precision,
                2.0 * self.shift * precision,
                -(self.shift**2) * precision - 2.0 * (log_ratio + math.log(self.std)),
            ]
        )
        return [float(root.real) for root in roots if abs(root.imag) < 1e-12]

    def quadrature(self) -> Samples:
        # Where exp(-x^2 / 2 + x^2 / a) is still seen at a = 2.5.
        edges = np.concatenate(
            [np.arange(-30.0, 30.0 + 1e-9, 0.05), *map(self._crossings, self.kinks)]
        )
        x, weights = _panels(np.unique(edges))
        mass = weights * np.exp(-x * x / 2.0) / math.sqrt(2.0 * math.pi)
        log_ratio, score, positive = self._samples(x)
        return _with_both_advantages(log_ratio, score, mass, positive)


@jax.jit
def _weights(gate: Gate, log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
    return weight(gate)(log_ratio, advantage)


def weights(gate: Gate, log_ratio: Array, advantage: Array) -> Array:
    """w of each sample in float64, for gates that are `Tunable`s."""
    with jax.enable_x64(True):
        return np.asarray(_weights(gate, jnp.asarray(log_ratio), jnp.asarray(advantage)))


def growth(gate: Gate, advantage: float) -> float:
    """The power p with which |w| grows, w ~ r^p for r to infinity; -inf where w vanishes faster.

    The second moment E_old[w^2] is finite under a Pareto tail of index a if and only if 2 p < a.
    What no power describes, such as an oscillation, it does not see.
    """
    ends = np.array([_LAST_LOG_RATIO - 1.0, _LAST_LOG_RATIO])
    near, far = np.abs(weights(gate, ends, np.full(2, advantage)))
    return float(np.log(far / near)) if near > 0 and far > 0 else -math.inf


def largest_growth(gate: Gate) -> float:
    """`growth` where it is largest of both signs of A, and at least 0."""
    return max(0.0, *(growth(gate, sign) for sign in (-1.0, 1.0)))


def continued_weights(gate: Gate, samples: Samples) -> Array:
    """w of each sample, continued by its power of r where gates leave the ratio."""
    inside = np.minimum(samples.log_ratio, _LAST_LOG_RATIO)
    w = weights(gate, inside, samples.advantage)
    powers = {sign: max(growth(gate, sign), 0.0) for sign in (-1.0, 1.0)}
    power = np.where(samples.advantage > 0, powers[1.0], powers[-1.0])
    return w * np.exp(power * (samples.log_ratio - inside))


def second_moment(gate: Gate, model: Model) -> float:
    """E_old[w^2 A^2 s^2] exactly; inf where it diverges."""
    if 2.0 * largest_growth(gate) >= model.tail - 1e-6:
        return math.inf
    quadrature = model.quadrature()
    estimate = continued_weights(gate, quadrature) * quadrature.advantage * quadrature.score
    return float(np.sum(quadrature.mass * np.square(estimate)))
