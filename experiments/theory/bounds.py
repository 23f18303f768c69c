r"""Lower bounds on J(pi) - J(old), for tabular policies.

With E_old over the old policy's occupancy d and its actions, r = pi/old, the old policy's advantage
A, D(s) the total variation between the two at s, A_max = max |A| and eps = max_s |E_pi A|:

    J(pi) - J(old) >= 1/(1-gamma) ( E_old[r A] - 2 gamma eps / (1-gamma) E_d[D] )

(Achiam et al. 2017, arXiv 1705.10528, Cor. 1). A gate's surrogate E_old[g A] takes the place of
E_old[r A] at the price of what r - g may hide; docs/theory.md has the proofs.
"""

import dataclasses

import jax
import numpy as np

from rgpo_jax import gates
from rgpo_jax.tunable import Tunable

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Pair:
    """An old and a new policy in n processes [n, ...], and what bounds need of them.

    Attributes:
      discount: gamma [n].
      occupancy: of the old policy [n, S].
      advantage: of the old policy [n, S, A].
      old, new: probabilities [n, S, A]; the old one's are above 0, or there is no ratio.
    """

    discount: Array
    occupancy: Array
    advantage: Array
    old: Array
    new: Array

    def under_old(self, what: Array) -> Array:
        """E_old of a function of state and action [n, S, A] -> [n]."""
        return np.einsum("ns,nsa,nsa->n", self.occupancy, self.old, what)

    @property
    def ratio(self) -> Array:
        """r [n, S, A]."""
        return self.new / self.old

    @property
    def variation(self) -> Array:
        """E_d[D], the mean total variation [n]."""
        distance = 0.5 * np.abs(self.new - self.old).sum(-1)
        return np.einsum("ns,ns->n", self.occupancy, distance)

    @property
    def largest_advantage(self) -> Array:
        """A_max [n]."""
        return np.abs(self.advantage).max((1, 2))

    @property
    def shift(self) -> Array:
        """2 gamma eps / (1 - gamma) E_d[D]: what the states that the new policy visits may cost."""
        expected = np.abs(np.einsum("nsa,nsa->ns", self.new, self.advantage)).max(1)
        return 2.0 * self.discount * expected / (1.0 - self.discount) * self.variation

    def scaled(self, surrogate: Array) -> Array:
        """From the occupancy's mean to the return's units."""
        return surrogate / (1.0 - self.discount)


def _gate(gate: Tunable, pair: Pair) -> Array:
    with jax.enable_x64(True):
        return np.asarray(gate(np.log(pair.ratio), pair.advantage))


def importance(pair: Pair) -> Array:
    """Achiam et al.'s own, with E_old[r A]."""
    return pair.scaled(pair.under_old(pair.ratio * pair.advantage) - pair.shift)


def trpo(pair: Pair) -> Array:
    """TRPO's: E_old[r A] less 4 gamma A_max / (1-gamma) max_s KL(old || new) (arXiv 1502.05477)."""
    divergence = np.sum(pair.old * np.log(pair.old / pair.new), axis=-1).max(-1)
    penalty = 4.0 * pair.discount * pair.largest_advantage / (1.0 - pair.discount) * divergence
    return pair.scaled(pair.under_old(pair.ratio * pair.advantage) - penalty)


def ppo(pair: Pair, clip: float = 0.2) -> Array:
    """PPO's surrogate, which is never above E_old[r A], less the same shift as `importance`."""
    surrogate = _gate(gates.ppo(clip), pair) * pair.advantage
    return pair.scaled(pair.under_old(surrogate) - pair.shift)


def linear(pair: Pair, sharpness: float) -> Array:
    """RGPO's gate, with |(r-g) - (1-g(1))| <= L |r-1| and L = max(1, k/4 - 1)."""
    slope = max(1.0, sharpness / 4.0 - 1.0)
    surrogate = pair.under_old(_gate(gates.rgpo(sharpness), pair) * pair.advantage)
    gap = 2.0 * slope * pair.largest_advantage * pair.variation
    return pair.scaled(surrogate - gap - pair.shift)


def cubic(pair: Pair, sharpness: float) -> Array:
    """RGPO's gate times 4/k, f, with |r - f| <= min(|r-1|, k^2 |r-1|^3 / 12)."""
    surrogate = 4.0 / sharpness * _gate(gates.rgpo(sharpness), pair)
    away = np.abs(pair.ratio - 1.0)
    gap = pair.under_old(np.minimum(away, sharpness**2 * away**3 / 12.0))
    improvement = pair.under_old(surrogate * pair.advantage)
    return pair.scaled(improvement - pair.largest_advantage * gap - pair.shift)


def without_shift(pair: Pair, sharpness: float) -> Array:
    """`linear` as a secondary summary of the paper has it: without a term for the states."""
    return linear(pair, sharpness) + pair.scaled(pair.shift)
