"""Sorts the seeds of runs into cells: an environment and a variant each.

A variant is an agent, its gate, and those settings in which runs of that agent differ on the same
environment. Settings that differ between environments only are the families' and make no variant.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.cli.flags import BadInput
from experiments.plan import env_kwargs
from experiments.plan.reading import with_defaults
from experiments.record import colors
from experiments.record.colors import Look
from experiments.record.headline import CONTROL, Curve, Headline, Unit
from experiments.report.run_files import (
    BROKEN,
    FINISHED,
    INTERRUPTED,
    UNFINISHED,
    NotARun,
    Run,
    parse,
    read_files,
    run_folders,
)
from rgpo_jax.config import Config

# What a run is called, which seeds it has and how it is measured: none of it changes its training.
_NOT_A_VARIANT = frozenset(
    {
        *(env_kwargs.FIELD, env_kwargs.DRAWN),
        *("agent", "gate", "env", "backend", "seed", "num_seeds"),
        *("log_every", "eval_every", "eval_episodes", "eval_share"),
    }
)
_MOST_TOLD = 5  # interrupted runs, one by one


@dataclasses.dataclass(frozen=True)
class Cell:
    """The seeds of one variant on one environment, from one run or several.

    Attributes:
      env, variant: of all its runs.
      runs: in the order of their seeds.
      columns: for each run, the indices of those of its seeds that count.
    """

    env: str
    variant: str
    runs: tuple[Run, ...]
    columns: tuple[tuple[int, ...], ...]

    @property
    def agent(self) -> str:
        return self.runs[0].agent

    @property
    def plain_env(self) -> str:
        return self.runs[0].plain_env

    @property
    def env_params(self) -> dict[str, Any] | None:
        return self.runs[0].env_params

    @property
    def settings(self) -> dict[str, Any]:
        """Those of its first run; in what others differ is no matter of training."""
        return self.runs[0].settings

    @property
    def budget(self) -> int:
        """What its runs end at, of one seed."""
        return self.runs[0].total

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(
            run.seeds[i]
            for run, columns in zip(self.runs, self.columns, strict=True)
            for i in columns
        )

    @property
    def status(self) -> str:
        """The worst of its runs."""
        states = {run.status for run in self.runs}
        return next(s for s in (BROKEN, INTERRUPTED, UNFINISHED, FINISHED) if s in states)

    @property
    def progress(self) -> float:
        return min(run.progress for run in self.runs)

    def curve(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """A metric over training: env_steps [points] and values [points, seeds], NaN where missing.

        Points are the steps at which each run that came so far was logged.
        """
        grids = [run.env_steps[run.rows(metric)] for run in self.runs]
        steps = np.array(
            [
                step
                for step in np.unique(np.concatenate(grids))
                if all(step in grid for grid in grids if len(grid) and grid[-1] >= step)
            ]
        )
        parts = []
        for run, columns in zip(self.runs, self.columns, strict=True):
            part = np.full((len(steps), len(columns)), np.nan)
            if metric in run.metrics:
                at = {step: i for i, step in enumerate(run.env_steps)}
                found = [i for i, step in enumerate(steps) if step in at]
                lines = [at[steps[i]] for i in found]
                part[found] = run.metrics[metric][np.ix_(lines, columns)]
            parts.append(part)
        return steps, np.concatenate(parts, axis=1)

    def final(self, metric: str) -> np.ndarray:
        """Each seed's last defined value [seeds], without seeds that have none."""
        values = []
        for run, columns in zip(self.runs, self.columns, strict=True):
            rows = run.rows(metric)
            if rows.any():
                values += list(run.metrics[metric][rows][-1, list(columns)])
        scores = np.array(values, float)
        return scores[np.isfinite(scores)]

    def mean_over_updates(self, metric: str) -> np.ndarray:
        """Mean over all updates of each seed [seeds]; a line weighs as many as it reports."""
        values = []
        for run, columns in zip(self.runs, self.columns, strict=True):
            rows = run.rows(metric)
            if rows.any():
                weights = np.diff(run.updates, prepend=0)[rows]
                logged = run.metrics[metric][rows][:, list(columns)]
                values += list(np.average(logged, axis=0, weights=weights))
        scores = np.array(values, float)
        return scores[np.isfinite(scores)]


@dataclasses.dataclass(frozen=True)
class Collection:
    """All that a report is about.

    Attributes:
      runs: that have metrics.
      cells: (env, variant) -> Cell.
      notes: what one must know about the runs that were found, a sentence each.
      waiting: run folders without a line of metrics yet.
    """

    runs: tuple[Run, ...]
    cells: dict[tuple[str, str], Cell]
    notes: tuple[str, ...]
    waiting: int

    @functools.cached_property
    def envs(self) -> tuple[str, ...]:
        return tuple(sorted({env for env, _ in self.cells}, key=_natural))

    @functools.cached_property
    def variants(self) -> tuple[str, ...]:
        return tuple(sorted({variant for _, variant in self.cells}, key=_natural))

    @functools.cached_property
    def looks(self) -> tuple[Look, ...]:
        """Of each variant, in their order: its agent's colour, or a shade of it, and a dash."""
        return tuple(colors.of_variants(self._agents))

    @functools.cached_property
    def colors(self) -> dict[str, str]:
        """Agent -> its colour."""
        return colors.of_agents(self._agents)

    @property
    def _agents(self) -> list[str]:
        """Of each variant, in their order."""
        agents = {variant: cell.agent for (_, variant), cell in self.cells.items()}
        return [agents[variant] for variant in self.variants]

    @property
    def headline(self) -> Headline:
        """By which metrics its runs are judged: those of the first, whose score is that of all."""
        return self.runs[0].headline if self.runs else CONTROL

    @property
    def curves(self) -> tuple[Curve, ...]:
        """What is shown over training, of whichever run has it; the score first."""
        headlines = [run.headline for run in self.runs] or [CONTROL]
        return tuple(dict.fromkeys(curve for headline in headlines for curve in headline.curves))

    @property
    def is_growing(self) -> bool:
        """Whether a run has no summary yet: it goes on, or it was killed."""
        return self.waiting > 0 or any(run.status == UNFINISHED for run in self.runs)


def _natural(name: str) -> list[tuple[float, str]]:
    """A sorting key by which k=4 comes before k=16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name.lower())
    return [(float(part), "") if i % 2 else (math.inf, part) for i, part in enumerate(parts)]


def collect(paths: Sequence[str], strict: bool = False) -> Collection:
    """Reads the runs in some folders.

    Args:
      paths: the folders.
      strict: whether a damaged run is refused, and not passed over with a note.

    Raises:
      BadInput: a path is no folder, or cannot be read; or, if strict, a run is damaged.
    """
    runs, notes, waiting = [], [], 0
    for folder, name in run_folders(paths):
        try:
            run = parse(folder, name, read_files(folder))
        except NotARun as error:
            if strict:
                raise BadInput(f"{folder}: {error}") from None
            notes.append(f"{name} was passed over: {error}.")
            continue
        if run is None:
            waiting += 1
        else:
            runs.append(run)
    return gather(runs, waiting, notes)


def gather(runs: Sequence[Run], waiting: int = 0, notes: Sequence[str] = ()) -> Collection:
    """Sorts runs into cells, and notes what a reader must know of them.

    Args:
      runs: that have metrics.
      waiting: how many others have none yet.
      notes: of what was met before; they come first.
    """
    notes = list(notes)
    if waiting:
        notes.append(f"{waiting} run folder(s) have no metrics yet.")
    for run in runs:
        if run.status == BROKEN:
            broken = run.summary["broken"]
            where = ", ".join(
                f"seed {entry['seed']} at update {entry['update']}" for entry in broken
            )
            notes.append(f"{run.name} broke: {run.headline.broken} ({where}).")
    interrupted = [run for run in runs if run.status == INTERRUPTED]
    if len(interrupted) > _MOST_TOLD:
        names = _some([run.name for run in interrupted])
        notes.append(f"{len(interrupted)} runs were interrupted: {names}.")
    else:
        notes += [f"{run.name} was interrupted at {run.progress:.0%}." for run in interrupted]
    runs, others = _of_one_kind(runs)
    if others:
        names = ", ".join(run.name for run in others)
        notes.append(
            f"Left out, as its score is another than {runs[0].headline.score.title} by "
            f"{runs[0].headline.unit.name}: {names}. Make a report of these alone."
        )
    cells, more = _cells(runs)
    return Collection(tuple(runs), cells, (*notes, *more, *_budget_notes(cells)), waiting)


def _of_one_kind(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Those whose score and progress are the first run's, and the others."""

    def kind(run: Run) -> tuple[Curve, Unit]:
        return run.headline.score, run.headline.unit

    same = [run for run in runs if kind(run) == kind(runs[0])]
    return same, [run for run in runs if kind(run) != kind(runs[0])]


def varying_settings(runs: Sequence[Run]) -> list[str]:
    """Names of settings in which runs of one agent differ on the same environment."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run.env, []).append(with_defaults(run.settings, Config))
    return [
        name
        for name in dict.fromkeys(name for run in runs for name in run.settings)
        if name not in _NOT_A_VARIANT
        and any(
            len({json.dumps(s[name]) for s in settings if name in s}) > 1
            for settings in groups.values()
        )
    ]


def _label(run: Run, varying: Sequence[str]) -> str:
    parts, settings = [run.agent], with_defaults(run.settings, Config)
    for name in varying:
        value = settings.get(name)
        if isinstance(value, list):
            value = "x".join(map(str, value))
        parts.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    return " ".join(parts)


def _cells(runs: Sequence[Run]) -> tuple[dict[tuple[str, str], Cell], list[str]]:
    """Pools seeds; of a seed that came twice, the run that is finished, or went further, counts."""
    agents = {
        agent: [run for run in runs if run.agent == agent] for agent in {r.agent for r in runs}
    }
    varying = {agent: varying_settings(group) for agent, group in agents.items()}
    pools: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.agent, run.env, run.seeds)):
        pools.setdefault((run.env, _label(run, varying[run.agent])), []).append(run)
    cells, notes = {}, []
    for (env, variant), pool in pools.items():
        owner: dict[int, Run] = {}
        # Of equals the first by name counts, so that a report does not depend on file times.
        for run in sorted(pool, key=lambda r: (r.status != FINISHED, -r.env_steps[-1], r.name)):
            twice = [seed for seed in run.seeds if seed in owner]
            if twice:
                notes.append(
                    f"{variant} on {env}: {_plural(twice)} of {run.name} "
                    f"also came from {owner[twice[0]].name} and count once."
                )
            for seed in run.seeds:
                owner.setdefault(seed, run)
        kept = [run for run in pool if any(owner[seed] is run for seed in run.seeds)]
        columns = tuple(
            tuple(i for i, seed in enumerate(run.seeds) if owner[seed] is run) for run in kept
        )
        cells[env, variant] = Cell(env, variant, tuple(kept), columns)
    return cells, notes


def _budget_notes(cells: Mapping[tuple[str, str], Cell]) -> Iterator[str]:
    """Names the variants of each environment whose runs end at different steps."""
    for env in sorted({env for env, _ in cells}, key=_natural):
        groups: dict[int, list[str]] = {}
        for (e, variant), cell in cells.items():
            if e == env:
                groups.setdefault(cell.budget, []).append(variant)
        if len(groups) < 2:
            continue
        unit = next(cell for (e, _), cell in cells.items() if e == env).runs[0].headline.unit.name
        each = "; ".join(
            f"{budget:,} {unit} of {_some(sorted(names, key=_natural))}"
            for budget, names in sorted(groups.items())
        )
        yield (
            f"Unequal budgets on {env}: {each}. Only scores of one budget are ranked or tested "
            "against each other; curves and aggregates show all."
        )


def _some(names: Sequence[str]) -> str:
    """Names in a list, of which those after the third are counted."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _plural(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
