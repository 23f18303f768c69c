"""Runs a sweep's programs, some at a time, and says how each ended."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.cli.interrupts import Interrupted, Interrupts
from experiments.record.headline import CONTROL, Headline
from experiments.record.run_folder import CONFIG
from experiments.record.screen import Screen, duration
from experiments.sweep import launchers, worker
from experiments.sweep.launchers import Launcher
from experiments.sweep.planning import (
    PROGRAMS,
    Program,
    newest_checkpoint,
    remove_program,
    settings_in,
    summary_of,
    unit_of,
)
from experiments.sweep.worker import WorkerOptions

_POLL = 0.2  # seconds


def run(
    programs: Sequence[Program],
    out: Path,
    launcher: Launcher,
    screen: Screen,
    interrupts: Interrupts,
    options: WorkerOptions,
) -> set[str]:
    """Runs all programs; returns the names of the cells that failed."""
    specs = {}
    (out / PROGRAMS).mkdir(exist_ok=True)
    _forget_superseded(programs, out, screen)
    for program in programs:
        spec = out / PROGRAMS / f"{program.name}.json"
        worker.write_spec(spec, out, program.cells, options)
        specs[spec] = program
    waiting, running = list(specs), dict[Path, float]()
    failed: set[str] = set()
    finished_steps = 0
    try:
        with screen.bar(sum(p.steps * p.members for p in programs), unit_of(programs)) as show:
            while waiting or running:
                while waiting and launcher.has_room():
                    spec = waiting.pop(0)
                    screen.say(
                        f"[{len(specs) - len(waiting)}/{len(specs)}] {specs[spec].describe()}"
                    )
                    launcher.start(spec)
                    running[spec] = time.monotonic()
                for spec, status in launcher.ended():
                    took = duration(time.monotonic() - running.pop(spec))
                    finished_steps += specs[spec].steps * specs[spec].members
                    failed |= _close(spec, specs[spec], out, status, took, screen)
                states = [(_progress(spec), specs[spec].members) for spec in running]
                show(
                    finished_steps + sum(s["env_steps"] * members for s, members in states),
                    sum(s["rate"] for s, _ in states),
                    f"{len(specs) - len(waiting) - len(running)} of {len(specs)} programs done",
                )
                time.sleep(_POLL)
    except BaseException as error:  # such as a folder that can no longer be written
        with interrupts.deferred():
            if isinstance(error, Interrupted):
                screen.say("stopping: what runs is kept first ...")
            launcher.stop()
        raise
    return failed


def _forget_superseded(programs: Sequence[Program], out: Path, screen: Screen) -> None:
    """Removes earlier programs whose cells are in others now: a later call must not go on there."""
    planned = {cell.name for program in programs for cell in program.cells}
    going_on = {program.name for program in programs if program.goes_on}
    for spec in sorted((out / PROGRAMS).glob("*.json")):
        names = planned.intersection(settings_in(spec))
        if spec.stem in going_on or not names:
            continue
        if newest_checkpoint(spec) >= 0:
            screen.say(f"starting again: {', '.join(sorted(names))}")
        remove_program(spec)


def _progress(spec: Path) -> dict[str, Any]:
    try:
        return json.loads((spec.with_suffix("") / worker.PROGRESS).read_text())
    except (OSError, ValueError):
        return {"env_steps": 0, "rate": 0.0}


def _close(
    spec: Path, program: Program, out: Path, status: int, took: str, screen: Screen
) -> set[str]:
    """Says how a program ended, and removes what only it needed; returns its failed cells."""
    folder = spec.with_suffix("")
    log = folder / launchers.LOG
    said = launchers.reason_in(log.read_text(errors="replace")) if log.exists() else ""
    if status < 0:
        said = f"killed by signal {-status}" + ("; perhaps out of memory" if status == -9 else "")
    failed = set()
    for cell in program.cells:
        summary = summary_of(out / cell.name)
        if summary and not summary.get("broken"):
            config = json.loads((out / cell.name / CONFIG).read_text())
            headline = Headline.of_run(config)
            score = summary[headline.summary_key(headline.score)]
            screen.say(f"  {cell.name}: {describe(score, headline.digits)}  ({took})")
        else:
            failed.add(cell.name)
    if failed:
        screen.say(
            f"  failed: {', '.join(sorted(failed))}: {said or f'exit status {status}'}; see {log}"
        )
    if all(summary_of(out / cell.name) for cell in program.cells):
        remove_program(spec)
    return failed


def describe(score: dict[str, Any], digits: int = CONTROL.digits) -> str:
    """A score with its interval; null where an evaluation was not finite."""
    if score["iqm"] is None:
        return "undefined"
    interval = [end for end in score["ci95"] or () if end is not None]
    ends = ", ".join(f"{end:.{digits}f}" for end in interval)
    spread = f" [{ends}]" if len(interval) == 2 else ""
    return f"{score['iqm']:.{digits}f}{spread}"
