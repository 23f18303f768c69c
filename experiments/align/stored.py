"""Stored runs of a real model: their folders, or the lines of a table."""

import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.align import answer_log
from experiments.align.answer_log import Answered
from experiments.cli.flags import BadInput
from experiments.record import run_table
from experiments.record.files import read_plain
from experiments.record.run_folder import CONFIG, METRICS, read_summary
from experiments.record.run_table import TABLE, Line


class Stored(NamedTuple):
    """What the files of a run hold; whether they are those of a run is for its readers to find.

    Attributes:
      where: its folder; of a run in a table, what would be its folder beside the table.
      config: content of `config.json`.
      summary: content of `summary.json`; None where there is none.
      lines: of metrics; in a table those that `experiments.align.collect` keeps.
      answers: all that were logged.
    """

    where: Path
    config: Any
    summary: Any
    lines: list[Any]
    answers: list[Answered]


def find(names: Sequence[str]) -> list[Stored]:
    """Runs that a user named by `--runs`.

    Args:
      names: folders of runs; tables, for all of their runs; or FOLDER/NAME, where a folder has a
        table, for its runs of that name, which may be a pattern.

    Raises:
      BadInput: a name that is none of these, or a file that is damaged.
    """
    found: list[Stored] = []
    for name in names:
        path = Path(name).expanduser()
        table = _table_of(path)
        if table is None:
            found.append(of_folder(path))
        else:
            named = of_table(table)
            found += named if table in (path, path / TABLE) else _named(named, path)
    return found


def _table_of(path: Path) -> Path | None:
    """The table that a path names, or of which it names runs; None: it is to be a run's folder."""
    beside = path.parent / TABLE
    try:
        if path.is_file():
            return path
        if (path / TABLE).is_file() and not (path / CONFIG).exists():
            return path / TABLE
        return beside if beside.is_file() and not path.exists() else None
    except OSError:  # which is told where the folder is read
        return None


def _named(runs: Sequence[Stored], path: Path) -> list[Stored]:
    """Those whose name is the last part of a path, or matches it."""
    name = path.name
    found = [run for run in runs if run.where.name == name]
    found = found or [run for run in runs if fnmatch.fnmatchcase(run.where.name, name)]
    if not found:
        raise BadInput(f"--runs {path}: neither a folder nor a run of the {TABLE} there")
    return found


def of_folder(folder: Path) -> Stored:
    """The run in a folder.

    Raises:
      BadInput: a file that a run has is missing, or damaged.
    """
    try:
        config = json.loads(read_plain(folder / CONFIG))
        # The last line may be being written.
        lines = [json.loads(x) for x in read_plain(folder / METRICS).split(b"\n")[:-1] if x]
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"--runs {folder}: no run of experiments.align: {error!r}") from None
    try:
        answers = answer_log.read(folder)
    except OSError as error:
        raise BadInput(f"--runs {folder}: {error.strerror or error}") from None
    return Stored(folder, config, read_summary(folder), lines, answers)


def of_table(table: Path) -> list[Stored]:
    """The runs of a table that `experiments.align.collect` has written.

    Raises:
      BadInput: the table is damaged.
    """
    return [
        Stored(
            table.parent / line["run"],
            line["config"],
            line["summary"],
            line["metrics"],
            [Answered(**answer) for answer in line["answers"]],
        )
        for line in run_table.read(table, is_sound)
    ]


def is_sound(line: Line) -> bool:
    """Whether a line of a table is of a run with answers; see `run_table.read`."""
    for answer in line["answers"]:
        Answered(**answer)  # or it raises
    return all(isinstance(at, dict) for at in line["metrics"])
