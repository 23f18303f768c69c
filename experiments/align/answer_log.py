"""Samples of answers over training: `answers.jsonl` in the run's folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.record.files import read_plain, to_json, write_atomically
from experiments.record.run_folder import ANSWERS


class Answered(NamedTuple):
    """An answer to a held-out prompt.

    Attributes:
      updates: number of updates before it.
      prompt: the text.
      answer: the text.
      reward: its score.
      gold: its score by the reward that is not trained on; None without one.
      ended: whether it has an end token; else it was cut.
    """

    updates: int
    prompt: str
    answer: str
    reward: float
    gold: float | None
    ended: bool


def append(folder: Path, rows: Sequence[Answered]) -> None:
    """Adds answers; those of later updates, which a run that was cut off has left, go."""
    first = min(row.updates for row in rows)
    kept = [row for row in read(folder) if row.updates < first]
    lines = [to_json(row._asdict()).rstrip() for row in (*kept, *rows)]
    write_atomically(folder / ANSWERS, b"\n".join(lines) + b"\n")


def read(folder: Path) -> list[Answered]:
    """All answers, in the order in which they were given; lines that are none are passed over."""
    path = folder / ANSWERS
    if not path.exists():
        return []
    rows = []
    for line in read_plain(path).splitlines():
        try:
            content: Any = json.loads(line)
            rows.append(Answered(**content))
        except (ValueError, TypeError):
            continue
    return rows
