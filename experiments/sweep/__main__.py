"""Trains many agents on many environments: `python -m experiments.sweep --help`."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from experiments.cli import flags, frame
from experiments.cli.children import environment
from experiments.cli.exits import EXIT_BAD_INPUT, EXIT_BROKEN, EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupted, Interrupts
from experiments.plan import own
from experiments.plan.reading import refuse_other_settings, with_defaults
from experiments.plan.run_options import MAY_CHANGE
from experiments.record.files import read_plain, to_json, write_atomically
from experiments.record.headline import CONTROL, Headline, Unit
from experiments.record.run_folder import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    SUMMARY,
    SWEEP,
    hold,
    refusing,
)
from experiments.record.screen import Screen, duration
from experiments.sweep import grid, launchers, worker
from experiments.sweep.grid import Cell
from experiments.sweep.kinds import KINDS
from experiments.sweep.worker import WorkerOptions
from experiments.training import compiling
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero

if TYPE_CHECKING:
    from experiments.sweep.launchers import Launcher

PROG = "python -m experiments.sweep"
PROGRAMS, LOG = "programs", "sweep.log"
_POLL = 0.2  # seconds
# Option -> choice -> options that are read with it alone.
_GOES_WITH: dict[str, dict[str, tuple[str, ...]]] = {
    "program": {kind.program: kind.axes for kind in KINDS.values()},
    "launcher": {"local": ("jobs",), "ray": ("address", "program_cpus", "program_gpus")},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Train every agent on every environment with every choice of settings.

    Flags of `experiments.run` hold for all cells: --num-seeds 10 --total-steps 100000. Cells that
    differ only in seeds and real numbers are one vmapped program. The same command again continues
    the sweep: finished cells are skipped, and others resume from their last checkpoint. With
    --program align it is every alignment method in every exact world, and flags are those of
    `experiments.align`: --program align --methods rgpo rloo --worlds bandit tree --num-seeds 5.
    """

    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the sweep, in which each cell has its own; None: a new one under sweeps/."""
    program: Literal["run", "align"] = "run"
    """Whose runs the cells are: experiments.run, agents x envs; or experiments.align, methods x
    worlds."""
    agents: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Agents; none: those of the file, or rgpo."""
    envs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Environments; none: those of the file, or CartPole-v1."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Alignment methods, with --program align; none: those of the file, or rgpo."""
    worlds: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Of bandit, tree and tiny, with --program align; none: those of the file, or bandit."""
    file: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML or JSON: agents and envs (methods and worlds), and any setting; a list is a grid
    (sharpness: [1, 2, 4]), {log_uniform: [low, high]}, {uniform: ...} and {choice: [...]} are drawn
    `draws` times."""
    dry_run: bool = False
    """Only print the plan: programs, cells, seeds, and memory and time, for which each program is
    compiled and run for a moment."""
    max_members: Count = 64
    """Largest number of seeds, over all its cells, that one program trains side by side."""
    jobs: Count = 1
    """Programs at a time on this machine, each with an equal share of its cores (on Linux); one
    alone uses all, or the GPU."""
    launcher: Literal["local", "ray"] = "local"
    """Where programs run: on this machine, or on a Ray cluster that shares DIR (extra ray)."""
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Of the Ray cluster; None: that of this machine, or a new one."""
    program_cpus: Count = 1
    """CPUs that Ray reserves for a program, and over which it is spread."""
    program_gpus: CountOrZero = 0
    """GPUs that Ray reserves for a program."""
    trust_code: bool = False
    """Import code that is not of the suite where a run's settings in DIR, or in --init-from, name
    it: a gate, an agent. What you type yourself is imported without."""
    compilation_cache: flags.CacheChoice = None
    """Where compiled programs are kept for the next start; None: in the user's cache folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_paths(self, "out", "compilation_cache")
        for option, choices in _GOES_WITH.items():
            for choice, names in choices.items():
                if choice != getattr(self, option):
                    self._refuse(names, f"expected --{option} {choice} with it")

    def _refuse(self, names: Sequence[str], why: str) -> None:
        for name in names:
            value, default = getattr(self, name), getattr(type(self), name)
            if value != default:
                shown = " ".join(value) if isinstance(value, tuple) else value
                raise ConfigError(name, f"{shown}: {why}")


@dataclasses.dataclass(frozen=True)
class Program:
    """Cells that are trained side by side.

    Attributes:
      cells: at least one.
      goes_on: from the checkpoint of an earlier call, if that made one.
    """

    cells: list[Cell]
    goes_on: bool = False

    @property
    def name(self) -> str:
        """The same for the same cells: a sweep that goes on finds its checkpoints by it."""
        names = "\n".join(cell.name for cell in self.cells)
        digest = hashlib.sha256(names.encode()).hexdigest()[:8]
        return f"{self.cells[0].plan.name.replace('/', '-')}-{digest}"

    @property
    def members(self) -> int:
        return sum(cell.plan.options.num_seeds for cell in self.cells)

    @property
    def steps(self) -> int:
        """Of one member, in the unit of the headline."""
        config = self.cells[0].plan.config
        return config.num_updates * config.batch_size

    def describe(self) -> str:
        """In a few words, for people."""
        cells = "1 cell" if len(self.cells) == 1 else f"{len(self.cells)} cells"
        return f"{self.cells[0].plan.name}: {cells}, {self.members} seeds"


def _summary(folder: Path) -> dict[str, Any]:
    """What a cell came to; empty if it is not there yet."""
    try:
        content = json.loads((folder / SUMMARY).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and not content.get("interrupted") else {}


def _identity(settings: dict[str, Any]) -> str:
    """By what settings two cells are the same."""
    content = {name: value for name, value in settings.items() if name not in MAY_CHANGE}
    return json.dumps(json.loads(to_json(content)), sort_keys=True)


def keep_names(cells: Sequence[Cell], out: Path) -> list[Cell]:
    """The cells, where an earlier call made one under another name by that name.

    Names tell the settings in which a sweep's cells differ, and a sweep that grows has more.
    """
    kind = cells[0].kind
    configs = {
        tuple(str(getattr(cell.plan.options, name)) for name in kind.choosing): type(
            cell.plan.config
        )
        for cell in cells
    }
    there = {}
    for path in sorted(out.glob(f"*/{CONFIG}")):
        with contextlib.suppress(BadInput):
            settings = flags.settings_from_file(str(path), read_plain)
            config = configs.get(tuple(str(settings.get(name)) for name in kind.choosing))
            if config is not None:
                identity = _identity(with_defaults(settings, kind.options, config))
                there[identity] = path.parent.name
    found = []
    for cell in cells:
        settings = flags.as_settings(cell.plan.options, cell.plan.config)
        found.append(dataclasses.replace(cell, name=there.get(_identity(settings), cell.name)))
    return found


def plan_programs(
    cells: Sequence[Cell], out: Path, max_members: int, trust_code: bool = False
) -> list[Program]:
    """The programs that are still to be run.

    A program that was cut off after a checkpoint keeps its cells, whatever else the sweep has now
    or no longer has: its checkpoint is of them all together. That holds even if it was cut off at
    its very end, when some of its cells were finished. If the folder of one of them is gone, all
    start again.
    """
    by_name = {cell.name: cell for cell in cells}
    unfinished = {name: cell for name, cell in by_name.items() if not _summary(out / name)}
    found = []
    for spec in sorted((out / PROGRAMS).glob("*.json")):
        names = _settings_in(spec)
        ours = [unfinished[name] for name in names if name in unfinished]
        if not ours or not all(_has_metrics(out / name) for name in names):
            continue
        kind = ours[0].kind
        if not trust_code:
            named = [x for cell in cells for x in cell.plan.settings().values()]
            trusted = [x for x in named if isinstance(x, str)]
            for name, settings in names.items():
                where = f"--out {out}: {name}"
                own.refuse_found(settings, where, trusted=trusted, can_be_typed=False)
        dropped = [
            Cell(name, {}, kind.read_plan([], given=with_defaults(settings, kind.config)), kind)
            for name, settings in names.items()
            if name not in by_name
        ]
        known = by_name | {cell.name: cell for cell in dropped}
        program = Program([known[name] for name in names], goes_on=True)
        updates = _newest_checkpoint(spec)
        at_end = updates == program.cells[0].plan.config.num_updates
        if at_end or (updates >= 0 and not any(_summary(out / name) for name in names)):
            found.append(program)
            for name in names:
                unfinished.pop(name, None)
    alone = [cell for cell in unfinished.values() if not _can_go_on(cell, out)]
    for cell in alone:  # in a program with others it would take them along
        del unfinished[cell.name]
    groups = grid.programs(list(unfinished.values()), max_members) + [[cell] for cell in alone]
    return found + [Program(group) for group in groups]


def _settings_in(spec: Path) -> dict[str, dict[str, Any]]:
    """Name -> settings of an earlier call's program; empty if its spec cannot be read."""
    try:
        return worker.read_spec(spec)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def refuse_changed_cells(cells: Sequence[Cell], out: Path) -> None:
    """Raises BadInput if a cell's folder holds a run that was begun with other settings."""
    for cell in cells:
        folder = out / cell.name
        try:
            stored = flags.settings_from_file(str(folder / CONFIG), read_plain)
        except BadInput:  # there is none; or it is damaged, and the cell fails without the others
            continue
        refuse_other_settings(stored, cell.plan.options, cell.plan.config, folder)


def _can_go_on(cell: Cell, out: Path) -> bool:
    """Whether a cell's folder is empty, or holds a run with the cell's settings."""
    settings = json.loads(to_json(flags.as_settings(cell.plan.options, cell.plan.config)))
    try:
        cell.kind.read_plan(["--out", str(out / cell.name), "--resume"], given=settings)
    except BadInput:
        return False
    return True


def _has_metrics(folder: Path) -> bool:
    """Whether a cell has what it logged before its program's first checkpoint."""
    try:
        return (folder / METRICS).stat().st_size > 0
    except OSError:
        return False


def _newest_checkpoint(spec: Path) -> int:
    """The number of updates of a program's newest checkpoint; -1 if there is none."""
    folders = (spec.with_suffix("") / CHECKPOINTS).glob("*/")
    return max((int(path.name) for path in folders if path.name.isdecimal()), default=-1)


def _ask_worker(
    flag: str, cells: Sequence[Cell], options: WorkerOptions
) -> subprocess.CompletedProcess[str]:
    """Lets a worker look at cells, in a process of its own: the sweep loads no JAX."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "asked.json"
        worker.write_spec(spec, Path(folder), cells, options)
        return subprocess.run(
            launchers.command(spec, flag),
            env=environment(),
            capture_output=True,
            text=True,
        )


def _refuse_unmakeable(programs: Sequence[Program], options: WorkerOptions) -> None:
    """Raises BadInput if a part cannot be made, as an environment with a mistyped parameter."""
    unsure: dict[str, Cell] = {}  # in their order, of equal ones the first
    for cell in (program.cells[0] for program in programs):
        if cell.kind.is_unsure(cell.plan):
            unsure.setdefault(grid.static_settings(cell), cell)
    if not unsure:
        return
    check = _ask_worker("--check", list(unsure.values()), options)
    if check.returncode == EXIT_BAD_INPUT:
        raise BadInput(_why(check.stderr).removeprefix("error: "))


def _estimate(
    programs: Sequence[Program], out: Path, screen: Screen, options: WorkerOptions
) -> None:
    """Prints the plan, with what a moment of each program cost."""
    from rich.progress import track
    from rich.table import Table

    unit = _unit(programs)
    table = Table("cells", "seeds", f"{unit.name} a seed", "memory", "time", "program")
    seconds, failed = 0.0, 0
    for program in track(programs, "measuring", console=screen.console, transient=True):
        probe = _ask_worker("--probe", program.cells, options)
        row = [str(len(program.cells)), str(program.members), f"{program.steps:,}"]
        try:
            measured = json.loads(probe.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            failed += 1
            table.add_row(*row, "", "fails", f"{program.name}: {_why(probe.stderr)}")
            continue
        seconds += measured["seconds"]
        memory = f"{measured['memory_bytes'] / 2**20:,.0f} MiB"
        table.add_row(*row, memory, duration(measured["seconds"]), program.name)
    screen.say(table)
    screen.say(
        f"{len(programs)} programs, about {duration(seconds)} one after another on this machine"
        + (f"; {failed} cannot be run" if failed else "")
        + f"; results would go to {out}"
    )


def _unit(programs: Sequence[Program]) -> Unit:
    """What their progress is counted in."""
    return programs[0].cells[0].kind.headline.unit if programs else CONTROL.unit


def _why(said: str) -> str:
    """The line of a program's output that says why it failed: the last that names an error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(error|[\w.]*(Error|Exception))\b", line)]
    return [*lines, *errors][-1] if lines else ""


def _run(
    programs: Sequence[Program],
    out: Path,
    launcher: "Launcher",
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
        with screen.bar(sum(p.steps * p.members for p in programs), _unit(programs)) as show:
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
        names = planned.intersection(_settings_in(spec))
        if spec.stem in going_on or not names:
            continue
        if _newest_checkpoint(spec) >= 0:
            screen.say(f"starting again: {', '.join(sorted(names))}")
        _remove_program(spec)


def _remove_program(spec: Path) -> None:
    shutil.rmtree(spec.with_suffix(""), ignore_errors=True)
    spec.unlink()


def _progress(spec: Path) -> dict[str, Any]:
    try:
        return json.loads((spec.with_suffix("") / worker.PROGRESS).read_text())
    except (OSError, ValueError):
        return {"env_steps": 0, "rate": 0.0}


def _describe(score: dict[str, Any], digits: int = CONTROL.digits) -> str:
    """A score with its interval; null where an evaluation was not finite."""
    if score["iqm"] is None:
        return "undefined"
    interval = [end for end in score["ci95"] or () if end is not None]
    ends = ", ".join(f"{end:.{digits}f}" for end in interval)
    spread = f" [{ends}]" if len(interval) == 2 else ""
    return f"{score['iqm']:.{digits}f}{spread}"


def _close(
    spec: Path, program: Program, out: Path, status: int, took: str, screen: Screen
) -> set[str]:
    """Says how a program ended, and removes what only it needed; returns its failed cells."""
    folder = spec.with_suffix("")
    log = folder / launchers.LOG
    said = _why(log.read_text(errors="replace")) if log.exists() else ""
    if status < 0:
        said = f"killed by signal {-status}" + ("; perhaps out of memory" if status == -9 else "")
    failed = set()
    for cell in program.cells:
        summary = _summary(out / cell.name)
        if summary and not summary.get("broken"):
            config = json.loads((out / cell.name / CONFIG).read_text())
            headline = Headline.of_run(config)
            score = summary[headline.summary_key(headline.score)]
            screen.say(f"  {cell.name}: {_describe(score, headline.digits)}  ({took})")
        else:
            failed.add(cell.name)
    if failed:
        screen.say(
            f"  failed: {', '.join(sorted(failed))}: {said or f'exit status {status}'}; see {log}"
        )
    if all(_summary(out / cell.name) for cell in program.cells):
        _remove_program(spec)
    return failed


def main(args: Sequence[str] | None = None) -> int:
    """Runs or goes on with a sweep; returns the exit status."""
    return frame.run(_main, args)


def _main(args: Sequence[str], interrupts: Interrupts) -> int:
    options, others = flags.read_some(Options, Options(), args, PROG)
    kind = KINDS[options.program]
    for field in kind.axes:
        if flags.flag(field) in args and not getattr(options, field):
            raise BadInput(f"{flags.flag(field)}: expected at least one name")
    subjects, places = (getattr(options, field) for field in kind.axes)
    if options.file is not None and not options.trust_code:
        grid.refuse_code(options.file, args, kind)
    cells = grid.expand(subjects, places, others, options.file, PROG, kind)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    out = Path(options.out or f"sweeps/{stamp}").expanduser()
    cells = keep_names(cells, out)
    refuse_changed_cells(cells, out)
    worker_options = WorkerOptions(options.compilation_cache, options.trust_code)
    programs = plan_programs(cells, out, options.max_members, options.trust_code)
    if options.launcher == "local":  # a cluster's nodes may have what this machine lacks
        _refuse_unmakeable(programs, worker_options)
    if options.dry_run:
        _estimate(programs, out, Screen(None), worker_options)
        return 0
    launcher = launchers.make(
        options.launcher,
        min(options.jobs, max(1, len(programs))),
        options.address,
        options.program_cpus,
        options.program_gpus,
    )
    with refusing(out):
        held = hold(out)
    again = shlex.join([*PROG.split(), *args])
    if options.out is None:
        again += f" --out {shlex.quote(str(out))}"
    content = {"command": again, "cells": {cell.name: cell.settings for cell in cells}}
    planned = {cell.name for program in programs for cell in program.cells}
    done = sum(cell.name not in planned for cell in cells)
    with held:
        screen = Screen(out / LOG)
        try:
            write_atomically(out / SWEEP, to_json(content, indent=2))
            screen.say(
                f"{len(cells)} cells -> {out}: {len(programs)} programs to run"
                + (f", {done} cells done already" if done else "")
            )
            failed = _run(programs, out, launcher, screen, interrupts, worker_options)
        except Interrupted:
            screen.say(f"stopped; go on with: {again}")
            raise
        except OSError as error:
            print(f"error: {error}; go on with: {again}", file=sys.stderr)
            return EXIT_NOT_KEPT
        broken = {cell.name for cell in cells if _summary(out / cell.name).get("broken")}
        troubled = sorted(broken | failed)
        screen.say(
            f"{sum(cell.name not in troubled for cell in cells)} of {len(cells)} cells finished"
            + (f"; failed: {', '.join(troubled)}" if troubled else "")
            + f"; compare them with: python -m experiments.report {shlex.quote(str(out))}"
        )
        return EXIT_BROKEN if troubled else 0


if __name__ == "__main__":
    compiling.leave(main)
