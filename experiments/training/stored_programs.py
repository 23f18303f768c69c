"""Compiled programs on disk that the next start finds before it traces anything.

JAX's own cache knows a program by what was traced, and of a second start tracing is most. Here
programs are known by the settings that they are made of. They are used only while everything that
can have shaped them is as it was: the settings, versions, devices and options of JAX and XLA, and
every module and model file by path, size and time of modification. Where anything differs, or
cannot be told, programs are traced as ever; those that come out the same are still not compiled.

Machine code that is found is executed, as with any cache of compiled programs. A folder or file is
read only if it belongs to the user, is no link, and can be written by nobody else.
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
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from experiments.record.files import read_plain, write_atomically
from experiments.training import devices as devices_module
from experiments.training import machine

BYTES = 2**29  # of a folder; what was not used for longest goes first
_FORMAT = 1
# Modules of ours that are loaded sooner or later shape no program by that.
_OURS = ("agents", "envs", "experiments", "rgpo_jax")
# Packages whose programs depend on files that are not Python's.
_WITH_DATA = ("brax", "mujoco_playground")
_VARIABLES = (
    *("XLA_", "JAX_", "MJX_", "TF_", "LIBTPU_", "TPU_", "CUDA_", "NVIDIA_", "ROCM_", "HIP_"),
    *("NPROC", "PJRT_NPROC"),
)
# Options of JAX that say where it keeps and what it tells, and not what it computes.
_IRRELEVANT = ("cache", "log", "traceback", "compiler_detailed")
_CALL = re.compile(r"custom_call @([\w.$]+)")
# What programs may call: what XLA itself knows, and JAX's kernels that are there when it is loaded.
_CALLABLE = (
    *("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "TopK", "ApproxTopK"),
    *("mhlo.", "stablehlo.", "chlo.", "cu_", "cusolver_", "cublas"),
)
_LAPACK = "lapack_"  # there once JAX has lowered a program that needs it
_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"

Stamps = dict[str, list[Any]]
"""Module or data file -> path, size and time of modification."""


def store_of(made_of: Any) -> "Store | None":
    """The programs of these settings, with the options of JAX that hold here and now.

    Args:
      made_of: all that they depend on beside code, machine and versions, as JSON holds it.

    Returns:
      None where none are kept: without JAX's cache, for several processes, and in a program that is
      not the suite's own, which may have changed code in a way that no file tells of.
    """
    folder = jax.config.values["jax_compilation_cache_dir"]
    is_off = not jax.config.values["jax_enable_compilation_cache"]
    if folder is None or is_off or "://" in str(folder) or jax.process_count() > 1:
        return None
    program = _program()
    if program is None:
        return None
    owner = os.geteuid() if hasattr(os, "geteuid") else 0
    return Store(Path(folder) / f"programs-{owner}", _surroundings(), [program, made_of])


class Store:
    """Programs that are made of the same settings, in a folder of all."""

    def __init__(self, folder: Path, surroundings: Any, made_of: Any):
        self.folder, self._surroundings = folder, surroundings
        self._manifest = folder / self.address(made_of)

    def address(self, content: Any) -> str:
        whole = json.dumps([content, _FORMAT, self._surroundings], sort_keys=True, default=str)
        return hashlib.sha256(whole.encode()).hexdigest()[:32]

    def find(self) -> list[tuple[str, Any]] | None:
        """The programs, each with its name, in their order.

        None where they are not all there, or may be of other code.
        """
        try:
            stamps, _, content = _read(self._manifest).partition(b"\n")
            if not _is_current(json.loads(stamps)):
                return None
            needs_lapack, programs = pickle.loads(content)
            if needs_lapack:
                jax.jit(jax.lax.linalg.qr).lower(jax.ShapeDtypeStruct((1, 1), "float32"))
            with ThreadPoolExecutor() as threads:
                loaded = [*threads.map(lambda one: self.load(*one[1:]), programs)]
        except Exception:  # whatever is wrong with it: programs are made anew
            return None
        if any(program is None for program in loaded):
            return None
        return [(name, program) for (name, *_), program in zip(programs, loaded, strict=True)]

    def keep(self, programs: Sequence["Kept"]) -> bool:
        """Keeps all that were compiled, for `find`; returns whether it could."""
        try:
            stamps = _stamps()
            if stamps is None or not all(program.keep() for program in programs):
                return False
            needs_lapack = any(program.needs_lapack for program in programs)
            content = pickle.dumps((needs_lapack, [program.entry for program in programs]))
            _write(self._manifest, json.dumps(stamps).encode() + b"\n" + content)
        except Exception:  # no room, or one that cannot be kept
            return False
        finally:
            _bound(self.folder)
        return True

    def load(self, address: str, device_ids: list[int], trees: tuple[Any, Any]) -> Any:
        """A program of which machine code was kept; None: there is none that is sound."""
        from jax.experimental import serialize_executable

        path = self.folder / address
        try:
            whole, size = _read(path), hashlib.sha256().digest_size
            digest, content = whole[:size], whole[size:]
            if hashlib.sha256(content).digest() != digest:
                raise ValueError("damaged")
            by_id = {device.id: device for device in jax.devices()}
            devices = [by_id[i] for i in device_ids]
            code = zlib.decompress(content)
            return serialize_executable.deserialize_and_load(
                code, *trees, execution_devices=devices
            )
        except OSError:
            return None
        except Exception:  # whatever is wrong with it: it is made anew
            with contextlib.suppress(OSError):
                path.unlink()
            return None


class Kept:
    """A program that is compiled unless its machine code is found, by what it was lowered to.

    Attributes:
      needs_lapack: whether it calls LAPACK; once it is compiled.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        lowered: Any,
        options: Mapping[str, Any] | None,
        devices: Sequence[jax.Device],
    ) -> None:
        """Does nothing yet.

        Args:
          store: where it is kept.
          name: what it is for, in words.
          lowered: as `jax.stages.Lowered`.
          options: XLA's.
          devices: that it runs on, in their order.
        """
        self._store, self._name = store, name
        self._lowered, self._options = lowered, options
        self._device_ids = [device.id for device in devices]
        self._address: str | None = None  # None: it cannot be kept
        self._code: bytes | None = None  # None: it was found, or is not made yet
        self.needs_lapack = False

    @property
    def entry(self) -> tuple[str, str | None, list[int], tuple[Any, Any]]:
        """What `Store.find` needs to know of it."""
        trees = self._lowered.in_tree, self._lowered.out_tree
        return self._name, self._address, self._device_ids, trees

    def compile(self) -> Any:
        """The compiled program: found, or made."""
        from jax.experimental import serialize_executable

        text = self._lowered.as_text()
        calls = set(_CALL.findall(text))
        self.needs_lapack = any(call.startswith(_LAPACK) for call in calls)
        if not all(call.startswith((_LAPACK, *_CALLABLE)) for call in calls):
            return self._lowered.compile(self._options)
        content = [text, self._options, self._device_ids]
        self._address = self._store.address(content) + ".code"
        found = self._store.load(self._address, *self.entry[2:])
        if found is not None:
            return found
        # XLA does not give out the machine code of what it has read: JAX's own cache is passed by,
        # with an option that changes nothing but what it takes for the program's name.
        options = {**(self._options or {}), "xla_embed_ir_in_executable": False}
        with _unwritten():
            made = self._lowered.compile(options)
        try:
            # Before anything runs it: on a CPU a program that sorts cannot be written afterwards.
            self._code = serialize_executable.serialize(made)[0]
        except Exception:  # such as one with constants of its own
            self._address = None
        return made

    def keep(self) -> bool:
        """Keeps the machine code, unless it is kept; returns whether it is."""
        if self._address is not None and self._code is not None:
            code = zlib.compress(self._code, 1)
            _write(self._store.folder / self._address, hashlib.sha256(code).digest() + code)
        return self._address is not None


_unwritten_lock = threading.Lock()
_unwritten_by: list[float] = []


@contextlib.contextmanager
def _unwritten() -> Iterator[None]:
    """Inside, which several threads may be, JAX's own cache takes nothing in."""
    with _unwritten_lock:
        _unwritten_by.append(jax.config.values[_LEAST_SECONDS])
        jax.config.update(_LEAST_SECONDS, float("inf"))
    try:
        yield
    finally:
        with _unwritten_lock:
            before = _unwritten_by.pop()
            if not _unwritten_by:
                jax.config.update(_LEAST_SECONDS, before)


def _program() -> str | None:
    """Which of the suite's programs this process runs; None: another one."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name if spec.name.startswith("experiments.") else None
    script = Path(getattr(main, "__file__", None) or "")  # that pip has made
    is_ours = script.stem == "rgpo" and script.parent == Path(sys.executable).parent
    return "rgpo" if is_ours else None


def _surroundings() -> dict[str, Any]:
    """Versions, devices and options."""
    devices = jax.devices()
    options = {
        name: repr(getattr(jax.config, name, value))
        for name, value in jax.config.values.items()
        if not any(word in name for word in _IRRELEVANT)
    }
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_VARIABLES) and "CACHE" not in name and "LOG" not in name
    }
    return {
        "versions": [platform.python_version(), *map(metadata.version, ("jax", "jaxlib"))],
        "devices": [devices[0].client.platform_version, *map(str, devices), devices[0].device_kind],
        "machine": [machine.name(), devices_module.num_cores()],
        "options": options,
        "variables": variables,
    }


def _files() -> dict[str, str]:
    """Name -> file: of modules that are loaded, and of what they read that is no module.

    Those of Python itself are as its version says.
    """
    loaded = [(name, getattr(module, "__dict__", {})) for name, module in list(sys.modules.items())]
    files = {name: content.get("__file__") for name, content in loaded}
    found = {
        name: file
        for name, file in files.items()
        if isinstance(file, str) and name.partition(".")[0] not in sys.stdlib_module_names
    }
    for package in _WITH_DATA:
        for folder in getattr(sys.modules.get(package), "__path__", ()):
            for at, folders, names in os.walk(folder):
                folders[:] = [name for name in folders if name != "__pycache__"]
                data = [f"{at}{os.sep}{name}" for name in names if not name.endswith(".py")]
                found.update(zip(data, data, strict=True))
    return found


def _stamp(path: str, status: os.stat_result) -> list[Any]:
    return [path, status.st_size, status.st_mtime_ns]


def _stamps() -> Stamps | None:
    """Of all files; None where one may be newer than what was loaded of it."""
    try:
        found = {name: (file, os.stat(file)) for name, file in _files().items()}  # noqa: PTH116
    except OSError:  # a module in an archive, or one whose file is gone
        return None
    # A file that is put in another's place keeps the time at which it was written.
    newest = max(max(status.st_mtime_ns, status.st_ctime_ns) for _, status in found.values())
    if newest >= _begun() * 1e9:
        return None
    return {name: _stamp(file, status) for name, (file, status) in found.items()}


def _is_current(stamps: Stamps) -> bool:
    """Whether all files are as they were, and no other package's module is loaded that was not."""
    for name, file in _files().items():
        is_known = name in stamps or name.partition(".")[0] in _OURS
        if not is_known or stamps.get(name, [file])[0] != file:
            return False
    return all(_stamp(then[0], os.stat(then[0])) == then for then in stamps.values())  # noqa: PTH116


_IMPORTED = time.time()


def _begun() -> float:
    """When this process began, or a little before, in seconds since the epoch."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return min(_IMPORTED, time.time() - age - 1)
    except (OSError, ValueError, IndexError, AttributeError):
        return _IMPORTED - 3600  # where the system does not say: an hour is enough


def _check(path: Path) -> None:
    """Raises PermissionError for what somebody else can have written, and for links."""
    status = path.lstat()
    is_theirs = hasattr(os, "geteuid") and (
        status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
    if is_theirs or stat.S_ISLNK(status.st_mode):
        raise PermissionError("not the user's own")


def _read(path: Path) -> bytes:
    """A file that only this user can have written; it is one that was used, from now on."""
    _check(path.parent)
    _check(path)
    content = read_plain(path)
    with contextlib.suppress(OSError):
        os.utime(path)
    return content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, content)


def _bound(folder: Path) -> None:
    """Removes what was not used for longest, until the rest is small enough."""
    entries = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # others may remove it
                entries.append((path.stat().st_mtime, path.stat().st_size, path))
    room: float = BYTES
    for _, size, path in sorted(entries, reverse=True):
        room -= size
        if room < 0:
            with contextlib.suppress(OSError):
                path.unlink()
