"""The runs of the reproduction, sorted into rows: an agent and its settings, on several tasks."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.cli.flags import BadInput
from experiments.report.run_files import Run
from experiments.report.runs import Cell, Collection
from experiments.reproduction import search, tables


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row is called, the agent it must be of, and settings that it must have."""

    name: str
    agent: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


BASELINE = "ppo"
JUDGED = ("rgpo_k4", "rgpo")  # of which the paper says how they compare with the baseline
# Name of a row's folder of runs, and of its sweep file -> what it is.
ROWS = {
    "rgpo_k4": Row("RGPO, k = 4", "rgpo", {"sharpness": 4.0}),
    "rgpo": Row("RGPO, searched k", "rgpo"),
    "ppo": Row("PPO", "ppo"),
    "trpo": Row("TRPO", "trpo"),
    "awr": Row("AWR", "awr"),
    "reinforce": Row("REINFORCE", "reinforce"),
}
# Rows that differ from another in one thing: what pulls a ratio back to 1.
_ABLATIONS = {
    "rgpo_calling_back": Row(
        "RGPO, k = 4, with pull-back",
        "rgpo",
        {"gate": "experiments.reproduction.ablations:rgpo_calling_back"},
    ),
    "rgpo_calling_back_bounded": Row(
        "RGPO, k = 4, bounded pull-back",
        "rgpo",
        {"gate": "experiments.reproduction.ablations:rgpo_calling_back_bounded"},
    ),
    "ppo_not_calling_back": Row(
        "PPO, without pull-back",
        "ppo",
        {"gate": "experiments.reproduction.ablations:ppo_not_calling_back"},
    ),
}
_RELATIVES = {
    "rgpo_target_kl": Row("RGPO, k = 4, early stopping on KL", "rgpo", {"sharpness": 4.0}),
    "ppo_target_kl": Row("PPO, early stopping on KL", "ppo"),
    "rgpo_ppo_settings": Row(
        "RGPO, k = 4, PPO's settings, early stopping on KL", "rgpo", {"sharpness": 4.0}
    ),
    "ppo_rgpo_settings": Row("PPO, RGPO's settings", "ppo"),
    "sapo": Row("SAPO", "sapo"),
    "spo": Row("SPO", "spo"),
}
# PPO with the settings of others, which is no part of the contest: does it reach what they publish?
# And RGPO with those, but for the gate.
_PUBLISHED = {
    "ppo_cleanrl": Row("PPO, CleanRL's settings", "ppo"),
    "ppo_zoo": Row("PPO, the Zoo's settings for the task", "ppo"),
    "rgpo_zoo": Row("RGPO, k = 4, the Zoo's settings for the task", "rgpo", {"sharpness": 4.0}),
}
# Row -> PPO with its step size and epochs.
SAME_SETTINGS = {"rgpo": "ppo_rgpo_settings"}
# Every row of RGPO's own gate, with the row of PPO that its returns are tested against.
CONTESTS = (
    *((row, BASELINE) for row in JUDGED),
    *SAME_SETTINGS.items(),
    ("rgpo_target_kl", "ppo_target_kl"),
    ("rgpo_ppo_settings", "ppo_target_kl"),
    ("rgpo_zoo", "ppo_zoo"),
)
ALL = {**ROWS, **_ABLATIONS, **_RELATIVES, **_PUBLISHED}


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows with a table of their own, and rows of the paper's table that it repeats to compare."""

    rows: Sequence[str]
    compared: Sequence[str]


GROUPS = {
    "ablations": Group(tuple(_ABLATIONS), ("rgpo_k4", BASELINE)),
    "relatives": Group(tuple(_RELATIVES), ("rgpo_k4", "rgpo", BASELINE)),
    "published": Group(tuple(_PUBLISHED), (BASELINE,)),
}

# In what rows of a family may differ.
_CHOSEN = frozenset({*search.COMMON, *search.OWN.values(), "target_kl"})
# What may differ between the runs of a row: the task, the seeds, and how it is measured.
_MAY_DIFFER = frozenset({"env", "backend", "seed", "num_seeds", "log_every", "eval_every"})


def read(family: Path) -> Collection:
    """The cells of a family of tasks by (environment, name of the row).

    Args:
      family: a folder with a table, or with one folder of runs per row; rows without runs are left
        out.

    Raises:
      BadInput: a run is damaged; a row holds runs of another agent, or whose settings differ; or
        rows differ in the length of their training, or in settings that are no agent's own.
    """
    cells: dict[tuple[str, str], Cell] = {}
    found: dict[str, Collection] = {}
    for key, row in ALL.items():
        collection = tables.read(family, key)
        if collection is None:
            continue
        _check(family / key, row, collection.runs)
        found[key] = collection
        for (env, _), cell in collection.cells.items():
            cells[env, row.name] = dataclasses.replace(cell, variant=row.name)
    all_runs = tuple(run for collection in found.values() for run in collection.runs)
    lengths = sorted({run.settings["total_steps"] for run in all_runs})
    if len(lengths) > 1:
        raise BadInput(f"{family}: expected rows of equal total_steps, found {lengths}")
    if not all_runs:
        raise BadInput(f"{family}: expected runs in folders named {', '.join(ROWS)}")
    _check_contest([run for key in found if key not in _PUBLISHED for run in found[key].runs])
    return Collection(
        all_runs,
        cells,
        tuple(note for collection in found.values() for note in collection.notes),
        sum(collection.waiting for collection in found.values()),
    )


def of_the_table(collection: Collection) -> Collection:
    """The rows of the paper's table alone."""
    return _only(collection, ROWS, collection.envs)


def beside_the_table(collection: Collection, group: Group) -> Collection:
    """A group of rows and what they are compared with, on tasks on which one of them was run."""
    names = {ALL[key].name for key in group.rows}
    tasks = [env for env, name in collection.cells if name in names]
    return _only(collection, [*group.compared, *group.rows], tasks)


def _only(collection: Collection, keys: Iterable[str], tasks: Sequence[str]) -> Collection:
    names = {ALL[key].name for key in keys}
    cells = {
        (env, name): cell
        for (env, name), cell in collection.cells.items()
        if env in tasks and name in names
    }
    shown = {run.folder for cell in cells.values() for run in cell.runs}
    runs_left = tuple(run for run in collection.runs if run.folder in shown)
    return dataclasses.replace(collection, runs=runs_left, cells=cells)


def _check(folder: Path, row: Row, found: Sequence[Run]) -> None:
    """Raises BadInput unless all runs are of the row, and of one choice of settings."""
    first: Run | None = None
    for run in found:
        wanted = {"agent": row.agent, "gate": None, **row.settings}
        if first is not None:  # one of them may be older than a setting
            both = first.settings.keys() & run.settings.keys()
            wanted = {**{name: first.settings[name] for name in both}, **wanted}
        for name, value in wanted.items():
            if name not in _MAY_DIFFER and run.settings.get(name) != value:
                raise BadInput(
                    f"{folder / run.name}: {name} = {run.settings.get(name)}: expected {value}, as "
                    "in the rest of its row"
                )
        first = first or run


def _check_contest(found: Sequence[Run]) -> None:
    """Raises BadInput unless agents differ in what a search may choose, and in what is theirs."""
    may_differ = {*_MAY_DIFFER, *_CHOSEN, "agent", "gate", "eval_episodes"}
    for run in found:
        first = found[0]
        for name in first.settings.keys() & run.settings.keys() - may_differ:
            ours, theirs = run.settings[name], first.settings[name]
            if ours != theirs:
                raise BadInput(
                    f"{run.folder}: {name} = {ours}: expected {theirs}, as in {first.folder}"
                )
