"""Which programs a sweep is still to run, by what earlier calls left in its folder."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan import own
from experiments.plan.reading import refuse_other_settings, with_defaults
from experiments.plan.run_options import MAY_CHANGE
from experiments.record.files import read_plain, to_json
from experiments.record.headline import CONTROL, Unit
from experiments.record.run_folder import CHECKPOINTS, CONFIG, METRICS, SUMMARY
from experiments.sweep import grid, worker
from experiments.sweep.grid import Cell

PROGRAMS = "programs"  # the folder of their specs


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


def unit_of(programs: Sequence[Program]) -> Unit:
    """What their progress is counted in."""
    return programs[0].cells[0].kind.headline.unit if programs else CONTROL.unit


def summary_of(folder: Path) -> dict[str, Any]:
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
    unfinished = {name: cell for name, cell in by_name.items() if not summary_of(out / name)}
    found = []
    for spec in sorted((out / PROGRAMS).glob("*.json")):
        names = settings_in(spec)
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
        updates = newest_checkpoint(spec)
        at_end = updates == program.cells[0].plan.config.num_updates
        if at_end or (updates >= 0 and not any(summary_of(out / name) for name in names)):
            found.append(program)
            for name in names:
                unfinished.pop(name, None)
    alone = [cell for cell in unfinished.values() if not _can_go_on(cell, out)]
    for cell in alone:  # in a program with others it would take them along
        del unfinished[cell.name]
    groups = grid.programs(list(unfinished.values()), max_members) + [[cell] for cell in alone]
    return found + [Program(group) for group in groups]


def settings_in(spec: Path) -> dict[str, dict[str, Any]]:
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


def newest_checkpoint(spec: Path) -> int:
    """The number of updates of a program's newest checkpoint; -1 if there is none."""
    folders = (spec.with_suffix("") / CHECKPOINTS).glob("*/")
    return max((int(path.name) for path in folders if path.name.isdecimal()), default=-1)


def remove_program(spec: Path) -> None:
    shutil.rmtree(spec.with_suffix(""), ignore_errors=True)
    spec.unlink()
