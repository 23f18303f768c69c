"""Rendered episodes that lie in run folders, where `python -m experiments.play` writes them."""

import base64
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.cli.children import environment
from experiments.plan import own
from experiments.record.files import read_plain
from experiments.record.run_folder import CHECKPOINTS
from experiments.report.run_files import Run

_LARGEST = 16 * 2**20  # bytes: a page beyond this opens slowly
_KINDS: dict[str, tuple[Literal["image", "video", "page"], str]] = {
    "episode.gif": ("image", "image/gif"),
    "episode.mp4": ("video", "video/mp4"),
    "episode.html": ("page", "text/html"),
}


class Episode(NamedTuple):
    """An episode to be embedded: a data URI, or the text of a page."""

    kind: Literal["image", "video", "page"]
    content: str


def find(run: Run) -> Episode | None:
    """The episode of a run; None where there is none, or one too large to be embedded."""
    for name, (kind, media) in _KINDS.items():
        content = _read(run.folder / name)
        if content is None:
            continue
        if kind == "page":
            return Episode(kind, content.decode(errors="replace"))
        return Episode(kind, f"data:{media};base64,{base64.b64encode(content).decode()}")
    return None


def is_playable(run: Run) -> bool:
    """Whether a run has kept a policy of which an episode can be rendered: one of control."""
    return "env" in run.settings and any((run.folder / CHECKPOINTS).glob("*/checksums.json"))


def command(run: Run) -> list[str]:
    """What renders an episode of a run."""
    return ["python", "-m", "experiments.play", "--run", str(run.folder)]


def render(run: Run, trust_code: bool = False) -> str | None:
    """Renders an episode of a run in a process of its own; returns what went wrong, if it did.

    Args:
      run: with a policy.
      trust_code: whether its settings may name code that is not of the suite.
    """
    play = subprocess.run(
        [sys.executable, "-P", *command(run)[1:], *[own.TRUST] * trust_code],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    return None if play.returncode == 0 else (play.stderr.strip().splitlines() or ["failed"])[-1]


def _read(file: Path) -> bytes | None:
    try:
        return read_plain(file) if 0 < file.stat().st_size <= _LARGEST else None
    except OSError:
        return None
