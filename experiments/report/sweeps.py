"""What a sweep shows: its draws in their order, scores over each setting, a heat map of two.

Parameters of an environment are no settings of an agent: with other ones it is another task, and
draws are not ranked across them. Scores over them are shown of all variants together.
"""

import dataclasses
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.record import colors
from experiments.record.colors import Look
from experiments.report.charts import Chart, Series, file_name, numbers
from experiments.report.run_files import FINISHED
from experiments.report.runs import Cell, Collection, varying_settings
from experiments.report.scores import Row
from rgpo_jax.statistics import Estimate

BUDGET = "total_steps"  # the setting by which runs are never compared
_DECADE = 8.0  # times the least value: from here on an axis is logarithmic
_MOST_LINES = 8  # in a legend: more are told apart by hovering alone
_APART = 0.06  # of a chart's width, from the first series to the last
_MOST_TICKS = 8
_BETWEEN_TICKS = 0.08  # of a chart's width, at the least
_LEAST_FILLED = 0.75  # of a grid, which random draws do not fill


@dataclasses.dataclass(frozen=True)
class Draw:
    """One choice of the settings that were swept.

    Attributes:
      row: its scores.
      settings: name -> value, of those that were swept; None where the run has none.
      rank: from 1, among finished draws; None: it is not finished.
      is_level: whether its interval reaches that of the first, as far as that is known.
    """

    row: Row
    settings: dict[str, Any]
    rank: int | None
    is_level: bool = False

    @property
    def cell(self) -> Cell:
        return self.row.cell

    @property
    def name(self) -> str:
        """Its settings, in words."""
        return ", ".join(f"{name} = {say(value)}" for name, value in self.settings.items())


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Draws of one agent on one environment, all of one budget.

    Attributes:
      env, agent, budget: of all its runs; the budget in steps of one seed.
      settings: names of those in which draws differ.
      draws: best first, then those that are not finished.
    """

    env: str
    agent: str
    budget: int
    settings: tuple[str, ...]
    draws: tuple[Draw, ...]

    @property
    def numbers(self) -> tuple[str, ...]:
        """Settings of which two numbers or more are finished."""
        return _numbers(self.settings, [draw.settings for draw in _finished(self)])


def find(rows: dict[tuple[str, str], Row], collection: Collection) -> list[Sweep]:
    """The sweeps of a collection: wherever variants of an agent differ in settings."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for env in collection.envs:
        for variant in collection.variants:
            row = rows.get((env, variant))
            if row is not None:
                key = env, row.cell.agent, row.cell.budget
                groups.setdefault(key, []).append(row)
    found = []
    for (env, agent, budget), group in groups.items():
        varying = varying_settings([row.cell.runs[0] for row in group])
        settings = tuple(name for name in varying if name != BUDGET)
        if settings:
            found.append(Sweep(env, agent, budget, settings, _ranked(group, settings)))
    return found


def _ranked(group: Sequence[Row], settings: Sequence[str]) -> tuple[Draw, ...]:
    done = [row for row in group if row.cell.status == FINISHED]
    done.sort(key=lambda row: -float(row.iqm.value))  # of equals the first by name
    rest = [row for row in group if row.cell.status != FINISHED]

    def draw(row: Row, rank: int | None) -> Draw:
        chosen = {name: row.cell.settings.get(name) for name in settings}
        best = done[0].iqm if done else row.iqm
        level = rank is not None and best.has_interval and row.iqm.has_interval
        return Draw(row, chosen, rank, level and bool(row.iqm.high >= best.low))

    ranked = [draw(row, rank) for rank, row in enumerate(done, 1)]
    return (*ranked, *(draw(row, None) for row in rest))


def over_settings(sweep: Sweep, collection: Collection) -> list[Chart]:
    """Score against the value of each number that was swept.

    A line joins draws that differ in this number alone; all others are points by themselves.
    """
    return [_over(sweep, name, collection) for name in sweep.numbers]


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Finished cells of one environment and budget, whose environments differ in parameters.

    Attributes:
      env, budget: of all of them; the environment without the parameters.
      cells: what each was trained with, and its scores.
    """

    env: str
    budget: int
    cells: tuple[tuple[dict[str, Any], Row], ...]

    @property
    def varying(self) -> tuple[str, ...]:
        """Parameters that are not the same in all cells, or that some have not set."""
        names = dict.fromkeys(name for params, _ in self.cells for name in params)
        return tuple(
            name
            for name in names
            if len({repr(params.get(name, ...)) for params, _ in self.cells}) > 1
        )

    @property
    def numbers(self) -> tuple[str, ...]:
        """Parameters that have two numbers or more."""
        return _numbers(self.varying, [params for params, _ in self.cells])


def find_tasks(rows: dict[tuple[str, str], Row]) -> list[Tasks]:
    """Wherever the parameters of an environment were varied."""
    groups: dict[tuple[str, int], list[tuple[dict[str, Any], Row]]] = {}
    for row in rows.values():
        if row.cell.status == FINISHED and row.cell.env_params is not None:
            key = row.cell.plain_env, row.cell.budget
            groups.setdefault(key, []).append((row.cell.env_params, row))
    found = [Tasks(*key, tuple(cells)) for key, cells in sorted(groups.items())]
    return [tasks for tasks in found if tasks.numbers]


def over_parameters(tasks: Tasks, collection: Collection) -> list[Chart]:
    """Score against each number of the environment that was varied, a line of each variant."""
    return [_over_parameter(tasks, name, collection) for name in tasks.numbers]


def _over_parameter(tasks: Tasks, name: str, collection: Collection) -> Chart:
    cells = [(params, row) for params, row in tasks.cells if _is_number(params.get(name))]
    others = [o for o in tasks.varying if o != name]
    lines: dict[tuple[str, ...], list[_Point]] = {}
    for params, row in sorted(cells, key=lambda cell: float(cell[0][name])):
        held = tuple(f"{o} = {say(params[o])}" for o in others if o in params)
        label = (row.cell.variant, *held)
        at = f"{', '.join(label)}, {name} = {params[name]}"
        lines.setdefault(label, []).append(_Point(float(params[name]), row, at))
    series = []
    styles = {variant: style for style, variant in enumerate(collection.variants)}
    for label, points in sorted(lines.items(), key=lambda line: styles[line[0][0]]):
        style = styles[label[0]]
        look = collection.looks[style]
        series.append(_draws(", ".join(label), style, look, points, joined=len(points) > 1))
    key = file_name(f"over-{name}-{tasks.env}-{tasks.budget}")
    return _over_values(key, f"{tasks.env}: score against {name}", name, series, collection)


class _Point(NamedTuple):
    """Of a chart of draws: where it stands, its scores, and what is said of it."""

    x: float
    row: Row
    name: str


def _over(sweep: Sweep, name: str, collection: Collection) -> Chart:
    others = [other for other in sweep.settings if other != name]
    groups: dict[tuple[str, ...], list[Draw]] = {}
    for draw in sorted(_finished(sweep), key=lambda d: _order(d.settings[name])):
        if _is_number(draw.settings[name]):
            held = tuple(say(draw.settings[other]) for other in others)
            groups.setdefault(held, []).append(draw)
    lines = {held: draws for held, draws in groups.items() if len(draws) > 1}
    loose = [draw for held, draws in groups.items() if held not in lines for draw in draws]
    color = collection.colors[sweep.agent]
    series = []
    by_value = sorted(lines, key=lambda held: [_order(_first(lines, held, o)) for o in others])
    for held, shade in zip(by_value, colors.gradient(color, max(1, len(lines))), strict=False):
        told = zip(others, held, strict=True) if len(lines) <= _MOST_LINES else ()
        label = ", ".join(f"{other} = {value}" for other, value in told)
        points = _points(lines[held], name)
        series.append(_draws(label, None, Look(shade), points, joined=True))
    if loose:
        label = "" if not lines else "alone with its settings"
        series.append(_draws(label, None, Look(color), _points(loose, name), joined=False))
    title = f"{sweep.agent}: score against {name}"
    return _over_values(_key(f"over-{name}", sweep), title, name, series, collection)


def _points(draws: Sequence[Draw], name: str) -> list[_Point]:
    return [_Point(float(draw.settings[name]), draw.row, draw.name) for draw in draws]


def _over_values(
    key: str, title: str, name: str, series: list[Series], collection: Collection
) -> Chart:
    """Scores over the values of a number."""
    values = sorted({x for one in series for x in one.x})
    log = values[0] > 0 and values[-1] >= _DECADE * values[0]
    return Chart(
        key,
        title,
        name,
        collection.headline.score.axis,
        _side_by_side(series, values, log),
        "draws",
        log_x=log,
        ticks=_ticks(values, log),
        along="setting",
    )


def _ticks(values: Sequence[float], log: bool) -> tuple[float, ...]:
    """Values in their order, if they are few and apart, as those of a grid; else none."""
    at = [math.log(value) if log else value for value in values]
    gap = min(after - before for before, after in itertools.pairwise(at))
    apart = gap >= _BETWEEN_TICKS * (at[-1] - at[0])
    return tuple(values) if apart and len(values) <= _MOST_TICKS else ()


def _side_by_side(series: list[Series], values: Sequence[float], log: bool) -> list[Series]:
    """Moves points a little by series, so that intervals at one value do not cover each other."""
    span = math.log(values[-1] / values[0]) if log else values[-1] - values[0]
    moved = []
    for place, one in enumerate(series):
        by = _APART * span * (place - (len(series) - 1) / 2) / max(_MOST_LINES, len(series))
        x = [value * math.exp(by) if log else value + by for value in one.x]
        moved.append(dataclasses.replace(one, x=numbers(x)))
    return moved


def _first(lines: dict[tuple[str, ...], list[Draw]], held: tuple[str, ...], name: str) -> Any:
    return lines[held][0].settings[name]


def _draws(
    label: str, style: int | None, look: Look, points: Sequence[_Point], joined: bool
) -> Series:
    return Series(
        label,
        style,
        look,
        [point.x for point in points],
        *_ends([point.row.iqm for point in points]),
        [len(point.row.scores) for point in points],
        tuple(point.name for point in points),
        joined,
    )


def heat_map(sweep: Sweep, collection: Collection) -> Chart | None:
    """Scores over the values of two settings; None unless just two were swept, on a grid."""
    if len(sweep.settings) != 2:
        return None
    draws = _finished(sweep)
    across, down = sweep.settings
    columns, rows = (
        sorted({say(d.settings[name]): d.settings[name] for d in draws}.items(), key=_by_value)
        for name in (across, down)
    )
    if min(len(columns), len(rows)) < 2 or len(draws) < _LEAST_FILLED * len(columns) * len(rows):
        return None
    look = Look(collection.colors[sweep.agent])
    series = []
    for value, _ in reversed(rows):  # from the top
        line = {say(d.settings[across]): d for d in draws if say(d.settings[down]) == value}
        found = [line.get(column) for column, _ in columns]
        nothing = Estimate(math.nan, math.nan, math.nan)
        estimates = [nothing if draw is None else draw.row.iqm for draw in found]
        series.append(
            Series(
                f"{down} = {value}",
                None,
                look,
                [float(i) for i in range(len(columns))],
                *_ends(estimates),
                [0 if draw is None else len(draw.row.scores) for draw in found],
                tuple("" if draw is None else draw.name for draw in found),
            )
        )
    return Chart(
        _key("heat_map", sweep),
        f"{sweep.agent}: {collection.headline.score.axis} by {across} and {down}",
        across,
        down,
        series,
        "grid",
        rows=tuple(value for value, _ in reversed(rows)),
        columns=tuple(value for value, _ in columns),
        along="setting",
    )


def _finished(sweep: Sweep) -> list[Draw]:
    return [draw for draw in sweep.draws if draw.rank is not None]


def _ends(estimates: Sequence[Estimate]) -> tuple[list[Any], list[Any], list[Any]]:
    """Values, and the lower and upper ends of their intervals."""
    parts = [[float(end) for end in estimate] for estimate in estimates]
    value, low, high = (numbers(part) for part in zip(*parts, strict=True))
    return value, low, high


def _key(what: str, sweep: Sweep) -> str:
    return file_name(f"{what}-{sweep.agent}-{sweep.env}-{sweep.budget}")


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # of integers, too


def _numbers(names: Sequence[str], chosen: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Those of these settings that have two numbers or more."""
    values = {name: [settings.get(name) for settings in chosen] for name in names}
    return tuple(name for name in names if len(set(filter(_is_number, values[name]))) > 1)


def _order(value: Any) -> tuple[bool, float, str]:
    """A sorting key: numbers by value, then all else."""
    return (False, float(value), "") if _is_number(value) else (True, 0.0, str(value))


def _by_value(item: tuple[str, Any]) -> tuple[bool, float, str]:
    return _order(item[1])


def say(value: Any) -> str:
    """A setting's value, as short as it can be told from others."""
    if isinstance(value, list):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
