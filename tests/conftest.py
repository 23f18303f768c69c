"""What all tests share: a program is compiled once, for all tests, workers and subprocesses."""

import gc
import io
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from xla_flags import QUICK_TO_COMPILE

_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
_CACHE_BYTES = 2**30
_MOST_BYTES = 3 * 2**30  # of a worker between two modules

# For JAX, which is not loaded yet. Tests compile for seconds and run for milliseconds.
for _name, _value in {
    "JAX_COMPILATION_CACHE_DIR": str(_CACHE),
    # With a bound JAX looks at every entry whenever it adds one; see `pytest_configure`.
    "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
    # Small ones too: each module forgets what is in memory.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    "XLA_FLAGS": QUICK_TO_COMPILE,
}.items():
    os.environ.setdefault(_name, _value)


# The longest are begun first: begun last, one of them would keep one worker alone.
_SLOW_FIRST = (
    *("resume", "playground", "benchmark", "brax", "host", "devices", "sweep"),
    *("normalization", "reproduction_committed", "envs", "theory", "agent", "compiling"),
    *("language_policy", "language_decoder", "language_methods", "align_text", "sweep_align"),
    *("docs", "site", "accelerator", "processes", "theory_alignment", "equal_kl", "reward_program"),
    *("own_environments", "own_networks", "report", "report_drawn", "run", "policy", "tune"),
    *("kills", "play", "stored_programs", "train", "stored_align", "examples", "spaces"),
    *("align_pairs", "pair_methods", "evaluate"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Begins with an empty cache where it has grown too large."""
    if hasattr(config, "workerinput") or not _CACHE.is_dir():
        return
    if sum(entry.stat().st_size for entry in os.scandir(_CACHE)) > _CACHE_BYTES:
        shutil.rmtree(_CACHE)


def pytest_collection_finish() -> None:
    """What was imported is no garbage: it is not looked through again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the slowest modules; `--no-loadscope-reorder` keeps the order."""
    first = {f"test_{name}.py": i for i, name in enumerate(_SLOW_FIRST)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))


# What JAX 0.9 and XLA say of programs that are found, where a test expects that nothing is said.
os.environ.setdefault("JAX_LOGGING_LEVEL", "CRITICAL")


def _resident_bytes() -> float:
    """Memory that this process holds; without end where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return math.inf
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs() -> Iterator[None]:
    """A worker keeps what was traced and compiled for modules to come, and not beyond a size."""
    yield
    if "jax" in sys.modules and _resident_bytes() > _MOST_BYTES:
        gc.unfreeze()
        sys.modules["jax"].clear_caches()
    gc.collect()
    gc.freeze()  # what is kept is not looked through again and again


@pytest.fixture(scope="module")
def programs_are_kept() -> Iterator[None]:
    """Runs of a module that need the same programs trace and compile them once.

    For modules whose tests are of what surrounds training. What a program computes does not depend
    on what ran before: its first states are made anew for each run.
    """
    from experiments.plan import own
    from experiments.training.compiling import Compiler

    obtain, kept = Compiler.obtain, dict[str, Any]()
    named = (*own.ON_HOST, "prompts", "pairs")  # of these, names are nothing to a program

    def obtain_or_find(self: Compiler, made_of: Any, lowered: Any) -> Any:
        if made_of is None:
            return obtain(self, made_of, lowered)
        settings = {name: x for name, x in made_of["settings"].items() if name not in named}
        # That there is one adds a metric.
        for name in ("gold", "preference", "pairs"):
            settings[name] = made_of["settings"].get(name) is not None
        key = json.dumps({**made_of, "settings": settings}, sort_keys=True)
        if key not in kept:
            kept[key] = obtain(self, None, lowered)
        else:
            self.compilations.extend(kept[key])
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compiler, "obtain", obtain_or_find)
        yield


@pytest.fixture(scope="module")
def curves_are_drawn_once() -> Iterator[None]:
    """Of a module's learning curves the first is drawn, and its picture is that of the others too.

    For modules with many runs whose tests are of something else. Figures are made for all.
    """
    from experiments.record import curve

    canvas, drawn = curve.FigureCanvasAgg, io.BytesIO()

    def first(figure: Any) -> Any:
        if not drawn.getvalue():
            canvas(figure).print_png(drawn)
        return SimpleNamespace(print_png=lambda buffer: buffer.write(drawn.getvalue()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve, "FigureCanvasAgg", first)
        yield


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where programs are kept beside a cache of JAX's own, as if this were a run; code is older.

    All code, as other tests leave modules behind that they have written. And while tests run,
    another environment may be installed: links to a package's files change the times of its own.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from experiments.training import stored_programs

    for name, file in stored_programs._files().items():
        if name in sys.modules and not os.path.exists(file):  # noqa: PTH110
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(stored_programs, "_begun", lambda: math.inf)
    monkeypatch.setattr(stored_programs, "_program", lambda: "experiments.run")
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    compilation_cache.reset_cache()
    yield tmp_path / "cache" / f"programs-{os.geteuid()}"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run with the flags `TINY` of the test's module, which nothing cut off."""
    from experiments import run

    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run.main([*request.module.TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def float64() -> Iterator[None]:
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture
def terminal_may_hang_up() -> Iterator[None]:
    """SIGHUP is not ignored, as it is where tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
