"""Programs that are kept on disk, in tests."""

import dataclasses
import os
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.training import stored_programs
from rgpo_jax.config import ConfigError

BEGUN = time.time()


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Where programs are kept beside a cache of JAX's own, as if this were a run; code is older."""
    for name, file in stored_programs._files().items():  # other tests leave such modules behind
        if not os.path.exists(file) or os.stat(file).st_ctime > BEGUN:  # noqa: PTH110, PTH116
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(stored_programs, "_begun", lambda: BEGUN)
    monkeypatch.setattr(stored_programs, "_program", lambda: "experiments.run")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    compilation_cache.reset_cache()
    yield tmp_path / "cache" / f"programs-{os.geteuid()}"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def wait_until_kept():
    """Waits for the threads that write what was compiled."""
    for thread in threading.enumerate():
        if thread.name == "keeping":
            thread.join(60)


def with_other_numbers(config, unread=()):
    """The config with every number changed that programs are to take as an argument.

    Those may stay as they are that it refuses to change because nothing reads them.
    """
    for name, value in config.traced().items():
        for other in (0.5 * value, 0.3, 1.5 * value + 0.1):
            try:
                changed = dataclasses.replace(config, **{name: other})
            except ConfigError:
                continue
            if other != value:
                config = changed
                break
        else:
            assert name in unread, f"no other number was found for {name}"
    return config


def assert_same_programs(ours, theirs):
    """That jaxprs are the same, and what is written into them."""
    assert [str(program) for program in ours] == [str(program) for program in theirs]
    constants = [[x for program in some for x in program.consts] for some in (ours, theirs)]
    assert all(map(np.array_equal, *map(list, (map(np.asarray, some) for some in constants))))
