"""A sweep's workers in this process: each of its own would load JAX and trace anew."""

import contextlib
import io
import subprocess
import tempfile
from pathlib import Path

import pytest

from experiments.sweep import launchers, worker


class WorkersHere:
    """A launcher that runs programs one after the other."""

    def __init__(self, *_):
        self._over = []

    def has_room(self):
        return not self._over

    def start(self, spec):
        folder = spec.with_suffix("")
        folder.mkdir(exist_ok=True)
        with (
            (folder / launchers.LOG).open("a") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            self._over.append((spec, worker.main([str(spec)])))

    def ended(self):
        over, self._over = self._over, []
        return over

    def stop(self):
        pass


def ask_here(flag, cells, options):
    """What a worker of its own process answers."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        spec = Path(folder) / "asked.json"
        worker.write_spec(spec, Path(folder), cells, options)
        status = worker.main([str(spec), flag])
    return subprocess.CompletedProcess([], status, said.getvalue(), "")


def refused_here(flag, cells, options):
    """What a worker of its own process answers to cells that it refuses."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as said:
        spec = Path(folder) / "asked.json"
        worker.write_spec(spec, Path(folder), cells, options)
        with pytest.raises(SystemExit) as left:
            worker.main([str(spec), flag])
    return subprocess.CompletedProcess([], left.value.code, "", said.getvalue())
