"""The figures of the reproduction, drawn as those of a report are."""

import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, PercentFormatter

from experiments.report import charts, paper, scores
from experiments.report.runs import FINISHED, Cell, Collection
from experiments.reproduction.claims import (
    PAPERS_GAINS,
    Cells,
    gain_over_baseline,
    interquartile_mean,
    mean_over_updates,
    short_name,
)
from experiments.reproduction.rows import ALL, BASELINE, ROWS
from rgpo_jax.statistics import Estimate

# In the picture of gains: the table, and PPO with the settings of a row that is ahead of it.
_GAINS = (*ROWS, "ppo_rgpo_settings")
_SHOWN = ("episode_return", "approx_kl", "effective_sample_size", "weight_mean")


def gains(cells: Cells) -> bytes | None:
    """Every row's return against PPO's, task by task, with the paper's figure for RGPO; PNG.

    None where there is nothing to compare.
    """
    computed = {
        (task, row): gain_over_baseline(cells, task, row) for task in PAPERS_GAINS for row in _GAINS
    }
    found = {key: gain for key, gain in computed.items() if math.isfinite(gain.value)}
    tasks = [task for task in PAPERS_GAINS if (task, BASELINE) in found]
    rows = [
        row for row in _GAINS if row != BASELINE and any((task, row) in found for task in tasks)
    ]
    if not rows:
        return None
    styles = _styles(ALL[row].name for row in rows)
    with matplotlib.rc_context({"font.size": 9, "axes.linewidth": 0.6}):
        size = (6.4, 1.5 + 0.16 * len(tasks) * (len(rows) + 2))
        figure = Figure(figsize=size, dpi=160, layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            color = charts.COLORS[styles[ALL[row].name] % len(charts.COLORS)]
            offset = 0.7 * ((place + 0.5) / len(rows) - 0.5)
            by_place = {i + offset: found.get((task, row)) for i, task in enumerate(tasks)}
            _draw_row(axes, by_place, color, ALL[row].name)
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
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return _png(figure)


def _styles(names: Iterable[str]) -> dict[str, int]:
    """Name of a row -> its index of colour and dash: the same in all figures for the table's rows.

    Rows beside the table have those of rows that are not shown.
    """
    shown = set(names)
    table = {row.name: style for style, row in enumerate(ROWS.values())}
    own = {name: style for name, style in table.items() if name in shown}
    free = (style for style in itertools.count() if style not in own.values())
    others = [row.name for row in ALL.values() if row.name in shown - own.keys()]
    return own | dict(zip(others, free, strict=False))


def _draw_row(axes: Axes, by_place: Mapping[float, Estimate | None], color: str, name: str) -> None:
    label: str | None = name
    for y, gain in by_place.items():
        if gain is None:
            continue
        if math.isfinite(gain.high - gain.low):
            axes.plot([gain.low, gain.high], [y, y], color=color, linewidth=3, alpha=0.4)
        axes.plot([gain.value], [y], "o", color=color, markersize=4, label=label)
        label = None  # one entry in the legend


def curves(collection: Collection) -> dict[str, bytes]:
    """Task -> return, KL, effective sample size and weights over training; PNG."""
    drawn, styles = {}, _styles(collection.variants)
    for task, group in charts.diagnostics(collection).items():
        wanted = [
            dataclasses.replace(
                chart,
                series=[dataclasses.replace(s, style=styles[s.label]) for s in chart.series],
            )
            for chart in group
            if chart.key.startswith(tuple(f"{metric}-beside" for metric in _SHOWN))
        ]
        if wanted:
            drawn[task] = paper.draw(wanted)[".png"]
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
                color = charts.COLORS[style]
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
        return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
