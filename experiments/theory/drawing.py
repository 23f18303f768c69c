"""Figures: drawn by Matplotlib, as PNG for files and as SVG within the page."""

import io
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.record.colors import COLORS
from experiments.theory.study import Figure, Line, Panel

_DASHES = ("-", "--", ":", "-.")
_GREY = "#808080"
_INK = "#010203"  # of text and axes: in the page it becomes the colour of the text around it
# Inches of a panel, by how many stand side by side: text is of one size in all figures.
_WIDTHS = {1: 4.2, 2: 3.6, 3: 3.1, 4: 2.6}
_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    ),
}


def png(figure: Figure) -> bytes:
    """The figure on white, at 200 dots per inch."""
    with matplotlib.rc_context({**_STYLE, "savefig.facecolor": "white"}):
        content = io.BytesIO()
        FigureCanvasAgg(_draw(figure)).print_png(content)
    return content.getvalue()


def svg(figure: Figure) -> str:
    """The figure as an element for a page, in the colour of the text around it."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": figure.name}):
        canvas = _draw(figure)
        canvas.patch.set_visible(False)
        content = io.StringIO()
        FigureCanvasSVG(canvas).print_svg(content, metadata={"Date": None})
    text = content.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    # Names are the page's own, of which each stands once.
    text = re.sub(r'\bid="', f'id="{figure.name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{figure.name}-", text)
    # It fills the page's width, but for text that would be too large, or too small to be read.
    inches = canvas.get_figwidth()
    style = f"max-width: {7 * inches:.0f}rem; min-width: {4.5 * inches:.0f}rem"
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        rf'<svg \1 style="{style}">',
        text,
        count=1,
        flags=re.S,
    )


def _draw(figure: Figure) -> Canvas:
    columns = min(figure.columns, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    labels: dict[str, Line] = {}
    for panel in figure.panels:
        for line in panel.lines:
            labels.setdefault(line.label, line)
    labels.pop("", None)
    width = _WIDTHS[columns]
    longest = max(map(len, labels), default=0) + 8  # characters, with the mark before them
    legend_columns = max(1, min(len(labels), int(columns * width * 17 / longest)))
    legend_rows = -(-len(labels) // legend_columns)
    size = (columns * width, rows * 0.75 * width + 0.17 * legend_rows + 0.1)
    canvas = Canvas(figsize=size, dpi=200, layout="constrained")
    all_axes = canvas.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(all_axes, figure.panels, strict=False):
        _draw_panel(axes, panel)
    for axes in all_axes[len(figure.panels) :]:
        axes.set_visible(False)
    if len(labels) > 1:
        canvas.legend(
            handles=[_handle(line) for line in labels.values()],
            loc="outside lower center",
            ncols=legend_columns,
            frameon=False,
        )
    return canvas


def _look(line: Line) -> dict[str, Any]:
    if line.style is None:
        return {"color": _INK, "linestyle": line.dash or "none"}
    dash = line.dash
    if isinstance(line.style, str):
        return {"color": line.style, "linestyle": dash or "none"}
    if dash == "-":
        dash = _DASHES[line.style // len(COLORS) % len(_DASHES)]
    return {"color": COLORS[line.style % len(COLORS)], "linestyle": dash or "none"}


def _handle(line: Line) -> Line2D:
    return Line2D([], [], label=line.label, marker=line.marker or None, markersize=3, **_look(line))


def _draw_panel(axes: Axes, panel: Panel) -> None:
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log", nonpositive="mask")
    for guide in panel.guides:
        axes.axhline(guide, color=_GREY, linewidth=0.6, linestyle=":")
    for line in panel.lines:
        look = _look(line)
        axes.plot(line.x, line.y, linewidth=1.2, marker=line.marker or None, markersize=3, **look)
        if line.low is None or line.high is None:
            continue
        if panel.rows:
            axes.hlines(line.y, line.low, line.high, color=look["color"], linewidth=1.0)
        elif line.dash:
            axes.fill_between(
                line.x, line.low, line.high, color=look["color"], alpha=0.18, linewidth=0
            )
        else:
            axes.vlines(line.x, line.low, line.high, color=look["color"], linewidth=1.0)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)
    if panel.rows:
        axes.set_yticks(range(len(panel.rows)), panel.rows, fontsize=6.5)
        axes.invert_yaxis()
    for is_log, axis in ((panel.log_x, axes.xaxis), (panel.log_y, axes.yaxis)):
        if is_log:
            axis.set_major_locator(LogLocator(numticks=8))
            axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def numbers(figure: Figure) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of what is drawn, a row per point."""
    rows = []
    for panel in figure.panels:
        for line in panel.lines:
            nothing = np.full(len(line.x), np.nan)
            low = nothing if line.low is None else line.low
            high = nothing if line.high is None else line.high
            for point in zip(line.x, line.y, low, high, strict=True):
                rows.append([panel.title, line.label, *map(float, point)])
    return ["panel", "line", "x", "y", "low", "high"], rows
