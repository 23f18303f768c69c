"""Methods at equal KL, over seeds: `python -m experiments.align.at_equal_kl --help`.

A row is a method with its settings, and has a run of each seed. Its reward at a KL is read off its
path where the KL first comes to it, so that the noise of single evaluations is not selected for.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments.align import show
from experiments.align.intervals import LEVEL, Comparison, Interval, compare
from experiments.align.show import Shown
from experiments.cli import flags
from experiments.cli.exits import EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupted, Interrupts
from experiments.record.files import write_atomically
from experiments.training import compiling
from rgpo_jax.config import Checked, ConfigError

PROG = "python -m experiments.align.at_equal_kl"
PAGE, FIGURE = "README.md", "frontier.png"
# What may differ between the runs of a row, or between rows that are compared.
_OF_SEED = ("seed",)
_KL = {"k1": "kl_ref", "k3": "kl_ref_by_k3"}
_LEVELS = (1.0, 3.0, 10.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Rewards of runs of a real model at equal steps and at equal KL, over seeds, with tests."""

    runs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DIR ...")]
    """Folders of finished runs of experiments.align whose answers are texts. Those that differ in
    their seed alone are one row."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder for README.md and frontier.png, which are written anew."""
    row: str = "rgpo"
    """Whose rows are held against the others: a method, or a row's whole name."""
    against: tuple[str, ...] = ("ppo", "grpo")
    """What they are held against: methods or rows."""
    kl: Literal["k1", "k3"] = "k1"
    """By which estimate of an answer's KL to the reference runs are compared. k1 has its mean, and
    may be negative; k3 is never negative, and has rare large values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise ConfigError("runs", "expected at least one folder")


class Row(NamedTuple):
    """Runs of one method with one set of settings.

    Attributes:
      name: of the method, with the settings by which rows of that method differ.
      runs: seed -> its run.
    """

    name: str
    runs: Mapping[int, Shown]

    @property
    def method(self) -> str:
        return self.name.partition(" ")[0]


def rows_of(runs: Sequence[Shown]) -> list[Row]:
    """Sorts runs into rows, and names the rows apart.

    Raises:
      BadInput: two runs differ in nothing.
    """
    groups: dict[tuple, dict[int, Shown]] = {}
    for run in runs:
        own = {name: value for name, value in run.settings.items() if name not in _OF_SEED}
        key = tuple(sorted((name, repr(value)) for name, value in own.items()))
        seeds, seed = groups.setdefault(key, {}), int(run.settings["seed"])
        if seed in seeds:
            raise BadInput(f"--runs: two of {run.settings['method']}, seed {seed}, are one run")
        seeds[seed] = run
    made = [(next(iter(seeds.values())), seeds) for seeds in groups.values()]
    rows = []
    for first, seeds in made:
        alike = [other for other, _ in made if _method(other) == _method(first)]
        names = {name for other in alike for name in other.settings}
        differing = [
            name
            for name in sorted(names - set(_OF_SEED))
            if len({repr(other.settings.get(name)) for other in alike}) > 1
        ]
        parts = [f"{name}={first.settings.get(name)}" for name in differing]
        rows.append(Row(" ".join([_method(first), *parts]), dict(sorted(seeds.items()))))
    return sorted(rows, key=lambda row: row.name)


def _method(run: Shown) -> str:
    return str(run.settings["method"]).replace("-", "_")


def crossing(by: Sequence[float], values: Sequence[float], level: float) -> float:
    """What `values` are where `by` first comes to the level, on a line between points; else NaN."""
    for i, x in enumerate(by):
        if x >= level:
            if i == 0 or x == by[i - 1]:
                return float(values[i])
            share = (level - by[i - 1]) / (x - by[i - 1])
            return float(values[i - 1] + share * (values[i] - values[i - 1]))
    return math.nan


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is read off the runs of rows.

    Attributes:
      kl_metric: by which metric KL is meant.
    """

    kl_metric: str

    def last(self, run: Shown, metric: str) -> float:
        return run.curve(metric)[-1]

    def reward_at(self, run: Shown, kl: float) -> float:
        return crossing(run.curve(self.kl_metric), run.curve("reward"), kl)

    def kl_at(self, run: Shown, reward: float) -> float:
        return crossing(run.curve("reward"), run.curve(self.kl_metric), reward)


class Verdict(NamedTuple):
    """A line of the claim.

    Attributes:
      what: is compared, in words.
      paper: what the paper's abstract says of it, as a share.
      found: the difference of one and the same seed, or of logarithms of KL; None: too few seeds.
      word: held, not held, or cannot be told.
    """

    what: str
    paper: float
    found: Comparison | None
    word: str


def judge(found: Comparison | None, sign: int, paper: float) -> str:
    """Whether a claim held.

    Args:
      found: the comparison; None: there is none.
      sign: of the difference that the claim says.
      paper: how large it is there, in units of the comparison.
    """
    if found is None or math.isnan(found.interval.low):
        return "cannot be told"
    if found.sign == sign:
        return "held"
    nearest = found.interval.high if sign > 0 else found.interval.low
    if found.sign == -sign or sign * nearest < abs(paper):
        return "not held"
    return "cannot be told"


def _shared(row: Row, other: Row) -> list[int]:
    return [seed for seed in row.runs if seed in other.runs]


def _pairs(row: Row, other: Row, read: Any) -> np.ndarray:
    """Of each seed that both have, where both have a number: ours and theirs [n, 2]."""
    both = [(read(row.runs[seed]), read(other.runs[seed])) for seed in _shared(row, other)]
    return np.array([x for x in both if np.all(np.isfinite(x))], float).reshape(-1, 2)


# What the paper's abstract says of RGPO against a method, as shares: reward, and KL.
PAPER: dict[str, dict[str, float]] = {
    "ppo": {"reward": 0.148, "KL": -0.160},
    "grpo": {"KL": -0.531},
}


def verdicts(row: Row, others: Sequence[Row], reading: Reading) -> list[Verdict]:
    """The paper's lines against each of the others, at equal steps and where the other is equal.

    That is where both have come to the same KL, and to the same reward: the lesser of what the two
    rows' means have at the end. All tests of the row are corrected together.
    """
    differences: dict[str, np.ndarray] = {}
    said: list[tuple[str, float, int, float]] = []  # what, paper, sign, size

    def mean_last(of: Row, metric: str) -> float:
        return float(np.mean([reading.last(run, metric) for run in of.runs.values()]))

    def add(what: str, values: np.ndarray, paper: float, size: float) -> None:
        said.append((what, paper, 1 if paper > 0 else -1, size))
        if len(values) > 1:
            differences[what] = values

    for other in others:
        claims = PAPER.get(other.method, {})
        level = min(mean_last(row, reading.kl_metric), mean_last(other, reading.kl_metric))
        goal = min(mean_last(row, "reward"), mean_last(other, "reward"))
        if (gain := claims.get("reward")) is not None:
            size = gain * abs(mean_last(other, "reward"))
            pairs = _pairs(row, other, lambda run: reading.last(run, "reward"))
            add(f"reward, {other.name}, equal steps", pairs @ [1, -1], gain, size)
            pairs = _pairs(row, other, lambda run, at=level: reading.reward_at(run, at))
            what = f"reward, {other.name}, equal KL ({level:.2g} nats)"
            add(what, pairs @ [1, -1], gain, size)
        if (change := claims.get("KL")) is not None:
            size = math.log1p(change)
            pairs = _pairs(row, other, lambda run: reading.last(run, reading.kl_metric))
            add(f"KL, {other.name}, equal steps", _log_ratios(pairs), change, size)
            pairs = _pairs(row, other, lambda run, at=goal: reading.kl_at(run, at))
            what = f"KL, {other.name}, equal reward ({goal:.2g})"
            add(what, _log_ratios(pairs), change, size)
    tests = {test.name: test for test in compare(differences)} if differences else {}
    return [
        Verdict(what, paper, tests.get(what), judge(tests.get(what), sign, size))
        for what, paper, sign, size in said
    ]


def _log_ratios(pairs: np.ndarray) -> np.ndarray:
    """Of those where both are above 0."""
    above = pairs[np.all(pairs > 0, axis=1)]
    return np.asarray(np.log(above[:, 0]) - np.log(above[:, 1]))


# What is written.


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _interval(values: Sequence[float], digits: int = 2) -> str:
    known = np.array([x for x in values if math.isfinite(x)])
    return Interval.of(known).show(digits) if len(known) else "-"


def _of_row(row: Row, read: Any) -> list[float]:
    return [read(run) for run in row.runs.values()]


def tables(rows: Sequence[Row], options: Options) -> str:
    """What rows come to, at equal steps and at equal KL, as Markdown."""
    reading = Reading(_KL[options.kl])
    heads = ["row", "seeds", "answers", "reward", "gold", "KL by k1", "KL by k3"]
    lines = ["At equal steps: the last evaluation.", "", _line(heads), _line(["---"] * len(heads))]
    for row in rows:
        answers = sorted({int(run.evaluations[-1]["answers"]) for run in row.runs.values()})
        cells = [row.name, str(len(row.runs)), " to ".join(f"{n:,}" for n in answers)]
        for metric in ("reward", "gold", *_KL.values()):
            cells.append(_interval(_of_row(row, lambda run, m=metric: reading.last(run, m))))
        lines.append(_line(cells))
    heads = ["row", *(f"reward at {level:g} nats" for level in _LEVELS)]
    lines += [
        "",
        f"At equal KL, by {options.kl}; in brackets, of how many seeds.",
        "",
        _line(heads),
    ]
    lines.append(_line(["---"] * len(heads)))
    for row in rows:
        cells = [row.name]
        for level in _LEVELS:
            values = _of_row(row, lambda run, x=level: reading.reward_at(run, x))
            number = sum(math.isfinite(x) for x in values)
            cells.append(f"{_interval(values)} ({number})" if number else "-")
        lines.append(_line(cells))
    heads = ["row", "compared", "paper", "found", "p", "verdict"]
    lines += ["", "The paper's three lines.", "", _line(heads), _line(["---"] * len(heads))]
    for row in (row for row in rows if options.row in (row.method, row.name)):
        others = [r for r in rows if {r.method, r.name} & {*options.against} and r != row]
        for verdict in verdicts(row, others, reading):
            lines.append(_line([row.name, *_cells(verdict)]))
    lines += [
        "",
        "Means over seeds with 95 % intervals by Student's t. Found: the difference of rewards, or "
        "the change of the KL, of equal seeds; p is corrected by Holm's method for the tests of a "
        f"row. Held: p < {LEVEL:g} on the paper's side; not held: p < {LEVEL:g} on the other, or "
        "an interval that leaves out a difference as large as the paper's.",
        "",
    ]
    return "\n".join(lines)


def _cells(verdict: Verdict) -> list[str]:
    is_kl = verdict.what.startswith("KL")
    if verdict.found is None:
        found = p = "-"
    else:
        interval = verdict.found.interval
        if is_kl:
            interval = Interval(*(100 * math.expm1(x) for x in interval))
        found = interval.show(0, 1.0) + " %" if is_kl else interval.show(3)
        p = f"{verdict.found.p:.2g}"
    return [verdict.what, f"{100 * verdict.paper:+.1f} %", found, p, verdict.word]


def draw(rows: Sequence[Row], kl_metric: str) -> bytes:
    """Reward, and gold, over the root of KL: thin each seed, thick their mean; as a PNG."""
    from matplotlib.figure import Figure

    from experiments.record.curve import png
    from experiments.report.charts import COLORS

    figure = Figure(figsize=(11, 4.4), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, ("reward", "gold"), strict=True):
        for row, color in zip(rows, COLORS * len(rows), strict=False):
            paths = []
            for run in row.runs.values():
                root = np.sqrt(np.maximum(run.curve(kl_metric), 0.0))
                paths.append(np.stack([root, run.curve(metric)]))
                axes.plot(*paths[-1], color=color, linewidth=0.5, alpha=0.5)
            length = min(path.shape[1] for path in paths)
            mean = np.mean([path[:, :length] for path in paths], axis=0)
            label = row.name if metric == "reward" else None
            axes.plot(*mean, color=color, linewidth=1.8, marker="o", markersize=3, label=label)
        axes.set_xlabel("square root of KL(pi || ref), nats an answer")
        axes.set_ylabel(metric)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return png(figure)


def main(args: Sequence[str] | None = None) -> int:
    """Writes page and figure; returns the exit status."""
    args = sys.argv[1:] if args is None else args
    with Interrupts():
        try:
            options = flags.read(Options, Options(runs=tyro.MISSING, out=tyro.MISSING), args, PROG)
            rows = rows_of([show.read(Path(name).expanduser()) for name in options.runs])
        except BadInput as error:
            flags.refuse(error)
        except Interrupted as interrupted:
            return interrupted.exit_status
        page = [
            "# Reward at equal steps and at equal KL",
            "",
            f"![Reward over KL]({FIGURE})",
            "",
            tables(rows, options),
        ]
        out = Path(options.out).expanduser()
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / PAGE, "\n".join(page).encode())
            write_atomically(out / FIGURE, draw(rows, _KL[options.kl]))
        except OSError as error:
            print(f"error: {out}: {error.strerror or error}", file=sys.stderr)
            return EXIT_NOT_KEPT
    print(f"{len(rows)} row(s) of {sum(len(row.runs) for row in rows)} run(s) in {out}")
    return 0


if __name__ == "__main__":
    compiling.leave(main)
