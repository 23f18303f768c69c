"""Trains many agents on many environments: `python -m experiments.sweep --help`."""

import dataclasses
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_BROKEN, EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupted, Interrupts
from experiments.record.files import to_json, write_atomically
from experiments.record.run_folder import SWEEP, hold, refusing
from experiments.record.screen import Screen
from experiments.sweep import grid, launchers, planning, probing, running
from experiments.sweep.kinds import KINDS
from experiments.sweep.worker import WorkerOptions
from experiments.training import compiling
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero

PROG = "python -m experiments.sweep"
LOG = "sweep.log"
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
    cells = planning.keep_names(cells, out)
    planning.refuse_changed_cells(cells, out)
    worker_options = WorkerOptions(options.compilation_cache, options.trust_code)
    programs = planning.plan_programs(cells, out, options.max_members, options.trust_code)
    if options.launcher == "local":  # a cluster's nodes may have what this machine lacks
        probing.refuse_unmakeable(programs, worker_options)
    if options.dry_run:
        probing.estimate(programs, out, Screen(None), worker_options)
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
            failed = running.run(programs, out, launcher, screen, interrupts, worker_options)
        except Interrupted:
            screen.say(f"stopped; go on with: {again}")
            raise
        except OSError as error:
            print(f"error: {error}; go on with: {again}", file=sys.stderr)
            return EXIT_NOT_KEPT
        broken = {cell.name for cell in cells if planning.summary_of(out / cell.name).get("broken")}
        troubled = sorted(broken | failed)
        screen.say(
            f"{sum(cell.name not in troubled for cell in cells)} of {len(cells)} cells finished"
            + (f"; failed: {', '.join(troubled)}" if troubled else "")
            + f"; compare them with: python -m experiments.report {shlex.quote(str(out))}"
        )
        return EXIT_BROKEN if troubled else 0


if __name__ == "__main__":
    compiling.leave(main)
