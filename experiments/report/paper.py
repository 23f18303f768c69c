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
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogFormatter, PercentFormatter

from experiments.report.charts import COLORS, DASHES, Chart, Series

# Where a logarithmic axis ends: less than this, in nats or of a weight, is rounding.
_FLOOR = 1e-6
_LINESTYLES = dict(zip(DASHES, ("solid", "dashed", "dotted", "dashdot"), strict=True))
_PANEL = (3.4, 2.6)  # inches: two of them fill the width of a page
_STYLE: Any = {"font.size": 8, "axes.titlesize": 9, "pdf.fonttype": 42, "axes.linewidth": 0.6}


def draw(charts: Sequence[Chart], columns: int = 2) -> dict[str, bytes]:
    """Draws charts side by side, with one legend for all.

    Returns:
      Suffix -> content, for ".png" and ".pdf".
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
        shown = {series.label: series.style for chart in charts for series in chart.series}
        handles = [
            Line2D([], [], color=_color(style), linestyle=_linestyle(style), label=label)
            for label, style in sorted(shown.items(), key=lambda item: item[1])
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
        png, pdf = io.BytesIO(), io.BytesIO()
        canvas.print_png(png)
        FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None})
    return {".png": png.getvalue(), ".pdf": pdf.getvalue()}


def _color(style: int) -> str:
    return COLORS[style % len(COLORS)]


def _linestyle(style: int) -> Any:
    return _LINESTYLES[DASHES[style // len(COLORS) % len(DASHES)]]


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
    else:
        for series in chart.series:
            _draw_intervals(axes, series)
        axes.set_yticks(range(len(chart.rows)), chart.rows)
        axes.set_ylim(len(chart.rows) - 0.5, -0.5)
        if chart.guide is not None:
            axes.axvline(chart.guide, color="black", linewidth=0.6, alpha=0.5)
    axes.set_title(chart.title)
    axes.set_xlabel(chart.x_label)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_line(axes: Axes, series: Series, markers: bool) -> None:
    x, y, low, high = (np.array(v, float) for v in (series.x, series.y, series.low, series.high))
    color = _color(series.style)
    marker = "o" if markers and len(x) <= 20 else None
    axes.plot(
        x, y, color=color, linestyle=_linestyle(series.style), linewidth=1.3, marker=marker, ms=2.5
    )
    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def _draw_intervals(axes: Axes, series: Series) -> None:
    color = _color(series.style)
    fill = color if _linestyle(series.style) == "solid" else "white"  # as a dash is to a line
    for row, y, low, high in zip(series.x, series.y, series.low, series.high, strict=True):
        if y is None:
            continue
        if low is not None and high is not None and math.isfinite(high - low):
            axes.plot([low, high], [row, row], color=color, linewidth=3, alpha=0.4)
        axes.plot([y], [row], color=color, marker="o", markersize=3.5, mfc=fill)
