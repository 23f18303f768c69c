"""What the search over settings found: one choice per row, for a whole family of tasks."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli.flags import BadInput
from experiments.report import scores
from experiments.report.run_files import BROKEN, FINISHED, Run
from experiments.reproduction import tables


@dataclasses.dataclass(frozen=True)
class Search:
    """How candidates of a family are compared.

    Attributes:
      references: task -> returns that become 0 and 1.
      unit: what they are, in words.
    """

    references: dict[str, tuple[float, float]]
    unit: str


SEARCHES = {
    "mujoco": Search(
        # https://docs.cleanrl.dev/rl-algorithms/ppo/#experiment-results_2
        {"envpool/HalfCheetah-v4": (0.0, 1443.0), "envpool/Hopper-v4": (0.0, 2383.0)},
        "CleanRL's PPO at 1M steps is 1",
    ),
    "classic": Search(
        {"CartPole-v1": (0.0, 500.0), "Acrobot-v1": (-500.0, -80.0)},
        "the worst return is 0, about the best is 1",
    ),
    "minatar": Search(
        {"Breakout-MinAtar": (0.0, 10.0), "Asterix-MinAtar": (0.0, 10.0)},
        "ten points are 1",
    ),
}
NUM_CANDIDATES = 8
# Agent -> the number of its own that is searched, beside those of all.
OWN = {
    "rgpo": "sharpness",
    "ppo": "clip",
    "trpo": "max_kl",
    "awr": "advantage_temperature",
}
COMMON = ("learning_rate", "num_epochs")
DEFAULTS, PAPERS_K = "defaults", "k4"  # sweeps beside that of the draws
_LEAST = 0.01


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One choice of settings.

    Attributes:
      settings: those that were searched.
      returns: environment -> final return of each seed [seeds]; NaN where a run broke.
      score: geometric mean over tasks of the mean return, scaled; 0 where a run broke. A setting
        that fails on one task is no setting for all of them, however good on the others.
      is_default: whether they are the family's defaults.
      seeds, steps: of each run.
    """

    settings: dict[str, Any]
    returns: dict[str, np.ndarray]
    score: float
    is_default: bool
    seeds: tuple[int, ...]
    steps: int


def candidates(
    folder: Path, references: Mapping[str, tuple[float, float]]
) -> dict[str, list[Candidate]]:
    """Row -> its candidates that were run on all tasks to their end, best first.

    Args:
      folder: of the search, with a folder per sweep; or its runs stand in the table beside it.
        RGPO at k = 4 is a row of its own; the defaults have that k, and are a candidate of both
        rows.
      references: of the tasks, see `Search`.

    Raises:
      BadInput: runs that cannot be compared.
    """
    groups: dict[tuple[str, str], dict[str, Run]] = {}
    collection = tables.read(folder.parent, folder.name)
    found = collection.runs if collection is not None else ()
    for run in found:
        if run.env not in references:
            raise BadInput(f"{run.folder}: {run.env}: expected {', '.join(references)}")
        if _budget(run) != _budget(found[0]):
            raise BadInput(f"{run.folder}: expected the seeds and steps of {found[0].folder}")
        for row in _rows_of(run):
            group = groups.setdefault((row, json.dumps(_searched(run))), {})
            if run.env in group:
                raise BadInput(f"{run.folder}: the same candidate as {group[run.env].folder}")
            group[run.env] = run
    chosen: dict[str, list[Candidate]] = {}
    for (row, _), group in groups.items():
        ended = all(run.status in (FINISHED, BROKEN) for run in group.values())
        if ended and group.keys() == references.keys():
            chosen.setdefault(row, []).append(_candidate(group, references))
    return {row: sorted(group, key=lambda c: -c.score) for row, group in chosen.items()}


def _budget(run: Run) -> tuple[Any, ...]:
    return run.seeds, run.settings["total_steps"]


def _searched(run: Run) -> dict[str, Any]:
    names = [*COMMON, *filter(None, [OWN.get(run.agent)])]
    return {name: run.settings.get(name) for name in names}


def _rows_of(run: Run) -> list[str]:
    if run.agent != "rgpo":
        return [run.agent]
    return {DEFAULTS: ["rgpo_k4", "rgpo"], PAPERS_K: ["rgpo_k4"]}.get(_sweep_of(run), ["rgpo"])


def _sweep_of(run: Run) -> str:
    return run.name.partition("/")[0]


def _candidate(
    group: Mapping[str, Run], references: Mapping[str, tuple[float, float]]
) -> Candidate:
    returns, scaled = {}, []
    for env, run in sorted(group.items()):
        rows = run.rows(scores.SCORE)
        ended = run.status == FINISHED and rows.any()
        last = run.metrics[scores.SCORE][rows][-1] if ended else np.full(len(run.seeds), np.nan)
        zero, one = references[env]
        returns[env] = last
        scaled.append((np.mean(last) - zero) / (one - zero))
    score = float(np.exp(np.mean(np.log(np.maximum(scaled, _LEAST)))))
    first = next(iter(group.values()))
    return Candidate(
        _searched(first),
        returns,
        score if math.isfinite(sum(scaled)) else 0.0,
        any(_sweep_of(run) == DEFAULTS for run in group.values()),
        *_budget(first),
    )
