"""The figures of the reproduction, drawn as those of a report are."""

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Callable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from experiments.record import colors, curve
from experiments.record.colors import Look
from experiments.report import charts, paper, scores
from experiments.report.run_files import FINISHED
from experiments.report.runs import Cell, Collection
from experiments.reproduction.claims import (
    PAPERS_GAINS,
    Cells,
    interquartile_mean,
    mean_over_updates,
    short_name,
)
from experiments.reproduction.rows import ALL, BASELINE, JUDGED, ROWS
from rgpo_jax.statistics import Estimate

# In the picture of returns, from the top: the table, and PPO with the settings of RGPO.
_RETURNS = (BASELINE, "ppo_rgpo_settings", *(row for row in ROWS if row != BASELINE))
_SHOWN = ("episode_return", "approx_kl", "effective_sample_size", "weight_mean")


def returns(cells: Cells) -> bytes | None:
    """Every row's final return, a panel per task, with the paper's gain over our PPO marked; PNG.

    None where PPO is finished on no task.
    """
    finished = {key: cell for key, cell in cells.items() if cell.status == FINISHED}
    tasks = [task for task in PAPERS_GAINS if (task, ALL[BASELINE].name) in finished]
    rows = [row for row in _RETURNS if any((task, ALL[row].name) in finished for task in tasks)]
    if not tasks:
        return None
    with matplotlib.rc_context({"font.size": 8, "axes.linewidth": 0.6}):
        size = (1.9 + 1.6 * len(tasks), 1.1 + 0.26 * len(rows))
        figure = Figure(figsize=size, dpi=160, layout="constrained")
        panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for axes, task in zip(panels, tasks, strict=True):
            for place, row in enumerate(rows):
                if cell := finished.get((task, ALL[row].name)):
                    _draw_returns(axes, cell, place, looks()[cell.variant].color)
            ours = interquartile_mean(finished[task, ALL[BASELINE].name].final(scores.SCORE))
            claimed = [place for place, row in enumerate(rows) if row in JUDGED]
            if claimed:
                x = ours.value * (1 + PAPERS_GAINS[task])
                ends = min(claimed) - 0.45, max(claimed) + 0.45
                axes.plot([x, x], ends, color="black", linestyle=":", linewidth=1.4)
            axes.set_title(short_name(task), fontsize=9)
            axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.grid(alpha=0.25, linewidth=0.5, axis="x")
            axes.spines[["top", "right"]].set_visible(False)
        names = [textwrap.fill(ALL[row].name, 20) for row in rows]
        panels[0].set_yticks(range(len(rows)), names)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        legend = [
            Line2D([], [], color="gray", marker="o", linestyle="", label="policy's mode"),
            Line2D(
                [], [], color="gray", marker="o", mfc="white", linestyle="", label="its samples"
            ),
            Line2D([], [], color="black", linestyle=":", label="the paper's gain over our PPO"),
        ]
        title = "return: interquartile mean over seeds, 95 % interval"
        figure.legend(
            handles=legend, title=title, loc="outside lower center", ncols=3, frameon=False
        )
        return curve.png(figure)


def _draw_returns(axes: Axes, cell: Cell, place: float, color: str) -> None:
    """The interval of the policy's mode, and below it that of its samples, hollow."""
    for metric, offset, fill, width in (
        (scores.SCORE, -0.13, color, 3.0),
        (scores.SAMPLED, 0.17, "white", 1.2),
    ):
        found, y = interquartile_mean(cell.final(metric)), place + offset
        if math.isfinite(found.high - found.low):
            axes.plot([found.low, found.high], [y, y], color=color, linewidth=width, alpha=0.45)
        axes.plot([found.value], [y], "o", color=color, markersize=4, mfc=fill)


def looks() -> dict[str, Look]:
    """Name of a row -> its look: its agent's colour, or a shade of it; the same in all figures."""
    agents = [row.agent for row in ALL.values()]
    found = zip(ALL.values(), colors.of_variants(agents), strict=True)
    return {row.name: look for row, look in found}


def curves(collection: Collection) -> dict[str, bytes]:
    """Task -> return, KL, effective sample size and weights over training; PNG."""
    drawn, look_of = {}, looks()
    for task in collection.envs:
        found = [charts.beside(collection, task, metric) for metric in _SHOWN]
        shown = [
            dataclasses.replace(
                chart,
                series=[dataclasses.replace(s, look=look_of[s.label]) for s in chart.series],
            )
            for chart in found
            if chart.series
        ]
        if any(chart.series for chart in found[1:]):
            drawn[task] = paper.draw(shown, suffixes=(".png",))[".png"]
    return drawn


# Title with unit -> what is drawn over a setting.
_OVER_SETTING: dict[str, Callable[[Cell], Estimate]] = {
    "return": lambda cell: interquartile_mean(cell.final(scores.SCORE)),
    "return, sampled actions": lambda cell: interquartile_mean(cell.final(scores.SAMPLED)),
    "KL of an update, nats": lambda cell: mean_over_updates(cell, "approx_kl"),
    "effective sample size": lambda cell: mean_over_updates(cell, "effective_sample_size"),
}


def over_setting(collection: Collection, setting: str, symbol: str, switch: str) -> bytes:
    """Returns, KL and effective sample size over a setting's values; PNG.

    Args:
      collection: cells that are not finished are left out.
      setting: a number.
      symbol: of it.
      switch: another setting, true or false. A line per task and value; dashed where it is true.
    """
    with matplotlib.rc_context({"font.size": 9, "axes.linewidth": 0.6}):
        figure = Figure(figsize=(6.8, 5.2), dpi=160, layout="constrained")
        panels = figure.subplots(2, 2).ravel()
        for axes, (title, statistic) in zip(panels, _OVER_SETTING.items(), strict=True):
            for (style, task), on in itertools.product(enumerate(collection.envs), (False, True)):
                points = sorted(
                    (cell.runs[0].settings[setting], statistic(cell))
                    for (env, _), cell in collection.cells.items()
                    if env == task
                    and cell.status == FINISHED
                    and cell.runs[0].settings.get(switch, False) == on
                )
                if not points:
                    continue
                x = [value for value, _ in points]
                color = colors.COLORS[style]
                label = short_name(task) + (f", {switch}" if on else "")
                axes.fill_between(
                    x,
                    [e.low for _, e in points],
                    [e.high for _, e in points],
                    color=color,
                    alpha=0.12,
                )
                axes.plot(
                    x,
                    [e.value for _, e in points],
                    "o--" if on else "o-",
                    color=color,
                    markersize=3,
                    linewidth=1.2,
                    label=label if axes is panels[0] else None,
                )
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel(symbol)
            axes.set_title(title, fontsize=9)
            axes.grid(alpha=0.25, linewidth=0.5)
            axes.spines[["top", "right"]].set_visible(False)
        panels[2].set_yscale("log")
        panels[2].yaxis.set_major_formatter("{x:g}")
        panels[2].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panels[2].yaxis.set_minor_formatter("")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return curve.png(figure)
