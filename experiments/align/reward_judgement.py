"""What a learnt reward says of the pairs that were held out: numbers, lines and a figure."""

import math
from typing import Any

from matplotlib.figure import Figure

from experiments.align.reward_learning import Learnt
from experiments.record.curve import png
from rgpo_jax.language import bradley_terry
from rgpo_jax.language.bradley_terry import Bin, Estimate

_FLOOR = "the shorter answer"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def judge(learnt: Learnt, num_bins: int) -> dict[str, Any]:
    """What reward.json says of the pairs that were held out."""
    margin = learnt.margins.mean(axis=0)
    shorter = [len(pair.rejected) - len(pair.chosen) for pair in learnt.held_out]
    table = bradley_terry.calibration(margin, num_bins=num_bins)
    gain = bradley_terry.gain(bradley_terry.right(margin), bradley_terry.right(shorter))
    return {
        "pairs": len(margin),
        "accuracy": bradley_terry.accuracy(margin)._asdict(),
        "accuracy_of_members": [bradley_terry.accuracy(m).value for m in learnt.margins],
        "floor": {"rule": _FLOOR, **bradley_terry.accuracy(shorter)._asdict()},
        "gain_over_floor": gain._asdict(),
        "log_loss": bradley_terry.log_loss(margin),
        "brier": bradley_terry.brier(margin),
        "calibration": {
            "error": table.error,
            "bins": [b._asdict() | {"accuracy": b.accuracy._asdict()} for b in table.bins],
        },
    }


def lines(judged: dict[str, Any]) -> list[str]:
    """The same in lines."""
    floor = {name: judged["floor"][name] for name in Estimate._fields}
    gain = Estimate(**judged["gain_over_floor"])
    difference = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) points"
    return [
        f"{judged['pairs']:,} held-out pairs: accuracy {_percent(Estimate(**judged['accuracy']))}, "
        f'"{_FLOOR}" {_percent(Estimate(**floor))}; {difference}; intervals of 95 %',
        f"log loss {judged['log_loss']:.4f} (guessing: {math.log(2):.4f}), Brier "
        f"{judged['brier']:.4f} (.25), expected calibration error "
        f"{100 * judged['calibration']['error']:.1f} points",
    ]


def draw(judged: dict[str, Any], title: str) -> bytes:
    """The reliability diagram, a PNG: accuracy against confidence, and how many pairs are where."""
    bins: list[Bin] = [
        Bin(**row | {"accuracy": Estimate(**row["accuracy"])})
        for row in judged["calibration"]["bins"]
    ]
    filled = [b for b in bins if b.number]
    figure = Figure(figsize=(5.2, 5.6), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0.5, 1], [0.5, 1], color="black", linewidth=1, label="calibrated")
    x, y = [b.confidence for b in filled], [b.accuracy.value for b in filled]
    # A share of 0 or 1 lies at the end of its interval, give or take a rounding.
    away = [
        [max(0.0, b.accuracy.value - b.accuracy.low) for b in filled],
        [max(0.0, b.accuracy.high - b.accuracy.value) for b in filled],
    ]
    look: Any = {"color": "#c8452d", "marker": "o", "markersize": 4, "capsize": 2}
    above.errorbar(x, y, yerr=away, linewidth=1.2, label="held-out pairs, 95 %", **look)
    above.set_ylabel("share that was foretold rightly")
    above.set_xlim(0.5, 1)
    above.set_ylim(min(0.4, *(b.accuracy.low for b in filled)) - 0.02, 1.02)
    above.legend(frameon=False, loc="upper left", fontsize=9)
    error = 100 * judged["calibration"]["error"]
    above.set_title(f"{title}\nexpected calibration error {error:.1f} points", fontsize=9)
    edges, width = [b.lower for b in bins], bins[0].upper - bins[0].lower
    below.bar(edges, [b.number for b in bins], width, align="edge", color="#7a8ca3", edgecolor="w")
    below.set_xlabel("confidence, max(P, 1 - P)")
    below.set_ylabel("pairs")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
    return png(figure)
