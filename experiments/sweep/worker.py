"""Trains one program of a sweep: `python -m experiments.sweep.worker SPEC`, started by the sweep.

The spec is a JSON file; beside it, in a folder of its name, are checkpoints and progress.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_BROKEN, EXIT_NOT_KEPT
from experiments.cli.interrupts import Interrupts
from experiments.plan import own
from experiments.plan.reading import with_defaults
from experiments.record import loggers
from experiments.record.files import to_json, write_atomically
from experiments.record.recorder import Recorder
from experiments.record.run_folder import CHECKPOINTS
from experiments.sweep import grid
from experiments.sweep.kinds import KINDS, RUN, Prepared
from experiments.training import compiling
from experiments.training.every import Every

PROGRESS = "progress.json"
_BETWEEN_WRITES = 1.0  # seconds
_PROBED_SECONDS = 2.0
_PATIENCE = 60.0  # seconds: for the worker of a node that is dying


class WorkerOptions(NamedTuple):
    """What a sweep tells all of its workers.

    Attributes:
      compilation_cache: see `compiling.keep_programs`.
      trust_code: whether found settings may name code that is not of the suite.
    """

    compilation_cache: str | None = None
    trust_code: bool = False


def write_spec(
    path: Path, out: Path, cells: Sequence[grid.Cell], options: WorkerOptions = WorkerOptions()
) -> None:
    """Writes what a worker needs to know of the cells of a program.

    Args:
      path: of the spec.
      out: folder of the sweep, which has a folder for each cell.
      cells: that are trained side by side.
      options: of the sweep.
    """
    settings = [
        {
            "folder": str((out / cell.name).absolute()),
            "settings": cell.plan.settings(),
        }
        for cell in cells
    ]
    content = {"cells": settings, **options._asdict()}
    kind = cells[0].kind
    if kind is not RUN:
        content["program"] = kind.program
    write_atomically(path, to_json(content, indent=1))


def read_spec(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> settings of a spec's cells."""
    cells = json.loads(path.read_text())["cells"]
    return {Path(cell["folder"]).name: _settings_of(cell) for cell in cells}


def _settings_of(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Of a cell of a spec, which may be older than the names of settings."""
    return flags.with_new_names(cell["settings"])


def main(args: Sequence[str] | None = None) -> int:
    """Trains the program of a spec; the exit status.

    With --probe it only tells what that would cost; with --check, whether its parts can be made.
    """
    args = sys.argv[1:] if args is None else args
    for flag in args[1:]:
        name, _, value = flag.partition("=")
        if name == "--parent":
            _end_with(int(value))
        if name == "--cores":
            with contextlib.suppress(OSError):  # they may be another's by now
                os.sched_setaffinity(0, set(map(int, value.split(","))))
    return frame.run(_main, args)


def _main(args: Sequence[str], interrupts: Interrupts) -> int:
    path = Path(args[0])
    content = json.loads(path.read_text())
    cells, kind = content["cells"], KINDS[content.get("program", RUN.program)]
    trust = [own.TRUST] if content.get("trust_code") is True else []
    plans = [
        kind.read_plan(
            ["--out", cell["folder"], "--resume", *trust],
            given=with_defaults(_settings_of(cell), kind.config),
        )
        for cell in cells
    ]
    if "--check" in args:
        kind.check(plans)
        return 0
    loggers.require(plans[0].options.loggers)
    kind.use_all_cores(plans[0], sum(len(plan.seeds) for plan in plans))
    compiling.keep_programs(content.get("compilation_cache"))
    prepared = kind.prepare(plans)
    if "--probe" in args:
        print(json.dumps(_probe(prepared)))
        return 0
    return _train(path, prepared, interrupts)


def _end_with(parent: int) -> None:
    """Lets this process be killed when its parent is gone, in whatever way: who takes their place,
    a later call or another node, waits for its folders.
    """
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(f"error: process {parent}, which started this one, is gone")


def _train(path: Path, prepared: Prepared, interrupts: Interrupts) -> int:
    from experiments.training.loop import Broken, Training
    from experiments.training.subject import Cell
    from rgpo_jax.checkpoint import CheckpointError, Checkpoints, UnreadableCheckpoint

    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    begun = Checkpoints(folder / CHECKPOINTS).begun()
    learners = prepared.load_start() if prepared.load_start is not None and not begun else None
    cells = [
        Cell(
            p,
            Recorder(
                Path(str(p.options.out)),
                resume=True,
                terminal=False,
                patience=_PATIENCE,
                log_to=p.options.loggers,
            ),
        )
        for p in prepared.plans
    ]
    written = 0.0

    def show(steps: int, rate: float, status: str) -> None:
        nonlocal written
        if time.monotonic() - written >= _BETWEEN_WRITES:
            content = {"env_steps": steps, "rate": rate, "status": status}
            write_atomically(folder / PROGRESS, to_json(content))
            written = time.monotonic()

    try:
        for cell, remark in zip(cells, prepared.remarks, strict=False):
            cell.recorder.say(remark)
        run = Training(cells, prepared.make_programs, folder / CHECKPOINTS, interrupts, show)
        if learners is not None:
            run.start_from(learners)
        run.resume()
        run.run()
    except Broken as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BROKEN
    except UnreadableCheckpoint as error:
        print(f"error: {error}; remove {folder} to start again", file=sys.stderr)
        return EXIT_NOT_KEPT
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NOT_KEPT
    finally:
        for cell in cells:
            cell.recorder.__exit__(None, None, None)
    return 0


def _probe(prepared: Prepared) -> dict[str, float]:
    """Compiles, trains for a moment, evaluates once; returns seconds and bytes."""
    plan = prepared.plans[0]
    begun = time.perf_counter()
    programs = prepared.make_programs()
    programs.ready()
    states = programs.initial_states
    compile_seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    programs.evaluate(states, 0, whole=True)
    evaluation_seconds = time.perf_counter() - begun
    progress, updates = programs.start(), 1
    while True:
        begun = time.perf_counter()
        states, progress = programs.advance(states, progress, updates)
        progress.broken_at.block_until_ready()
        seconds = time.perf_counter() - begun
        if seconds > _PROBED_SECONDS / 4 or updates >= plan.num_updates:
            break
        updates *= 2
    evaluations = Every.make(plan.eval_every, 10, plan)
    num_evaluations = 1 + sum(map(evaluations.includes, range(1, plan.num_updates + 1)))
    return {
        "compile_seconds": compile_seconds,
        "seconds": compile_seconds
        + seconds / updates * plan.num_updates
        + evaluation_seconds * num_evaluations,
        "memory_bytes": programs.memory_bytes,
    }


if __name__ == "__main__":
    compiling.leave(main)
