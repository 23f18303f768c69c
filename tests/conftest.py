"""What all tests share: a program is compiled once, for all tests, workers and subprocesses."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# For JAX, which is not loaded yet. Tests compile for seconds and run for milliseconds.
for _name, _value in {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**30),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    "XLA_FLAGS": "--xla_backend_optimization_level=1",
}.items():
    os.environ.setdefault(_name, _value)


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs() -> Iterator[None]:
    """A worker holds one module's programs in memory, and not those of sixty."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()
