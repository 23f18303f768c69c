"""What is drawn, said once: `page` draws it with plotly.js, `paper` with Matplotlib."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from experiments.report import scores
from experiments.report.runs import Cell, Collection
from rgpo_jax.statistics import Estimate

# Okabe and Ito's colours, which people with colour blindness tell apart; their yellow is left out,
# which nobody sees on white. After seven variants they come again with another dash.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclasses.dataclass(frozen=True)
class Series:
    """What one variant shows in a chart.

    Attributes:
      label: of the variant.
      style: its index, which gives colour and dash.
      x: of lines, the steps; of intervals, the row of each, moved a little by series so that they
        do not cover each other.
      y, low, high: value and interval at each x; None where there is none.
      seeds: how many are behind each.
    """

    label: str
    style: int
    x: list[float]
    y: list[float | None]
    low: list[float | None]
    high: list[float | None]
    seeds: list[int]


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines with bands over x, or intervals in rows.

    Attributes:
      key: name of the file and of the element.
      title, x_label, y_label: with units; intervals have no y_label, lying on their side.
      kind: of all series.
      series: one per variant.
      log: whether values are drawn on a logarithmic scale.
      rows: names of the rows of intervals.
      guide: a value to compare with, drawn thin.
      markers: whether each point is marked, since there are few.
      along: what x is.
    """

    key: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    kind: Literal["lines", "intervals"] = "lines"
    log: bool = False
    rows: tuple[str, ...] = ()
    guide: float | None = None
    markers: bool = False
    along: Literal["steps", "share", "score"] = "steps"

    @property
    def description(self) -> str:
        """In words, for those who do not see it."""
        what = "Intervals" if self.kind == "intervals" else "Line chart"
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


def diagnostics(collection: Collection) -> dict[str, list[Chart]]:
    """Environment -> what the gate did over training, the returns first, KL spikes last."""
    found: dict[str, list[Chart]] = {}
    for env in collection.envs:
        charts = [
            _over_training(collection, env, metric, f"{metric}-beside-{env}", title, unit, log=log)
            for metric, (title, unit, log) in _DIAGNOSTICS.items()
        ]
        charts.append(_spikes(collection, env))
        if any(chart.series for chart in charts[1:]):
            found[env] = [chart for chart in charts if chart.series]
    return found


def _over_training(
    collection: Collection, env: str, metric: str, key: str, title: str, unit: str, **look: Any
) -> Chart:
    series = []
    for style, label, cell in _cells(collection, env):
        curve = scores.curve(cell, metric)
        if len(curve.steps):
            series.append(
                Series(
                    label,
                    style,
                    _numbers(curve.steps, digits=12),
                    _numbers(curve.iqm),
                    _numbers(curve.low),
                    _numbers(curve.high),
                    [int(n) for n in curve.seeds],
                )
            )
    return Chart(
        file_name(key), title, f"{collection.headline.steps} of one seed", unit, series, **look
    )


def _spikes(collection: Collection, env: str) -> Chart:
    found = {
        (style, label): (cell, scores.spike_rates(cell))
        for style, label, cell in _cells(collection, env)
    }
    thresholds = sorted({threshold for _, rates in found.values() for threshold in rates})
    series = [
        _intervals(
            label,
            style,
            {thresholds.index(t): (rate, len(cell.seeds)) for t, rate in rates.items()},
        )
        for (style, label), (cell, rates) in found.items()
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
        series.append(_intervals(item.variant, _style(collection, item.variant), by_index))
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
            v,
            _style(collection, v),
            {i: (values[v], seeds[v]) for i, values in enumerate(measures.values())},
        )
        for v in found.iqm
    ]
    profiles = [
        _line(v, _style(collection, v), found.thresholds, profile, seeds[v])
        for v, profile in found.profiles.items()
    ]
    efficiency = [
        _line(v, _style(collection, v), found.fractions, values, seeds[v])
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


def _cells(collection: Collection, env: str) -> Iterable[tuple[int, str, Cell]]:
    for style, variant in enumerate(collection.variants):
        if (env, variant) in collection.cells:
            yield style, variant, collection.cells[env, variant]


def _style(collection: Collection, variant: str) -> int:
    return collection.variants.index(variant)


def _intervals(label: str, style: int, found: Mapping[int, tuple[Estimate, int]]) -> Series:
    values = [estimate for estimate, _ in found.values()]
    return Series(
        label,
        style,
        list(found),
        _numbers(v.value for v in values),
        _numbers(v.low for v in values),
        _numbers(v.high for v in values),
        [seeds for _, seeds in found.values()],
    )


def _side_by_side(series: list[Series]) -> list[Series]:
    return [
        dataclasses.replace(
            one, x=[row + 0.7 * ((place + 0.5) / len(series) - 0.5) for row in one.x]
        )
        for place, one in enumerate(series)
    ]


def _line(label: str, style: int, x: Iterable[float], values: Estimate, seeds: int) -> Series:
    y = _numbers(values.value)
    return Series(
        label,
        style,
        [float(f"{number:.5g}") for number in x],
        y,
        _numbers(values.low),
        _numbers(values.high),
        [seeds] * len(y),
    )


def _numbers(values: Iterable[float], digits: int = 5) -> list[Any]:
    """As short as they can be read off a chart; None where undefined."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in values]


def file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)
