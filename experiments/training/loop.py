"""The host's loop around the compiled programs: train, log, evaluate, keep, repeat."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.interrupts import GivenUp, Interrupted, Interrupts
from experiments.training import best, calling_back, compiling, fingerprint
from experiments.training.calling_back import CallbackFailed, Stopped
from experiments.training.every import Every
from experiments.training.keeping import Keeper
from experiments.training.position import Position, with_own_schedule
from experiments.training.programs import Programs, wait
from experiments.training.results import Outcome, describe, describe_broken
from experiments.training.subject import Cell, parts_of
from rgpo_jax import processes
from rgpo_jax.callback import Callback
from rgpo_jax.train import NEVER

_LONGEST_CHUNK = 2.5  # seconds; how long Ctrl-C and a due checkpoint wait
_BETWEEN_WORDS = 15.0  # seconds between two lines on what is compiling, where there is no terminal


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
        show: Callable[[int, float, str], None] = lambda steps, rate, status: None,
        callback: Callback | None = None,
    ):
        """Writes the settings, and compiles.

        Args:
          cells: at least one.
          make_programs: traces what trains the members of all cells, in their order, and begins to
            compile it; called once, after it was said that this begins.
          folder: of the checkpoints.
          interrupts: what asks it to end.
          show: is told progress: steps so far (of one member), steps per second of all members, a
            word on scores.
          callback: a user's, called after each line of metrics but that before the first update.
        """
        self._cells, self._parts = cells, parts_of(cells)
        self._interrupts, self._show = interrupts, show
        self._callback, self._is_to_stop = callback, False
        self._plan = cells[0].plan
        self._headline = self._plan.headline
        self._seeds = tuple(seed for cell in cells for seed in cell.plan.seeds)
        for cell in cells:
            cell.recorder.write_config(
                cell.plan.settings(), **cell.plan.entries, headline=self._headline.entry()
            )
        device = jax.devices()[0]
        self._device = f"{device.platform}: {device.device_kind} x {jax.device_count()}"
        self._say(f"{device.platform} ({device.device_kind}), JAX {jax.__version__}: compiling ...")
        started = self._spoke = time.perf_counter()
        self._keeper = Keeper(folder, cells, self._parts, self._plan.checkpoint_every)
        nothing = {name: [0.0] * self._num_members for name in self._headline.largest}
        self._position = Position(largest=nothing)
        with compiling.no_collections():
            self._programs = make_programs()
        self._programs.compiler.load_meanwhile("tensorboardX", "experiments.record.curve")
        self._programs.ready(self._show_compiling)
        interrupts.check()  # nothing was shown where all was ready at once
        self._states = self._programs.initial_states
        self._progress = self._programs.start()
        # Its shapes, until there was an evaluation.
        self._best = best.copy(best.policy_of(self._states.learner)) if self._keeps_best else None
        jax.block_until_ready((self._states, self._progress))
        self._compile_seconds = time.perf_counter() - started
        spread = f" for {self._programs.spread}" if self._programs.spread else ""
        self._say(
            f"compiled in {self._compile_seconds:.1f} s{spread} "
            f"({self._programs.compiler.describe()}, side by side)"
        )

    @property
    def _num_members(self) -> int:
        return len(self._seeds)

    @property
    def _keeps_best(self) -> bool:
        return self._plan.keep_best

    @property
    def _steps(self) -> int:
        return self._position.updates * self._plan.batch_size

    def _say(self, line: str) -> None:
        for cell in self._cells:
            cell.recorder.say(line)

    def _show_compiling(self, line: str) -> None:
        """On a terminal all the time, elsewhere now and then."""
        self._interrupts.check()
        self._cells[0].recorder.show_status(line)
        if time.perf_counter() - self._spoke >= _BETWEEN_WORDS:
            self._spoke = time.perf_counter()
            self._say(line)

    def start_from(self, learners: Any) -> None:
        """Takes what other learners [N] have learnt, over and over, in each cell."""
        self._states = self._programs.start_from(self._states, learners, self._parts)

    def resume(self) -> None:
        """Goes back to the newest checkpoint that is whole, or to the start if there is none.

        Raises:
          CheckpointError: there are checkpoints, but none that can be used.
          BadInput: the metrics are no longer those of the checkpoint.
        """
        unit = self._headline.unit
        restored = self._keeper.restore(self._parts_to_keep())
        if restored is None:
            for cell in self._cells:
                if cell.recorder.metrics_bytes():
                    cell.recorder.say(f"no checkpoint yet: starting at the first {unit.singular}")
                cell.recorder.rewind(0, -1)
            return
        for line in restored.damaged:
            self._say(f"warning: a damaged checkpoint is passed over: {line}")
        for line in fingerprint.remarks(restored.position):
            self._say(f"warning: {line}")
        parts, self._position = restored.parts, Position.of_checkpoint(restored.position)
        learner = with_own_schedule(parts["learner"], self._states.learner)
        self._states = self._states._replace(learner=learner, **parts["rest"])
        self._progress = self._programs.from_kept(parts["progress"])
        self._best = parts.get(best.PART)
        with processes.together():
            for cell, size in zip(self._cells, self._position.metrics_bytes, strict=True):
                cell.recorder.rewind(size, self._steps)
        restarted = self._programs.restart_episodes(self._states, self._position.updates)
        if restarted is not None:
            self._states = restarted
        self._say(
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
        interrupts, plan, position = self._interrupts, self._plan, self._position
        interrupts.check()
        logs = Every.make(plan.log_every, 100, plan)
        evaluations = Every.make(plan.eval_every, 10, plan)
        self._begun, self._seconds_before = time.perf_counter(), position.seconds
        self._keeper.start_clock()
        for cell in self._cells:
            cell.recorder.start_clock(position.seconds)
        with interrupts.deferred():
            if not position.updates:
                with self._evaluating():  # there is nothing to keep yet
                    position.evaluation = self._programs.evaluate(self._states, 0, whole=False)
                self._keep_if_best()
                undefined = [math.nan] * self._num_members
                names = self._programs.metric_names
                self._log({**dict.fromkeys(names, undefined), **position.evaluation})
            logged, since = position.updates, position.training_seconds
            longest = 1  # updates at a time, until it is known how long one takes
            before = None
            if position.unreported:
                is_last = position.updates == plan.num_updates
                evaluate = is_last or evaluations.includes(position.updates)
                self._report(evaluate, None, is_last)
            while position.updates < plan.num_updates and not self._all_broken:
                done, begun = position.updates, time.perf_counter()
                stop = min(
                    logs.next(done), evaluations.next(done), plan.num_updates, done + longest
                )
                self._advance(stop - done, before)
                broken_at = processes.fetch(self._progress.broken_at)
                # All must make the same number of updates next: one clock decides.
                seconds = float(processes.agree(time.perf_counter() - begun))
                longest = max(1, int(_LONGEST_CHUNK / seconds * (stop - done)))
                takes_long = seconds / (stop - done) > _LONGEST_CHUNK
                position.updates = stop
                position.training_seconds += seconds
                known = {member for member, _ in position.broken}
                position.broken += [
                    [int(member), int(broken_at[member])]
                    for member in np.flatnonzero(broken_at != NEVER)
                    if member not in known
                ]
                is_last = stop == plan.num_updates
                evaluate = (is_last or evaluations.includes(stop)) and not self._all_broken
                if evaluate or logs.includes(stop) or self._all_broken:
                    steps = (stop - logged) * plan.batch_size * self._num_members
                    seconds = position.training_seconds - since
                    self._report(evaluate, steps / seconds, is_last)
                    logged, since = stop, position.training_seconds
                if self._all_broken or is_last:
                    break
                asked = processes.largest(interrupts.pending)
                if processes.agree(self._keeper.is_due()) or asked or self._is_to_stop:
                    self._save()
                if asked or self._is_to_stop:
                    self._write_summaries(interrupted=True)
                    raise Interrupted(asked) if asked else Stopped
                before = None  # not two copies at a time
                if takes_long and jax.process_count() == 1:
                    before = self._copied_parts()
            if not self._all_broken:
                self._save()
            if position.broken:
                with contextlib.suppress(Interrupted), self._evaluating():
                    cause = self._programs.find_cause()
                    if cause:
                        self._say(f"error: {cause}")
            self._write_summaries()
        if position.broken:
            what = self._headline.broken
            raise Broken(describe_broken(what, position.broken, self._seeds, plan.num_updates))

    def end_early(self) -> None:
        """Writes summaries of what was done: for who has seen enough, and stopped `run`."""
        self._write_summaries(interrupted=True)

    def _advance(self, num_updates: int, before: dict[str, Any] | None) -> None:
        """Makes updates.

        Args:
          num_updates: so many.
          before: copies of the parts to keep, as they are now; None where updates take too little
            time for it.

        Raises:
          Interrupted: asked to end while it made one that takes long; what was before it is saved.
        """
        # Where nothing was learnt since the last checkpoint, nothing is lost.
        nothing_new = self._position.updates in (0, self._keeper.newest)
        may_give_up = jax.process_count() == 1 and (nothing_new or before is not None)
        patience = (
            self._interrupts.bounded(_LONGEST_CHUNK) if may_give_up else contextlib.nullcontext()
        )
        try:
            with patience:
                advanced = self._programs.advance(self._states, self._progress, num_updates)
                self._states, self._progress = advanced
                wait(self._progress.broken_at)
        except GivenUp:
            if before is not None:
                self._save(before)
            if self._position.updates:  # else there is nothing to sum up
                self._write_summaries(interrupted=True)
            raise

    @property
    def _all_broken(self) -> bool:
        return len(self._position.broken) == self._num_members

    def _report(self, evaluate: bool, rate: float | None, is_last: bool) -> None:
        """Logs the updates since the last report, which were made at a rate of steps a second.

        The rate is not known where they were made before the run was stopped.

        Raises:
          Interrupted: asked to end while it evaluated; the updates are saved, the report is not.
            Or in the callback: both are.
          CallbackFailed: both are saved.
        """
        position, headline = self._position, self._headline
        training, digits, unit = headline.training, headline.digits, headline.unit
        report = self._programs.finish(self._progress)
        metrics = {name: values.tolist() for name, values in report.metrics.items()}
        remark = f", {self._programs.remark}" if self._programs.remark else ""
        for name in position.largest:
            # NumPy's maximum: NaN wins, and a broken run does not look perfect.
            position.largest[name] = np.maximum(position.largest[name], metrics[name]).tolist()
        if evaluate:
            try:
                with self._evaluating():
                    position.evaluation = self._programs.evaluate(
                        self._states, position.updates, whole=is_last
                    )
            except Interrupted:
                position.unreported = True
                self._save_and_sum_up()
                raise
            self._keep_if_best()
            metrics |= position.evaluation
            score = headline.score
            for cell, part in zip(self._cells, self._parts, strict=True):
                cell.recorder.say(
                    f"{self._steps:>13,} {unit.name}"
                    f"  {score.short} {describe(metrics[score.metric][part], digits)}"
                    f"  {training.short} {describe(metrics[training.metric][part], digits)}"
                    f"{'' if rate is None else '  ' + unit.a_second(rate)}{remark}"
                )
        self._tell_skipped(metrics)
        self._log(metrics, rate)
        current = describe(metrics[training.metric], digits, brief=True)
        self._show(
            self._steps, rate or 0.0, f"{headline.learning or headline.quantity} {current}{remark}"
        )
        self._progress = self._programs.start()
        position.unreported = False
        self._call_back(metrics)

    def _call_back(self, metrics: dict[str, list[float]]) -> None:
        if self._callback is None:
            return
        updates, states = self._position.updates, self._states
        act = self._programs.actor(states)
        try:
            with self._evaluating():
                self._is_to_stop |= calling_back.call(
                    self._callback, updates, self._steps, metrics, states.learner, act
                )
        except (Interrupted, CallbackFailed):
            self._save_and_sum_up()
            raise

    def _save_and_sum_up(self) -> None:
        """What is left where a run does not go on for now."""
        self._save()
        self._write_summaries(interrupted=True)

    def _keep_if_best(self) -> None:
        """Keeps the policies of those members whose last evaluation is their best so far."""
        if self._best is None:
            return
        position = self._position
        scores = position.evaluation[self._headline.score.metric]
        better = best.are_better(scores, position.best_scores, position.broken)
        if not better.any():
            return
        newest = best.policy_of(self._states.learner)
        self._best = best.choose(better, newest, self._best, self._programs.place)
        best_scores = position.best_scores or [math.nan] * self._num_members
        best_at = position.best_at or [0] * self._num_members
        position.best_scores = np.where(better, scores, best_scores).tolist()
        position.best_at = np.where(better, position.updates, best_at).tolist()

    def _evaluating(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a stop is heard at once, as evaluation changes nothing; but of several processes
        all have to stop at the same place.
        """
        several = jax.process_count() > 1
        return contextlib.nullcontext() if several else self._interrupts.at_once()

    def _tell_skipped(self, metrics: dict[str, list[float]]) -> None:
        """Warns of gradient steps since the last report that were not taken."""
        name = self._headline.skipped
        if not name:
            return
        for cell, part in zip(self._cells, self._parts, strict=True):
            for seed, share in zip(cell.plan.seeds, metrics[name][part], strict=True):
                if share > 0:
                    cell.recorder.say(
                        f"warning: {share:.1%} of the gradient steps up to {self._steps:,} "
                        f"{self._headline.unit.name} were not finite and were skipped (seed {seed})"
                    )

    def _log(self, metrics: dict[str, list[float]], rate: float | None = None) -> None:
        for cell, part in zip(self._cells, self._parts, strict=True):
            own = {name: values[part] for name, values in metrics.items()}
            cell.recorder.log_metrics(self._steps, self._position.updates, own, rate)

    def _parts_to_keep(self) -> dict[str, Any]:
        # The learner apart: who wants the policy alone reads nothing else.
        rest = {name: value for name, value in self._states._asdict().items() if name != "learner"}
        progress = self._programs.to_keep(self._progress)
        kept = {} if self._best is None else {best.PART: self._best}
        return {"learner": self._states.learner, "rest": rest, "progress": progress, **kept}

    def _copied_parts(self) -> dict[str, Any]:
        """The parts to keep, in memory that no program reuses: the host's."""

        def copy(leaf: Any) -> Any:
            is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            return jnp.copy(leaf) if is_key else np.array(leaf)

        return jax.tree.map(copy, self._parts_to_keep())

    def _save(self, parts: dict[str, Any] | None = None) -> None:
        """Keeps the parts to keep, or copies of them that were made after the same update."""
        self._position.seconds = self._run_seconds()
        is_last = self._position.updates == self._plan.num_updates
        pack = self._programs.pack_policies
        self._keeper.save(self._position, parts or self._parts_to_keep(), is_last, pack)

    def _run_seconds(self) -> float:
        """That the run has taken, with what it took before it went on, but without compiling."""
        return self._seconds_before + time.perf_counter() - self._begun

    def _write_summaries(self, interrupted: bool = False) -> None:
        outcome = Outcome(
            self._headline,
            self._position,
            self._seeds,
            compile_seconds=self._compile_seconds,
            run_seconds=self._run_seconds(),
            in_turn=self._programs.in_turn,
            device=self._device,
        )
        for cell, part in zip(self._cells, self._parts, strict=True):
            outcome.write(cell, part, interrupted)
