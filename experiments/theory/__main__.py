"""The theory bench: `python -m experiments.theory --help`."""

import csv
import dataclasses
import importlib
import io
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.cli import flags, frame
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupted, Interrupts
from experiments.cli.terminal import Terminal
from experiments.theory.options import STUDIES, Options
from experiments.training import compiling

if TYPE_CHECKING:
    from experiments.theory.study import Arrays, Study

PROG = "python -m experiments.theory"
CLAIMS, PAGE, LOG = "claims.json", "index.html", "theory.log"
_SILENCE = 60.0  # seconds
_SIZE = 2**24  # bytes; all that is written is less


def main(args: Sequence[str] | None = None) -> int:
    """Makes the studies and writes the page; returns the exit status."""
    return frame.run(_make, args)


def _make(args: Sequence[str], interrupts: Interrupts) -> int:
    options = flags.read(Options, Options(), args, PROG)
    if not options.studies:
        raise BadInput(f"--studies: expected some of {', '.join(STUDIES)}")
    with flags.report_extra("the page"):
        importlib.import_module("jinja2")  # now rather than minutes later
    from experiments.record.files import require_space
    from experiments.record.run_folder import choose_page_folder, hold, refusing
    from experiments.theory import keeping

    folder = choose_page_folder(options.out, "theory", (CLAIMS, PAGE), options.overwrite)
    compiling.keep_programs(options.compilation_cache)
    with refusing(folder):
        lock = hold(folder)
    with lock:
        with refusing(folder):
            require_space(folder, _SIZE)  # now rather than minutes later
            (folder / LOG).write_text("")
        speaker = _Speaker(folder)
        try:
            studies = _run(options, folder, speaker, interrupts)
        except Interrupted:
            speaker.say(f"stopped; what is done is kept; go on with: {_again(folder)}")
            raise
        with refusing(folder):
            write(folder, studies, options)
            keeping.forget(folder)
        speaker.say(f"{_verdicts(studies)} -> {folder / PAGE}")
    return 0


def _again(folder: Path) -> str:
    """The command that goes on: the same, in this folder."""
    args = list(sys.argv[1:])
    out = [] if flags.peek("--out", args) else ["--out", str(folder)]
    return shlex.join([*PROG.split(), *args, *out])


def _settings(options: Options) -> dict[str, Any]:
    """By which the studies are repeated."""
    return {
        name: value
        for name, value in dataclasses.asdict(options).items()
        if name not in ("out", "overwrite", "compilation_cache")
    }


class _Speaker:
    """Says lines on the terminal and in the log, and shows a bar on a terminal."""

    def __init__(self, folder: Path):
        self._console = Terminal(highlight=False, soft_wrap=True)
        self._folder = folder

    def say(self, line: str) -> None:
        from experiments.record.run_folder import refusing

        self._console.print(line, markup=False)
        with refusing(self._folder), (self._folder / LOG).open("a") as log:
            log.write(line + "\n")

    def bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )


class _Progress:
    """How far a study is: on a bar, or in a line now and then where there is none."""

    def __init__(
        self,
        name: str,
        bar: Progress,
        task: TaskID,
        say: Callable[[str], None],
        check: Callable[[], None],
        remember: "Callable[[str, Callable[[], Arrays]], Arrays]",
    ):
        self._name, self._bar, self._task, self._say = name, bar, task, say
        self._check, self.remember = check, remember
        self._started = self._told = time.monotonic()
        self._first: float | None = None  # of this call: what was kept took no time

    def __call__(self, share: float) -> None:
        self._check()
        self._bar.update(self._task, completed=share)
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = share, now
        if not self._bar.disable or not 0 < share < 1 or now - self._told < _SILENCE:
            return
        self._told, done, left = now, share - self._first, ""
        if done > 0:
            minutes = (now - self._started) * (1 - share) / done / 60
            left = f", about {minutes:.0f} min left"
        self._say(f"{self._name}: {share:.0%}{left}")


def _run(
    options: Options, folder: Path, speaker: _Speaker, interrupts: Interrupts
) -> dict[str, "Study"]:
    from experiments.record.run_folder import refusing
    from experiments.theory import keeping

    settings = {k: v for k, v in _settings(options).items() if k != "studies"}
    studies: dict[str, Study] = {}
    chosen = [name for name in STUDIES if name in options.studies]
    for number, name in enumerate(chosen, 1):
        kept = keeping.find(folder, name, settings)
        if kept is not None:
            studies[name] = kept
            speaker.say(f"{name}: {_verdicts({name: kept})}; kept by an earlier call")
            continue
        started = time.monotonic()
        module = importlib.import_module(f"experiments.theory.{name}")
        with speaker.bar() as bar:
            task = bar.add_task(f"{name} ({number} of {len(chosen)})", total=1.0)

            def remember(part: str, compute: "Callable[[], Arrays]", name: str = name) -> "Arrays":
                found = keeping.find_part(folder, name, part, settings)
                if found is not None:
                    return found
                arrays = compute()
                with refusing(folder):
                    keeping.keep_part(folder, name, part, arrays, settings)
                return arrays

            progress = _Progress(name, bar, task, speaker.say, interrupts.check, remember)
            studies[name] = module.run(options, progress)
        interrupts.check()
        with refusing(folder):
            keeping.keep(folder, name, studies[name], settings)
        seconds = time.monotonic() - started
        speaker.say(f"{name}: {_verdicts({name: studies[name]})}; {seconds:.0f} s")
    return studies


def _verdicts(studies: Mapping[str, "Study"]) -> str:
    verdicts = [claim.holds for study in studies.values() for claim in study.claims]
    open_ = verdicts.count(None)
    return f"{verdicts.count(True)} of {len(verdicts)} claims hold" + (
        f", {open_} cannot be told" if open_ else ""
    )


def write(folder: Path, studies: Mapping[str, "Study"], options: Options) -> None:
    """Writes figures, tables, page and, last, the claims; each file is replaced atomically."""
    from experiments.record.files import to_json, write_atomically
    from experiments.record.provenance import provenance
    from experiments.theory import drawing, page

    where = provenance()
    settings = _settings(options)
    files: dict[str, bytes] = {}
    for study in studies.values():
        for figure in study.figures:
            files[f"{figure.name}.png"] = drawing.png(figure)
            files[f"{figure.name}_curves.csv"] = _csv(*drawing.numbers(figure))
        for table in study.tables:
            files[f"{table.name}.csv"] = _csv(table.columns, table.rows)
    files[PAGE] = page.render(studies, where, settings)
    files[CLAIMS] = to_json(
        [
            {"study": name, **dataclasses.asdict(claim)}
            for name, study in studies.items()
            for claim in study.claims
        ],
        indent=2,
    )
    for name, content in files.items():
        write_atomically(folder / name, content)
    # Of an earlier call: the page no longer shows them.
    for study_name in STUDIES:
        for path in folder.glob(f"{study_name}*"):
            if path.suffix in (".png", ".csv") and path.name not in files:
                path.unlink()


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(columns)
    # What is undefined is empty, as None is; infinities are "inf".
    writer.writerows([["" if value != value else value for value in row] for row in rows])
    return content.getvalue().encode()


if __name__ == "__main__":
    compiling.leave(main)
