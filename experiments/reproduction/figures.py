"""The figures of the reproduction, drawn as those of a report are."""

import io
import math

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.report import charts, paper, scores
from experiments.report.runs import FINISHED, Collection
from experiments.reproduction.claims import PAPERS_GAINS, relative_gain, short_name
from experiments.reproduction.rows import BASELINE, ROWS
from rgpo_jax.statistics import Estimate

_SHOWN = ("episode_return", "approx_kl", "effective_sample_size", "weight_mean")


def gains(collection: Collection) -> bytes | None:
    """Every row's return against PPO's, task by task, with the paper's figure for RGPO; PNG.

    None where there is nothing to compare.
    """
    tasks = [task for task in PAPERS_GAINS if _gain(collection, task, BASELINE) is not None]
    rows = [
        row
        for row in ROWS
        if row != BASELINE and any(_gain(collection, task, row) is not None for task in tasks)
    ]
    if not rows:
        return None
    with matplotlib.rc_context({"font.size": 9, "axes.linewidth": 0.6}):
        size = (6.4, 0.9 + 0.16 * len(tasks) * (len(rows) + 2))
        figure = Figure(figsize=size, dpi=160, layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            _draw_row(axes, collection, tasks, row, 0.7 * ((place + 0.5) / len(rows) - 0.5))
        for index, task in enumerate(tasks):
            label = "the paper's RGPO" if index == 0 else None
            axes.plot(
                [PAPERS_GAINS[task]] * 2,
                [index - 0.4, index + 0.4],
                color="black",
                linestyle=":",
                linewidth=1.4,
                label=label,
            )
        axes.axvline(0.0, color="black", linewidth=0.6, alpha=0.5)
        axes.set_yticks(range(len(tasks)), [short_name(task) for task in tasks])
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("return against PPO's (interquartile mean over seeds, 95 % interval)")
        axes.grid(alpha=0.25, linewidth=0.5, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right center", frameon=False)
        return _png(figure)


def _draw_row(
    axes: Axes, collection: Collection, tasks: list[str], row: str, offset: float
) -> None:
    style = collection.variants.index(ROWS[row].name)  # as in the other figures
    color = charts.COLORS[style % len(charts.COLORS)]
    label: str | None = ROWS[row].name
    for index, task in enumerate(tasks):
        gain, y = _gain(collection, task, row), index + offset
        if gain is None:
            continue
        if math.isfinite(gain.high - gain.low):
            axes.plot([gain.low, gain.high], [y, y], color=color, linewidth=3, alpha=0.4)
        axes.plot([gain.value], [y], "o", color=color, markersize=4, label=label)
        label = None  # one entry in the legend


def _gain(collection: Collection, task: str, row: str) -> Estimate | None:
    """A row's return against PPO's; None where one is missing, or PPO's not surely above 0."""
    ours, theirs = (collection.cells.get((task, ROWS[name].name)) for name in (row, BASELINE))
    if ours is None or theirs is None or {ours.status, theirs.status} != {FINISHED}:
        return None
    gain = relative_gain(ours.final(scores.SCORE), theirs.final(scores.SCORE))
    return gain if math.isfinite(gain.value) else None


def curves(collection: Collection) -> dict[str, bytes]:
    """Task -> return, KL, effective sample size and weights over training; PNG."""
    drawn = {}
    for task, group in charts.diagnostics(collection).items():
        wanted = [c for c in group if c.key.startswith(tuple(f"{m}-beside" for m in _SHOWN))]
        if wanted:
            drawn[task] = paper.draw(wanted)[".png"]
    return drawn


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
