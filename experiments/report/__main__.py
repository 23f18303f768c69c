"""Compares runs on one page: `python -m experiments.report --help`."""

import dataclasses
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.cli import flags, frame
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.training import compiling
from rgpo_jax.config import Checked
from rgpo_jax.ranges import Positive

if TYPE_CHECKING:
    from experiments.report.page import Report
    from experiments.report.runs import Collection

PROG = "python -m experiments.report"
_WATCH = "10"  # seconds, where --watch does not say
_MOST_EPISODES = 8  # of an agent's variants on one environment: of more, the best alone has one
_QUIET = 60.0  # seconds without news after which finished runs are taken to be all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Compare runs: statistics, one self-contained HTML page, and figures for a paper."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = ()
    """Sweeps, runs, or folders that hold runs up to two levels down."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for index.html and figures/; None: report/ in the first DIR."""
    baseline: Annotated[str | None, tyro.conf.arg(metavar="VARIANT")] = None
    """The variant to improve on, as the report calls it; None: ppo, if it is among them."""
    title: str | None = None
    """Heading of the page; None: the names of the folders."""
    figures: bool = True
    """Also draw the figures as PNG and PDF."""
    episodes: bool = True
    """Render an episode of each variant on each environment that has none yet, by experiments.play;
    it stays in the run's folder. Of more than eight draws of a sweep, the best alone has one."""
    trust_code: bool = False
    """Let episodes import code that is not of the suite where a run's settings name it."""
    watch: Annotated[Positive | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Rewrite the page when files changed, looking every so many seconds (10 where you give no
    number), until all runs are finished and nothing changed for a minute. Figures and episodes
    come last."""


def read_options(args: Sequence[str]) -> Options:
    """Reads the flags.

    Raises:
      BadInput: anything that the user should type otherwise.
    """
    args = list(args)
    for i, arg in enumerate(args):
        if arg == "--watch" and not _is_number(args[i + 1 : i + 2]):
            args[i] = f"--watch={_WATCH}"
    options = flags.read(Options, Options(), args, PROG)
    if not options.paths:
        raise BadInput(f"DIR: expected a folder with runs (see {PROG} --help)")
    return options


def _is_number(values: Sequence[str]) -> bool:
    try:
        return bool([float(value) for value in values])
    except ValueError:
        return False


def build(options: Options, collection: "Collection") -> "Report":
    """The report of what was found.

    Raises:
      BadInput: the baseline is not among the variants.
    """
    from experiments.report.page import Report

    baseline, variants = options.baseline, collection.variants
    if baseline is not None and baseline not in variants:
        raise BadInput(
            f"--baseline {baseline}: no such variant; expected one of {', '.join(variants)}"
        )
    if baseline is None and "ppo" in variants:
        baseline = "ppo"
    names = ", ".join(Path(path).expanduser().resolve().name for path in options.paths)
    return Report(options.title or names, collection, baseline)


def write(report: "Report", folder: Path, refresh: float | None, figures: bool) -> None:
    """Writes the page, and the figures if wanted; each file is replaced atomically.

    Raises:
      BadInput: the folder cannot be written.
    """
    from experiments.record.files import write_atomically
    from experiments.report import page, paper

    content = page.render(report, refresh)
    try:
        write_atomically(folder / "index.html", content)
        if figures:
            (folder / "figures").mkdir(exist_ok=True)
            for name, charts in report.figures().items():
                for suffix, picture in paper.draw(charts).items():
                    write_atomically(folder / "figures" / f"{name}{suffix}", picture)
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be written: {error.strerror}") from None


def main(args: Sequence[str] | None = None) -> int:
    """Writes the report; returns the exit status."""
    return frame.run(_main, args)


def _main(args: Sequence[str], _: Interrupts) -> int:
    options = read_options(args)
    with flags.report_extra("the report"):
        if options.watch is None:
            return _write_once(options)
        return _watch(options, options.watch)


def _write_once(options: Options) -> int:
    collection = _collect(options)
    if not collection.cells:
        raise BadInput(_nothing(options, collection))
    folder = _make_folder(options)
    report = build(options, collection)
    if options.episodes:
        _render_episodes(report, options.trust_code)
    write(report, folder, None, options.figures)
    print(f"{_found(collection)} -> {folder / 'index.html'}", flush=True)
    return 0


def _watch(options: Options, seconds: float) -> int:
    from experiments.report import run_files

    seen, changed = None, time.monotonic()
    report, folder = None, None

    def settle(figures: bool) -> None:
        """A page that nobody writes any more must not load itself for ever."""
        if report is not None and folder is not None:
            write(report, folder, None, figures)

    try:
        while True:
            files = run_files.files(options.paths)
            if files != seen:
                seen, changed = files, time.monotonic()
                collection = _collect(options)
                if collection.cells:
                    folder = folder or _make_folder(options)
                    report = build(options, collection)
                    write(report, folder, seconds, figures=False)
                    state = f"{_found(collection)} -> {folder / 'index.html'}"
                else:
                    state = f"waiting for the first metrics in {', '.join(options.paths)}"
                print(f"{time.strftime('%H:%M:%S')}  {state}", flush=True)
            is_done = report is not None and not report.collection.is_growing
            if is_done and time.monotonic() - changed > _QUIET:
                break
            time.sleep(seconds)
    except KeyboardInterrupt:
        settle(figures=False)
        raise
    if options.episodes and report is not None:
        _render_episodes(report, options.trust_code)
    settle(options.figures)
    return 0


def _render_episodes(report: "Report", trust_code: bool) -> None:
    """Renders what has a policy and no episode; what fails is said, and left out of the page."""
    from experiments.report import episodes

    wanted = {}
    worse = [
        draw.cell
        for sweep in report.sweeps
        if len(sweep.draws) > _MOST_EPISODES
        for draw in sweep.draws
        if draw.rank != 1
    ]
    for (env, variant), cell in report.collection.cells.items():
        if any(cell is other for other in worse):
            continue
        playable = next(filter(episodes.is_playable, cell.runs), None)
        if playable is not None and not any(map(episodes.find, cell.runs)):
            wanted[f"{variant} on {env}"] = playable
            print(f"an episode of {variant} on {env} ...", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each is a process of its own
        problems = pool.map(lambda run: episodes.render(run, trust_code), wanted.values())
        for (title, run), problem in zip(wanted.items(), problems, strict=True):
            if problem is not None and episodes.find(run) is None:  # another report may be faster
                print(f"no episode of {title}: {problem}", flush=True)


def _collect(options: Options) -> "Collection":
    from experiments.report import runs

    return runs.collect(options.paths)


def _nothing(options: Options, collection: "Collection") -> str:
    where = ", ".join(options.paths)
    if collection.waiting:
        return f"{where}: no run has metrics yet; --watch waits for them"
    if collection.notes:
        return f"{where}: no runs; {collection.notes[0].rstrip('.')}"
    return f"{where}: no runs; expected folders that experiments.run wrote, up to two levels down"


def _found(collection: "Collection") -> str:
    parts = {
        "run": len(collection.runs),
        "variant": len(collection.variants),
        "environment": len(collection.envs),
    }
    return ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for what, n in parts.items())


def _make_folder(options: Options) -> Path:
    folder = Path(options.paths[0] if options.out is None else options.out).expanduser()
    folder = folder / "report" if options.out is None else folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"--out {folder}: cannot be written: {reason}") from None
    return folder


if __name__ == "__main__":
    compiling.leave(main)
