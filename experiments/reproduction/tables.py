"""The runs of a family as one compressed table, with those metrics that the page reads.

Folders of runs are ten times as large, and there are hundreds. The table is JSON Lines, one line of
each run: its name, config.json and summary.json as they were, what is read of its metrics.jsonl,
and the checksum of that file as it was. A manifest in plain text names the command of each run.
"""

import csv
import gzip
import hashlib
import io
import json
import math
from collections.abc import Container, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from experiments.cli.flags import BadInput
from experiments.record.files import to_json, write_atomically
from experiments.record.run_folder import CONFIG, METRICS, refusing
from experiments.report import runs, scores
from experiments.report.runs import COUNTERS, Collection, Files, NotARun, Run

TABLE, MANIFEST = "runs.jsonl.gz", "manifest.csv"
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

# One line of a table.
Line = dict[str, Any]


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
    return runs.gather([found[name] for name in sorted(found, key=_parts)], in_folders.waiting)


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
    taken = {}
    for config in raw.rglob(CONFIG):
        name = config.parent.relative_to(raw).as_posix()
        if (line := _take(config.parent, name, whole)) is not None:
            taken[name] = line
    lines = {line["run"]: line for line in _lines(family / TABLE)} | taken
    ordered = [lines[name] for name in sorted(lines, key=_parts)]
    table = b"".join(map(to_json, ordered))
    with refusing(family):
        family.mkdir(parents=True, exist_ok=True)
        if _unpacked(family / TABLE) != table:
            write_atomically(family / TABLE, _packed(table))
        write_atomically(family / MANIFEST, _manifest(family.name, ordered))
    return len(taken)


def command(family: str, name: str, settings: dict[str, Any]) -> str:
    """The sweep that a run is part of, with no other runs than those of its task, agent and seeds.

    Args:
      family: of tasks; its sweep files lie in a folder of that name in `results/`.
      name: of the run; it begins with the name of the sweep file.
      settings: of the run.
    """
    first, *others = _parts(name)
    sweep = f"{first}/{others[0]}" if first == "search" else first
    return (
        f"python -m experiments.sweep --file results/{family}/{sweep}.yaml "
        f"--agents {settings['agent']} --envs {settings['env']} "
        f"--seed {settings['seed']} --num-seeds {settings['num_seeds']}"
    )


def _take(folder: Path, name: str, whole: Container[str]) -> Line | None:
    """A run folder as a line of the table; None where it has no metrics yet."""
    try:
        files = runs.read_files(folder)
        run = runs.parse(folder, name, files)
    except NotARun as error:
        raise BadInput(f"{folder}: {error}") from None
    if run is None:
        return None
    return {
        "run": name,
        "sha256": hashlib.sha256((folder / METRICS).read_bytes()).hexdigest(),
        "config": files.config,
        "summary": files.summary,
        "metrics": _whole(files.lines) if _parts(name)[0] in whole else _scores(files.lines, run),
    }


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
    for line in _lines(family / TABLE):
        first, *rest = _parts(line["run"])
        if first != key:
            continue
        folder, name = family / line["run"], "/".join(rest)
        try:
            run = runs.parse(folder, name, Files(line["config"], line["summary"], line["metrics"]))
        except NotARun as error:
            raise BadInput(f"{family / TABLE}: {line['run']}: {error}") from None
        if run is not None:
            found.append(run)
    return found


def _lines(file: Path) -> list[Line]:
    """The lines of a table; none where there is no such file."""
    lines = []
    for number, text in enumerate((_unpacked(file) or b"").splitlines(), 1):
        try:
            line = json.loads(text)
            if not _is_line(line):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BadInput(f"{file}: line {number} is damaged") from None
        lines.append(line)
    return lines


def _is_line(line: Any) -> bool:
    kinds = {"run": str, "sha256": str, "config": dict, "summary": dict, "metrics": list}
    return (
        all(isinstance(line[key], kind) for key, kind in kinds.items())
        and len(_parts(line["run"])) > 1
        and all(math.isfinite(at[counter]) for at in line["metrics"] for counter in COUNTERS)
    )


def _unpacked(file: Path) -> bytes | None:
    """None where there is no such file."""
    try:
        return gzip.decompress(file.read_bytes()) if file.exists() else None
    except (OSError, EOFError, ValueError) as error:
        raise BadInput(f"{file}: {getattr(error, 'strerror', None) or error}") from None


def _packed(content: bytes) -> bytes:
    """Without name and time, so that the same content makes the same file."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def _manifest(family: str, lines: Sequence[Line]) -> bytes:
    """Run, checksum of its whole metrics.jsonl, and command, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "sha256", "command"))
    for line in lines:
        settings = line["config"]["settings"]
        writer.writerow(
            (line["run"], line["sha256"], command(family, line["run"], settings)),
        )
    return text.getvalue().encode()


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts
