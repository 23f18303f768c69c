"""One self-contained HTML page: text by Jinja, charts by plotly.js, nothing to be loaded."""

import base64
import dataclasses
import datetime
import functools
import gzip
import importlib.metadata
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from experiments.comparing import style
from experiments.record.files import to_json
from experiments.record.headline import CONTROL
from experiments.report import charts, episodes, scores, sweeps
from experiments.report.charts import Chart
from experiments.report.run_files import FINISHED, UNFINISHED, Run
from experiments.report.runs import Cell, Collection
from rgpo_jax.statistics import Estimate

_HERE = Path(__file__).parent
_UNDEFINED, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclasses.dataclass(frozen=True)
class Report:
    """All charts and numbers of a report, drawn as a page or for a paper."""

    title: str
    collection: Collection
    baseline: str | None

    @functools.cached_property
    def rows(self) -> dict[tuple[str, str], scores.Row]:
        return scores.score_table(self.collection)

    @functools.cached_property
    def curves(self) -> dict[str, dict[str, Chart]]:
        return charts.learning_curves(self.collection)

    @functools.cached_property
    def improvement(self) -> Chart | None:
        if self.baseline is None:
            return None
        found = scores.improvements(self.rows, self.collection, self.baseline)
        return charts.improvement(found, self.collection, self.baseline)

    @functools.cached_property
    def aggregate(self) -> scores.Aggregate | None:
        return scores.aggregate(self.rows, self.collection)

    @functools.cached_property
    def aggregates(self) -> list[Chart]:
        return charts.aggregates(self.aggregate, self.collection) if self.aggregate else []

    @functools.cached_property
    def sweeps(self) -> list[sweeps.Sweep]:
        return sweeps.find(self.rows, self.collection)

    @functools.cached_property
    def swept(self) -> list[list[Chart]]:
        """Of each sweep, scores over its settings, and a heat map where there is one."""
        return [
            [*sweeps.over_settings(sweep, self.collection), *([grid] if grid else [])]
            for sweep in self.sweeps
            for grid in (sweeps.heat_map(sweep, self.collection),)
        ]

    @functools.cached_property
    def tasks(self) -> dict[str, list[Chart]]:
        """Environment and budget -> scores over the parameters that were varied."""
        unit = self.collection.headline.unit.name
        return {
            f"{tasks.env}, {tasks.budget:,} {unit}": sweeps.over_parameters(tasks, self.collection)
            for tasks in sweeps.find_tasks(self.rows)
        }

    @functools.cached_property
    def diagnostics(self) -> dict[str, list[Chart]]:
        return charts.diagnostics(self.collection)

    def figures(self) -> dict[str, list[Chart]]:
        """Name of a figure -> the charts it shows side by side."""
        found = {
            f"learning_curves-{metric}": list(by_env.values())
            for metric, by_env in self.curves.items()
        }
        for chart in (self.improvement, *self.aggregates):
            if chart is not None:
                found[chart.key] = [chart]
        for sweep, group in zip(self.sweeps, self.swept, strict=True):
            if group:
                name = f"sweep-{sweep.agent}-{sweep.env}-{sweep.budget}"
                found[charts.file_name(name)] = group
        for title, group in self.tasks.items():
            found[charts.file_name(f"parameters-{title}")] = group
        for env, group in self.diagnostics.items():
            found[charts.file_name(f"diagnostics-{env}")] = group
        return found


def render(report: Report, refresh: float | None = None) -> bytes:
    """The page.

    Args:
      report: what it shows.
      refresh: seconds after which the page loads itself anew; None: never.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    collection = report.collection
    unit = collection.headline.unit.name
    shown = [
        *(chart for by_env in report.curves.values() for chart in by_env.values()),
        *([report.improvement] if report.improvement else []),
        *report.aggregates,
        *(chart for group in report.swept for chart in group),
        *(chart for group in report.tasks.values() for chart in group),
        *(chart for group in report.diagnostics.values() for chart in group),
    ]
    embedded, missing = _episodes(collection)
    return (
        environment.get_template("page.html")
        .render(
            title=report.title,
            facts=_facts(collection),
            refresh=None if refresh is None else math.ceil(refresh),
            sections=_sections(report),
            notes=collection.notes,
            summary=_summary(report),
            numbers=_numbers(report),
            variants=collection.variants,
            metrics={
                curve.metric: curve.title
                for curve in collection.curves
                if curve.metric in report.curves
            },
            curves={
                env: {m: by_env[env].key for m, by_env in report.curves.items() if env in by_env}
                for env in collection.envs
            },
            improvement=report.improvement,
            aggregates=report.aggregates,
            baseline_note=_baseline_note(report),
            references=_references(report),
            aggregate_note=_aggregate_note(report),
            sweeps=[
                _sweep(sweep, group, unit)
                for sweep, group in zip(report.sweeps, report.swept, strict=True)
            ],
            tasks=report.tasks,
            diagnostics=report.diagnostics,
            episodes=embedded,
            missing_episodes=missing,
            runs=[_run_row(cell, run) for cell in collection.cells.values() for run in cell.runs],
            run_columns=(
                *("run", "environment", "variant", "seeds", "state", unit, "minutes", f"{unit}/s"),
                *("device", "machine", "jax", "Python", "commit", "started"),
            ),
            differing=_differing(collection),
            shared=_shared(collection),
            resamples=f"{scores.RESAMPLES:,}",
            scipy=importlib.metadata.version("scipy"),
            made=f"Made {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z} by "
            "python -m experiments.report.",
            css=Markup(style.css()),
            js=Markup((_HERE / "page.js").read_text()),
            data=_data(shown, unit, collection),
            headline=collection.headline,
            plotly=_plotly(),
        )
        .encode()
    )


@functools.cache
def _plotly() -> str:
    """plotly.js, packed: 2 MB where it would be 5."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _data(shown: Sequence[Chart], unit: str, collection: Collection) -> Markup:
    content = {
        **({"unit": unit} if unit != CONTROL.unit.name else {}),  # as page.js has it
        "charts": {chart.key: dataclasses.asdict(chart) for chart in shown},
        "looks": collection.looks,
    }
    # A script element ends at the first "</", wherever it stands.
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Markup(text)


def _facts(collection: Collection) -> list[str]:
    seeds = sum(len(cell.seeds) for cell in collection.cells.values())
    facts = [
        _count(len(collection.variants), "variant"),
        _count(len(collection.envs), "environment"),
        _count(len(collection.runs), "run"),
        f"{seeds} trained seeds",
        *sorted({str(run.config.get("device", "unknown device")) for run in collection.runs}),
    ]
    unfinished = sum(run.status == UNFINISHED for run in collection.runs) + collection.waiting
    return [*facts, f"{unfinished} unfinished"] if unfinished else facts


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _sections(report: Report) -> list[tuple[str, str]]:
    compared = report.improvement or report.aggregates or _baseline_note(report)
    return [
        ("scores", "Scores"),
        ("curves", "Learning curves"),
        *([("sweeps", "Settings that were swept")] if report.sweeps else []),
        *([("tasks", "Parameters of environments")] if report.tasks else []),
        *([("comparison", "Comparison")] if compared else []),
        *([("diagnostics", "Gate diagnostics")] if report.diagnostics else []),
        ("episodes", "Episodes"),
        ("settings", "Settings and hardware"),
    ]


def _summary(report: Report) -> dict[str, Any]:
    collection = report.collection
    budgets = {
        env: {c.budget for (e, _), c in collection.cells.items() if e == env}
        for env in collection.envs
    }

    def entry(env: str, variant: str) -> dict[str, Any] | None:
        row = report.rows.get((env, variant))
        if row is None:
            return None
        return {
            "iqm": number(row.iqm.value),
            "interval": _interval(row.iqm),
            "is_best": row.is_best,
            "status": _state(row.cell),
            "budget": f"{row.cell.budget:,} {collection.headline.unit.name}"
            if len(budgets[env]) > 1
            else "",
        }

    rows = [
        {
            "variant": variant,
            "style": style,
            "cells": [entry(env, variant) for env in collection.envs],
        }
        for style, variant in enumerate(collection.variants)
    ]
    return {"envs": collection.envs, "rows": rows if report.rows else []}


def _state(item: Cell | Run) -> str:
    return item.status if item.status == FINISHED else f"{item.status} at {item.progress:.0%}"


def _sweep(sweep: sweeps.Sweep, group: list[Chart], unit: str) -> dict[str, Any]:
    """A sweep's charts, and its ranking."""
    done = [draw for draw in sweep.draws if draw.rank is not None]
    return {
        "title": f"{sweep.agent} on {sweep.env}, {sweep.budget:,} {unit}",
        "charts": group,
        "settings": sweep.settings,
        "finished": len(done),
        "level": sum(draw.is_level for draw in done),
        "rows": [
            {
                "rank": _UNDEFINED if draw.rank is None else draw.rank,
                "is_level": draw.is_level and len(done) > 1,
                "settings": [sweeps.say(value) for value in draw.settings.values()],
                "iqm": number(draw.row.iqm.value),
                "interval": _interval(draw.row.iqm),
                "seeds": len(draw.row.scores),
                "state": _state(draw.cell),
                "run": draw.cell.runs[0].name,
            }
            for draw in sweep.draws
        ],
    }


def _numbers(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "env": env,
            "variant": variant,
            "seeds": len(row.scores),
            "values": [
                *(_with_interval(e) for e in (row.iqm, row.mean)),
                *([_with_interval(row.sampled)] if report.collection.headline.sampled else []),
                number(row.deviation),
                f"{row.variation:.0%}" if math.isfinite(row.variation) else _UNDEFINED,
                number(row.scores.min()),
                number(row.scores.max()),
            ],
        }
        for env in report.collection.envs
        for variant in report.collection.variants
        if (row := report.rows.get((env, variant)))
    ]


def number(value: float) -> str:
    """A score, as exact as anyone needs it."""
    if not math.isfinite(value):
        return _UNDEFINED
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    text = f"{value:,.{digits}f}"
    return f"{0:.{digits}f}" if float(text.replace(",", "")) == 0 else text.replace("-", _MINUS)


def _interval(found: Estimate) -> str:
    if not found.has_interval:
        return "(one seed: no interval)"
    return f"[{number(found.low)}, {number(found.high)}]"


def _with_interval(found: Estimate | None) -> str:
    return _UNDEFINED if found is None else f"{number(found.value)} {_interval(found)}"


def _baseline_note(report: Report) -> str:
    if len(report.collection.variants) < 2 or report.improvement is not None:
        return ""
    if report.baseline is None:
        return "No variant is called ppo: --baseline VARIANT compares the others with one of them."
    return f"Nothing finished of {report.baseline}'s budget can be compared with it yet."


def _references(report: Report) -> list[tuple[str, str, str]]:
    if report.aggregate is None:
        return []
    return [
        (env, number(low), number(high)) for env, (low, high) in report.aggregate.references.items()
    ]


def _aggregate_note(report: Report) -> str:
    if report.aggregate is None:
        return ""
    notes = []
    if report.aggregate.left_out:
        names = ", ".join(report.aggregate.left_out)
        notes.append(f"Not finished on all of these environments, and left out: {names}.")
    lacking = [env for env in report.collection.envs if env not in report.aggregate.references]
    if lacking:
        notes.append(f"Nothing learned more than an untrained policy on {', '.join(lacking)}.")
    return " ".join(notes)


def _episodes(collection: Collection) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Embedded episodes, and the commands that make those that are missing."""
    embedded, missing = [], []
    for (env, variant), cell in collection.cells.items():
        caption = f"{variant} on {env}"
        found = next(filter(None, map(episodes.find, cell.runs)), None)
        if found is None:
            command = shlex.join(episodes.command(cell.runs[0]))
            missing.append({"caption": caption, "command": command})
        else:
            embedded.append({"caption": caption, "kind": found.kind, "content": found.content})
    return embedded, missing


def _run_row(cell: Cell, run: Run) -> list[str]:
    config, versions = run.config, run.config.get("versions") or {}
    speed = run.summary.get(run.headline.unit.rate)
    return [
        run.name,
        run.env,
        cell.variant,
        f"{run.seeds[0]} to {run.seeds[-1]}" if len(run.seeds) > 1 else f"{run.seeds[0]}",
        _state(run),
        f"{int(run.env_steps[-1]):,}",
        f"{float(run.wall_seconds[-1]) / 60:.1f}",
        f"{speed:,.0f}" if isinstance(speed, int | float) else _UNDEFINED,
        *(str(config.get(name) or _UNDEFINED) for name in ("device", "machine")),
        *(str(versions.get(name) or _UNDEFINED) for name in ("jax", "python")),
        run.commit or _UNDEFINED,
        str(config.get("started") or _UNDEFINED),
    ]


def _differing(collection: Collection) -> dict[str, Any]:
    columns = [f"{variant} on {env}" for env, variant in collection.cells]
    settings = [cell.runs[0].settings for cell in collection.cells.values()]
    named = {
        "agent",
        "gate",
        "env",
        "env_kwargs",
        "randomize",
        "backend",
    }  # the column's name says these
    names = [
        name for name in _names(collection) if name not in named and _differs(collection, name)
    ]
    rows = [(name, [_value(setting, name) for setting in settings]) for name in names]
    return {"columns": columns, "rows": rows}


def _shared(collection: Collection) -> list[tuple[str, str]]:
    first = collection.runs[0].settings if collection.runs else {}
    return [
        (name, _value(first, name)) for name in _names(collection) if not _differs(collection, name)
    ]


def _names(collection: Collection) -> list[str]:
    return list(dict.fromkeys(name for run in collection.runs for name in run.settings))


def _differs(collection: Collection, name: str) -> bool:
    return len({_value(run.settings, name) for run in collection.runs}) > 1


def _value(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return _UNDEFINED
    value = settings[name]
    return value if isinstance(value, str) else to_json(value).decode().strip()
