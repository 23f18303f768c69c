"""Takes runs of a real model into a table: `python -m experiments.align.collect --help`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from experiments.align import at_equal_kl, plan, show, stored
from experiments.align.stored import Stored
from experiments.cli import flags, frame
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.record import run_table
from experiments.record.run_folder import choose_page_folder
from experiments.record.run_table import MANIFEST, TABLE, Line
from experiments.training import compiling
from rgpo_jax.config import Checked

PROG = "python -m experiments.align.collect"
_COUNTERS = ("answers", "updates", "wall_seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Take runs of a real model into one table, with what show and at_equal_kl read of them."""

    runs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DIR ...")]
    """Folders of finished runs of experiments.align whose answers are texts. They stay as they
    are."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder of the table, runs.jsonl.gz, and of manifest.csv, which has the command of each run
    and the checksum of its whole metrics. Of runs in the table those of the same name are replaced;
    the others stay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_some("runs", self.runs)


def main(args: Sequence[str] | None = None) -> int:
    """Writes table and manifest; returns the exit status."""
    return frame.run(_main, args)


def _main(args: Sequence[str], _: Interrupts) -> int:
    options = flags.read(Options, Options(runs=tyro.MISSING, out=tyro.MISSING), args, PROG)
    lines = [_line(stored.of_folder(Path(name).expanduser())) for name in options.runs]
    names = [line["run"] for line in lines]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"--runs: two folders are called {name}")
    folder = choose_page_folder(options.out, "", (TABLE, MANIFEST), overwrite=True)
    run_table.write(folder, lines, stored.is_sound, _command)
    print(f"{len(lines)} run(s) -> {folder / TABLE}")
    return 0


def _line(run: Stored) -> Line:
    """A run as a line of the table, of whose metrics it has the evaluations."""
    shown = at_equal_kl.read(run)  # or it is refused
    kept = (*_COUNTERS, *show.SHOWN)
    metrics = [{k: x for k, x in line.items() if k in kept} for line in shown.evaluations]
    answers = [answer._asdict() for answer in run.answers]
    line = run_table.line_of(run.where, run.where.absolute().name, run.config, run.summary, metrics)
    return line | {"answers": answers}


def _command(line: Line) -> str:
    try:
        return plan.command(line["config"]["settings"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{line['run']}: its config.json is not that of a run: {error!r}") from None


if __name__ == "__main__":
    compiling.leave(main)
