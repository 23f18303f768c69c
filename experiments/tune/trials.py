"""Trains trials: those that differ in traced numbers alone share one program, traced once."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.cli.interrupts import Interrupts
from experiments.plan.reading import Plan
from experiments.record.headline import CONTROL
from experiments.record.recorder import Recorder
from experiments.record.run_folder import CHECKPOINTS, SUMMARY, is_finished
from experiments.training import building
from experiments.training.every import Every
from experiments.training.loop import Broken, Training
from experiments.training.programs import CompiledPrograms, Programs
from experiments.training.subject import Cell
from experiments.tune.study import DONE, FAILED, PRUNED, Study
from rgpo_jax.statistics import interquartile_mean

_MOST_KEPT = 4  # programs that are not traced again: one for each choice of shapes


class PlannedTrial(NamedTuple):
    """A trial that is to be trained.

    Attributes:
      number: of the trial.
      plan: its run.
      folder: of its run.
    """

    number: int
    plan: Plan
    folder: Path


class Ended(NamedTuple):
    """What a trial came to; the score is None where it has none."""

    number: int
    state: str
    score: float | None


class _FallenBehind(Exception):
    """All trials that are trained side by side are to be stopped."""


class _Watch:
    """Reports the evaluations of trials side by side to the study, and stops them together.

    A program trains all of its members, so that one trial alone gains nothing by being stopped.
    """

    def __init__(self, study: Study, trials: Sequence[PlannedTrial]):
        self._study, self._last = study, trials[-1].number
        plan = trials[0].plan
        self._evaluations = Every.make(plan.eval_every, 10, plan)
        self._num_updates = plan.num_updates
        self._may_stop: list[bool] = []

    def evaluated(self, number: int, updates: int, scores: Sequence[float]) -> None:
        """Takes the scores of a trial's seeds; the trials come in their order.

        Raises:
          _FallenBehind: the study says of each that it may be stopped.
        """
        if not 0 < updates < self._num_updates:
            return
        every = self._evaluations
        evaluation = updates * every.points // every.updates
        score = interquartile_mean(scores) if all(map(math.isfinite, scores)) else math.nan
        self._may_stop.append(self._study.report(number, evaluation, score))
        if number == self._last:
            stop, self._may_stop = all(self._may_stop), []
            if stop:
                raise _FallenBehind


class _Reporting(Recorder):
    """A recorder that also tells a watch of evaluations."""

    def __init__(self, trial: PlannedTrial, watch: _Watch):
        super().__init__(
            trial.folder, resume=True, terminal=False, log_to=trial.plan.options.loggers
        )
        self._number, self._watch = trial.number, watch

    def log_metrics(
        self, steps: int, updates: int, metrics: Any, rate: float | None = None
    ) -> None:
        super().log_metrics(steps, updates, metrics, rate)
        if CONTROL.score.metric in metrics:
            self._watch.evaluated(self._number, updates, metrics[CONTROL.score.metric])


class Trainer:
    """Trains trials, and keeps the programs that it has traced."""

    def __init__(self, study: Study, interrupts: Interrupts):
        self._study, self._interrupts = study, interrupts
        self._kept: dict[str, tuple[Any, Any, CompiledPrograms | None]] = {}

    def train(
        self,
        trials: Sequence[PlannedTrial],
        checkpoints: Path,
        show: Callable[[int, float, str], None],
    ) -> list[Ended]:
        """Trains trials side by side, from the start or from where they were stopped.

        Args:
          trials: that differ in seeds and traced numbers alone.
          checkpoints: folder of what is kept of all together.
          show: is told steps so far (of one seed), steps a second of all, and a word on scores.

        Raises:
          Interrupted: asked to end; what was done so far is kept.
          CheckpointError, OSError: what was done cannot be kept.
        """
        rest = [trial for trial in trials if not is_finished(trial.folder)]
        if rest:  # else a kill came before the study was told
            self._train(rest, checkpoints, show)
        return [_end(trial) for trial in trials]

    def _train(
        self,
        trials: Sequence[PlannedTrial],
        checkpoints: Path,
        show: Callable[[int, float, str], None],
    ) -> None:
        plans = [trial.plan for trial in trials]
        static = [_static(plan) for plan in plans]
        key = json.dumps([static[0], [len(plan.seeds) for plan in plans]], sort_keys=True)
        agent, layout, programs = self._kept.pop(key, (None, None, None))
        if agent is None:
            agent, layout = building.make_spread_agent(plans[0], sum(len(p.seeds) for p in plans))

        def make_programs() -> Programs:
            if programs is not None:
                return programs.of(building.members_of(plans))
            made = building.make_programs(agent, layout, plans)
            if isinstance(made, CompiledPrograms):  # those on the host have their environments
                self._kept[key] = agent, layout, made
            return made

        watch = _Watch(self._study, trials)
        cells: list[Cell] = []
        try:
            for trial in trials:
                plan = building.with_gate(trial.plan, agent)
                cells.append(Cell(plan, _Reporting(trial, watch)))
            if programs is not None:
                self._kept[key] = agent, layout, programs
            run = Training(cells, make_programs, checkpoints, self._interrupts, show)
            run.resume()
            try:
                run.run()
            except _FallenBehind:
                run.end_early()
            except Broken:
                pass  # each summary says which
        finally:
            for cell in cells:
                cell.recorder.__exit__(None, None, None)
        while len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]


def _static(plan: Plan) -> dict[str, Any]:
    """The settings that select the compiled program."""
    traced = ("seed", *plan.config.traced())
    return {name: value for name, value in plan.settings().items() if name not in traced}


def groups(trials: Sequence[PlannedTrial]) -> list[list[PlannedTrial]]:
    """Trials that one program can train side by side, in the order of the first of each."""
    alike: dict[str, list[PlannedTrial]] = {}
    for trial in trials:
        alike.setdefault(json.dumps(_static(trial.plan), sort_keys=True), []).append(trial)
    return list(alike.values())


def checkpoints_of(group: Sequence[PlannedTrial], programs: Path) -> Path:
    """Where the checkpoints of trials side by side are: of one alone, in its own folder."""
    if len(group) == 1:
        return group[0].folder / CHECKPOINTS
    return programs / f"{group[0].number}-{group[-1].number}" / CHECKPOINTS


def _end(trial: PlannedTrial) -> Ended:
    """What a trial's summary says."""
    summary = json.loads((trial.folder / SUMMARY).read_text())
    score = summary[CONTROL.summary_key(CONTROL.score)]["iqm"]
    if summary.get("broken") or score is None:
        return Ended(trial.number, FAILED, None)
    return Ended(trial.number, PRUNED if summary.get("interrupted") else DONE, score)
