"""Lets workers look at programs before they run: can they be made, and what do they cost?"""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from experiments.cli.children import environment
from experiments.cli.exits import EXIT_BAD_INPUT
from experiments.cli.flags import BadInput
from experiments.record.screen import Screen, duration
from experiments.sweep import grid, launchers, worker
from experiments.sweep.grid import Cell
from experiments.sweep.planning import Program, unit_of
from experiments.sweep.worker import WorkerOptions


def refuse_unmakeable(programs: Sequence[Program], options: WorkerOptions) -> None:
    """Raises BadInput if a part cannot be made, as an environment with a mistyped parameter."""
    unsure: dict[str, Cell] = {}  # in their order, of equal ones the first
    for cell in (program.cells[0] for program in programs):
        if cell.kind.is_unsure(cell.plan):
            unsure.setdefault(grid.static_settings(cell), cell)
    if not unsure:
        return
    check = ask("--check", list(unsure.values()), options)
    if check.returncode == EXIT_BAD_INPUT:
        raise BadInput(launchers.reason_in(check.stderr).removeprefix("error: "))


def estimate(
    programs: Sequence[Program], out: Path, screen: Screen, options: WorkerOptions
) -> None:
    """Prints the plan, with what a moment of each program cost."""
    from rich.progress import track
    from rich.table import Table

    unit = unit_of(programs)
    table = Table("cells", "seeds", f"{unit.name} a seed", "memory", "time", "program")
    seconds, failed = 0.0, 0
    for program in track(programs, "measuring", console=screen.console, transient=True):
        probe = ask("--probe", program.cells, options)
        row = [str(len(program.cells)), str(program.members), f"{program.steps:,}"]
        try:
            measured = json.loads(probe.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            failed += 1
            table.add_row(*row, "", "fails", f"{program.name}: {launchers.reason_in(probe.stderr)}")
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


def ask(
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
