"""Figures by Matplotlib: learning curves, and the gates' weights for the README.

`python -m experiments.plot docs/weights.png` draws the latter.
"""

import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.headline import CONTROL, Headline
from rgpo_jax.statistics import estimate, pooled_iqm

_MOST_POINTS = 400  # more cannot be told apart, and each has an interval to be computed

_TRAINING, _EVALUATION = "#7a8ca3", "#c8452d"


def _draw(axes: Axes, lines: Sequence[dict[str, Any]], name: str, color: str, label: str) -> None:
    """IQM over seeds with its 95 % interval, and the seeds themselves in thin lines."""
    points = [(line["env_steps"], line[name]) for line in lines if name in line]
    points = points[:: 1 + len(points) // _MOST_POINTS]
    per_seed = np.array([values for _, values in points], float)  # None becomes NaN
    if not points or not np.isfinite(per_seed).any():
        return
    steps = np.array([step for step, _ in points])
    axes.plot(steps, per_seed, color=color, linewidth=0.6, alpha=0.25)
    defined = [np.isfinite(row).any() for row in per_seed]
    steps, rows = steps[defined], [row[np.isfinite(row)] for row in per_seed[defined]]
    estimates = [estimate(pooled_iqm, [block], resamples=500) for block in _blocks(rows)]
    middle = np.concatenate([x.value for x in estimates])
    marker = "o" if len(steps) <= 20 else None
    axes.plot(steps, middle, color=color, linewidth=1.8, marker=marker, markersize=4, label=label)
    low, high = (
        np.where(np.isnan(ends), middle, ends)  # of one seed there is no interval
        for ends in map(np.concatenate, zip(*((x.low, x.high) for x in estimates), strict=True))
    )
    axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)


def _blocks(rows: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Neighbouring rows of one length together [seeds, points], for their intervals at once."""
    for _, block in itertools.groupby(rows, key=len):
        yield np.stack(list(block), axis=1)


def learning_curve(
    lines: Sequence[dict[str, Any]], title: str, headline: Headline = CONTROL
) -> bytes:
    """Draws score and training against the steps of training.

    Args:
      lines: of `metrics.jsonl`.
      title: of the figure.
      headline: what to draw.

    Returns:
      A PNG.
    """
    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    training, score = headline.training, headline.score
    _draw(axes, lines, training.metric, _TRAINING, training.title)
    _draw(axes, lines, score.metric, _EVALUATION, score.title)
    seeds = len(lines[-1][training.metric]) if lines else 0
    over = f"IQM over {seeds} seeds, 95 % bootstrap interval" if seeds > 1 else "1 seed"
    axes.set_title(f"{title}\n{over}", fontsize=11)
    axes.set_xlabel(f"{headline.steps} of one seed")
    axes.set_ylabel(headline.axis)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right")
    return _png(figure)


def gate_weights() -> bytes:
    """Draws w(r) of the gates for both signs of the advantage; a PNG."""
    import jax.numpy as jnp

    from rgpo_jax import gates

    shown = {
        "PPO (clip 0.2)": (gates.ppo(), "#5f9fd6", "-", 4.5),
        "RGPO (k = 4)": (gates.rgpo(), "#c8452d", "-", 2.4),
        "REINFORCE": (gates.reinforce(), "#3d8b57", "-", 1.4),
        "importance (TRPO)": (gates.importance(), "#7a8ca3", "-", 1.4),
        "SAPO (t = 1, 1.05)": (gates.sapo(), "#d98c4a", "--", 1.4),
    }
    ratio = np.linspace(0.01, 2.5, 800, dtype=np.float32)
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    for axes, sign in zip(figure.subplots(1, 2, sharey=True), (1.0, -1.0), strict=True):
        for label, (gate, color, style, width) in shown.items():
            w = np.array(gates.weight(gate)(jnp.log(ratio), jnp.full(ratio.shape, sign)))
            w[1:][np.abs(np.diff(w)) > 0.1] = np.nan  # a jump is no slope
            axes.plot(ratio, w, color=color, linestyle=style, linewidth=width, label=label)
        axes.axvline(1.0, color="black", linewidth=0.6, alpha=0.4)
        # Where a step uphill brings the ratio nearer to 1.
        left, right = (0.0, 1.0) if sign > 0 else (1.0, 2.5)
        axes.axvspan(left, right, color="black", alpha=0.06, linewidth=0)
        axes.text((left + right) / 2, -0.2, "moves r back to 1", ha="center", fontsize=9)
        axes.set_title(f"advantage {'positive' if sign > 0 else 'negative'}", fontsize=10)
        axes.set_xlabel("ratio r")
        axes.set_ylim(-0.3, 2.1)
        axes.set_xlim(0, 2.5)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("weight w(r) of a sample's gradient")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


if __name__ == "__main__":
    from pathlib import Path

    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.plot FILE.png  (weights of the gates)")
    Path(sys.argv[1]).write_bytes(gate_weights())
