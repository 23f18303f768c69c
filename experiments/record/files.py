"""Files that are whole or not there, and JSON that knows no NaN."""

import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

_UNFINISHED = ".unfinished"  # how a file's name ends while it is written
_MARGIN = 2**20  # bytes that stay free on the disk


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, finds the old content or the new, never half."""
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED
    )
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


def remove_unfinished(folder: Path) -> None:
    """Removes what a kill has left of files that were being written; none may be written now."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def read_plain(path: Path) -> bytes:
    """What a file holds that lies in a folder which may be somebody else's.

    Raises:
      OSError: it cannot be read; or it is a link, which may lead to any file of who opens the
        folder, or something that may never end, such as a pipe.
    """
    with os.fdopen(_open_plain(path, os.O_RDONLY), "rb") as file:
        return file.read()


def append_plain(path: Path) -> TextIO:
    """Opens a file to append to, in a folder which may have been somebody else's.

    Raises:
      OSError: it cannot be written, or is none, as in `read_plain`.
    """
    return os.fdopen(_open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a")


def _open_plain(path: Path, flags: int) -> int:
    """A descriptor."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, f"{path.name} is a link, which is not followed") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is not a plain file")
    return descriptor


def is_text(value: Any) -> bool:
    """Whether all strings of a JSON value can be written: JSON knows halves of characters."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


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
