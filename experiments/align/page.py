"""The page of answers: what the model said before, midway and after training."""

import base64
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.align import answer_log
from experiments.align.answer_log import Answered
from experiments.cli import flags
from experiments.record.files import write_atomically
from experiments.record.run_folder import ANSWERS_PAGE, CURVE, SUMMARY


def milestones(rows: Sequence[Answered]) -> list[int]:
    """Numbers of updates: the first evaluation, the one nearest to the middle, and the last."""
    updates = sorted({row.updates for row in rows})
    middle = min(updates, key=lambda number: abs(number - updates[-1] / 2))
    return sorted({updates[0], middle, updates[-1]})


def render(title: str, description: str, folder: Path) -> str:
    """The page as HTML, with everything in it; of a run that has answers."""
    with flags.report_extra("the page of answers"):
        import jinja2
    rows = answer_log.read(folder)
    shown = milestones(rows)
    names = ["before training", "midway", "after training"]
    if len(shown) < len(names):
        names = [names[0], names[-1]][: len(shown)]
    by_prompt: dict[str, dict[int, Answered]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, {})[row.updates] = row
    means = [
        _mean([answers[number] for answers in by_prompt.values() if number in answers])
        for number in shown
    ]
    rewards = [row.reward for row in rows if row.updates in shown]
    # Those that are sentiments are shown as such; of others nothing is known but these.
    low, high = min(-1.0, *rewards), max(1.0, *rewards)
    curve = folder / CURVE
    picture = base64.b64encode(curve.read_bytes()).decode() if curve.is_file() else None
    source = importlib.resources.files(__package__).joinpath("answers.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(
        title=title,
        description=description,
        columns=list(zip(names, shown, means, strict=True)),
        prompts=[
            (prompt, [answers.get(number) for number in shown])
            for prompt, answers in by_prompt.items()
        ],
        low=low,
        high=high,
        summary=_summary(folder),
        picture=picture,
    )


def _mean(rows: Sequence[Answered]) -> float:
    return sum(row.reward for row in rows) / max(1, len(rows))


def _summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    return content


def write_missing(folder: Path, title: str) -> None:
    """Writes the page of a finished run that has answers, if it is not there."""
    if not (folder / ANSWERS_PAGE).exists() and answer_log.read(folder):
        write(folder, title, "")


def write(folder: Path, title: str, description: str) -> None:
    """Writes `answers.html` into the folder of a run that is finished."""
    write_atomically(folder / ANSWERS_PAGE, render(title, description, folder).encode())
