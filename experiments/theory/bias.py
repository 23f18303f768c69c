"""Bias: what a gate costs in bias, what it saves in variance, and the sharpness that does best."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.theory import estimators, ratios
from experiments.theory.estimators import (
    NEAR,
    OTHERS,
    SHARPNESSES,
    SHOWN,
    SMALL,
    TAIL_SHARPNESSES,
    WITHIN,
)
from experiments.theory.options import Options
from experiments.theory.study import Claim, Figure, Line, Panel, Progress, Study, Table, say
from rgpo_jax import gates

KLS = (1e-4, 1e-3, 3e-3, 0.01, 0.02, 0.04, 0.1, 0.3, 1.0)  # of old to new, in nats
SIZES = (64, 512, 4096, 32_768)  # samples of a gradient estimate
SIGNALS = (0.1, 1.0)  # noisy advantages, and advantages that say all there is to say


class Measured(NamedTuple):
    """The bias of a sharpness between policies so far apart, at the larger signal.

    Attributes:
      kl: of old to new, in nats.
      sharpness: k.
      truth: the true gradient.
      bias: exact.
      measured: on draws.
      error: its standard error.
      bound: of |bias|.
    """

    kl: float
    sharpness: float
    truth: float
    bias: float
    measured: float
    error: float
    bound: float


def measure(
    model: ratios.Normals, kl: float, draws: int, rng: np.random.Generator
) -> Iterator[Measured]:
    """Of each sharpness that is shown, all on the same draws."""
    samples, drawn = model.quadrature(), model.draw(rng, draws)
    truth = estimators.true_gradient(samples)
    for k in SHOWN:
        exact = estimators.of_sharpness(k, samples)
        r = np.exp(drawn.log_ratio)
        gate = gates.rgpo(k, normalize=True)
        w = ratios.weights(gate, drawn.log_ratio, drawn.advantage)
        gaps = (w - r) * drawn.advantage * drawn.score
        error = float(gaps.std(ddof=1)) / math.sqrt(draws)
        limit = estimators.bound(k, samples)
        yield Measured(kl, k, truth, exact.bias, float(gaps.mean()), error, limit)


def run(options: Options, progress: Progress) -> Study:
    """The identity, the bound, and the trade of bias for variance."""
    rng = np.random.default_rng((options.seed, 3))
    draws = min(options.samples, 1_000_000)
    measured: list[Measured] = []
    choices: list[estimators.Choice] = []
    for i, kl in enumerate(KLS):
        models = {signal: ratios.Normals.at_distance(kl, signal) for signal in SIGNALS}
        for signal, model in models.items():
            choices += estimators.choose(signal, kl, SIZES, model.quadrature())
        measured += measure(models[SIGNALS[-1]], kl, draws, rng)
        progress((i + 1) / len(KLS))
    tails = [estimators.under_tail(tail) for tail in ratios.TAILS]
    return Study(
        "Bias, and what it buys",
        (
            "Two normal policies of equal width, moved apart from KL(old || new) = 1e-4 to 1 nat; "
            "then log r is normal with mean -KL and variance 2 KL, in however many dimensions of "
            "action. Advantages are +1 or -1, their mean signal \N{MULTIPLICATION SIGN} tanh(x). "
            "The gate is the normalised one, 4/k times the paper's, whose weight at r = 1 is 1 for "
            "every k: the paper's own gate multiplies the whole gradient by k/4, which is a step "
            "size and no bias of direction.",
            "The error of a gradient estimate is its squared bias plus its variance over n. Few "
            "samples and noisy advantages want a sharper gate, many samples and policies far apart "
            "a flatter one; the last table says how far one can go, and the last claim has the "
            "rule. Of one parameter, as here, the bias can but shrink the gradient or turn it "
            "round. The first an optimiser that rescales its steps undoes; the second comes where "
            "the policies are far apart: there the samples that the gate accepts, of r near 1, no "
            "longer say where the gradient points.",
        ),
        _claims(measured, choices, tails, draws),
        [_bias_figure(measured), _trade_figure(), _guide_figure(choices)],
        _tables(measured, choices, tails, draws),
    )


def _claims(
    measured: Sequence[Measured],
    choices: Sequence[estimators.Choice],
    tails: Sequence[estimators.Tail],
    draws: int,
) -> list[Claim]:
    return [
        _bias_is_bounded(measured, draws),
        _falls_slowly_under_tails(tails),
        _counts_in_usual_updates(measured),
        _identity(),
        _best_sharpness_has_a_rule(choices),
    ]


def _bias_is_bounded(measured: Sequence[Measured], draws: int) -> Claim:
    closest = max(measured, key=lambda c: abs(c.bias) / c.bound)
    farthest = max(abs(c.measured - c.bias) / c.error for c in measured)
    truth = {c.kl: c.truth for c in measured}
    least = SHARPNESSES[0]

    def nearly_flat(kl: float) -> float:
        """Share of the gradient that is bias, at the least sharpness."""
        samples = ratios.Normals.at_distance(kl, SIGNALS[-1]).quadrature()
        return abs(estimators.of_sharpness(least, samples).bias) / truth[kl]

    flat = max(map(nearly_flat, KLS))
    return Claim(
        "RGPO incurs a bounded bias, which its sharpness controls.",
        "paper",
        bool(all(abs(c.bias) <= c.bound for c in measured) and flat < 0.01 and farthest < 5.0),
        f"of the normalised gate between normal policies: |bias| is below (k²/4) "
        f"E[(r-1)² |A| |s|] in all {len(measured)} cells (closest: "
        f"{say(abs(closest.bias) / closest.bound)} of it, k = {closest.sharpness:g}, KL = "
        f"{closest.kl:g}); at k = {least:g} it is at most {say(100 * flat)} % of the gradient; "
        f"{draws:,} draws agree with the exact values within {say(farthest)} standard errors. "
        "The paper's gate is k/4 times this one: where k is not 4 its gradient is off by that "
        "factor even at r = 1",
        ("bias", "bias_trade"),
    )


def _falls_slowly_under_tails(tails: Sequence[estimators.Tail]) -> Claim:
    return Claim(
        "Under a heavy-tailed ratio the bias is bounded still, but k controls it slowly: with "
        "a tail index a < 3 it falls as k^(a - 1), and not as k².",
        "ours",
        all(
            np.all(np.abs(t.bias) <= t.bound) and abs(t.power - min(t.tail - 1.0, 2.0)) < 0.1
            for t in tails
        ),
        f"bandit, |bias| over the true gradient at k = {TAIL_SHARPNESSES[0]:g} and at k = 4, "
        f"and the power of k between {SMALL[0]:g} and {SMALL[1]:g}: "
        + "; ".join(
            f"a = {t.tail:g}: {say(100 * abs(t.bias[0] / t.truth))} %, "
            f"{say(100 * abs(t.bias[TAIL_SHARPNESSES.index(4.0)] / t.truth))} %, "
            f"{say(t.power)}"
            for t in tails
        )
        + "; in every cell it is below E[min(1, k²/4 (r-1)²) |A| |s|] under the new policy. "
        "Without the minimum that bound is infinite for a <= 3",
    )


def _counts_in_usual_updates(measured: Sequence[Measured]) -> Claim:
    at_four = {c.kl: c for c in measured if c.sharpness == 4.0}
    share = {kl: abs(c.bias / c.truth) for kl, c in at_four.items()}
    reversed_at = [kl for kl, c in at_four.items() if c.bias < -c.truth]
    return Claim(
        "At k = 4 and the distances of usual updates, KL 0.01 to 0.04, the bias is more than "
        "a tenth of the gradient, for the advantages used here.",
        "ours",
        all(bool(x > 0.1) for kl, x in share.items() if 0.01 <= kl <= 0.04),
        "between normal policies it is, of the true gradient, "
        + ", ".join(f"{say(100 * x)} % at KL = {kl:g}" for kl, x in share.items())
        + (
            f"; from KL = {reversed_at[0]:g} on the gradient has the wrong sign"
            if reversed_at
            else ""
        )
        + ". The share depends on the advantages, whose mean is here a multiple of tanh(x) "
        "for an action x; at KL = 0.02 it is "
        + ", ".join(
            f"{say(100 * estimators.share_of_bias(mean, 0.02, 4.0))} % where it is {name}"
            for name, mean in estimators.SHAPES.items()
        ),
        ("bias",),
    )


def _identity() -> Claim:
    error = estimators.identity_error()
    return Claim(
        "Identity of the normalised gate: w - r = -r tanh²(k (r - 1)/2).",
        "ours",
        error < 1e-13,
        f"largest relative difference in float64, over r from e^-8 to e^5 and k from 0.05 to "
        f"100: {say(error)}",
        ("bias",),
    )


def _best_sharpness_has_a_rule(choices: Sequence[estimators.Choice]) -> Claim:
    constant, factor = estimators.rule(choices)
    shown = [c for c in choices if (c.signal, c.kl) == (SIGNALS[0], 0.02)]
    return Claim(
        f"The sharpness of least error is about {constant:.1f} / (signal √(n KL)) "
        f"for KL up to {NEAR:g}, where that is small for the distance: k √(2 KL) "
        "< 1.",
        "ours",
        factor < 1.5,
        f"over signals, distances and samples of the table the best k is within a factor "
        f"{say(factor)} of the rule where it is that small; at KL = {shown[0].kl:g} and signal "
        f"{shown[0].signal:g} the rule says, and the search found: "
        + "; ".join(
            f"{say(constant / (c.signal * math.sqrt(c.n * c.kl)), 2)} and {say(c.best, 2)} for "
            f"{c.n:,} samples (error {say(100 * c.error, 2)} % of the squared gradient)"
            for c in shown
        ),
        ("bias_guide",),
    )


def _bias_figure(measured: Sequence[Measured]) -> Figure:
    lines = []
    for style, k in enumerate(SHOWN):
        kl, _, truth, bias, estimate, error, limit = np.array(
            [c for c in measured if c.sharpness == k]
        ).T
        lines.append(Line(f"k = {k:g}", kl, np.abs(bias / truth), style))
        lines.append(Line("", kl, limit / np.abs(truth), style, ":"))
        seen = np.abs(estimate) > 2.0 * error
        lines.append(
            Line("", kl[seen], np.abs(estimate / truth)[seen], style, "", marker="o"),
        )
    r = np.linspace(0.0, 4.0, 400)
    identity = [
        Line(f"k = {k:g}", r, -r * np.square(np.tanh(k * (r - 1.0) / 2.0)), style)
        for style, k in enumerate(SHOWN)
    ]
    return Figure(
        "bias",
        "Left: |bias| over the true gradient, exact (lines), measured (points, where seen above "
        "two standard errors), and its bound (dotted). Right: w - r of the normalised gate.",
        [
            Panel(
                "bias as policies move apart",
                "KL(old || new), nats",
                "|bias| / gradient",
                lines,
                log_x=True,
                log_y=True,
                limits=(1e-6, 30.0),
            ),
            Panel("the identity", "ratio r", "w - r", identity),
        ],
    )


def _trade_figure() -> Figure:
    panels = []
    n = 512
    for kl in (0.02, 0.1, 1.0):
        samples = ratios.Normals.at_distance(kl, SIGNALS[0]).quadrature()
        moments = [estimators.of_sharpness(k, samples) for k in SHARPNESSES]
        bias = np.array([m.bias**2 for m in moments])
        variance = np.array([m.variance / n for m in moments])
        importance = estimators.of_gate(gates.importance(), samples).error(n)
        panels.append(
            Panel(
                f"KL = {kl:g}",
                "sharpness k",
                "error of the gradient",
                [
                    Line("bias²", SHARPNESSES, bias, 0),
                    Line(f"variance / {n}", SHARPNESSES, variance, 1),
                    Line("mean squared error", SHARPNESSES, bias + variance, 2),
                    Line(
                        "importance sampling's",
                        SHARPNESSES[[0, -1]],
                        np.full(2, importance),
                        None,
                        "--",
                    ),
                ],
                log_x=True,
                log_y=True,
                limits=(importance * 1e-4, importance * 3.0),
            )
        )
    return Figure(
        "bias_trade",
        f"Squared bias, variance of the mean of {n} samples, and their sum against k; signal "
        f"{SIGNALS[0]:g}.",
        panels,
        columns=3,
    )


def _guide_figure(choices: Sequence[estimators.Choice]) -> Figure:
    panels = []
    for signal in SIGNALS:
        lines = []
        for style, n in enumerate(SIZES):
            chosen = [c for c in choices if c.signal == signal and c.n == n]
            kl = np.array([c.kl for c in chosen])
            best = np.array([c.best if 0.0 < c.best < math.inf else np.nan for c in chosen])
            high = np.array([min(c.high, SHARPNESSES[-1]) for c in chosen])
            lines.append(Line(f"{n:,} samples", kl, best, style, marker="o"))
            lines.append(Line("", kl, high, style, ":"))
        panels.append(
            Panel(
                f"signal {signal:g}",
                "KL(old || new), nats",
                "sharpness k",
                lines,
                log_x=True,
                log_y=True,
                guides=(4.0,),
            )
        )
    return Figure(
        "bias_guide",
        f"The k of least error (points) and the largest within {WITHIN:.0%} of it (dotted), by "
        "distance of the policies and samples of an estimate; the thin line is k = 4.",
        panels,
    )


def _tables(
    measured: Sequence[Measured],
    choices: Sequence[estimators.Choice],
    tails: Sequence[estimators.Tail],
    draws: int,
) -> list[Table]:
    return [
        Table(
            "bias",
            f"Bias of the gradient at signal {SIGNALS[-1]:g}: exact, measured on {draws:,} "
            "draws (and its standard error), and the bound (k²/4) E[(r-1)² |A| |s|] under the "
            "new policy",
            ("KL", "k", "true gradient", "bias", "measured", "standard error", "bound"),
            [tuple(one) for one in measured],
        ),
        Table(
            "bias_tails",
            "Bias where the new policy's ratio is Pareto's (the bandit of the study of "
            "variance), exact, and its bound E[min(1, k²/4 (r-1)²) |A| |s|] under the new "
            "policy",
            ("tail a", "k", "true gradient", "bias", "bound"),
            [
                (t.tail, k, t.truth, *found)
                for t in tails
                for k, *found in zip(TAIL_SHARPNESSES, t.bias, t.bound, strict=True)
            ],
        ),
        Table(
            "bias_guide",
            "Choosing k: the sharpness of least error (0: importance sampling; ∞: nothing "
            f"beats an estimate of 0), those within {WITHIN:.0%} of it, the least error over "
            "the squared true gradient, and the error of other estimators over the least",
            (
                *("signal", "KL", "samples", "best k", "from", "to", "relative error"),
                *OTHERS,
            ),
            [
                (c.signal, c.kl, c.n, c.best, c.low, c.high, c.error, *c.over.values())
                for c in choices
            ],
        ),
    ]
