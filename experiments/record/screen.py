"""What a program that makes many runs says: lines on the terminal and in a log, and a bar."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.cli.terminal import Terminal
from experiments.record.files import append_plain
from experiments.record.headline import Unit


class Screen:
    """Says lines on the terminal and in a log, and shows a bar on a terminal."""

    def __init__(self, log: Path | None):
        self.console = Terminal(highlight=False, soft_wrap=True)
        self._log = log

    def say(self, line: Any) -> None:
        """Prints a line, or a table, above the bar, and keeps it."""
        self.console.print(line, markup=False)
        if self._log is not None:
            with append_plain(self._log) as file:
                Terminal(file=file, width=160).print(line, markup=False)

    @contextlib.contextmanager
    def bar(self, total: int, unit: Unit) -> Iterator[Any]:
        """Yields (steps done, rate, what is under way) -> None; steps are those of a unit."""
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TaskProgressColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
        )
        if not self.console.is_terminal:
            yield lambda done, rate, status: None
            return
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("", total=total, rate="", status="")
            yield lambda done, rate, status: progress.update(
                task, completed=done, rate=unit.a_second(rate), status=status
            )


def duration(seconds: float) -> str:
    """In words, such as "12 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
