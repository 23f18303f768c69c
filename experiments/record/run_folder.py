"""The folder of a run: what is in it, who may write there, and whether it is finished."""

import contextlib
import datetime
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from experiments.cli.flags import BadInput
from experiments.record import loggers
from experiments.record.files import append_plain, read_plain, remove_unfinished
from rgpo_jax import policy_file

CONFIG, METRICS, SUMMARY, CURVE, LOG, CHECKPOINTS = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "learning_curve.png",
    "run.log",
    "checkpoints",
)
POLICY = policy_file.NAME  # what can be taken away: the actor, as `rgpo_jax.load` reads it
EPISODE = "episode"  # a film of the policy, .gif, .mp4 or .html
FILMS = tuple(EPISODE + suffix for suffix in (".gif", ".mp4", ".html"))
ANSWERS, ANSWERS_PAGE = "answers.jsonl", "answers.html"  # of a language model, over training
_FILES = (
    *(CONFIG, METRICS, SUMMARY, CURVE, LOG, CHECKPOINTS, POLICY, ANSWERS, ANSWERS_PAGE),
    *FILMS,
    *loggers.FOLDERS,
)
SWEEP = "sweep.json"  # marks the folder of a sweep
LOCK = ".lock"  # stays: who removes it could remove the lock of the next


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


def choose_file(out: str, suffixes: Sequence[str], overwrite: bool, any_case: bool = False) -> Path:
    """Where a program that writes a single file writes it.

    Args:
      out: as it was typed.
      suffixes: with one of which the name has to end.
      overwrite: whether a file that is there may be replaced.
      any_case: whether the name may end in capitals.

    Raises:
      BadInput: it cannot be there.
    """
    path = Path(out).expanduser()
    if (path.suffix.lower() if any_case else path.suffix) not in suffixes:
        accepted = " or ".join(filter(None, (", ".join(suffixes[:-1]), suffixes[-1])))
        raise BadInput(f"--out {out}: expected a name that ends in {accepted}")
    try:
        is_there = path.exists()
    except OSError as error:  # such as a name that is too long
        raise BadInput(f"--out {out}: {error.strerror}") from None
    if is_there and not (overwrite and path.is_file()):
        raise BadInput(f"--out {out}: is there already; choose another, or say --overwrite")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadInput(f"--out {out}: {path.parent} is no folder that can be written")
    return path


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


def hold(folder: Path, patience: float = 0.0) -> TextIO:
    """Creates a folder, and holds it until the file is closed or the process ends, in whatever way.

    Raises:
      BadInput: another process holds it, still after so many seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = append_plain(folder / LOCK)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_unfinished(folder)
            return file
        except BlockingIOError:  # other errors are of a disk that knows no locks
            if time.monotonic() >= deadline:
                file.close()
                raise BadInput(f"--out {folder}: another process is writing to it") from None
        time.sleep(0.2)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a run that reached its end."""
    return reached_end(read_summary(folder))


def read_summary(folder: Path) -> Any:
    """What the `summary.json` of a run holds; None where there is none that can be read."""
    try:
        return json.loads(read_plain(folder / SUMMARY))
    except (OSError, ValueError):
        return None


def reached_end(summary: Any) -> bool:
    """Whether this is the summary of a run that reached its end."""
    return isinstance(summary, dict) and not (summary.get("interrupted") or summary.get("broken"))


def remove_run(folder: Path) -> None:
    """Removes a run's own files; anything else in the folder stays."""
    for name in _FILES:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
