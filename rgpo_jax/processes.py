"""Several processes that run one program together, joined by `jax.distributed`.

Each runs the same Python on its own devices, and every operation on arrays of them all waits for
all. What one process knows alone (its clock, its files, a signal that it got) must therefore be
agreed on before anything is decided by it. A single process agrees with itself at no cost.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Seconds for which a process that ends waits for the others; one that failed should not wait long.
_SHUTDOWN_TIMEOUT = 60


class ProcessFailed(Exception):
    """Another process failed, and says why."""


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of a run; before JAX is asked for devices. All of them wait here.

    Args:
      coordinator: host:port where the first process listens; None: as the cluster says (Slurm, Open
        MPI, Kubernetes, TPU pods), then the other two are None as well.
      num_processes: of the run.
      process_id: which of them this is, from 0.

    Raises:
      ValueError: there is no cluster that JAX knows.
      RuntimeError: the others did not come.
    """
    # JAX would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
    )


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def fetch(tree: Any) -> Any:
    """Arrays as NumPy arrays, whole in every process, on whichever devices they lie."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def agree(value: Any) -> Any:
    """The first process's value of a number, or of a tree of them, as NumPy scalars."""
    return multihost_utils.broadcast_one_to_all(value) if jax.process_count() > 1 else value


def largest(value: int) -> int:
    """The largest of the processes' values."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """All processes leave it together, and what failed inside in one has failed in all.

    Inside, nothing may wait for other processes.

    Raises:
      ProcessFailed: it failed in another process.
    """
    try:
        yield
    except Exception:
        largest(True)
        raise
    if largest(False):
        raise ProcessFailed("another process failed, and says why")
