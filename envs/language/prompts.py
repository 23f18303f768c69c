"""Prompts: those of the suite, and a user's own from a file."""

import json
from pathlib import Path

SUBJECTS = (
    *("rain", "a bicycle", "the sea", "winter", "a violin", "bread", "a lighthouse", "mountains"),
    *("a garden", "trains", "a spider", "coffee", "the moon", "a library", "thunder", "a bridge"),
    *("horses", "a clock", "the desert", "soup", "a sailor", "paper", "an island", "bees"),
    *("a market", "snow", "the harbour", "a teacher", "shoes", "a river", "autumn", "a kitchen"),
    *("glass", "a dentist", "owls", "a tunnel", "an orchestra", "traffic", "a lemon", "the forest"),
)
TEMPLATE = "Write one sentence about {}."


def standard() -> list[str]:
    """Forty requests for a sentence, which a small instruct model can answer."""
    return [TEMPLATE.format(subject) for subject in SUBJECTS]


def read(path: str | Path) -> list[str]:
    """The prompts of a file: one a line, or in a `.jsonl` objects with a "prompt".

    Empty lines are passed over.

    Raises:
      ValueError: a line cannot be read, or there are fewer than two prompts; the message has file
        and line.
      OSError: the file cannot be read.
    """
    path = Path(path).expanduser()
    found = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            found.append(line.strip())
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, TypeError, KeyError, RecursionError):
            prompt = None
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f'{path}, line {number}: expected a JSON object with a "prompt"')
        found.append(prompt)
    if len(found) < 2:
        raise ValueError(f"{path}: expected at least 2 prompts, of which some are held out")
    return found
