"""Compiling programs side by side in threads, and keeping them on disk for the next start."""

import contextlib
import enum
import errno
import functools
import gc
import importlib
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from experiments.cli.exits import EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.training import machine

CACHE_BYTES = 2**30  # of compiled programs; those that were not used for longest go first
_LEAST_SECONDS = 0.05  # of compiling: what is ready sooner is not worth a file
_BETWEEN_LOOKS = 0.2  # seconds
_THREAD = "compiling"
_LEVEL = "xla_backend_optimization_level"


class Runs(enum.IntEnum):
    """How often a start runs a program; the value is XLA's optimisation level of it on a CPU."""

    ONCE = 0
    RARELY = 1
    OFTEN = 2


class Lowered(NamedTuple):
    """A program to be compiled.

    Attributes:
      name: what it is for, in words.
      lowered: as `jax.stages.Lowered`.
      runs: how often it will.
      devices: that it runs on, in their order; none: the first of all.
    """

    name: str
    lowered: Any
    runs: Runs = Runs.OFTEN
    devices: tuple[Any, ...] = ()


class Compilation:
    """One program in the making."""

    def __init__(self, name: str, make: Callable[[], Any]):
        """Begins at once.

        Args:
          name: what it is for, in words.
          make: returns the program.
        """
        self.name = name
        self.seconds: float | None = None  # that it took; None while it takes
        self._program: Any = None
        self._error: BaseException | None = None
        self._begun = time.perf_counter()
        self._made = threading.Event()
        # A daemon: who is told to stop does not wait for XLA.
        threading.Thread(target=self._run, args=(make,), name=_THREAD, daemon=True).start()

    def _run(self, make: Callable[[], Any]) -> None:
        try:
            self._program = make()
        except BaseException as error:  # raised again where the program is needed
            self._error = error
        self.seconds = time.perf_counter() - self._begun
        self._made.set()

    @property
    def is_busy(self) -> bool:
        """Whether it is still compiling."""
        return not self._made.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits for it, at most so long; returns whether it is ready."""
        return self._made.wait(seconds)

    def result(self) -> Any:
        """The compiled program, once it is ready; a signal interrupts the wait.

        Raises whatever compiling raised.
        """
        while not self.wait(_BETWEEN_LOOKS):
            pass
        if self._error is not None:
            raise self._error
        return self._program

    @property
    def seconds_so_far(self) -> float:
        """That it took or takes."""
        return time.perf_counter() - self._begun if self.seconds is None else self.seconds


def _same(program: Any) -> Any:
    return program


class Compiler:
    """Compiles in threads of its own: XLA leaves Python's lock to who traces the next program.

    Attributes:
      compilations: all that were started, in that order.
      was_found: whether programs of an earlier process were.
    """

    def __init__(self) -> None:
        self.compilations: list[Compilation] = []
        self.was_found = False

    def start(self, name: str, lowered: Any, runs: Runs = Runs.OFTEN) -> Compilation:
        """Begins to compile a lowered program."""
        return self._start(name, lambda: lowered.compile(options(runs)))

    def _start(self, name: str, make: Callable[[], Any]) -> Compilation:
        compilation = Compilation(name, make)
        self.compilations.append(compilation)
        return compilation

    def obtain(
        self, made_of: Mapping[str, Any] | None, lowered: Iterable[Lowered]
    ) -> list[Compilation]:
        """Finds programs that an earlier process kept; else compiles them side by side, and keeps
        them.

        Args:
          made_of: what they are known by, see `stored_programs.store_of`; None: nothing is.
          lowered: of all; they are traced as they are asked for, and not at all if they are found.
        """
        import jax

        from experiments.training import stored_programs

        store = None if made_of is None else stored_programs.store_of(made_of)
        if store is None:
            return [self.start(one.name, one.lowered, one.runs) for one in lowered]
        found = store.find()
        if found is not None:
            self.was_found = True
            return [self._start(name, functools.partial(_same, program)) for name, program in found]
        programs, compilations = [], []
        for one in lowered:
            devices = one.devices or jax.devices()[:1]
            kept = stored_programs.Kept(
                store, one.name, one.lowered, options(one.runs), list(devices)
            )
            programs.append(kept)
            compilations.append(self._start(one.name, kept.compile))

        def keep() -> None:
            with contextlib.suppress(BaseException):  # it is raised where they are needed
                for compilation in compilations:
                    compilation.result()
                store.keep(programs)

        # No daemon: who comes to an end waits until they are kept.
        threading.Thread(target=keep, name="keeping").start()
        return compilations

    @property
    def is_busy(self) -> bool:
        """Whether any is still compiling."""
        return any(compilation.is_busy for compilation in self.compilations)

    def load_meanwhile(self, *modules: str) -> None:
        """Imports what will be needed, as long as something is still compiling."""
        for name in modules:
            if self.is_busy:
                importlib.import_module(name)

    def wait(self, show: Callable[[str], None] = lambda line: None) -> None:
        """Waits for all; `show` is told again and again what is compiling, and for how long."""
        for compilation in self.compilations:
            while not compilation.wait(_BETWEEN_LOOKS):
                show(f"compiling: {self.describe()}")

    def describe(self) -> str:
        """All programs, and what each took or takes; of several of a name, the longest."""
        named: dict[str, list[Compilation]] = {}
        for compilation in self.compilations:
            named.setdefault(compilation.name, []).append(compilation)
        words = []
        for name, some in named.items():
            seconds = max(compilation.seconds_so_far for compilation in some)
            is_busy = any(compilation.is_busy for compilation in some)
            number = "" if len(some) == 1 else f"{len(some)} times "
            words.append(
                number + name + (f" {seconds:.0f} s ..." if is_busy else f" {seconds:.1f} s")
            )
        return ", ".join(words)


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Within it no garbage is collected: of what is traced nothing is, and a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def leave(main: Callable[[], int]) -> NoReturn:
    """Runs a program and ends the process with its status, at once even where XLA is compiling.

    Where standard output cannot be written the status is 4, with a line; where its reader has left
    it is that of SIGPIPE, without, as for any other filter.
    """
    if sys.stdout is None:  # closed by who started it
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        status: Any = main()
    except SystemExit as exit_:
        status = exit_.code
    except BaseException as error:
        status = _status_of_output(error)
        if status is None:
            traceback.print_exc()
            status = 1
    try:
        sys.stdout.flush()
    except OSError as error:
        status = _status_of_output(error) or status
    # JAX waits for what it computes before the interpreter ends: who was told to stop does not.
    told = isinstance(status, int) and status > 128 and not _is_distributed()
    if not told and not any(thread.name == _THREAD for thread in threading.enumerate()):
        if _is_alone():
            # Half a second: all there is would be looked through for garbage, several times.
            gc.disable()
            gc.freeze()
        sys.exit(status)
    # Python would end threads that compile within XLA, which aborts the process.
    if isinstance(status, str):  # as `sys.exit` says it
        print(status, file=sys.stderr)
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else bool(status))


def _is_alone() -> bool:
    """Whether nothing but Python, packages and this suite is loaded, nor environments of the host.

    A user's module, and what such environments write, may rely on being collected at the end: a
    file that is open in a global variable is written then.
    """
    paths = sysconfig.get_paths()
    known = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    root = Path(__file__).parents[2]  # where a user's files may lie, too
    known += [str(root / name) for name in ("agents", "envs", "experiments", "rgpo_jax")]
    folders = tuple(folder + os.sep for folder in known)
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    is_on_host = "rgpo_jax.host" in sys.modules
    return not is_on_host and all(file.startswith(folders) for file in files if file)


def _is_distributed() -> bool:
    """Whether JAX has joined other processes, of which it takes leave when the interpreter ends."""
    jax = sys.modules.get("jax")
    return jax is not None and bool(jax.distributed.is_initialized())


def _status_of_output(error: BaseException) -> int | None:
    """The status where an error is that of standard output, which is given up; None: another."""
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    try:
        # Another file's error has no name either: does a line to this one fail?
        os.write(sys.stdout.fileno(), b"\n")
        return None
    except OSError as again:
        error = again
    # What is still buffered goes nowhere, also when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        return 128 + signal.SIGPIPE
    with contextlib.suppress(OSError):
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
    return EXIT_NOT_KEPT


def options(runs: Runs) -> dict[str, Any] | None:
    """XLA's options for a program that runs so often; None: its own.

    On a CPU the time goes into LLVM. Its lowest level takes 0.6 to 0.8 of the first's time, and the
    program three times as long: initial states of eight seeds 0.1 s in the place of 0.04 (ant),
    whose compiling takes 2.7 in the place of 4.5. Its third level unrolls loops, which takes up to
    twice as long and made none of those measured faster (CartPole, Breakout, Brax's ant). Without
    XLA's newer fusion emitters (jaxlib 0.9 can do without) compiling takes 0.55 to 0.85 times as
    long, and running 0.9 to 1.7 times: they stay. Who has set a level in XLA_FLAGS gets it.
    """
    import jax

    if jax.default_backend() != "cpu" or _LEVEL in os.environ.get("XLA_FLAGS", ""):
        return None
    return {_LEVEL: int(runs)}


def default_cache() -> Path:
    """Where compiled programs are kept unless the user says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "rgpo_jax" / "compiled"


def keep_programs(choice: str | None) -> None:
    """Switches JAX's persistent compilation cache on; after JAX is loaded, before it compiles.

    Args:
      choice: a folder, or "off"; None: what JAX was told by its own variables, else the default
        folder, or none where that cannot be written.

    Raises:
      BadInput: the folder that was named cannot be written.
    """
    import jax

    if choice == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not os.environ.get("JAX_LOGGING_LEVEL"):
        _hold_back_logs()
    if choice is None and jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = (Path(choice).expanduser() if choice is not None else default_cache()) / machine.name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "permission denied")
    except (OSError, ValueError) as error:
        if choice is None:
            return
        reason = getattr(error, "strerror", None) or error
        raise BadInput(
            f"--compilation-cache {choice}: {reason}; expected a folder that can be written, or off"
        ) from None
    for name, value in {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": CACHE_BYTES,
        "jax_persistent_cache_min_compile_time_secs": _LEAST_SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }.items():
        jax.config.update(name, value)


def _hold_back_logs() -> None:
    """Keeps quiet what is said of each program that is found, and means nothing.

    JAX 0.9 warns of all. On some CPUs XLA takes hints for its compiler, such as prefer-no-gather,
    for instructions that the machine lacks. What fails is raised as an exception all the same.
    """
    import jax

    if jax.__version_info__ < (0, 10):
        jax.config.update("jax_logging_level", "ERROR")
    with contextlib.suppress(ImportError, AttributeError):  # not of JAX's public doors
        from jaxlib import utils

        utils.absl_set_min_log_level(3)  # FATAL
