"""Sets runs of a real model side by side: `python -m experiments.align.show --help`."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import tyro

from experiments.align import stored
from experiments.align.answer_log import Answered
from experiments.align.stored import Stored
from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.record import colors
from experiments.record.files import write_atomically
from experiments.training import compiling
from rgpo_jax.config import Checked

PROG = "python -m experiments.align.show"
# Metric -> what a table calls it.
SHOWN = {
    "reward": "reward",
    "gold": "gold",
    "kl_ref": "KL by k1",
    "kl_ref_by_k3": "KL by k3",
    "length": "tokens",
    "ended": "ended",
}
TABLES, FIGURE = "answers.md", "curves.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Tables and a figure of runs of a real model: rewards over updates and KL, and answers."""

    runs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH ...")]
    """Runs of experiments.align whose answers are texts: folders; a table that
    experiments.align.collect has made, for all of its runs; or, of the table in a folder,
    FOLDER/NAME, where NAME may be a pattern in quotes."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder for answers.md and curves.png, which are written anew."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_some("runs", self.runs)


class Shown(NamedTuple):
    """What a run came to.

    Attributes:
      name: of its method, with the folder's where two runs have one method.
      evaluations: lines of metrics that have a reward, each with its number of `updates`.
      answers: a first one to each held-out prompt, at each evaluation.
      settings: of the run, as its `config.json` has them.
    """

    name: str
    evaluations: list[dict[str, Any]]
    answers: list[Answered]
    settings: Mapping[str, Any] = MappingProxyType({})

    def curve(self, metric: str) -> list[float]:
        """The metric at each evaluation; NaN where it has none."""
        values = (line.get(metric) for line in self.evaluations)
        return [float("nan") if not x or x[0] is None else float(x[0]) for x in values]


def read(run: Stored) -> Shown:
    """What a run came to.

    Raises:
      BadInput: it is no run whose answers are texts, or has none yet.
    """
    try:
        name = str(run.config["settings"]["method"])
        evaluations = [line for line in run.lines if "reward" in line]
        shown = Shown(name, evaluations, run.answers, dict(run.config["settings"]))
        for metric in SHOWN:
            shown.curve(metric)
        [int(line["updates"]) for line in evaluations]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise BadInput(f"--runs {run.where}: no run of experiments.align: {error!r}") from None
    if not run.answers or not evaluations:
        raise BadInput(f"--runs {run.where}: no answers; expected a run of a real model")
    return shown


def read_all(runs: Sequence[Stored]) -> list[Shown]:
    """All runs, named apart."""
    shown = [read(run) for run in runs]
    names = [run.name for run in shown]
    return [
        one if names.count(one.name) == 1 else one._replace(name=f"{one.name} ({run.where.name})")
        for one, run in zip(shown, runs, strict=True)
    ]


def table_line(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """A text in a cell of a table, of which nothing is Markdown."""
    text = " ".join(text.split())
    for special in "\\`*_|[]<>#&":
        text = text.replace(special, "\\" + special)
    return text


def _text(answer: Answered | None) -> str:
    """An answer in a cell of a table, with its reward."""
    if answer is None:
        return ""
    return f"{_plain(answer.answer)}{'' if answer.ended else ' …'} ({answer.reward:.2f})"


def tables(runs: Sequence[Shown]) -> str:
    """Rewards and KL at the first evaluation, midway and at the end, then answers, as Markdown.

    A prompt's answers stand below one another, so that many runs can be read.
    """
    names = SHOWN
    lines = [
        table_line(["method", "updates", *names.values()]),
        table_line(["---"] * (2 + len(names))),
    ]
    for run in runs:
        last = len(run.evaluations) - 1
        for i in sorted({0, (last + 1) // 2, last}):
            digits = [1 if name == "length" else 2 for name in names]
            values = [run.curve(name)[i] for name in names]
            cells = ["" if x != x else f"{x:.{n}f}" for x, n in zip(values, digits, strict=True)]
            lines.append(table_line([run.name, str(run.evaluations[i]["updates"]), *cells]))
    lines += ["", table_line(["prompt", "method", "answer (reward)"]), table_line(["---"] * 3)]

    def at(run: Shown, updates: int) -> dict[str, Answered]:
        return {row.prompt: row for row in run.answers if row.updates == updates}

    before = at(runs[0], runs[0].answers[0].updates)
    after = [(run.name, at(run, run.answers[-1].updates)) for run in runs]
    for prompt, answer in before.items():
        lines.append(table_line([_plain(prompt), "(before)", _text(answer)]))
        lines += [table_line(["", name, _text(a.get(prompt))]) for name, a in after]
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[Shown]) -> bytes:
    """Rewards over updates, and the same over KL, as a PNG; dashed: gold."""
    import numpy as np
    from matplotlib.figure import Figure

    from experiments.record.curve import png

    figure = Figure(figsize=(11, 4.2), dpi=100, layout="constrained")
    over_updates, over_kl = figure.subplots(1, 2, sharey=True)
    looks = colors.of_variants([run.name.partition(" ")[0] for run in runs])
    for run, (color, _) in zip(runs, looks, strict=True):
        updates = [line["updates"] for line in run.evaluations]
        kl = np.sqrt(np.maximum(run.curve("kl_ref_by_k3"), 0.0))
        for metric, style in (("reward", "-"), ("gold", "--")):
            look: Any = {"color": color, "linestyle": style, "linewidth": 1.5}
            label = run.name if metric == "reward" else None
            over_updates.plot(updates, run.curve(metric), label=label, **look)
            over_kl.plot(kl, run.curve(metric), marker="o", markersize=3, **look)
    over_updates.set_xlabel("updates")
    over_updates.set_ylabel("reward of answers to held-out prompts")
    over_kl.set_xlabel("square root of KL(pi || ref) by k3, nats an answer")
    for axes in (over_updates, over_kl):
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    over_updates.set_title("solid: what was trained on; dashed: gold", fontsize=9)
    over_updates.legend(frameon=False, fontsize=9)
    return png(figure)


def write(folder: str, files: Mapping[str, bytes], what: str) -> int:
    """Writes files into a folder, says what they are, and returns the exit status."""
    out = Path(folder).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(out / name, content)
    except OSError as error:
        print(f"error: {out}: {error.strerror or error}", file=sys.stderr)
        return EXIT_NOT_KEPT
    print(f"{what} in {out}")
    return 0


def main(args: Sequence[str] | None = None) -> int:
    """Writes both; returns the exit status."""
    return frame.run(_main, args)


def _main(args: Sequence[str], _: Interrupts) -> int:
    options = flags.read(Options, Options(runs=tyro.MISSING, out=tyro.MISSING), args, PROG)
    runs = read_all(stored.find(options.runs))
    files = {TABLES: tables(runs).encode(), FIGURE: draw(runs)}
    return write(options.out, files, f"{len(runs)} run(s) side by side")


if __name__ == "__main__":
    compiling.leave(main)
