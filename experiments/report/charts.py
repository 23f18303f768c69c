"""What is drawn, said once: `page` draws it with plotly.js, `paper` with Matplotlib."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from experiments.record.colors import Look
from experiments.report import scores
from experiments.report.runs import Cell, Collection
from rgpo_jax.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class Series:
    """What one variant shows in a chart; of draws, those that a line joins, or that none does.

    Attributes:
      label: of the variant.
      style: its index, by which a reader hides it; None: it is always shown.
      look: its colour and dash.
      x: of lines, the steps; of draws, a setting's values, and of intervals, the row of each, both
        moved a little by series so that they do not cover each other; of a grid, the columns.
      y, low, high: value and interval at each x; None where there is none.
      seeds: how many are behind each.
      names: of draws, what each is.
      joined: whether a line joins draws.
    """

    label: str
    style: int | None
    look: Look
    x: list[float]
    y: list[float | None]
    low: list[float | None]
    high: list[float | None]
    seeds: list[int]
    names: tuple[str, ...] = ()
    joined: bool = True


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines with bands over x, intervals in rows, draws of a sweep, or a grid of them.

    Attributes:
      key: name of the file and of the element.
      title, x_label, y_label: with units; intervals have no y_label, lying on their side.
      kind: of all series.
      series: one per variant; of a grid, one per row.
      log: whether values are drawn on a logarithmic scale.
      log_x: whether x is.
      rows: names of the rows of intervals, or of a grid.
      columns: names of the columns of a grid.
      ticks: of draws, the values of their setting that x is marked at; none: it has a scale.
      guide: a value to compare with, drawn thin.
      markers: whether each point is marked, since there are few.
      along: what x is.
    """

    key: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    kind: Literal["lines", "intervals", "draws", "grid"] = "lines"
    log: bool = False
    log_x: bool = False
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    ticks: tuple[float, ...] = ()
    guide: float | None = None
    markers: bool = False
    along: Literal["steps", "share", "score", "setting"] = "steps"

    @property
    def description(self) -> str:
        """In words, for those who do not see it."""
        what = {"intervals": "Intervals", "draws": "Draws", "grid": "Heat map"}.get(
            self.kind, "Line chart"
        )
        labels = ", ".join(series.label for series in self.series)
        return f"{what}: {self.title}; {self.x_label}; {labels}"


# Metric -> title, label with unit, logarithmic.
_DIAGNOSTICS: dict[str, tuple[str, str, bool]] = {
    "episode_return": ("Return of training episodes", "return", False),
    "effective_sample_size": ("Effective sample size", "share of the batch", False),
    "weight_mean": ("Mean weight w(r)", "weight", False),
    "weight_max": ("Largest weight w(r)", "weight", True),
    "approx_kl": ("KL of an update", "nats", True),
    "approx_kl_max": ("Largest KL a minibatch met", "nats", True),
    "entropy": ("Entropy of the policy", "nats", False),
}


def learning_curves(collection: Collection) -> dict[str, dict[str, Chart]]:
    """Metric -> environment -> scores and returns over training."""
    found: dict[str, dict[str, Chart]] = {}
    for curve in collection.curves:
        for env in collection.envs:
            metric, key = curve.metric, f"{curve.metric}-{env}"
            chart = _over_training(collection, env, metric, key, env, curve.axis, markers=True)
            if chart.series:
                found.setdefault(metric, {})[env] = chart
    return found


def beside(collection: Collection, env: str, metric: str) -> Chart:
    """A metric of what the gate did over training, to stand beside others."""
    title, unit, log = _DIAGNOSTICS[metric]
    key = f"{metric}-beside-{env}"
    return _over_training(collection, env, metric, key, title, unit, log=log)


def diagnostics(collection: Collection) -> dict[str, list[Chart]]:
    """Environment -> what the gate did over training, the returns first, KL spikes last."""
    found: dict[str, list[Chart]] = {}
    for env in collection.envs:
        charts = [beside(collection, env, metric) for metric in _DIAGNOSTICS]
        charts.append(_spikes(collection, env))
        if any(chart.series for chart in charts[1:]):
            found[env] = [chart for chart in charts if chart.series]
    return found


def _over_training(
    collection: Collection, env: str, metric: str, key: str, title: str, unit: str, **look: Any
) -> Chart:
    series = []
    for variant, cell in _cells(collection, env):
        curve = scores.curve(cell, metric)
        if len(curve.steps):
            series.append(
                Series(
                    *variant,
                    numbers(curve.steps, digits=12),
                    numbers(curve.iqm),
                    numbers(curve.low),
                    numbers(curve.high),
                    [int(n) for n in curve.seeds],
                )
            )
    return Chart(
        file_name(key), title, f"{collection.headline.steps} of one seed", unit, series, **look
    )


def _spikes(collection: Collection, env: str) -> Chart:
    found = {variant: (cell, scores.spike_rates(cell)) for variant, cell in _cells(collection, env)}
    thresholds = sorted({threshold for _, rates in found.values() for threshold in rates})
    series = [
        _intervals(
            variant,
            {thresholds.index(t): (rate, len(cell.seeds)) for t, rate in rates.items()},
        )
        for variant, (cell, rates) in found.items()
        if rates
    ]
    return Chart(
        file_name(f"kl_spikes-beside-{env}"),
        "KL spikes",
        "share of all updates",
        "",
        _side_by_side(series),
        "intervals",
        rows=tuple(f"KL > {threshold:g}" for threshold in thresholds),
    )


def improvement(
    found: list[scores.Improvement], collection: Collection, baseline: str
) -> Chart | None:
    """Probability that a seed of each variant beats one of the baseline."""
    envs = [env for env in collection.envs if any(env in item.by_env for item in found)]
    overall = any(item.overall is not None for item in found)
    rows = (*(("all environments",) if overall else ()), *envs)
    series = []
    for item in found:
        by_row = {**item.by_env} | ({"all environments": item.overall} if item.overall else {})
        cells = [collection.cells[env, item.variant] for env in item.by_env]
        total = sum(len(cell.seeds) for cell in cells)
        by_index = {
            rows.index(name): (
                value,
                len(collection.cells[name, item.variant].seeds) if name in item.by_env else total,
            )
            for name, value in by_row.items()
        }
        series.append(_intervals(_variant(collection, item.variant), by_index))
    if not series:
        return None
    return Chart(
        "probability_of_improvement",
        f"Probability of improvement over {baseline}",
        f"P(a seed scores above one of {baseline})",
        "",
        _side_by_side(series),
        "intervals",
        rows=rows,
        guide=0.5,
    )


def aggregates(found: scores.Aggregate, collection: Collection) -> list[Chart]:
    """Aggregates, performance profiles and sample efficiency over normalised scores."""
    seeds = {
        v: sum(len(collection.cells[env, v].seeds) for env in found.references) for v in found.iqm
    }
    measures = {
        "interquartile mean": found.iqm,
        "mean": found.mean,
        "optimality gap": found.gap,
    }
    scored = [
        _intervals(
            _variant(collection, v),
            {i: (values[v], seeds[v]) for i, values in enumerate(measures.values())},
        )
        for v in found.iqm
    ]
    profiles = [
        _line(_variant(collection, v), found.thresholds, profile, seeds[v])
        for v, profile in found.profiles.items()
    ]
    efficiency = [
        _line(_variant(collection, v), found.fractions, values, seeds[v])
        for v, values in found.efficiency.items()
    ]
    return [
        Chart(
            "aggregate_scores",
            "Aggregate scores",
            "normalised score",
            "",
            _side_by_side(scored),
            "intervals",
            rows=tuple(measures),
        ),
        Chart(
            "performance_profiles",
            "Performance profiles",
            "normalised score t",
            "share of runs above t",
            profiles,
            along="score",
        ),
        Chart(
            "sample_efficiency",
            "Sample efficiency",
            "share of training",
            "IQM of normalised scores",
            efficiency,
            along="share",
        ),
    ]


class _Variant(NamedTuple):
    """What each series of a variant begins with."""

    label: str
    style: int
    look: Look


def _variant(collection: Collection, name: str) -> _Variant:
    style = collection.variants.index(name)
    return _Variant(name, style, collection.looks[style])


def _cells(collection: Collection, env: str) -> Iterable[tuple[_Variant, Cell]]:
    for name in collection.variants:
        if (env, name) in collection.cells:
            yield _variant(collection, name), collection.cells[env, name]


def _intervals(variant: _Variant, found: Mapping[int, tuple[Estimate, int]]) -> Series:
    values = [estimate for estimate, _ in found.values()]
    return Series(
        *variant,
        list(found),
        numbers(v.value for v in values),
        numbers(v.low for v in values),
        numbers(v.high for v in values),
        [seeds for _, seeds in found.values()],
    )


def _side_by_side(series: list[Series]) -> list[Series]:
    return [
        dataclasses.replace(
            one, x=[row + 0.7 * ((place + 0.5) / len(series) - 0.5) for row in one.x]
        )
        for place, one in enumerate(series)
    ]


def _line(variant: _Variant, x: Iterable[float], values: Estimate, seeds: int) -> Series:
    y = numbers(values.value)
    return Series(
        *variant,
        [float(f"{number:.5g}") for number in x],
        y,
        numbers(values.low),
        numbers(values.high),
        [seeds] * len(y),
    )


def numbers(values: Iterable[float], digits: int = 5) -> list[Any]:
    """As short as they can be read off a chart; None where undefined."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in values]


def file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)
