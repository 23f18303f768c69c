"""The gates, declared: name, settings with ranges and defaults, weight and source of each.

A class is a row: its name is the gate's, its fields are the settings that `rgpo_jax.gates.<name>`
takes, in this order, that the agent's Config adds to the common one, and that are flags on the
command line, where a field's docstring is the help. Fields with a range are numbers; words and
switches are options. The formula is `rgpo_jax.gates._<name>`, and nothing else says that a gate
exists. This module does not import JAX: flags are read before it is loaded.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, dataclass_transform

from rgpo_jax.ranges import (
    POSITIVE,
    Above,
    AboveOne,
    Fraction,
    NonNegative,
    Positive,
    UnitInterval,
)


class Row(NamedTuple):
    """What is declared of a gate.

    Attributes:
      settings: dataclass of its numbers and options; the docstring says in a line what it is.
      weight: w(r), for people. e is the clip range, A the advantage, σ the sigmoid.
      sources: arXiv numbers, with a version where it matters, or author and year.
    """

    settings: type
    weight: str
    sources: tuple[str, ...]

    @property
    def references(self) -> list[str]:
        """The sources as one writes them in a text."""
        return [f"arXiv {s}" if s[0].isdigit() else s for s in self.sources]


GATES: dict[str, Row] = {}
"""Name -> row, of gates of one ratio."""
DUAL_GATES: dict[str, Row] = {}
"""Name -> row, of gates of two: to the policy that sampled, and to a fixed reference, rho."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _gate(weight: str, *sources: str, table: dict[str, Row] = GATES) -> Callable[[type], type]:
    """Enters a class into a table, as a dataclass."""

    def declare(settings: type) -> type:
        settings = dataclasses.dataclass(frozen=True, kw_only=True)(settings)
        table[settings.__name__] = Row(settings, weight, sources)
        return settings

    return declare


@_gate("k r σ(1−σ), σ at k(r−1)", "2604.14895")
class rgpo:
    """RGPO: a smooth acceptance gate in the ratio's place; w = k r sigmoid'(k (r - 1))."""

    sharpness: Positive = 4.0
    """How fast the gate closes away from r = 1 (k); it also scales the policy loss by k / 4."""
    form: Literal["linear", "log"] = "linear"
    """Gate in the ratio (linear, the paper's) or in the log-ratio (log)."""
    normalize: bool = False
    """Multiply the gate by 4 / sharpness, so that sharpness changes its shape alone."""
    pull_back: bool = False
    """Weigh samples that bring a ratio back to 1 by r, as PPO does: KL stays small (ours)."""


@_gate("r where unclipped, else 0", "1707.06347", "2503.14476", "1912.09729")
class ppo:
    """PPO: w = r inside the clip range, 0 beyond it; the side depends on the advantage's sign."""

    clip: Fraction = 0.2
    """Clip range epsilon of the ratio, on both sides of 1."""
    clip_high: Positive | None = None
    """Another clip range above 1 (DAPO uses 0.28); None: the same as clip."""
    dual_clip: AboveOne | None = None
    """Drop samples of negative advantage whose ratio is above this (commonly 3); None: keep."""


@_gate("1", "Williams 1992")
class reinforce:
    """REINFORCE: w = 1, whatever the ratio."""


@_gate("r", "1502.05477")
class importance:
    """Importance sampling: w = r, TRPO's surrogate under Adam and without a trust region."""


@_gate("min(c, r)", "1802.01561")
class truncated_importance:
    """Truncated importance sampling (V-trace, TIS): w = min(cap, r)."""

    cap: Positive = 1.0
    """Largest weight (V-trace 1, TIS 2)."""


@_gate("clip(r, low, high)", "2506.13585")
class cispo:
    """CISPO: w = clip(r, low, high), whatever the advantage's sign."""

    low: NonNegative = 0.0
    """Least weight."""
    high: Annotated[float, POSITIVE, Above("low")] = 5.0
    """Largest weight, above low."""


@_gate("4 r σ(1−σ), σ at t(r−1), t by the sign of A", "2511.20347")
class sapo:
    """SAPO: RGPO's gate with a temperature for each sign of the advantage."""

    temperature_positive: Positive = 1.0
    """Sharpness where the advantage is positive."""
    temperature_negative: Positive = 1.05
    """Sharpness elsewhere."""


@_gate("4 r σ(1−σ), σ at t(r−1)", "2205.10047")
class p3o:
    """P3O's gate: w = 4 r sigmoid'(t (r - 1)); its penalty is `kl_coefficient`."""

    temperature: Positive = 4.0
    """Sharpness t of the gate."""


@_gate("r (1 − sign(A)(r−1)/e)", "2401.16025v9")
class spo:
    """SPO: w = r (1 - sign(A) (r - 1) / clip), a parabola in the clip's place."""

    clip: Positive = 0.2
    """Distance of the ratio from 1 at which the weight changes sign (epsilon)."""


@_gate("r inside PPO's clip, −a r beyond", "1903.07940")
class rollback:
    """PPO with rollback: w = r inside PPO's clip and -slope r beyond it."""

    clip: Fraction = 0.2
    """Clip range epsilon of the ratio, on both sides of 1."""
    slope: NonNegative = 0.3
    """How strongly ratios beyond the clip are pulled back (alpha); 0 is PPO."""


@_gate("A ≥ 0: 1; else min(r, 1)", "2503.14286")
class topr:
    """TOPR: w = 1 where the advantage is positive, else min(r, 1)."""


@_gate("r exp(−x²/2), r/(1+x²) or r(1+x²)^−3/2, x = t(r−1)", "2602.19345")
class smooth:
    """Smooth trust-region gates: w falls off from r = 1 as a Gaussian or more slowly."""

    kind: Literal["erf", "arctan", "softsign"] = "erf"
    """Weight r exp(-x^2/2), r / (1 + x^2) or r (1 + x^2)^-1.5, with x = sharpness (r - 1)."""
    sharpness: Positive = 10.0
    """How fast the weight falls off (the paper: 10 to 12)."""


@_gate(
    "r sech²((r−1)A/α) where A > 0, r > 1; r − tanh²(A log r/β) where A < 0, r < 1; else r "
    "(Discovered Policy Optimisation)",
    "2210.05639",
)
class discovered:
    """Discovered Policy Optimisation, known as DPO; not direct preference optimisation."""

    drift_alpha: Positive = 2.0
    """How far (r - 1) A may go before its weight fades, where A >= 0 (alpha of Discovered Policy
    Optimisation, which PureJaxRL and Rejax call DPO; not direct preference optimisation)."""
    drift_beta: Positive = 0.6
    """How far A log r may go before the ratio is pushed back up, where A < 0 (beta)."""


@_gate("k r σ'(k(r−1)) σ(k(ρ−1)) + k ρ σ(k(r−1)) σ'(k(ρ−1))", "ours", table=DUAL_GATES)
class dual_product:
    """A gate in each ratio, multiplied: g = sigmoid(k (r - 1)) sigmoid(k (rho - 1))."""

    sharpness: Positive = 4.0
    """How fast either gate closes away from 1 (k)."""
    normalize: bool = False
    """Multiply the gate by 4 / sharpness, so that its weight is 1 where both ratios are."""


@_gate("k u σ'(k(u−1)), u = r^c ρ^(1−c)", "ours", table=DUAL_GATES)
class dual_geometric:
    """RGPO's gate in the geometric mean of the ratios: the gate form of a KL to both policies."""

    sharpness: Positive = 4.0
    """How fast the gate closes away from 1 (k)."""
    mix: UnitInterval = 0.5
    """Share c of the ratio to the policy that sampled; the rest is that to the reference."""
    normalize: bool = False
    """Multiply the gate by 4 / sharpness, so that its weight is 1 where both ratios are."""


@_gate("k r σ'(k(r−1)) · 4 σ'(k log ρ)", "ours", table=DUAL_GATES)
class dual_two_sided:
    """RGPO's gate, times a factor that fades where rho is far from 1 on either side."""

    sharpness: Positive = 4.0
    """How fast the gate closes, and the factor fades, away from 1 (k)."""
    normalize: bool = False
    """Multiply the gate by 4 / sharpness, so that its weight is 1 where both ratios are."""


@_gate("that of the smaller ratio", "ours", table=DUAL_GATES)
class dual_min:
    """The more closed of the gates in either ratio: the smaller of the two."""

    sharpness: Positive = 4.0
    """How fast either gate closes away from 1 (k)."""
    normalize: bool = False
    """Multiply the gate by 4 / sharpness, so that its weight is 1 where both ratios are."""
