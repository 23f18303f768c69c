"""Reads JSON and arrays of folders that may be somebody else's, held to what is expected."""

import json
import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.words import one_line

_LARGEST = 2**24  # bytes of JSON


def is_finite(value: Any) -> bool:
    """Whether a value is a number, and no infinity or NaN."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


class Content:
    """A JSON object of a file, whose entries are asked for by their kinds."""

    def __init__(self, path: Path, content: Any = None):
        self.path = path
        if content is None:
            try:
                content = json.loads(_read_plain(path, _LARGEST))
            except OSError as error:
                raise ValueError(f"{path}: {error.strerror or error}") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: not JSON: {one_line(error)}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object")
        self.content: dict[str, Any] = content

    def of(self, name: str, kind: type) -> Any:
        """An entry of a kind; ValueError if there is none."""
        value = self.content.get(name)
        is_number = kind is float and is_finite(value)
        if not is_number and type(value) is not kind:
            raise ValueError(f"{self.path}: {name}: expected one of the kind {kind.__name__}")
        return float(value) if is_number else value  # type: ignore[arg-type]

    def part(self, name: str) -> "Content":
        """An entry that is an object itself."""
        return Content(self.path, self.of(name, dict))


def _open_plain(path: Path) -> Any:
    """Opens a file for reading that is no link and no pipe: a folder may be somebody else's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is not a plain file")
    return os.fdopen(descriptor, "rb")


def _read_plain(path: Path, most: int) -> bytes:
    with _open_plain(path) as file:
        content: bytes = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most} bytes")
    return content


def read_arrays(
    path: Path, expected: Mapping[str, tuple[tuple[int, ...], Any]]
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which are finite and have these shapes and types.

    Their headers are held to what is expected before anything is allocated, and nothing is
    unpickled.

    Raises:
      ValueError: they are not; one line.
    """
    arrays = {}
    try:
        with _open_plain(path) as file, zipfile.ZipFile(file) as archive:
            found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if different := sorted(found.keys() ^ expected.keys()):
                which = "missing" if different[0] in expected else "not a part of it"
                raise ValueError(f"{different[0]}: {which}")
            for name, (shape, dtype) in expected.items():
                with archive.open(found[name]) as member:
                    if np.lib.format.read_magic(member) != (1, 0):
                        raise ValueError(f"{name}: of another version")
                    header = np.lib.format.read_array_header_1_0(member)
                    if header != (shape, False, np.dtype(dtype)):
                        wanted, there = (
                            f"{x[-1]} {x[0]}" for x in ((shape, np.dtype(dtype)), header)
                        )
                        raise ValueError(f"{name}: expected {wanted}, found {there}")
                    size = math.prod(shape) * np.dtype(dtype).itemsize
                    content = bytearray(member.read(size + 1))
                    if len(content) != size:
                        raise ValueError(f"{name}: not as long as it should be")
                array = np.frombuffer(content, dtype).reshape(shape)
                if not np.isfinite(array).all():
                    raise ValueError(f"{name}: NaN or infinity")
                arrays[name] = array
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (
        *(ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, MemoryError),
        *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError),
    ) as error:
        raise ValueError(f"{path}: damaged: {one_line(error)}") from None
    return arrays
