"""What all tests share: a program is compiled once, for all tests, workers and subprocesses."""

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xla_flags import QUICK_TO_COMPILE

_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
_CACHE_BYTES = 2**30

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
    *("kills", "play"),
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


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs() -> Iterator[None]:
    """A worker holds one module's programs in memory, and not those of sixty."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def programs_are_kept() -> Iterator[None]:
    """Runs of a module that need the same programs trace and compile them once.

    For modules whose tests are of what surrounds training. What a program computes does not depend
    on what ran before: its first states are made anew for each run.
    """
    from experiments.training import building
    from experiments.training.programs import CompiledPrograms

    make, kept = building.make_programs, dict[str, Any]()

    def make_or_find(agent: Any, layout: Any, plans: Any) -> Any:
        members, episodes = building.members_of(plans), building.episodes_of(plans[0], agent)
        made_of = building.programs_made_of(plans[0], agent, layout, members, episodes)
        if made_of is None:
            return make(agent, layout, plans)
        key = json.dumps(made_of)
        if key in kept:
            programs = kept[key].of(members)
            programs._agent = agent  # its Config is kept beside policies
            return programs
        programs = make(agent, layout, plans)
        if isinstance(programs, CompiledPrograms):
            kept[key] = programs
        return programs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "make_programs", make_or_find)
        yield


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
