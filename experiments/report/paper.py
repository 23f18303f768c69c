"""The charts as figures for a paper: PNG, and PDF with fonts that can be searched and edited."""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogFormatter, PercentFormatter

from experiments.record import curve
from experiments.record.colors import DASHES, Look
from experiments.report.charts import Chart, Series

# Where a logarithmic axis ends: less than this, in nats or of a weight, is rounding.
_FLOOR = 1e-6
_LINESTYLES = dict(zip(DASHES, ("solid", "dashed", "dotted", "dashdot"), strict=True))
_PANEL = (3.4, 2.6)  # inches: two of them fill the width of a page
_STYLE: Any = {"font.size": 8, "axes.titlesize": 9, "pdf.fonttype": 42, "axes.linewidth": 0.6}


def draw(
    charts: Sequence[Chart], columns: int = 2, suffixes: Sequence[str] = (".png", ".pdf")
) -> dict[str, bytes]:
    """Draws charts side by side, with one legend for all.

    Returns:
      Suffix -> content.
    """
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    with matplotlib.rc_context(_STYLE):
        size = (columns * _PANEL[0], rows * _PANEL[1] + 0.4)
        figure = Figure(figsize=size, dpi=200, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, chart in zip(panels, charts, strict=False):
            _draw(axes, chart)
        for axes in panels[len(charts) :]:
            axes.set_visible(False)
        shown = {
            series.label: (series.style or 0, series.look)
            for chart in charts
            if chart.kind != "grid"
            for series in chart.series
            if series.label
        }
        handles = [
            Line2D([], [], color=look.color, linestyle=_linestyle(look), label=label)
            for label, (_, look) in sorted(shown.items(), key=lambda item: item[1][0])
        ]
        canvas = FigureCanvasAgg(figure)
        for ncols in range(min(len(handles), 2 * columns), 0, -1):  # as many as the width takes
            legend = figure.legend(
                handles=handles, loc="outside lower center", ncols=ncols, frameon=False
            )
            width = legend.get_window_extent(canvas.get_renderer()).width
            if width <= figure.bbox.width or ncols == 1:
                break
            legend.remove()
        if handles:  # many of them are higher than a panel
            needed = legend.get_window_extent().height / figure.dpi + 0.1
            figure.set_size_inches(size[0], size[1] - 0.4 + max(0.4, needed))
        return {suffix: _WRITERS[suffix](figure) for suffix in suffixes}


def _pdf(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasPdf(figure).print_pdf(buffer, metadata={"CreationDate": None})
    return buffer.getvalue()


_WRITERS = {".png": curve.png, ".pdf": _pdf}


def _linestyle(look: Look) -> Any:
    return _LINESTYLES[look.dash]


def _draw(axes: Axes, chart: Chart) -> None:
    if chart.kind == "lines":
        for series in chart.series:
            _draw_line(axes, series, chart.markers)
        if chart.along == "steps":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        elif chart.along == "share":
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylabel(chart.y_label)
        if chart.log:
            axes.set_yscale("log", nonpositive="mask")
            bottom, top = axes.get_ylim()
            if bottom < _FLOOR < top:
                axes.set_ylim(bottom=_FLOOR)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(0.6, 0.3)))
    elif chart.kind == "draws":
        for series in chart.series:
            _draw_draws(axes, series)
        axes.set_ylabel(chart.y_label)
        if chart.log_x:
            axes.set_xscale("log")
        if chart.ticks:
            axes.set_xticks(chart.ticks, [f"{tick:g}" for tick in chart.ticks], minor=False)
            axes.set_xticks([], minor=True)
    elif chart.kind == "grid":
        _draw_grid(axes, chart)
    else:
        for series in chart.series:
            _draw_intervals(axes, series)
        axes.set_yticks(range(len(chart.rows)), chart.rows)
        axes.set_ylim(len(chart.rows) - 0.5, -0.5)
        if chart.guide is not None:
            axes.axvline(chart.guide, color="black", linewidth=0.6, alpha=0.5)
    axes.set_title(chart.title)
    axes.set_xlabel(chart.x_label)
    if chart.kind != "grid":
        axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_draws(axes: Axes, series: Series) -> None:
    x, y, low, high = (np.array(v, float) for v in (series.x, series.y, series.low, series.high))
    color = series.look.color
    bars = np.nan_to_num(np.stack([y - low, high - y]))
    marker = "o-" if series.joined else "D"
    axes.errorbar(x, y, bars, fmt=marker, color=color, ms=3, linewidth=1, elinewidth=0.8)


def _draw_grid(axes: Axes, chart: Chart) -> None:
    values = np.array([series.y for series in chart.series], float)
    scale = LinearSegmentedColormap.from_list("agent", ["#F5F6F8", chart.series[0].look.color])
    axes.imshow(values, cmap=scale, aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            ink = "white" if value > middle else "black"
            axes.text(column, row, f"{value:.4g}", ha="center", va="center", color=ink, fontsize=7)
    axes.set_xticks(range(len(chart.columns)), chart.columns)
    axes.set_yticks(range(len(chart.rows)), chart.rows)
    axes.set_ylabel(chart.y_label)


def _draw_line(axes: Axes, series: Series, markers: bool) -> None:
    x, y, low, high = (np.array(v, float) for v in (series.x, series.y, series.low, series.high))
    color = series.look.color
    marker = "o" if markers and len(x) <= 20 else None
    axes.plot(
        x, y, color=color, linestyle=_linestyle(series.look), linewidth=1.3, marker=marker, ms=2.5
    )
    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def _draw_intervals(axes: Axes, series: Series) -> None:
    color = series.look.color
    fill = color if _linestyle(series.look) == "solid" else "white"  # as a dash is to a line
    for row, y, low, high in zip(series.x, series.y, series.low, series.high, strict=True):
        if y is None:
            continue
        if low is not None and high is not None and math.isfinite(high - low):
            axes.plot([low, high], [row, row], color=color, linewidth=3, alpha=0.4)
        axes.plot([y], [row], color=color, marker="o", markersize=3.5, mfc=fill)
