"""Compiled programs on disk that the next start finds before it traces anything.

JAX's own cache knows a program by what was traced, and of a second start tracing is most. Here
programs are known by the settings that they are made of. They are used only while everything that
can have shaped them is as it was: the settings, versions, devices and options of JAX and XLA, and
every module and data file, by path, size and time of modification, as Python itself tells whether
a compiled module is stale. Where anything differs, or cannot be told, programs are traced as ever.
"""

import contextlib
import hashlib
import json
import os
import pickle
import platform
import re
import stat
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import jax

BYTES = 2**29  # of a folder; what was not used for longest goes first
_FOLDER = "programs"  # beside what JAX keeps
_FORMAT = 1
# Packages whose programs depend on files that are not Python's.
_WITH_DATA = ("brax", "mujoco_playground")
_VARIABLES = ("XLA_", "JAX_", "MJX_", "LIBTPU_", "CUDA_", "NVIDIA_", "ROCM_")
# Options of JAX that say where it keeps and what it tells, and not what it computes.
_IRRELEVANT = ("cache", "log", "traceback", "compiler_detailed")
_CALL = re.compile(r"custom_call @([\w.$]+)")
# What programs may call: what XLA itself knows, and JAX's kernels that are there when it is loaded.
_CALLABLE = (
    *("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "TopK", "ApproxTopK"),
    *("mhlo.", "stablehlo.", "chlo.", "cu_", "cusolver_", "cublas"),
)
_LAPACK = "lapack_"  # there once JAX has lowered a program that needs it
_HIT = "/jax/compilation_cache/cache_hits"

Stamps = dict[str, list[Any]]
"""Module or data file -> path, size and time of modification."""


def find(made_of: Any) -> list[tuple[str, Any]] | None:
    """The programs that were kept of these settings, each with its name, in their order.

    Args:
      made_of: all that they depend on beside code, machine and versions, as JSON holds it.

    Returns:
      None where there are none, or where they may be of other code.
    """
    folder, address = _folder(), _address_of(made_of)
    if folder is None or address is None:
        return None
    path = folder / address
    try:
        if not _is_ours(folder) or not _is_ours(path):
            return None
        with path.open("rb") as file:
            if not _is_current(json.loads(file.readline())):
                return None
            needs_lapack, entries = pickle.load(file)  # name, address, trees
        if needs_lapack:
            jax.jit(jax.lax.linalg.qr).lower(jax.ShapeDtypeStruct((1, 1), "float32"))
        with contextlib.suppress(OSError):
            os.utime(path)
        with ThreadPoolExecutor() as threads:
            programs = [*threads.map(lambda entry: _load(folder, *entry[1:]), entries)]
    except FileNotFoundError:
        return None
    except Exception:  # whatever is wrong with it: it is made anew
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    if any(program is None for program in programs):
        return None
    return [(name, program) for (name, *_), program in zip(entries, programs, strict=True)]


def keep(made_of: Any, programs: Sequence[tuple[str, "Kept"]]) -> bool:
    """Lets `find` find programs by name that were kept; returns whether it could."""
    folder, address, stamps = _folder(), _address_of(made_of), _stamps()
    plain = [(name, kept.address, kept.trees) for name, kept in programs]
    if folder is None or address is None or stamps is None or any(one[1] is None for one in plain):
        return False
    content = any(kept.needs_lapack for _, kept in programs), plain
    return _write(folder / address, json.dumps(stamps).encode() + b"\n" + pickle.dumps(content))


class Kept:
    """One lowered program's machine code, by what it was compiled from.

    Attributes:
      address: of it; None where nothing is kept of it.
      needs_lapack: whether it calls LAPACK.
    """

    def __init__(self, lowered: Any, options: Mapping[str, Any] | None):
        self._folder = _folder()
        self._lowered, self._options = lowered, options
        self.address: str | None = None
        self.needs_lapack = False
        self._is_fresh = False

    @property
    def trees(self) -> tuple[Any, Any]:
        """Structures of its arguments and of its results."""
        return self._lowered.in_tree, self._lowered.out_tree

    def compile(self) -> Any:
        """The compiled program: found, or made."""
        if self._folder is not None:
            text = self._lowered.as_text()
            calls = set(_CALL.findall(text))
            self.needs_lapack = any(call.startswith(_LAPACK) for call in calls)
            if all(call.startswith((_LAPACK, *_CALLABLE)) for call in calls):
                self.address = _digest([text, self._options]) + ".code"
        if self._folder is not None and self.address is not None:
            found = _load(self._folder, self.address, self.trees)
            if found is not None:
                return found
        with _Hits() as hits:
            compiled = self._lowered.compile(self._options)
        # XLA does not give out the machine code of what it has read.
        self._is_fresh = not hits.any
        if hits.any:
            self.address = None
        return compiled

    def keep(self, compiled: Any) -> None:
        """Keeps it, if it was made; where that cannot be, it loses its address."""
        from jax.experimental import serialize_executable

        if self._folder is None or self.address is None or not self._is_fresh:
            return
        try:
            code = serialize_executable.serialize(compiled)[0]
        except Exception:  # such as one that calls Python
            code = None
        if code is None or not _write(
            self._folder / self.address, hashlib.sha256(code).digest() + code
        ):
            self.address = None


class _Hits:
    """Notices whether JAX's own cache had what this thread compiles."""

    _threads: ClassVar[set[int]] = set()
    _listens: ClassVar[bool] = False

    def __enter__(self) -> "_Hits":
        if not _Hits._listens:
            _Hits._listens = True
            jax.monitoring.register_event_listener(self._hear)
        self._threads.discard(threading.get_ident())
        return self

    def __exit__(self, *error: object) -> None:
        self.any = threading.get_ident() in self._threads

    @classmethod
    def _hear(cls, event: str, **_: Any) -> None:
        if event == _HIT:
            cls._threads.add(threading.get_ident())


def _load(folder: Path, address: str, trees: tuple[Any, Any]) -> Any:
    """A program of which machine code was kept; None: there is none that is sound."""
    from jax.experimental import serialize_executable

    path = folder / address
    if not path.exists() or not _is_ours(folder) or not _is_ours(path):
        return None
    try:
        content = path.read_bytes()
        size = hashlib.sha256().digest_size
        if hashlib.sha256(content[size:]).digest() != content[:size]:
            raise ValueError("damaged")
        program = serialize_executable.deserialize_and_load(content[size:], *trees)
        os.utime(path)
        return program
    except Exception:  # whatever is wrong with it: it is made anew
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def _write(path: Path, content: bytes) -> bool:
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        part.replace(path)
        _bound(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        return False
    return True


def _folder() -> Path | None:
    """Where programs are kept; None: nowhere."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    is_off = not jax.config.values["jax_enable_compilation_cache"]
    if folder is None or is_off or "://" in str(folder) or jax.process_count() > 1:
        return None
    return Path(folder) / _FOLDER


def _address_of(made_of: Any) -> str | None:
    """Of programs that are made of these settings; None: they cannot be known by them."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is None:  # a notebook or a prompt, whose code has no file
        return None
    return _digest([made_of, main])


def _digest(content: Any) -> str:
    whole = json.dumps([content, _FORMAT, _surroundings()], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def _surroundings() -> dict[str, Any]:
    """Versions, devices and options."""
    devices = jax.devices()
    options = {
        name: repr(getattr(jax.config, name, value))
        for name, value in jax.config.values.items()
        if not any(word in name for word in _IRRELEVANT)
    }
    return {
        "versions": [platform.python_version(), *map(metadata.version, ("jax", "jaxlib"))],
        "devices": [devices[0].client.platform_version, *map(str, devices), devices[0].device_kind],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "machine": platform.machine(),
        "options": options,
        "variables": {k: v for k, v in os.environ.items() if k.startswith(_VARIABLES)},
    }


def _stamp(path: str) -> list[Any]:
    status = os.stat(path)  # noqa: PTH116 -- of a thousand files
    return [path, status.st_size, status.st_mtime_ns]


def _files_of_modules() -> dict[str, str]:
    """Name -> file of all modules that are loaded and have one."""
    loaded = [(name, getattr(module, "__dict__", {})) for name, module in list(sys.modules.items())]
    files = {name: content.get("__file__") for name, content in loaded}
    return {name: file for name, file in files.items() if isinstance(file, str)}


def _data_files() -> list[str]:
    """Files that loaded packages read, and that are not modules."""
    files = []
    for package in _WITH_DATA:
        for folder in getattr(sys.modules.get(package), "__path__", ()):
            for at, folders, names in os.walk(folder):
                folders[:] = [name for name in folders if name != "__pycache__"]
                files += [f"{at}{os.sep}{name}" for name in names if not name.endswith(".py")]
    return sorted(files)


def _stamps() -> Stamps | None:
    """What is loaded; None where a file may be newer than what was loaded of it."""
    try:
        files = {**_files_of_modules(), **{file: file for file in _data_files()}}
        stamps = {name: _stamp(file) for name, file in files.items()}
    except OSError:  # a module in an archive, or one whose file is gone
        return None
    newest = max(time_ns for _, _, time_ns in stamps.values())
    return stamps if newest < _begun() * 1e9 else None


def _is_current(stamps: Stamps) -> bool:
    """Whether all modules and files are as they were, and nothing is loaded that was not then."""
    files = {**_files_of_modules(), **{file: file for file in _data_files()}}
    known = all(name in stamps and stamps[name][0] == file for name, file in files.items())
    return known and all(_stamp(then[0]) == then for then in stamps.values())


_IMPORTED = time.time()


def _begun() -> float:
    """When this process began, or a little before, in seconds since the epoch."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return min(_IMPORTED, time.time() - age - 1)
    except (OSError, ValueError, IndexError, AttributeError):
        return _IMPORTED - 3600  # where the system does not say: an hour is enough


def _is_ours(path: Path) -> bool:
    """Whether nobody else can have written it."""
    status = path.stat()
    return not hasattr(os, "geteuid") or (
        status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def _bound(folder: Path) -> None:
    """Removes what was not used for longest, until the rest is small enough."""
    entries = [(entry.stat(), entry.path) for entry in os.scandir(folder)]
    room = BYTES
    for status, path in sorted(entries, key=lambda entry: -entry[0].st_mtime):
        room -= status.st_size
        if room < 0:
            Path(path).unlink(missing_ok=True)
