"""Methods at equal KL, over seeds: `python -m experiments.align.at_equal_kl --help`.

A row is a method with its settings, and has a run of each seed. What a run has at a KL is read off
a curve that only rises, fitted to all of its evaluations: where a noisy one first comes to a level,
it does so by its noise.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import scipy  # its parts load where they are first used
import tyro

from agents import language as methods
from experiments.align import show, stored
from experiments.align.options import AlignOptions
from experiments.align.show import Shown, table_line
from experiments.align.stored import Stored
from experiments.cli import flags, frame
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.comparing.intervals import LEVEL, Comparison, Interval, compare
from experiments.plan.reading import with_defaults
from experiments.record import colors
from experiments.record.run_folder import reached_end
from experiments.training import compiling
from rgpo_jax.config import Checked

PROG = "python -m experiments.align.at_equal_kl"
PAGE, FIGURE = "README.md", "frontier.png"
_SEED = "seed"  # what may differ between the runs of a row
# What may not differ between rows that are compared.
_SHARED = (
    *("world", "model", "prompts", "held_out", "reward", "gold", "train", "max_tokens"),
    *("temperature", "eval_prompts", "eval_answers"),
)
_KL = {"k1": "kl_ref", "k3": "kl_ref_by_k3"}
_LEVELS = (1.0, 3.0, 10.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Rewards of runs of a real model at equal steps and at equal KL, over seeds, with tests."""

    runs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH ...")]
    """Finished runs of experiments.align whose answers are texts: folders; a table that
    experiments.align.collect has made, for all of its runs; or, of the table in a folder,
    FOLDER/NAME, where NAME may be a pattern in quotes. Those that differ in their seed alone are
    one row."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder for README.md and frontier.png, which are written anew."""
    row: str = "rgpo"
    """Whose rows are held against the others: a method, or a row's whole name."""
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """What they are held against: methods or rows; none: all others."""
    kl: Literal["k1", "k3"] = "k1"
    """By which estimate of an answer's KL to the reference runs are compared. k1 has its mean, and
    may be negative; k3 is never negative, and has rare large values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_some("runs", self.runs)


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

    def is_one_of(self, names: Sequence[str]) -> bool:
        """Whether its name, or its method, is among these; hyphens may stand for underscores."""
        known = {name.replace("-", "_") for name in names}
        return bool({self.method, self.name.replace("-", "_")} & known)


def rows_of(runs: Sequence[Shown]) -> list[Row]:
    """Sorts runs into rows, and names the rows apart.

    Raises:
      BadInput: two runs differ in nothing.
    """
    groups: dict[tuple, dict[int, Shown]] = {}
    for run in runs:
        own = {name: value for name, value in run.settings.items() if name != _SEED}
        key = tuple(sorted((name, repr(value)) for name, value in own.items()))
        seeds, seed = groups.setdefault(key, {}), int(run.settings[_SEED])
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
            for name in sorted(names - {_SEED})
            if len({repr(other.settings.get(name)) for other in alike}) > 1
        ]
        parts = [f"{name}={first.settings.get(name)}" for name in differing]
        rows.append(Row(" ".join([_method(first), *parts]), dict(sorted(seeds.items()))))
    return sorted(rows, key=lambda row: row.name)


def check(rows: Sequence[Row], options: Options) -> None:
    """Refuses names of no row, and rows that were not measured alike.

    Raises:
      BadInput: as said.
    """
    for flag, names in (("row", [options.row]), ("against", options.against)):
        for name in names:
            if not any(row.is_one_of([name]) for row in rows):
                known = ", ".join(row.name for row in rows)
                raise BadInput(f"--{flag} {name}: expected one of these runs' rows: {known}")
    runs = [run for row in rows for run in row.runs.values()]
    answers = sorted({run.evaluations[-1]["answers"] for run in runs})
    if len(answers) > 1:
        raise BadInput(f"--runs: they have {' and '.join(f'{n:,}' for n in answers)} answers")
    for name in _SHARED:
        values = sorted({repr(run.settings.get(name)) for run in runs})
        if len(values) > 1:
            raise BadInput(f"--runs: they differ in {name}: {' and '.join(values)}")


def read(run: Stored) -> Shown:
    """What a finished run came to; of settings that are newer than it, it has the defaults.

    Raises:
      BadInput: it is none.
    """
    shown = show.read(run)
    if not isinstance(shown.settings.get(_SEED), int):
        raise BadInput(f"--runs {run.where}: no run of experiments.align: it has no seed")
    if any(not isinstance(line.get("answers"), int) for line in shown.evaluations):
        where = f"--runs {run.where}"
        raise BadInput(f"{where}: no run of experiments.align: its metrics have no answers")
    if not reached_end(run.summary):
        raise BadInput(f"--runs {run.where}: it is not finished; go on with its --resume")
    method = _method(shown)
    if method not in methods.NAMES:
        raise BadInput(f"--runs {run.where}: unknown method {shown.settings['method']!r}")
    kinds = AlignOptions, methods.load(method).Config
    return shown._replace(settings=with_defaults(shown.settings, *kinds))


def _method(run: Shown) -> str:
    return str(run.settings["method"]).replace("-", "_")


def read_at(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """What y is at a level of x, by the rising curve that is nearest to all points; else NaN.

    NaN where x never comes so far, or begins beyond it.
    """
    points = np.array([x, y], float).T
    points = points[np.all(np.isfinite(points), axis=1)]
    if not len(points) or not points[:, 0].min() <= level <= points[:, 0].max():
        return math.nan
    places, which = np.unique(points[:, 0], return_inverse=True)
    weights = np.bincount(which)
    means = np.bincount(which, points[:, 1]) / weights
    fitted = scipy.optimize.isotonic_regression(means, weights=weights).x
    return float(np.interp(level, places, fitted))


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is read off the runs of rows.

    Attributes:
      kl_metric: by which metric KL is meant.
    """

    kl_metric: str

    def last(self, run: Shown, metric: str) -> float:
        return run.curve(metric)[-1]

    def gain(self, run: Shown) -> float:
        """Of reward, over the first evaluation."""
        return run.curve("reward")[-1] - run.curve("reward")[0]

    def root(self, run: Shown) -> np.ndarray:
        """The root of KL at each evaluation, in which rewards are nearly straight."""
        return np.sqrt(np.maximum(run.curve(self.kl_metric), 0.0))

    def reward_at(self, run: Shown, kl: float) -> float:
        return read_at(self.root(run).tolist(), run.curve("reward"), math.sqrt(kl))

    def kl_at(self, run: Shown, reward: float) -> float:
        return read_at(run.curve("reward"), self.root(run).tolist(), reward) ** 2

    def reach(self, rows: Sequence["Row"]) -> tuple[float, float]:
        """The largest KL and the largest reward that every run of the rows comes to."""
        runs = [run for row in rows for run in row.runs.values()]
        kl = min(float(np.nanmax(self.root(run))) for run in runs) ** 2
        return kl, min(float(np.nanmax(run.curve("reward"))) for run in runs)


class Verdict(NamedTuple):
    """A line of what is compared.

    Attributes:
      row: whose it is.
      what: is compared, in words.
      paper: what the paper's abstract says of RGPO there, as a share; None: nothing.
      number: of seeds that both have.
      found: the difference of one and the same seed, or of logarithms of KL; None: too few seeds.
      word: ahead, behind or not shown; and whether the paper's figure held.
    """

    row: str
    what: str
    paper: float | None
    number: int
    found: Comparison | None
    word: str


def judge(found: Comparison | None, sign: int, paper: float | None) -> str:
    """Whether a difference is shown, and whether a claim of one of this size held.

    Args:
      found: the comparison; None: there is none.
      sign: of a difference that is good.
      paper: how large it is there, in units of the comparison; None: nothing is said of it.
    """
    if found is None or math.isnan(found.interval.low):
        return "cannot be told"
    shown = {sign: "ahead", -sign: "behind", 0: "no difference shown"}[found.sign]
    if paper is None:
        return shown
    nearest = found.interval.high if sign > 0 else found.interval.low
    has_room = sign * nearest >= abs(paper)
    if found.sign == sign:
        return "held" if has_room else "ahead, by less than the paper's"
    return "not held" if found.sign == -sign or not has_room else "cannot be told"


def _pairs(row: Row, other: Row, read: Any) -> np.ndarray:
    """Of each seed that both have, where both have a number: ours and theirs [n, 2]."""
    both = [
        (read(row.runs[seed]), read(other.runs[seed])) for seed in row.runs if seed in other.runs
    ]
    return np.array([x for x in both if np.all(np.isfinite(x))], float).reshape(-1, 2)


# What the paper's abstract says of RGPO against a method, as shares: reward, and KL.
PAPER: dict[str, dict[str, float]] = {
    "ppo": {"reward": 0.148, "KL": -0.160},
    "grpo": {"KL": -0.531},
}


def verdicts(rows: Sequence[Row], others: Sequence[Row], reading: Reading) -> list[Verdict]:
    """Each row against each of the others, at equal steps and where KL or reward is equal.

    That is the largest KL, or reward, that every run of both rows has come to, so that no seed is
    left out. All tests are corrected together. The paper's figures are of RGPO; its gain of reward
    is taken of the other's gain over the first evaluation, as a reward has no natural zero.
    """
    differences: dict[str, np.ndarray] = {}
    said: list[tuple[Row, str, float | None, int, int, float | None]] = []

    def add(
        row: Row, what: str, values: np.ndarray, sign: int, paper: float | None, size: float | None
    ) -> None:
        said.append((row, what, paper, len(values), sign, size))
        if len(values) > 1:
            differences[f"{row.name}: {what}"] = values

    for row in rows:
        for other in (other for other in others if other != row):
            claims = PAPER.get(other.method, {}) if row.method == "rgpo" else {}
            level, goal = reading.reach([row, other])
            gain, change = claims.get("reward"), claims.get("KL")
            theirs = float(np.mean([reading.gain(run) for run in other.runs.values()]))
            size = None if gain is None else gain * abs(theirs)
            pairs = _pairs(row, other, lambda run: reading.last(run, "reward"))
            add(row, f"reward, {other.name}, equal steps", pairs @ [1, -1], 1, gain, size)
            pairs = _pairs(row, other, lambda run, at=level: reading.reward_at(run, at))
            what = f"reward, {other.name}, equal KL ({level:.2g} nats)"
            add(row, what, pairs @ [1, -1], 1, gain, size)
            size = None if change is None else math.log1p(change)
            pairs = _pairs(row, other, lambda run: reading.last(run, reading.kl_metric))
            add(row, f"KL, {other.name}, equal steps", _log_ratios(pairs), -1, change, size)
            pairs = _pairs(row, other, lambda run, at=goal: reading.kl_at(run, at))
            what = f"KL, {other.name}, equal reward ({goal:.2g})"
            add(row, what, _log_ratios(pairs), -1, change, size)
    tests = {test.name: test for test in compare(differences)} if differences else {}
    found = []
    for row, what, paper, number, sign, size in said:
        test = tests.get(f"{row.name}: {what}")
        found.append(Verdict(row.name, what, paper, number, test, judge(test, sign, size)))
    return found


def _log_ratios(pairs: np.ndarray) -> np.ndarray:
    """Of those where both are above 0."""
    above = pairs[np.all(pairs > 0, axis=1)]
    return np.asarray(np.log(above[:, 0]) - np.log(above[:, 1]))


# What is written.


def _interval(values: Sequence[float], digits: int = 2) -> str:
    known = np.array([x for x in values if math.isfinite(x)])
    return Interval.of(known).show(digits) if len(known) else "-"


def _of_row(row: Row, read: Any) -> list[float]:
    return [read(run) for run in row.runs.values()]


def tables(rows: Sequence[Row], options: Options) -> str:
    """What rows come to, at equal steps and at equal KL, as Markdown."""
    reading = Reading(_KL[options.kl])
    heads = ["row", "seeds", "answers", "reward", "gold", "KL by k1", "KL by k3"]
    lines = [
        "At equal steps: the last evaluation.",
        "",
        table_line(heads),
        table_line(["---"] * len(heads)),
    ]
    for row in rows:
        first = next(iter(row.runs.values()))
        cells = [row.name, str(len(row.runs)), f"{first.evaluations[-1]['answers']:,}"]
        for metric in ("reward", "gold", *_KL.values()):
            cells.append(_interval(_of_row(row, lambda run, m=metric: reading.last(run, m))))
        lines.append(table_line(cells))
    heads = ["row", *(f"reward at {level:g} nats" for level in _LEVELS)]
    lines += [
        "",
        f"At equal KL, by {options.kl}; in brackets, of how many seeds.",
        "",
        table_line(heads),
    ]
    lines.append(table_line(["---"] * len(heads)))
    for row in rows:
        cells = [row.name]
        for level in _LEVELS:
            values = _of_row(row, lambda run, x=level: reading.reward_at(run, x))
            number = sum(math.isfinite(x) for x in values)
            cells.append(f"{_interval(values)} ({number})" if number else "-")
        lines.append(table_line(cells))
    heads = ["row", "compared", "seeds", "paper", "found", "p", "verdict"]
    lines += ["", "Compared, by seed.", "", table_line(heads), table_line(["---"] * len(heads))]
    ours = [row for row in rows if row.is_one_of([options.row])]
    others = [row for row in rows if row not in ours]
    if options.against:
        others = [row for row in rows if row.is_one_of(options.against)]
    for verdict in verdicts(ours, others, reading):
        lines.append(table_line(_cells(verdict)))
    lines += [
        "",
        "Means over seeds with 95 % intervals by Student's t. Found: the difference of rewards, or "
        "the change of the KL, of equal seeds; p is corrected by Holm's method for all tests of "
        f"the table. Ahead and behind: p < {LEVEL:g}. Held: ahead, and the interval has room for a "
        "difference as large as the paper's; not held: behind, or no room; of reward the paper's "
        "share is taken of the other's gain over the first evaluation.",
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
        found = interval.show(0) + " %" if is_kl else interval.show(3)
        p = f"{verdict.found.p:.2g}"
    paper = "" if verdict.paper is None else f"{100 * verdict.paper:+.1f} %"
    return [verdict.row, verdict.what, str(verdict.number), paper, found, p, verdict.word]


def draw(rows: Sequence[Row], kl_metric: str) -> bytes:
    """Reward, and gold, over the root of KL: thin each seed, thick their mean; as a PNG."""
    from matplotlib.figure import Figure

    from experiments.record.curve import png

    figure = Figure(figsize=(11, 4.4), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2)
    looks = colors.of_variants([row.method for row in rows])
    for axes, metric in zip(panels, ("reward", "gold"), strict=True):
        for row, (color, _) in zip(rows, looks, strict=True):
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
    return frame.run(_main, args)


def _main(args: Sequence[str], _: Interrupts) -> int:
    options = flags.read(Options, Options(runs=tyro.MISSING, out=tyro.MISSING), args, PROG)
    rows = rows_of([read(run) for run in stored.find(options.runs)])
    check(rows, options)
    page = [
        "# Reward at equal steps and at equal KL",
        "",
        f"![Reward over KL]({FIGURE})",
        "",
        tables(rows, options),
    ]
    files = {PAGE: "\n".join(page).encode(), FIGURE: draw(rows, _KL[options.kl])}
    what = f"{len(rows)} row(s) of {sum(len(row.runs) for row in rows)} run(s)"
    return show.write(options.out, files, what)


if __name__ == "__main__":
    compiling.leave(main)
