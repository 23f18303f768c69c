"""The host's loop around the compiled programs: train, log, evaluate, keep, repeat."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.cli.interrupts import GivenUp, Interrupted, Interrupts
from experiments.training import calling_back, compiling, fingerprint, snapshot
from experiments.training.best import Best
from experiments.training.calling_back import CallbackFailed, Stopped
from experiments.training.every import Every
from experiments.training.keeping import Keeper
from experiments.training.position import Position
from experiments.training.programs import Programs, wait
from experiments.training.reporting import Metrics, Reporter, Show
from experiments.training.results import describe_broken
from experiments.training.subject import Cell, parts_of
from rgpo_jax import processes
from rgpo_jax.callback import Callback

_LONGEST_CHUNK = 2.5  # seconds; how long Ctrl-C and a due checkpoint wait


class Broken(Exception):
    """Training left the realm of finite numbers."""


class Training:
    """Cells that are trained side by side, from the start or from where a checkpoint was made.

    All have the same settings, but for seeds and traced numbers. Steps are whatever the headline's
    unit is.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        make_programs: Callable[[], Programs],
        folder: Path,
        interrupts: Interrupts,
        show: Show = lambda steps, rate, status: None,
        callback: Callback | None = None,
    ):
        """Writes the settings, and compiles.

        Args:
          cells: at least one.
          make_programs: traces what trains the members of all cells, in their order, and begins to
            compile it; called once, after it was said that this begins.
          folder: of the checkpoints.
          interrupts: what asks it to end.
          show: is told progress.
          callback: a user's, called after each line of metrics but that before the first update.
        """
        self._cells, self._parts, self._interrupts = cells, parts_of(cells), interrupts
        self._callback, self._is_to_stop = callback, False
        self._plan = cells[0].plan
        self._logs = Every.make(self._plan.log_every, 100, self._plan)
        self._evaluations = Every.make(self._plan.eval_every, 10, self._plan)
        self._reporter = Reporter(cells, show)
        nothing = {name: [0.0] * self._num_members for name in self._plan.headline.largest}
        self._position = Position(largest=nothing)
        self._reporter.begin_compiling()
        self._keeper = Keeper(folder, cells, self._parts, self._plan.checkpoint_every)
        self._programs = self._compile(make_programs)
        self._states = self._programs.initial_states
        self._progress = self._programs.start()
        self._best = Best(self._states.learner, self._programs) if self._plan.keep_best else None
        jax.block_until_ready((self._states, self._progress))
        self._reporter.end_compiling(self._programs)
        self._update_seconds = math.inf  # that one takes, until it is known
        self._copies: snapshot.Content | None = None  # where training is, if updates take long

    def _compile(self, make_programs: Callable[[], Programs]) -> Programs:
        def show(line: str) -> None:
            self._interrupts.check()
            self._reporter.show_compiling(line)

        with self._interrupts.heard():
            with compiling.no_collections():
                programs = make_programs()
            needed = self._cells[0].recorder.needs
            programs.compiler.load_meanwhile(*needed, "orbax.checkpoint")
            programs.ready(show)
        self._interrupts.check()  # nothing was shown where all was ready at once
        return programs

    @property
    def _num_members(self) -> int:
        return len(self._reporter.seeds)

    @property
    def _steps(self) -> int:
        return self._reporter.steps(self._position)

    @property
    def _is_last(self) -> bool:
        return self._position.updates == self._plan.num_updates

    @property
    def _all_broken(self) -> bool:
        return len(self._position.broken) == self._num_members

    @property
    def _is_over(self) -> bool:
        return self._position.updates >= self._plan.num_updates or self._all_broken

    def start_from(self, learners: Any) -> None:
        """Takes what other learners [N] have learnt, over and over, in each cell."""
        self._states = self._programs.start_from(self._states, learners, self._parts)

    def resume(self) -> None:
        """Goes back to the newest checkpoint that is whole, or to the start if there is none.

        Raises:
          CheckpointError: there are checkpoints, but none that can be used.
          BadInput: the metrics are no longer those of the checkpoint.
        """
        unit = self._plan.headline.unit
        restored = self._keeper.restore(self._content())
        if restored is None:
            for cell in self._cells:
                if cell.recorder.metrics_bytes():
                    cell.recorder.say(f"no checkpoint yet: starting at the first {unit.singular}")
                cell.recorder.rewind(0, -1)
            return
        for line in restored.damaged:
            self._reporter.say(f"warning: a damaged checkpoint is passed over: {line}")
        for line in fingerprint.remarks(restored.position):
            self._reporter.say(f"warning: {line}")
        self._position = Position.of_checkpoint(restored.position)
        self._states, self._progress = snapshot.put_back(
            restored.parts, self._programs, self._states, self._best
        )
        with processes.together():
            for cell, size in zip(self._cells, self._position.metrics_bytes, strict=True):
                cell.recorder.rewind(size, self._steps)
        restarted = self._programs.restart_episodes(self._states, self._position.updates)
        if restarted is not None:
            self._states = restarted
        self._reporter.say(
            f"going on after {self._steps:,} {unit.name}"
            + (
                ""
                if restarted is None
                else "; environments on the host cannot be saved: new episodes begin"
            )
        )

    def run(self) -> None:
        """Trains to the end, and writes the results.

        Raises:
          Broken: parameters became NaN or infinite; seeds without such are finished.
          Interrupted: asked to end; what was done so far is kept.
          Stopped, CallbackFailed: so did the callback, or it failed; the same.
          CheckpointError, OSError: what was done cannot be kept.
        """
        position = self._position
        self._interrupts.check()
        self._keeper.start_clock()
        self._reporter.start_clock(position)
        with self._interrupts.deferred():
            if not position.updates:
                self._report_the_start()
            elif position.unreported:
                self._report()
            while not self._is_over:
                self._make_updates()
                if self._is_to_report:
                    self._report()
                if not self._is_over:
                    self._save_or_stop()
            if not self._all_broken:
                self._save()
            if position.broken:
                self._say_cause()
            self._write_summaries()
        if position.broken:
            what, number = self._plan.headline.broken, self._plan.num_updates
            raise Broken(describe_broken(what, position.broken, self._reporter.seeds, number))

    def end_early(self) -> None:
        """Writes summaries of what was done: for who has seen enough, and stopped `run`."""
        self._write_summaries(interrupted=True)

    def _make_updates(self) -> None:
        """Makes updates until one is to be reported, or fewer where these would take long."""
        position, done = self._position, self._position.updates
        begun, longest = time.perf_counter(), max(1, int(_LONGEST_CHUNK / self._update_seconds))
        stop = min(
            self._logs.next(done),
            self._evaluations.next(done),
            self._plan.num_updates,
            done + longest,
        )
        self._advance(stop - done)
        broken_at = processes.fetch(self._progress.broken_at)
        # All must make the same number of updates next: one clock decides.
        seconds = float(processes.agree(time.perf_counter() - begun))
        self._update_seconds = seconds / (stop - done)
        position.updates = stop
        position.training_seconds += seconds
        position.add_broken(broken_at)

    def _advance(self, num_updates: int) -> None:
        """Makes so many updates.

        Raises:
          Interrupted: asked to end while it made one that takes long; what was before it is saved.
        """
        # Where nothing was learnt since the last checkpoint, nothing is lost.
        nothing_new = self._position.updates in (0, self._keeper.newest)
        may_give_up = jax.process_count() == 1 and (nothing_new or self._copies is not None)
        patience = (
            self._interrupts.bounded(_LONGEST_CHUNK) if may_give_up else contextlib.nullcontext()
        )
        try:
            with patience:
                advanced = self._programs.advance(self._states, self._progress, num_updates)
                self._states, self._progress = advanced
                wait(self._progress.broken_at)
        except GivenUp:
            if self._copies is not None:
                self._save(self._copies)
            if self._position.updates:  # else there is nothing to sum up
                self._write_summaries(interrupted=True)
            raise

    @property
    def _is_to_evaluate(self) -> bool:
        is_due = self._is_last or self._evaluations.includes(self._position.updates)
        return is_due and not self._all_broken

    @property
    def _is_to_report(self) -> bool:
        is_due = self._is_to_evaluate or self._logs.includes(self._position.updates)
        return is_due or self._all_broken

    def _report_the_start(self) -> None:
        """Logs an evaluation before the first update; a stop meanwhile leaves nothing to keep."""
        self._evaluate(whole=False)
        undefined = [math.nan] * self._num_members
        metrics = dict.fromkeys(self._programs.metric_names, undefined)
        with self._position.timed("logging_seconds"):
            self._reporter.log(self._position, {**metrics, **self._position.evaluation})

    def _report(self) -> None:
        """Logs the updates since the last report, with an evaluation where one is due.

        Raises:
          Interrupted: asked to end while it evaluated; the updates are saved, the report is not.
            Or in the callback: both are.
          CallbackFailed: both are saved.
        """
        position, reporter = self._position, self._reporter
        report = self._programs.finish(self._progress)
        metrics = {name: values.tolist() for name, values in report.metrics.items()}
        remark = f", {self._programs.remark}" if self._programs.remark else ""
        rate = reporter.rate(position)
        position.add_largest(metrics)
        if self._is_to_evaluate:
            try:
                self._evaluate(whole=self._is_last)
            except Interrupted:
                position.unreported = True
                self._save_and_sum_up()
                raise
            metrics |= position.evaluation
        with position.timed("logging_seconds"):
            if self._is_to_evaluate:
                evaluated = f" ({self._programs.evaluated})" if self._programs.evaluated else ""
                reporter.say_scores(position, metrics, rate, remark, evaluated)
            reporter.warn_of_skipped(position, metrics)
            reporter.log(position, metrics, rate)
            reporter.show_progress(position, metrics, rate, remark)
        self._progress = self._programs.start()
        position.unreported = False
        self._call_back(metrics)

    def _evaluate(self, whole: bool) -> None:
        """Evaluates, and keeps the policies that are the best so far; Interrupted: neither."""
        position = self._position
        with self._hearing_stops(), position.timed("evaluation_seconds"):
            position.evaluation = self._programs.evaluate(self._states, position.updates, whole)
        if self._best is not None:
            scores = position.evaluation[self._plan.headline.score.metric]
            self._best.keep(position, scores, self._states.learner)

    def _call_back(self, metrics: Metrics) -> None:
        if self._callback is None:
            return
        updates, states = self._position.updates, self._states
        act = self._programs.actor(states)
        try:
            with self._hearing_stops():
                self._is_to_stop |= calling_back.call(
                    self._callback, updates, self._steps, metrics, states.learner, act
                )
        except (Interrupted, CallbackFailed):
            self._save_and_sum_up()
            raise

    def _hearing_stops(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a stop is heard at once, as what is done there changes nothing; but of several
        processes all have to stop at the same place.
        """
        several = jax.process_count() > 1
        return contextlib.nullcontext() if several else self._interrupts.at_once()

    def _save_or_stop(self) -> None:
        """Saves if it is time to, or if it is to stop here.

        Raises:
          Interrupted, Stopped: asked to end; all is kept.
        """
        asked = processes.largest(self._interrupts.pending)
        if processes.agree(self._keeper.is_due()) or asked or self._is_to_stop:
            self._save()
        if asked or self._is_to_stop:
            self._write_summaries(interrupted=True)
            raise Interrupted(asked) if asked else Stopped
        self._copies = None  # not two at a time
        if self._update_seconds > _LONGEST_CHUNK and jax.process_count() == 1:
            self._copies = snapshot.copied(self._content())

    def _content(self) -> snapshot.Content:
        return snapshot.take(self._programs, self._states, self._progress, self._best)

    def _save(self, content: snapshot.Content | None = None) -> None:
        """Keeps where training is; of that, copies may be given, made after the same update."""
        self._position.seconds = self._reporter.run_seconds()
        pack = self._programs.pack_policies
        self._keeper.save(self._position, content or self._content(), self._is_last, pack)

    def _save_and_sum_up(self) -> None:
        """What is left where a run does not go on for now."""
        self._save()
        self._write_summaries(interrupted=True)

    def _say_cause(self) -> None:
        """Says what may have broken the parameters, if that is found before a stop."""
        with contextlib.suppress(Interrupted), self._hearing_stops():
            cause = self._programs.find_cause()
            if cause:
                self._reporter.say(f"error: {cause}")

    def _write_summaries(self, interrupted: bool = False) -> None:
        self._reporter.write_summaries(self._position, interrupted)
