"""What the search over settings found: one choice per row, for a whole family of tasks."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command_line import BadInput
from experiments.report import runs, scores
from experiments.report.runs import Run

# Environment -> returns that become 0 and 1, by which tasks are brought to one scale. MuJoCo's 1 is
# CleanRL's PPO at 1M steps (https://docs.cleanrl.dev/rl-algorithms/ppo/#experiment-results_2);
# classic control's are the worst return and about the best.
REFERENCES = {
    "envpool/HalfCheetah-v4": (0.0, 1443.0),
    "envpool/Hopper-v4": (0.0, 2383.0),
    "CartPole-v1": (0.0, 500.0),
    "Acrobot-v1": (-500.0, -80.0),
}
# Agent -> the number of its own that is searched, beside those of all.
OWN = {
    "rgpo": "sharpness",
    "ppo": "clip",
    "trpo": "max_kl",
    "awr": "advantage_temperature",
}
COMMON = ("learning_rate", "num_epochs")
_LEAST = 0.01
DEFAULTS, PAPERS_K = "defaults", "k4"  # sweeps beside that of the draws


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One choice of settings.

    Attributes:
      settings: those that were searched.
      returns: environment -> final return of each seed [seeds].
      is_default: whether they are the family's defaults.
      seeds, steps: of each run.
    """

    settings: dict[str, Any]
    returns: dict[str, np.ndarray]
    is_default: bool
    seeds: tuple[int, ...]
    steps: int

    @property
    def score(self) -> float:
        """Geometric mean over tasks of the mean return on the scale of `REFERENCES`.

        A setting that fails on one task is no setting for all of them, however good on the others.
        """
        scaled = []
        for env, found in self.returns.items():
            zero, one = REFERENCES[env]
            scaled.append(max(_LEAST, (np.mean(found) - zero) / (one - zero)))
        return float(np.exp(np.mean(np.log(scaled))))


def candidates(folder: Path) -> dict[str, list[Candidate]]:
    """Row -> its candidates on all tasks of the search, best first; unfinished ones are left out.

    Args:
      folder: of the search, with a folder per sweep. RGPO at the paper's k is a row of its own;
        the defaults have that k, and are a candidate of both rows.

    Raises:
      BadInput: a task has no scale.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    found = runs.collect([str(folder)]).runs
    for run in found:
        key = json.dumps(_searched(run))
        for row in _rows_of(run):
            groups.setdefault((row, key), []).append(run)
    tasks = {run.env for run in found}
    if unknown := tasks - REFERENCES.keys():
        raise BadInput(f"{folder}: expected runs on {', '.join(REFERENCES)}; found {unknown.pop()}")
    chosen: dict[str, list[Candidate]] = {}
    for (row, _), group in groups.items():
        finished = [run for run in group if run.status == runs.FINISHED]
        if {run.env for run in finished} == tasks:
            chosen.setdefault(row, []).append(_candidate(finished))
    return {row: sorted(group, key=lambda c: -c.score) for row, group in chosen.items()}


def _searched(run: Run) -> dict[str, Any]:
    names = [*COMMON, *filter(None, [OWN.get(run.agent)])]
    return {name: run.settings[name] for name in names}


def _rows_of(run: Run) -> list[str]:
    if run.agent != "rgpo":
        return [run.agent]
    return {DEFAULTS: ["rgpo_k4", "rgpo"], PAPERS_K: ["rgpo_k4"]}.get(_sweep_of(run), ["rgpo"])


def _sweep_of(run: Run) -> str:
    return run.name.partition("/")[0]


def _candidate(group: Sequence[Run]) -> Candidate:
    returns = {run.env: run.metrics[scores.SCORE][run.rows(scores.SCORE)][-1] for run in group}
    one = group[0]
    steps = one.settings["total_steps"]
    return Candidate(_searched(one), returns, _sweep_of(one) == DEFAULTS, one.seeds, steps)
