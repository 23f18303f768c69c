"""The folder of a run: settings, metrics, summary, curve, log, and what loggers put there."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
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

from experiments import loggers
from experiments.command_line import BadInput
from experiments.headline import Headline
from experiments.terminal import Terminal

CONFIG, METRICS, SUMMARY, CURVE, LOG, CHECKPOINTS = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "learning_curve.png",
    "run.log",
    "checkpoints",
)
EPISODE = "episode"  # a film of the policy, .gif, .mp4 or .html
_FILMS = tuple(EPISODE + suffix for suffix in (".gif", ".mp4", ".html"))
_FILES = (CONFIG, METRICS, SUMMARY, CURVE, LOG, CHECKPOINTS, *_FILMS, *loggers.FOLDERS)
LOCK = ".lock"  # stays: who removes it could remove the lock of the next
_MARGIN = 2**20  # bytes that stay free on the disk
_PACKAGES = (
    "rgpo-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "gymnax",
    "gymnasium",
    "envpool",
    "numpy",
)


def choose_folder(
    out: str | None, name: str, overwrite: bool = False, resume: bool = False
) -> Path:
    """Where a run's results go; where `out` is None, a folder with this name in it, made here.

    Raises:
      BadInput: the folder holds a run that may not be overwritten, or is no folder.
    """
    if out is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        base = folder = Path("runs") / f"{stem}-{stamp}"
        count = 1
        while True:
            # Made at once: runs that a loop starts in the same second find one each.
            with refusing(folder), contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
            folder = base.with_name(f"{base.name}-{count}")
            count += 1
    folder = Path(out).expanduser()
    with refusing(folder):
        _require_writable(folder, out)
        held = [name for name in _FILES if (folder / name).exists()]
        if held and METRICS not in held and LOG not in held:
            raise BadInput(f"--out {out}: holds {held[0]}, but no run; choose another folder")
        if resume and CHECKPOINTS in held and CONFIG not in held:
            raise BadInput(f"--resume: {folder} has lost its {CONFIG}: its settings are not known")
        if held and not (overwrite or resume):
            raise BadInput(
                f"--out {out}: holds a run; choose another folder, go on with it by --resume, or "
                "replace it by --overwrite"
            )
    return folder


def choose_page_folder(out: str | None, name: str, files: Sequence[str], overwrite: bool) -> Path:
    """Where a program that writes a page, and no run, writes its `files` and what goes with them.

    Raises:
      BadInput: the folder holds one of the files and may not be overwritten, holds a run, or is no
        folder.
    """
    if out is None:
        return choose_folder(None, name)
    folder = Path(out).expanduser()
    with refusing(folder):
        _require_writable(folder, out)
        if any((folder / held).exists() for held in (METRICS, LOG)):
            raise BadInput(f"--out {out}: holds a run; choose another folder")
        held = [held for held in files if (folder / held).exists()]
        if held and not overwrite:
            raise BadInput(
                f"--out {out}: holds {held[0]}; choose another folder, or replace it by --overwrite"
            )
    return folder


def _require_writable(folder: Path, out: str) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise BadInput(f"--out {out}: {existing} is a file, expected a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"--out {out}: cannot be written: permission denied")


@contextlib.contextmanager
def refusing(out: Path) -> Iterator[None]:
    """Turns what the system says of a folder that cannot be written into `BadInput`."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"--out {out}: cannot be written: {reason}") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, finds the old content or the new, never half."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def require_space(folder: Path, needed: int = 0) -> None:
    """Raises OSError if the disk has less room than so many bytes and a margin.

    A library that writes in threads of its own fails less orderly than we do.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _MARGIN:
        raise OSError(
            f"{folder}: {free / 2**20:.1f} MiB are left on its disk, expected at least "
            f"{(needed + _MARGIN) / 2**20:.1f} MiB"
        )


def without_nan(value: Any) -> Any:
    """NaN and infinities as None: what is undefined is null in JSON, and never 0."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def to_json(value: Any, indent: int | None = None) -> bytes:
    """Strict JSON, ending with a newline."""
    return (json.dumps(without_nan(value), indent=indent, allow_nan=False) + "\n").encode()


def provenance() -> dict[str, Any]:
    """Versions, device, machine and git commit: what a repetition must know beside the settings."""
    import jax

    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "git_commit": _git_commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout that this code runs from, marked if it was changed since."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def short_commit(described: Any) -> str | None:
    """A `git_commit` for a reader: abbreviated, and whether files were changed after it."""
    if not isinstance(described, str) or not described:
        return None
    commit, changed = described.removesuffix("-dirty"), described.endswith("-dirty")
    return commit[:10] + (" (changed since)" if changed else "")


class Recorder:
    """Writes a run's folder, and shows its progress.

    Metrics are appended a line at a time and flushed; all other files are replaced atomically.
    What is said on the terminal is kept in `run.log`.
    """

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
                _remove_run(folder)
            held = (folder / LOG).exists() or (folder / METRICS).exists()
            if held and not resume:
                raise BadInput(f"--out {folder}: holds a run; choose another folder")
            self._log: TextIO = (folder / LOG).open("a")
            self._metrics: TextIO = (folder / METRICS).open("a")
        self._console = Terminal(highlight=False, soft_wrap=True, quiet=not terminal)
        self._progress: Progress | None = None
        self._status: Status | None = None
        self._loggers = loggers.make(log_to, folder)
        self._started = time.perf_counter()

    def rewind(self, metrics_bytes: int, env_steps: int) -> None:
        """Goes back to where a checkpoint was made; what was written after it is dropped.

        Args:
          metrics_bytes: what `metrics_bytes` was then.
          env_steps: steps that were done then (of one seed).

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
        for name in (SUMMARY, CURVE):
            (self.folder / name).unlink(missing_ok=True)
        for logger in self._loggers:
            logger.rewind(env_steps)

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
        """Writes everything needed to repeat the run; of one that goes on, where it does so."""
        path = self.folder / CONFIG
        if path.exists():
            content = json.loads(path.read_text())
            content.setdefault("resumed", []).append(provenance())
        else:
            content = {"settings": settings, **more, **provenance()}
        write_atomically(path, to_json(content, indent=2))
        for logger in self._loggers:
            logger.begin(content)

    def start_progress(self, total_steps: int) -> None:
        """Shows a bar on a terminal; elsewhere the lines that are said must do."""
        if not self._console.is_terminal:
            return
        self._progress = Progress(
            TaskProgressColumn(),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            transient=True,
        )
        self._progress.add_task("", total=total_steps, rate="", status="")
        self._progress.start()

    def advance_progress(self, steps: int, rate: float, status: str) -> None:
        """Moves the bar to a number of steps (of one seed); `rate` is over all seeds."""
        if self._progress is not None:
            task = self._progress.task_ids[0]
            self._progress.update(
                task, completed=steps, rate=f"{rate / 1e3:,.0f}k steps/s", status=status
            )

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

    def log_metrics(self, env_steps: int, updates: int, metrics: Mapping[str, list[float]]) -> None:
        """Appends a line to `metrics.jsonl`, and tells the loggers."""
        require_space(self.folder)
        line = {
            "env_steps": env_steps,
            "updates": updates,
            "wall_seconds": round(time.perf_counter() - self._started, 3),
            **metrics,
        }
        self._metrics.write(to_json(line).decode())
        self._metrics.flush()
        for logger in self._loggers:
            logger.log(env_steps, metrics)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json` and draws `learning_curve.png` from the metrics so far."""
        from experiments import plot

        write_atomically(self.folder / SUMMARY, to_json(summary, indent=2))
        for logger in self._loggers:
            logger.summarize(summary)
        lines = (self.folder / METRICS).read_text().splitlines()
        title = f"{summary['agent']} on {summary['env']}"
        headline = Headline.of_run(json.loads((self.folder / CONFIG).read_text()))
        picture = plot.learning_curve([json.loads(line) for line in lines], title, headline)
        write_atomically(self.folder / CURVE, picture)


class Bystander(Recorder):
    """Takes a `Recorder`'s place in a process that is not the first: writes and says nothing."""

    def __init__(self, folder: Path):
        """Expects the folder that the first process has made.

        Raises:
          BadInput: it is not there.
        """
        self.folder = folder
        if not folder.is_dir():
            raise BadInput(f"--out {folder}: not seen here; expected a folder all processes share")

    def rewind(self, metrics_bytes: int, env_steps: int) -> None: ...

    def start_clock(self, seconds: float) -> None: ...

    def metrics_bytes(self) -> int:
        return 0

    def __exit__(self, *_: object) -> None: ...

    def say(self, line: str) -> None: ...

    def show_status(self, line: str) -> None: ...

    def write_config(self, settings: Mapping[str, Any], **more: Any) -> None: ...

    def start_progress(self, total_steps: int) -> None: ...

    def advance_progress(self, steps: int, rate: float, status: str) -> None: ...

    def stop_progress(self) -> None: ...

    def log_metrics(
        self, env_steps: int, updates: int, metrics: Mapping[str, list[float]]
    ) -> None: ...

    def write_summary(self, summary: Mapping[str, Any]) -> None: ...


def hold(folder: Path, patience: float = 0.0) -> TextIO:
    """Creates a folder, and holds it until the file is closed or the process ends, in whatever way.

    Raises:
      BadInput: another process holds it, still after so many seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK).open("a")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:  # other errors are of a disk that knows no locks
            if time.monotonic() >= deadline:
                file.close()
                raise BadInput(f"--out {folder}: another process is writing to it") from None
        time.sleep(0.2)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a run that reached its end."""
    try:
        summary = json.loads((folder / SUMMARY).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(summary, dict) and not (summary.get("interrupted") or summary.get("broken"))


def _remove_run(folder: Path) -> None:
    """Removes a run's own files; anything else in the folder stays."""
    for name in _FILES:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
