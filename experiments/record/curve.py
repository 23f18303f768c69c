"""The figure of a run: score and training over steps, with intervals over seeds."""

import io
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.record.colors import of_agents
from experiments.record.headline import CONTROL, Headline
from rgpo_jax.statistics import estimate, pooled_iqm

_MOST_POINTS = 400  # more cannot be told apart, and each has an interval to be computed
_TITLE_WIDTH = 60  # characters that fit on the figure
_TRAINING = "#8A8A8A"  # beside the score, which has the agent's colour


def _draw(
    axes: Axes,
    lines: Sequence[dict[str, Any]],
    counter: str,
    name: str,
    color: str,
    label: str,
) -> None:
    """IQM over seeds with its 95 % interval, and the seeds themselves in thin lines."""
    points = [(line[counter], line[name]) for line in lines if name in line]
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
    lines: Sequence[dict[str, Any]], title: str, agent: str, headline: Headline = CONTROL
) -> bytes:
    """Draws score and training against the steps of training.

    Args:
      lines: of `metrics.jsonl`.
      title: of the figure.
      agent: whose colour the score has.
      headline: what to draw.

    Returns:
      A PNG.
    """
    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    training, score = headline.training, headline.score
    for shown, color in ((training, _TRAINING), (score, of_agents([agent])[agent])):
        _draw(axes, lines, headline.unit.counter, shown.metric, color, shown.title)
    seeds = len(lines[-1][training.metric]) if lines else 0
    over = f"IQM over {seeds} seeds, 95 % bootstrap interval" if seeds > 1 else "1 seed"
    axes.set_title(f"{textwrap.fill(title, _TITLE_WIDTH, max_lines=3)}\n{over}", fontsize=11)
    axes.set_xlabel(f"{headline.steps} of one seed")
    axes.set_ylabel(headline.axis)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right")
    return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
