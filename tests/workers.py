"""A sweep's workers in this process: each of its own would load JAX and trace anew."""

import contextlib
import io
import subprocess
import tempfile
from pathlib import Path

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
    """What a worker of its own process answers, also where it refuses the cells."""
    said, complained = io.StringIO(), io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(complained),
    ):
        spec = Path(folder) / "asked.json"
        worker.write_spec(spec, Path(folder), cells, options)
        try:
            status = worker.main([str(spec), flag])
        except SystemExit as left:
            status = left.code
    return subprocess.CompletedProcess([], status, said.getvalue(), complained.getvalue())
