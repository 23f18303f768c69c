"""Many runs as one compressed table, and a manifest that names the command of each.

Folders of runs are ten times as large, and there are hundreds. A table is JSON Lines, one line of
each run: its name, config.json and summary.json as they were, what is read of its metrics.jsonl,
and the checksum of that file as it was. The manifest is plain text.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from experiments.cli.flags import BadInput
from experiments.record.files import read_plain, to_json, write_atomically
from experiments.record.run_folder import METRICS, refusing

TABLE, MANIFEST = "runs.jsonl.gz", "manifest.csv"
_KINDS = {"run": str, "sha256": str, "config": dict, "summary": dict, "metrics": list}

# One line of a table.
Line = dict[str, Any]


def line_of(
    folder: Path,
    name: str,
    config: dict[str, Any],
    summary: dict[str, Any],
    metrics: Sequence[dict[str, Any]],
) -> Line:
    """A run as a line of a table.

    Args:
      folder: of the run.
      name: of the run in the table; other than the folder's where it lies deeper.
      config: content of its `config.json`.
      summary: content of its `summary.json`.
      metrics: what is kept of the lines of its `metrics.jsonl`.
    """
    return {
        "run": name,
        "sha256": hashlib.sha256(read_plain(folder / METRICS)).hexdigest(),
        "config": config,
        "summary": summary,
        "metrics": list(metrics),
    }


def read(file: Path, is_sound: Callable[[Line], bool]) -> list[Line]:
    """The lines of a table; none where there is no such file.

    Args:
      file: the table.
      is_sound: whether a line, whose entries are of the right kinds, is that of a run; what is
        missing or of another kind may raise there.

    Raises:
      BadInput: the file cannot be read, or a line is damaged.
    """
    lines = []
    for number, text in enumerate((_unpacked(file) or b"").splitlines(), 1):
        try:
            line = json.loads(text)
            if not all(isinstance(line[key], kind) for key, kind in _KINDS.items()):
                raise ValueError
            if not is_sound(line):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BadInput(f"{file}: line {number} is damaged") from None
        lines.append(line)
    return lines


def write(
    folder: Path,
    taken: Sequence[Line],
    is_sound: Callable[[Line], bool],
    command: Callable[[Line], str],
) -> None:
    """Takes lines into a folder's table, and writes its manifest anew.

    A line of a name that the table has replaces it; all others stay. A table whose content stays
    the same is not written.

    Args:
      folder: of the table; it need not exist.
      taken: the lines.
      is_sound: as in `read`.
      command: that makes the run of a line.

    Raises:
      BadInput: the table is damaged, or cannot be written.
    """
    lines = {line["run"]: line for line in (*read(folder / TABLE, is_sound), *taken)}
    ordered = [lines[name] for name in sorted(lines, key=parts)]
    table, commands = b"".join(map(to_json, ordered)), manifest(ordered, command)
    with refusing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if _unpacked(folder / TABLE) != table:
            write_atomically(folder / TABLE, _packed(table))
        write_atomically(folder / MANIFEST, commands)


def manifest(lines: Sequence[Line], command: Callable[[Line], str]) -> bytes:
    """Run, checksum of its whole metrics.jsonl, and command, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "sha256", "command"))
    writer.writerows((line["run"], line["sha256"], command(line)) for line in lines)
    return text.getvalue().encode()


def parts(name: str) -> tuple[str, ...]:
    """Of a run's name, which is a path."""
    return PurePosixPath(name).parts


def _unpacked(file: Path) -> bytes | None:
    """None where there is no such file."""
    try:
        return gzip.decompress(file.read_bytes()) if file.exists() else None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BadInput(f"{file}: {getattr(error, 'strerror', None) or error}") from None


def _packed(content: bytes) -> bytes:
    """Without name and time, so that the same content makes the same file."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()
