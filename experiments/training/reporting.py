"""What a training says, shows and writes down; each cell's record gets the part of its members."""

import time
from collections.abc import Callable, Sequence

import jax

from experiments.training.position import Position
from experiments.training.programs import Programs
from experiments.training.results import Outcome, describe
from experiments.training.subject import Cell, parts_of

Show = Callable[[int, float, str], None]
"""Is told steps so far (of one member), steps per second of all members, a word on scores."""

Metrics = dict[str, list[float]]  # name -> a value per member

_BETWEEN_WORDS = 15.0  # seconds between two lines on what is compiling, where there is no terminal


class Reporter:
    """The voice of a training: lines, metrics, progress and summaries of its cells.

    Attributes:
      seeds: of all members.
    """

    def __init__(self, cells: Sequence[Cell], show: Show):
        """Writes the settings of each cell."""
        self._cells, self._parts, self._show = cells, parts_of(cells), show
        self._plan = cells[0].plan
        self._headline = self._plan.headline
        self.seeds = tuple(seed for cell in cells for seed in cell.plan.seeds)
        for cell in cells:
            cell.recorder.write_config(
                cell.plan.settings(), **cell.plan.entries, headline=self._headline.entry()
            )

    def say(self, line: str) -> None:
        """Says it in each cell."""
        for cell in self._cells:
            cell.recorder.say(line)

    def begin_compiling(self) -> None:
        """Says so, and on which device; counts the seconds from here."""
        device = jax.devices()[0]
        self._device = f"{device.platform}: {device.device_kind} x {jax.device_count()}"
        self.say(f"{device.platform} ({device.device_kind}), JAX {jax.__version__}: compiling ...")
        self._compiling_since = self._spoke = time.perf_counter()

    def show_compiling(self, line: str) -> None:
        """On a terminal all the time, elsewhere now and then."""
        self._cells[0].recorder.show_status(line)
        if time.perf_counter() - self._spoke >= _BETWEEN_WORDS:
            self._spoke = time.perf_counter()
            self.say(line)

    def end_compiling(self, programs: Programs) -> None:
        """Says how long it took, and what."""
        self._compile_seconds = time.perf_counter() - self._compiling_since
        self._in_turn = programs.in_turn
        spread = f" for {programs.spread}" if programs.spread else ""
        seconds, compiler = self._compile_seconds, programs.compiler
        self.say(
            f"ready in {seconds:.1f} s{spread} (programs of an earlier start)"
            if compiler.was_found
            else f"compiled in {seconds:.1f} s{spread} ({compiler.describe()}, side by side)"
        )

    def start_clock(self, position: Position) -> None:
        """Counts seconds and steps from here, where a run begins or goes on."""
        self._begun, self._seconds_before = time.perf_counter(), position.seconds
        self._logged, self._logged_seconds = position.updates, position.training_seconds
        for cell in self._cells:
            cell.recorder.start_clock(position.seconds)

    def run_seconds(self) -> float:
        """That the run has taken, with what it took before it went on, but without compiling."""
        return self._seconds_before + time.perf_counter() - self._begun

    def steps(self, position: Position) -> int:
        """Of one member so far."""
        return position.updates * self._plan.batch_size

    def rate(self, position: Position) -> float | None:
        """Steps per second of all members since the last line of metrics.

        None where there were none: updates made before the run was stopped have no clock here.
        """
        updates = position.updates - self._logged
        if not updates:
            return None
        steps = updates * self._plan.batch_size * len(self.seeds)
        return steps / (position.training_seconds - self._logged_seconds)

    def say_scores(
        self,
        position: Position,
        metrics: Metrics,
        rate: float | None,
        remark: str,
        evaluated: str,
    ) -> None:
        """Says what an evaluation came to, and what training itself shows."""
        score, training = self._headline.score, self._headline.training
        digits, unit = self._headline.digits, self._headline.unit
        for cell, part in zip(self._cells, self._parts, strict=True):
            cell.recorder.say(
                f"{self.steps(position):>13,} {unit.name}"
                f"  {score.short} {describe(metrics[score.metric][part], digits)}{evaluated}"
                f"  {training.short} {describe(metrics[training.metric][part], digits)}"
                f"{'' if rate is None else '  ' + unit.a_second(rate)}{remark}"
            )

    def warn_of_skipped(self, position: Position, metrics: Metrics) -> None:
        """Warns of gradient steps since the last report that were not taken."""
        name = self._headline.skipped
        if not name:
            return
        for cell, part in zip(self._cells, self._parts, strict=True):
            for seed, share in zip(cell.plan.seeds, metrics[name][part], strict=True):
                if share > 0:
                    cell.recorder.say(
                        f"warning: {share:.1%} of the gradient steps up to "
                        f"{self.steps(position):,} {self._headline.unit.name} were not finite and "
                        f"were skipped (seed {seed})"
                    )

    def log(self, position: Position, metrics: Metrics, rate: float | None = None) -> None:
        """Writes a line of metrics; the next rate is of what comes after it."""
        for cell, part in zip(self._cells, self._parts, strict=True):
            own = {name: values[part] for name, values in metrics.items()}
            cell.recorder.log_metrics(self.steps(position), position.updates, own, rate)
        self._logged, self._logged_seconds = position.updates, position.training_seconds

    def show_progress(
        self, position: Position, metrics: Metrics, rate: float | None, remark: str
    ) -> None:
        """Shows how far it is, and how well training does."""
        headline = self._headline
        current = describe(metrics[headline.training.metric], headline.digits, brief=True)
        status = f"{headline.learning or headline.quantity} {current}{remark}"
        self._show(self.steps(position), rate or 0.0, status)

    def write_summaries(self, position: Position, interrupted: bool) -> None:
        """Writes what each cell has come to, and says it unless that is for now only."""
        outcome = Outcome(
            self._headline,
            position,
            self.seeds,
            compile_seconds=self._compile_seconds,
            run_seconds=self.run_seconds(),
            in_turn=self._in_turn,
            device=self._device,
        )
        for cell, part in zip(self._cells, self._parts, strict=True):
            outcome.write(cell, part, interrupted)
