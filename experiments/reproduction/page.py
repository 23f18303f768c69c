"""`results/README.md`: claims first, then tables, the search, and what differs from the paper."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from experiments.report import scores
from experiments.report.runs import FINISHED, Cell, Collection, Run
from experiments.reproduction import claims, rows, search
from experiments.reproduction.claims import percent, short_name
from rgpo_jax import statistics
from rgpo_jax.diagnostics import KL_SPIKE_THRESHOLDS
from rgpo_jax.statistics import Estimate

_JUDGED = ("rgpo_k4", "rgpo")


@dataclasses.dataclass(frozen=True)
class Family:
    """Tasks that share their settings.

    Attributes:
      key: folder of its runs and sweep files.
      title: for people.
      unit: by which the search brings tasks to one scale.
      collection: its rows.
      candidates: row -> what the search tried, best first.
      figures: task -> name of the file that shows training.
    """

    key: str
    title: str
    unit: str
    collection: Collection
    candidates: dict[str, list[search.Candidate]]
    figures: dict[str, str]

    @property
    def rows(self) -> list[str]:
        """Those that have runs."""
        return [row for row, name in rows.NAMES.items() if name in self.collection.variants]


def render(families: Sequence[Family], studies: dict[str, Collection], gains: str | None) -> bytes:
    """The page, in Markdown.

    Args:
      families: the first is MuJoCo, about which the paper's claims are.
      studies: title -> runs of one agent under several settings.
      gains: name of the figure of all rows against PPO; None: there is none.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["short_name"] = short_name
    mujoco = families[0].collection if families else Collection((), {}, (), 0)
    content = environment.get_template("page.md").render(
        claims=claims.claims(mujoco, _JUDGED),
        judged={row: rows.ROWS[row] for row in _JUDGED},
        families=families,
        studies=studies,
        gains=gains,
        table=table,
        candidate_rows=candidate_rows,
        names=rows.NAMES,
        thresholds=KL_SPIKE_THRESHOLDS,
        short_name=short_name,
        hardware=hardware,
    )
    return content.encode()


def table(collection: Collection) -> list[dict[str, str]]:
    """A line of the table per task and row, as text."""
    lines = []
    order = list(rows.NAMES.values())
    baseline = rows.ROWS[rows.BASELINE]
    found = sorted(
        collection.cells.items(),
        key=lambda item: (
            collection.envs.index(item[0][0]),
            order.index(item[0][1]) if item[0][1] in order else 0,
        ),
    )
    for (task, name), cell in found:
        theirs = collection.cells.get((task, baseline))
        lines.append({"task": short_name(task), "row": name, **_columns(cell, theirs)})
    return lines


def _columns(cell: Cell, baseline: Cell | None) -> dict[str, str]:
    returns, sampled = cell.final(scores.SCORE), cell.final(scores.SAMPLED)
    compared = baseline is not None and baseline is not cell and baseline.status == FINISHED
    columns = {
        "seeds": str(len(cell.seeds)),
        "return": _iqm(returns),
        "sampled": _iqm(sampled),
        "improvement": "",
        "variation": percent(claims.variation(returns)) if len(returns) > 1 else "",
        "kl": f"{claims.mean_kl(cell).value:.3f}",
        "spikes": claims.spikes(scores.spike_rates(cell)),
        "kl_max": f"{_largest(cell, 'approx_kl_max'):.2g}",
        "deviation": f"{_largest(cell, 'first_ratio_deviation'):.0e}",
        "minutes": _minutes(cell),
        "status": "" if cell.status == FINISHED else f"{cell.status} at {cell.progress:.0%}",
    }
    if cell.status != FINISHED:  # its last evaluation is not that of the end
        columns |= {"return": "", "sampled": "", "variation": ""}
    elif compared and baseline is not None:
        better = statistics.probability_of_improvement(
            [returns], [baseline.final(scores.SCORE)], resamples=scores.RESAMPLES
        )
        columns["improvement"] = f"{better.value:.2f} [{better.low:.2f}, {better.high:.2f}]"
    return columns


def _iqm(values: np.ndarray) -> str:
    if not len(values):
        return ""
    estimate = statistics.estimate(statistics.pooled_iqm, [values], resamples=scores.RESAMPLES)
    return interval(estimate)


def interval(estimate: Estimate) -> str:
    """`3321 [2747, 4186]`, with a digit behind the point where numbers are small."""
    digits = 0 if abs(estimate.value) >= 1000 else 1
    value = f"{estimate.value:.{digits}f}"
    if not estimate.has_interval:
        return value
    return f"{value} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _largest(cell: Cell, metric: str) -> float:
    return max(float(np.nanmax(run.metrics[metric])) for run in cell.runs)


def _minutes(cell: Cell) -> str:
    """Of a whole program, and how many seeds it trained; programs of several cells share theirs."""
    parts = []
    for run in cell.runs:
        seconds = run.summary.get("run_seconds", run.wall_seconds[-1])
        members = run.summary.get("trained_side_by_side", len(run.seeds))
        parts.append(f"{seconds / 60:.1f} ({members})")
    return ", ".join(parts)


def candidate_rows(candidates: Sequence[search.Candidate]) -> list[dict[str, Any]]:
    """Lines of the table of a row's candidates."""
    return [
        {
            "settings": ", ".join(f"{name} {value:g}" for name, value in c.settings.items()),
            "default": c.is_default,
            "score": f"{c.score:.2f}" if math.isfinite(c.score) else "broke",
            "returns": ", ".join(
                f"{short_name(task)} {' and '.join(f'{value:.0f}' for value in values)}"
                for task, values in sorted(c.returns.items())
            ),
        }
        for c in candidates
    ]


def hardware(runs: Sequence[Run]) -> str:
    """Machines, versions and commits of some runs, each named once."""
    parts = [
        sorted({run.config.get("machine") or "" for run in runs}),
        sorted({f"jax {run.config['versions']['jax']}" for run in runs}),
        sorted({f"envpool {v}" for run in runs if (v := run.config["versions"].get("envpool"))}),
        sorted({f"commit {(run.config.get('git_commit') or '')[:7]}" for run in runs}),
    ]
    return "; ".join(", ".join(filter(None, part)) for part in parts if any(part))
