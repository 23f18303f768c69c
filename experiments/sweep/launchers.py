"""Where a sweep's programs run: worker processes of this machine, or tasks of a Ray cluster."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from experiments.cli.children import environment
from experiments.cli.exits import EXIT_LOST
from experiments.cli.flags import BadInput
from experiments.record.files import append_plain
from rgpo_jax.importing import install_hint

LOG = "worker.log"


def command(spec: Path, *flags: str) -> list[str]:
    """What runs a program; packages of the folder in which it runs do not come before ours."""
    return [sys.executable, "-P", "-m", "experiments.sweep.worker", str(spec), *flags]


def reason_in(said: str) -> str:
    """The line of a program's output that says why it failed: the last that names an error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(error|[\w.]*(Error|Exception))\b", line)]
    return [*lines, *errors][-1] if lines else ""


class Launcher(Protocol):
    """Runs `sweep.worker` on specs; what it says goes to `worker.log` beside the progress."""

    def has_room(self) -> bool:
        """Whether another program can start now."""

    def start(self, spec: Path) -> None:
        """Starts the program of a spec."""

    def ended(self) -> list[tuple[Path, int]]:
        """Specs and exit statuses of the programs that ended since the last call."""

    def stop(self) -> None:
        """Asks all programs to keep what they have and end, and waits until they have."""


def share_cores(jobs: int) -> list[list[int]]:
    """The cores for each of `jobs` programs at a time; an empty list: any core, undivided.

    Undivided, each starts as many threads as there are cores, and they wait for one another.
    Shares are equal, so that a program's layout does not depend on the one that it gets.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    size = len(cores) // jobs if jobs > 1 else 0
    return [cores[i * size : (i + 1) * size] for i in range(jobs)]


class Local:
    """Processes on this machine, `jobs` at a time, each with its share of the cores."""

    def __init__(self, jobs: int):
        self._idle = share_cores(jobs)
        self._running: dict[Path, tuple[subprocess.Popen, list[int]]] = {}

    def has_room(self) -> bool:
        return bool(self._idle)

    def start(self, spec: Path) -> None:
        folder = spec.with_suffix("")
        folder.mkdir(exist_ok=True)
        cores = self._idle[0]
        flags = [f"--parent={os.getpid()}"]
        if cores:
            flags.append(f"--cores={','.join(map(str, cores))}")
        with append_plain(folder / LOG) as log:
            # A group of its own: Ctrl-C reaches the sweep alone, which passes it on.
            process = subprocess.Popen(
                command(spec, *flags),
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._running[spec] = process, self._idle.pop(0)

    def ended(self) -> list[tuple[Path, int]]:
        over = [
            (spec, process.returncode)
            for spec, (process, _) in self._running.items()
            if process.poll() is not None
        ]
        for spec, _ in over:
            self._idle.append(self._running.pop(spec)[1])
        return over

    def stop(self) -> None:
        for process, _ in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process, _ in self._running.values():
            process.wait()


class Ray:
    """Tasks of a Ray cluster whose nodes share the sweep's folder.

    A task whose node dies is started again elsewhere, and goes on from its last checkpoint.
    """

    def __init__(self, address: str | None, cpus: int, gpus: int):
        """Joins the cluster at an address, or that of this machine, or starts one.

        Raises:
          BadInput: Ray is not installed, or there is no cluster at the address.
        """
        try:
            import ray
        except ModuleNotFoundError:
            raise BadInput(f"--launcher ray: not installed: {install_hint('ray')}") from None
        self._ray = ray
        try:
            if not ray.is_initialized():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise BadInput(f"--address {address}: {error}") from None
        task = ray.remote(max_retries=-1, max_calls=1, num_cpus=cpus, num_gpus=gpus)
        self._work: Any = task(_work)
        self._cpus = cpus
        self._running: dict[Any, Path] = {}

    def has_room(self) -> bool:
        return True  # Ray has a queue of its own

    def start(self, spec: Path) -> None:
        folder = spec.with_suffix("")
        folder.mkdir(exist_ok=True)
        reference = self._work.remote(str(spec.absolute()), str(Path.cwd()), self._cpus)
        self._running[reference] = spec

    def ended(self) -> list[tuple[Path, int]]:
        if not self._running:
            return []
        over, _ = self._ray.wait(
            list(self._running), num_returns=len(self._running), timeout=0, fetch_local=False
        )
        return [(self._running.pop(reference), self._status(reference)) for reference in over]

    def _status(self, reference: Any) -> int:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            print(f"error: Ray: {error}", file=sys.stderr)
            return EXIT_LOST

    def stop(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=60)
        self._ray.shutdown()


def _work(spec: str, folder: str, cpus: int) -> int:
    """Runs a worker on a node, from the same folder as the sweep; returns its exit status."""
    env, devices = environment(), "--xla_force_host_platform_device_count"
    if devices not in env.get("XLA_FLAGS", ""):  # the other cores are other programs'
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {devices}={max(1, cpus)}".strip()
    with append_plain(Path(spec).with_suffix("") / LOG) as log:
        process = subprocess.Popen(
            command(Path(spec), f"--parent={os.getpid()}"),
            env=env,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            return process.wait()
        except KeyboardInterrupt:  # the sweep was told to stop
            process.send_signal(signal.SIGTERM)
            return process.wait()


def make(launcher: str, jobs: int, address: str | None, cpus: int, gpus: int) -> Launcher:
    """Builds the launcher of this name; the last three are Ray's, see `Ray`."""
    return Ray(address, cpus, gpus) if launcher == "ray" else Local(jobs)
