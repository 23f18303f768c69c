"""What a run says and keeps while it goes on: log, metrics, progress, summary and figure."""

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.status import Status

from experiments.cli.flags import BadInput
from experiments.cli.terminal import Terminal
from experiments.record import loggers
from experiments.record.files import append_plain, require_space, to_json, write_atomically
from experiments.record.headline import CONTROL, Headline
from experiments.record.lengthening import lengthened
from experiments.record.provenance import provenance
from experiments.record.run_folder import (
    CONFIG,
    CURVE,
    FILMS,
    LOG,
    METRICS,
    SUMMARY,
    hold,
    refusing,
    remove_run,
)


class Recorder:
    """Writes a run's folder, and shows its progress.

    Metrics are appended a line at a time and flushed; all other files are replaced atomically.
    What is said on the terminal is kept in `run.log`.

    Attributes:
      needs: modules that it imports when it first needs them.
    """

    needs: tuple[str, ...] = ("tensorboardX", "experiments.record.curve")

    def __init__(
        self,
        folder: Path,
        overwrite: bool = False,
        resume: bool = False,
        terminal: bool = True,
        patience: float = 0.0,
        log_to: Sequence[loggers.LoggerName] = loggers.DEFAULT_LOGGERS,
    ):
        """Creates the folder, and holds it for this process.

        Args:
          folder: of the run.
          overwrite: replace the run that it holds.
          resume: go on with the run that it holds; `rewind` says from where.
          terminal: whether to show on the terminal what is said.
          patience: seconds to wait for another process that holds the folder.
          log_to: where metrics go, beside `metrics.jsonl`.

        Raises:
          BadInput: it cannot be written, it holds a run, or another process writes to it.
        """
        self.folder = folder
        with refusing(folder):
            self._lock = hold(folder, patience)
            if overwrite:
                remove_run(folder)
            held = (folder / LOG).exists() or (folder / METRICS).exists()
            if held and not resume:
                raise BadInput(f"--out {folder}: holds a run; choose another folder")
            self._log: TextIO = append_plain(folder / LOG)
            self._metrics: TextIO = append_plain(folder / METRICS)
        self._console = Terminal(highlight=False, soft_wrap=True, quiet=not terminal)
        self._progress: Progress | None = None
        self._status: Status | None = None
        self._loggers = loggers.make(log_to, folder)
        self._headline, self._agent = CONTROL, ""  # until the settings are written
        self._started = time.perf_counter()

    def rewind(self, metrics_bytes: int, steps: int) -> None:
        """Goes back to where a checkpoint was made; what was written after it is dropped.

        Args:
          metrics_bytes: what `metrics_bytes` was then.
          steps: that were done then (of one seed), or whatever training counts.

        Raises:
          BadInput: the metrics are no longer those that were there then.
        """
        path = self.folder / METRICS
        if path.stat().st_size < metrics_bytes:
            raise BadInput(f"--resume: {path} is shorter than at the checkpoint")
        with path.open("rb") as file:
            file.seek(max(0, metrics_bytes - 1))
            last = file.read(1)
        if metrics_bytes and last != b"\n":
            raise BadInput(f"--resume: {path} is not what it was at the checkpoint")
        self._metrics.truncate(metrics_bytes)
        self._forget_results()
        for logger in self._loggers:
            logger.rewind(steps)

    def _forget_results(self) -> None:
        """Removes what is written at the end, which is still to come."""
        for name in (SUMMARY, CURVE, *FILMS):
            (self.folder / name).unlink(missing_ok=True)

    def start_clock(self, seconds: float) -> None:
        """Counts `wall_seconds` from here, where the run has taken so many."""
        self._started = time.perf_counter() - seconds

    def metrics_bytes(self) -> int:
        """The size of the metrics, which are on the disk when this returns."""
        os.fsync(self._metrics.fileno())
        return (self.folder / METRICS).stat().st_size

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_status()
        self.stop_progress()
        for logger in self._loggers:
            logger.close()
        for file in (self._metrics, self._log, self._lock):
            with contextlib.suppress(OSError):  # a full disk was said where it was met
                file.close()

    def say(self, line: str) -> None:
        """Prints a line above the progress bar, and keeps it."""
        self._stop_status()
        self._console.print(line, markup=False)
        self._log.write(line + "\n")
        self._log.flush()

    def _stop_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def write_config(self, settings: Mapping[str, Any], **more: Any) -> None:
        """Writes everything needed to repeat the run; of one that goes on, where it does so.

        Of one that is to be longer than it was, it replaces the length, and keeps the one before.
        """
        path = self.folder / CONFIG
        if path.exists():
            content = json.loads(path.read_text())
            content.setdefault("resumed", []).append(provenance())
            longer = lengthened(content["settings"], settings)
            if longer is not None:
                # First: what is kept says no more that the run has reached its end.
                self._forget_results()
                content["settings"][longer.setting] = longer.after
                content.setdefault("lengthened", []).append(longer._asdict())
                content |= more
        else:
            content = {"settings": settings, **more, **provenance()}
        write_atomically(path, to_json(content, indent=2))
        self._headline = Headline.of_run(content)
        told = content.get("subject") or content["settings"]
        self._agent = str(told.get("agent", ""))
        for logger in self._loggers:
            logger.begin(content)

    def start_progress(self, total: int) -> None:
        """Shows a bar on a terminal; elsewhere the lines that are said must do."""
        if not self._console.is_terminal:
            return
        self._progress = Progress(
            TaskProgressColumn(),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(self._headline.unit.name),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            transient=True,
        )
        self._progress.add_task("", total=total, rate="", status="")
        self._progress.start()

    def advance_progress(self, steps: int, rate: float, status: str) -> None:
        """Moves the bar to a number of steps (of one seed); `rate` is over all seeds."""
        if self._progress is not None:
            task = self._progress.task_ids[0]
            rate_in_words = self._headline.unit.a_second(rate)
            self._progress.update(task, completed=steps, rate=rate_in_words, status=status)

    def show_status(self, line: str) -> None:
        """Shows what is under way below all lines on a terminal, until the next one is said."""
        if not self._console.is_terminal:
            return
        if self._status is None:
            self._status = self._console.status(line)
            self._status.start()
        self._status.update(line)

    def stop_progress(self) -> None:
        """Takes the bar off the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def log_metrics(
        self,
        steps: int,
        updates: int,
        metrics: Mapping[str, list[float]],
        rate: float | None = None,
    ) -> None:
        """Appends a line to `metrics.jsonl`, and tells the loggers.

        They are told the steps a second of all seeds too, where these are known: a number that no
        two runs have alike, and not of what was learnt.
        """
        require_space(self.folder)
        line = {
            self._headline.unit.counter: steps,
            "updates": updates,
            "wall_seconds": round(time.perf_counter() - self._started, 3),
            **metrics,
        }
        self._metrics.write(to_json(line).decode())
        self._metrics.flush()
        for logger in self._loggers:
            logger.log(steps, metrics, {} if rate is None else {self._headline.unit.rate: rate})

    def log_film(self, steps: int, path: Path) -> None:
        """Shows the loggers a film of the policy after so many steps, if they can: a GIF."""
        for logger in self._loggers if path.suffix == ".gif" else ():
            logger.film(steps, path)

    def write_summary(self, summary: Mapping[str, Any], title: str = "") -> None:
        """Draws `learning_curve.png` from the metrics, with a title; then writes `summary.json`."""
        from experiments.record import curve

        picture = curve.learning_curve(self._logged(), title, self._agent, self._headline)
        write_atomically(self.folder / CURVE, picture)
        for logger in self._loggers:
            logger.summarize(summary)
        # Last: it is what says that the run is finished.
        write_atomically(self.folder / SUMMARY, to_json(summary, indent=2))

    def _logged(self) -> list[dict[str, Any]]:
        """The lines of metrics; those that somebody has damaged are passed over, and told."""
        metrics, damaged = [], 0
        for line in (self.folder / METRICS).read_bytes().split(b"\n")[:-1]:
            try:
                content = json.loads(line)
                content[self._headline.unit.counter], content["updates"]
                metrics.append(content)
            except (ValueError, RecursionError, TypeError, KeyError):
                damaged += 1
        if damaged:
            self.say(f"warning: {damaged} damaged line(s) of {METRICS} are not in the curve")
        return metrics


class NullRecorder(Recorder):
    """Takes a `Recorder`'s place in a process that is not the first: writes and says nothing."""

    needs = ()

    def __init__(self, folder: Path):
        """Expects the folder that the first process has made.

        Raises:
          BadInput: it is not there.
        """
        self.folder = folder
        if not folder.is_dir():
            raise BadInput(f"--out {folder}: not seen here; expected a folder all processes share")

    def rewind(self, metrics_bytes: int, steps: int) -> None: ...

    def start_clock(self, seconds: float) -> None: ...

    def metrics_bytes(self) -> int:
        return 0

    def __exit__(self, *_: object) -> None: ...

    def say(self, line: str) -> None: ...

    def show_status(self, line: str) -> None: ...

    def write_config(self, settings: Mapping[str, Any], **more: Any) -> None: ...

    def start_progress(self, total: int) -> None: ...

    def advance_progress(self, steps: int, rate: float, status: str) -> None: ...

    def stop_progress(self) -> None: ...

    def log_metrics(
        self,
        steps: int,
        updates: int,
        metrics: Mapping[str, list[float]],
        rate: float | None = None,
    ) -> None: ...

    def log_film(self, steps: int, path: Path) -> None: ...

    def write_summary(self, summary: Mapping[str, Any], title: str = "") -> None: ...
