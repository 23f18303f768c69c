"""`results/README.md`: the answer and the claims, how far to trust them, and what they rest on."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from experiments.report import scores
from experiments.report.run_files import FINISHED, Run
from experiments.report.runs import Cell, Collection
from experiments.reproduction import claims, ranks, rows, search
from experiments.reproduction.claims import number, percent, short_name
from experiments.reproduction.search import Candidate, Search
from rgpo_jax.diagnostics import KL_SPIKE_THRESHOLDS


@dataclasses.dataclass(frozen=True)
class Beside:
    """Rows beside the table, with what they are compared with.

    Attributes:
      collection: on tasks of their own.
      figures: task -> path of the picture that shows training.
    """

    collection: Collection
    figures: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Family:
    """Tasks that share their settings.

    Attributes:
      key: folder of its runs and sweep files.
      title: for people.
      cells: by (task, name of the row), of the table and beside it.
      collection: the table's rows.
      beside: key of `rows.GROUPS` -> its rows.
      search: how its settings were found; None: they are defaults.
      candidates: row -> what the search tried, best first.
      figures: task -> path of the picture that shows training.
      reading: what a person makes of it, in Markdown; the rest of the page is computed.
    """

    key: str
    title: str
    cells: claims.Cells
    collection: Collection
    beside: dict[str, Beside]
    search: Search | None
    candidates: dict[str, list[Candidate]]
    figures: dict[str, str]
    reading: str


@dataclasses.dataclass(frozen=True)
class Study:
    """One agent under several values of a setting.

    Attributes:
      title: for people.
      file: its sweep file, below `results/`.
      collection: its runs.
      figure: path of the picture.
    """

    title: str
    file: str
    collection: Collection
    figure: str


def row_keys(collection: Collection) -> list[str]:
    """The rows that have runs, as their sweep files are called."""
    return [key for key, row in rows.ALL.items() if row.name in collection.variants]


def tasks(collection: Collection) -> list[str]:
    """Names for `--envs`."""
    return sorted({run.settings["env"] for run in collection.runs})


def render(
    families: Sequence[Family], studies: Sequence[Study], returns: str | None, reading: str
) -> bytes:
    """The page, in Markdown.

    Args:
      families: in the order in which they are shown; MuJoCo's are those of the paper's claims.
      studies: shown after the families.
      returns: path of the picture of all rows' returns; None: there is none.
      reading: what a person makes of the claims, in Markdown.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["short_name"] = short_name
    environment.filters["anchor"] = _anchor
    mujoco = next((family.cells for family in families if family.key == "mujoco"), {})
    content = environment.get_template("page.md").render(
        of_return=claims.claims_of_return(mujoco, rows.JUDGED),
        of_updates=claims.claims_of_updates(mujoco, rows.JUDGED),
        contests=ranks.contests(mujoco),
        p_value=ranks.say,
        judged={row: rows.ROWS[row].name for row in rows.JUDGED},
        baseline=rows.BASELINE,
        families=families,
        studies=studies,
        returns=returns,
        reading=reading,
        table=table,
        row_keys=row_keys,
        tasks=tasks,
        candidate_rows=candidate_rows,
        num_candidates=search.NUM_CANDIDATES,
        names={key: row.name for key, row in rows.ALL.items()},
        thresholds=KL_SPIKE_THRESHOLDS,
        hardware=hardware,
    )
    return content.encode()


def _anchor(title: str) -> str:
    """As GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def table(collection: Collection) -> list[dict[str, str]]:
    """A line of the table per task and row, as text."""
    order = [row.name for row in rows.ALL.values()]
    order += [variant for variant in collection.variants if variant not in order]
    lines = []
    for task in collection.envs:
        theirs = collection.cells.get((task, rows.ROWS[rows.BASELINE].name))
        for name in order:
            cell = collection.cells.get((task, name))
            if cell is not None:
                lines.append({"task": short_name(task), "row": name, **_columns(cell, theirs)})
    return lines


def _columns(cell: Cell, baseline: Cell | None) -> dict[str, str]:
    spikes = claims.spikes(scores.spike_rates(cell))
    columns = {
        "seeds": str(len(cell.seeds)),
        "return": "",
        "sampled": "",
        "improvement": "",
        "variation": "",
        "kl": claims.nats(claims.mean_kl(cell)),
        "spikes": spikes,
        "kl_max": f"{_largest(cell, 'approx_kl_max'):.2g}",
        "deviation": f"{_largest(cell, 'first_ratio_deviation'):.0e}",
        "minutes": _minutes(cell),
        "status": "",
    }
    if cell.status != FINISHED:  # its last evaluation is not that of the end
        return columns | {"status": f"{cell.status} at {cell.progress:.0%}"}
    returns = cell.final(scores.SCORE)
    columns |= {
        "return": number(claims.interquartile_mean(returns)),
        "sampled": number(claims.interquartile_mean(cell.final(scores.SAMPLED))),
        "variation": percent(claims.variation(returns)),
    }
    if baseline is not None and baseline is not cell and baseline.status == FINISHED:
        better = claims.improvement(returns, baseline.final(scores.SCORE))
        columns["improvement"] = claims.share(better)
    return columns


def _largest(cell: Cell, metric: str) -> float:
    """Over training and seeds; NaN where it was not logged."""
    values = np.concatenate(
        [
            run.metrics[metric][:, list(columns)].ravel()
            for run, columns in zip(cell.runs, cell.columns, strict=True)
            if metric in run.metrics
        ]
        or [np.array([])]
    )
    values = values[~np.isnan(values)]
    return float(np.max(values)) if len(values) else math.nan


def _minutes(cell: Cell) -> str:
    """Of each program, and how many seeds it trained side by side or, per device, in turn."""
    parts = []
    for run in cell.runs:
        seconds = run.summary.get("run_seconds", run.wall_seconds[-1])
        members = run.summary.get("trained_side_by_side", len(run.seeds))
        how = " in turn" if run.summary.get("in_turn") else ""
        parts.append(f"{seconds / 60:.1f} ({members}{how})")
    return ", ".join(parts)


def candidate_rows(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Lines of the table of a row's candidates."""
    return [
        {
            "settings": ", ".join(f"{name} {value:g}" for name, value in c.settings.items()),
            "default": c.is_default,
            "score": f"{c.score:.2f}",
            "returns": ", ".join(
                f"{short_name(task)} "
                + " and ".join("broke" if math.isnan(value) else f"{value:.0f}" for value in values)
                for task, values in c.returns.items()
            ),
        }
        for c in candidates
    ]


def hardware(runs: Sequence[Run]) -> str:
    """Machines, versions and commits of some runs, each named once."""

    def versions(name: str) -> list[str]:
        found = {(run.config.get("versions") or {}).get(name) for run in runs}
        return sorted(f"{name} {version}" for version in found if version)

    parts = [
        sorted({str(run.config.get("machine") or "") for run in runs}),
        versions("jax"),
        versions("envpool"),
        sorted({f"commit {run.commit}" for run in runs if run.commit}),
    ]
    return "; ".join(", ".join(filter(None, part)) for part in parts if any(part))
