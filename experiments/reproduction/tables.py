"""The runs of a family as one table, with those metrics that the page reads."""

import functools
import math
from collections.abc import Container, Sequence
from pathlib import Path

from experiments.cli.flags import BadInput
from experiments.record import run_table
from experiments.record.run_folder import CONFIG
from experiments.record.run_table import TABLE, Line, parts
from experiments.report import run_files, runs, scores
from experiments.report.run_files import COUNTERS, Files, NotARun, Run
from experiments.report.runs import Collection

_SCORES = (scores.SCORE, scores.SAMPLED)
# What is read of training beside its KL spikes.
_OF_TRAINING = (
    "episode_return",
    "approx_kl",
    "approx_kl_max",
    "effective_sample_size",
    "weight_mean",
    "first_ratio_deviation",
)


def read(family: Path, key: str) -> Collection | None:
    """The runs of a row, a search or a study: those of the table, and those that lie in folders.

    A run that is in both is read from its folder, which is the newer.

    Args:
      family: folder that holds a table, or a folder named `key` with run folders, or both.
      key: first part of the runs' names.

    Returns:
      The runs, named without the key. None where there is neither a line nor a folder.

    Raises:
      BadInput: the folder is empty, or a run or the table is damaged: what is left of it would be
        taken for a result.
    """
    there = (family / key).is_dir()
    found = {run.name: run for run in _read_lines(family, key)}
    in_folders = runs.collect([str(family / key)], strict=True) if there else runs.gather([])
    found |= {run.name: run for run in in_folders.runs}
    if not found and not in_folders.waiting:
        if there:
            raise BadInput(f"{family / key}: expected runs")
        return None
    return runs.gather([found[name] for name in sorted(found, key=parts)], in_folders.waiting)


def write(raw: Path, family: Path, whole: Container[str]) -> int:
    """Takes run folders into a family's table, and writes its manifest anew.

    A run of a name that the table has replaces it; all others stay. Runs without metrics yet are
    left out. A table whose content stays the same is not written.

    Args:
      raw: folder of the family's runs: ROW/RUN, or deeper.
      family: folder of the table.
      whole: first parts of the names of those runs whose training the page shows. Of others, as of
        a search, the last scores are kept.

    Returns:
      How many run folders were taken in.

    Raises:
      BadInput: a run, or the table, is damaged.
    """
    taken = []
    for config in raw.rglob(CONFIG):
        name = config.parent.relative_to(raw).as_posix()
        if (line := _take(config.parent, name, whole)) is not None:
            taken.append(line)
    run_table.write(family, taken, _is_sound, functools.partial(command, family.name))
    return len(taken)


def command(family: str, line: Line) -> str:
    """The sweep that a run is part of, with no other runs than those of its task, agent and seeds.

    Args:
      family: of tasks; its sweep files lie in a folder of that name in `results/`.
      line: of the run, whose name begins with that of the sweep file.
    """
    settings = line["config"]["settings"]
    first, *others = parts(line["run"])
    sweep = f"{first}/{others[0]}" if first == "search" else first
    return (
        f"python -m experiments.sweep --file results/{family}/{sweep}.yaml "
        f"--agents {settings['agent']} --envs {settings['env']} "
        f"--seed {settings['seed']} --num-seeds {settings['num_seeds']}"
    )


def _take(folder: Path, name: str, whole: Container[str]) -> Line | None:
    """A run folder as a line of the table; None where it has no metrics yet."""
    try:
        files = run_files.read_files(folder)
        run = run_files.parse(folder, name, files)
    except NotARun as error:
        raise BadInput(f"{folder}: {error}") from None
    if run is None:
        return None
    lines = _whole(files.lines) if parts(name)[0] in whole else _scores(files.lines, run)
    return run_table.line_of(folder, name, files.config, files.summary, lines)


def _whole(lines: Sequence[Line]) -> list[Line]:
    return [{key: value for key, value in line.items() if _is_read(key)} for line in lines]


def _scores(lines: Sequence[Line], run: Run) -> list[Line]:
    last, undefined = lines[-1], [None] * len(run.seeds)
    counters = {key: last[key] for key in COUNTERS}
    return [counters | {key: last.get(key, undefined) for key in _SCORES}]


def _is_read(key: str) -> bool:
    return key in (*COUNTERS, *_SCORES, *_OF_TRAINING) or key.startswith(scores.SPIKES)


def _read_lines(family: Path, key: str) -> list[Run]:
    """The runs of a table whose names begin with a key, without it."""
    found = []
    for line in run_table.read(family / TABLE, _is_sound):
        first, *rest = parts(line["run"])
        if first != key:
            continue
        folder, name = family / line["run"], "/".join(rest)
        try:
            run = run_files.parse(
                folder, name, Files(line["config"], line["summary"], line["metrics"])
            )
        except NotARun as error:
            raise BadInput(f"{family / TABLE}: {line['run']}: {error}") from None
        if run is not None:
            found.append(run)
    return found


def _is_sound(line: Line) -> bool:
    return len(parts(line["run"])) > 1 and all(
        math.isfinite(at[counter]) for at in line["metrics"] for counter in COUNTERS
    )
