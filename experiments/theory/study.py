"""What a study is made of: claims, tables and figures, which `page` and `drawing` show."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

# Who says so: the paper's abstract, a secondary summary of the paper (its body was not available),
# or this project.
Source = Literal["paper", "summary", "ours"]
Arrays = Mapping[str, np.ndarray]
Value = str | int | float | bool | None


class Progress(Protocol):
    """What a study is given to say how far it is, and to keep what it has."""

    def __call__(self, share: float) -> None:
        """Tells the share of the study that is done, in [0, 1]; a signal to stop is raised here."""

    def remember(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """Returns what `compute` does, or what it did before the study was stopped."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement, and whether it was found to hold.

    Attributes:
      claim: in one sentence.
      source: who makes it.
      holds: None where the data cannot tell.
      evidence: the numbers that say so.
      figures: names of the figures that show it.
    """

    claim: str
    source: Source
    holds: bool | None
    evidence: str
    figures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.holds is None or isinstance(self.holds, bool)):  # NumPy's is another
            raise TypeError(f"holds = {self.holds!r}: expected True, False or None")


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve, its points where `marker`, with a band, or bars at points, where it has bounds.

    Attributes:
      label: shared by the lines of a figure that stand for the same thing; "" is not in the legend.
      style: its colour, or the index of one; None: that of text.
      dash: "-", "--", ":" or "" for points alone.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    style: int | str | None
    dash: str = "-"
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    marker: str = ""


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves over common axes.

    Attributes:
      guides: values of y at which a thin line is drawn.
      limits: of y; None: as the data are.
      rows: names of rows, from the top: y is the number of a row, and bars are of x.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    guides: tuple[float, ...] = ()
    limits: tuple[float | None, float | None] | None = None
    rows: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Figure:
    """Panels side by side with one legend; drawn as `name`.png, its numbers in `name`.csv."""

    name: str
    caption: str
    panels: Sequence[Panel]
    columns: int = 2


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of values, on the page and in `name`.csv.

    Attributes:
      columns: headings, with units.
      rows: floats are rounded on the page and exact in the file; None is undefined.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]


@dataclasses.dataclass(frozen=True)
class Study:
    """One section of the page.

    Attributes:
      title: its heading.
      text: paragraphs: what was done, and how to read it.
    """

    title: str
    text: Sequence[str]
    claims: Sequence[Claim]
    figures: Sequence[Figure]
    tables: Sequence[Table]


def say(value: Value, digits: int = 3) -> str:
    """A value as people read it: a few significant digits, no exponent where it can be avoided."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "\N{MINUS SIGN}∞"
    text = f"{value:.{digits}g}"
    if "e" in text and 1e-3 <= abs(value) < 1e6:
        text = f"{float(text):,.0f}"
    text = re.sub(r"e([+-])0*", lambda m: "e" + m[1].replace("+", ""), text)
    return text.replace("-", "\N{MINUS SIGN}")
