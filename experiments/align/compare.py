"""Holds all methods against the exact frontier: `python -m experiments.align.compare --help`."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import shlex
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from agents import language as methods
from experiments.align import __main__ as program
from experiments.align import building
from experiments.align.plan import HEADLINE, Plan, read_plan
from experiments.cli import flags, frame
from experiments.cli.exits import EXIT_BROKEN
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.cli.terminal import Terminal
from experiments.comparing.alignment_rows import ROWS
from experiments.comparing.frontier import Frontier
from experiments.comparing.intervals import Interval
from experiments.record import colors
from experiments.record.files import require_space, to_json, write_atomically
from experiments.record.run_folder import (
    CONFIG,
    METRICS,
    SUMMARY,
    choose_page_folder,
    hold,
    is_finished,
    refusing,
)
from experiments.training import compiling
from rgpo_jax.config import Checked, ConfigError
from rgpo_jax.ranges import Count, CountOrZero

PROG = "python -m experiments.align.compare"
MARK, PAGE, TABLE, NUMBERS, FIGURE = (
    "compare.json",
    "README.md",
    "table.md",
    "table.csv",
    "frontier.png",
)
# Flags that each row has by itself, or that this program gives.
_OWN = ("--method", "--out", "--overwrite", "--resume")
# World -> evaluations of a row: points of its line. They are exact, and cost most in tiny.
_EVALUATIONS = {"bandit": 1000, "tree": 1000, "tiny": 10}
_SIZE = 2**24  # bytes of what is written beside the rows, at most
_NO_TARGET, _UNKNOWN = "no interior target", "not known"  # of the table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Train every alignment method in one exact world, and hold them against its frontier.

    Writes a table and a figure of reward against KL. All other flags are those of
    `experiments.align` and hold for every row: --num-updates 1000 --learning-rate 1e-3. A flag that
    some method lacks is refused, unless it comes in a file, by --config. The same command again
    goes on: rows that are finished are not trained again.
    """

    world: Literal["bandit", "tree", "tiny"] = "bandit"
    """bandit: an answer is one of five arms. tree: three of four tokens. tiny: a transformer with
    random weights. Reward, KL and the frontier are exact in each."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Rows, such as rloo, dpo or rgpo-min, or methods, of which grpo and rgpo are several rows;
    none: all that have a gate."""
    seed: CountOrZero = 0
    """First seed."""
    num_seeds: Count = 5
    """Seeds of each row, trained side by side."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for README.md, table.md, table.csv, frontier.png, and a folder for each row's run;
    None: a new one in runs/."""

    def __post_init__(self) -> None:
        super().__post_init__()
        flags.check_path("out", self.out)
        known = (*ROWS, "grpo", "rgpo")
        for name in self.methods:
            if name not in ROWS and not _rows_of(name):
                raise ConfigError("methods", f"{name}: expected some of {', '.join(known)}")

    @property
    def rows(self) -> list[str]:
        """Those that were asked for, in the order in which all are told."""
        asked = {row for name in self.methods for row in _rows_of(name)}
        return [row for row in ROWS if row in asked or (not self.methods and _is_gated(row))]


def _is_gated(row: str) -> bool:
    return ROWS[row][1] in methods.GATED


def _rows_of(name: str) -> list[str]:
    """A row by its name, or all of a method."""
    return [row for row, given in ROWS.items() if name in (row, given[1], row.replace("_", "-"))]


def main(args: Sequence[str] | None = None) -> int:
    """Trains, and writes table and figure; returns the exit status."""
    stopped = "stopped; what was trained is kept: the same --out goes on"
    return frame.run(_compare, args, stopped)


def _compare(args: Sequence[str], interrupts: Interrupts) -> int:
    options, passed = flags.read_some(Options, Options(), args, PROG)
    for arg in passed:
        if arg.partition("=")[0].replace("_", "-") in _OWN:
            raise BadInput(f"{arg}: each row has its own; --methods chooses rows")
    plans = {row: _plan(row, options, passed) for row in options.rows}
    folder = _choose_folder(options, passed)
    plans = {row: _plan(row, options, passed, folder) for row in plans}  # what is there, agrees
    say = Terminal(highlight=False, soft_wrap=True).print
    with refusing(folder):
        lock = hold(folder)
    with lock:
        with refusing(folder):
            require_space(folder, _SIZE)
            write_atomically(folder / MARK, to_json(_settings(options, passed), indent=2))
        say(f"{len(plans)} rows on {options.world}: {_seeds(options.num_seeds)} -> {folder}")
        results, broken = [], []
        for number, (row, plan) in enumerate(plans.items(), 1):
            heading = f"{number} of {len(plans)}, {row}"
            begun, finished = time.monotonic(), is_finished(folder / row)
            if not finished:
                say(f"{heading}: training ...", markup=False)
                status = _train(row, options, passed, folder)
                interrupts.check()
                if status == EXIT_BROKEN:
                    say(f"{heading}: {HEADLINE.broken}, see its run.log")
                    broken.append(row)
                    continue
                if status != 0:
                    say(
                        f"{heading}: stopped, see its run.log; go on with: {PROG} "
                        f"{shlex.join(_go_on(args, folder))}",
                        markup=False,
                    )
                    return status
            results.append(
                read_result(folder / row, row, getattr(plan.config, "kl_coefficient", 0) > 0)
            )
            took = "finished already" if finished else f"{time.monotonic() - begun:.0f} s"
            say(f"{heading}: {results[-1].describe()}; {took}", markup=False)
        if results:
            frontier = frontier_of(next(iter(plans.values())))
            with refusing(folder):
                write(folder, options, results, frontier, [*args], broken)
            say(f"{len(results)} rows -> {folder / PAGE}", markup=False)
    return EXIT_BROKEN if broken else 0


def _settings(options: Options, passed: Sequence[str]) -> dict[str, Any]:
    """What all rows of a folder share."""
    shared = ("world", "seed", "num_seeds")
    return {**{name: getattr(options, name) for name in shared}, "flags": list(passed)}


def _choose_folder(options: Options, passed: Sequence[str]) -> Path:
    """Where everything goes: a new folder, or one that an equal call began.

    Raises:
      BadInput: it holds something else.
    """
    if options.out is not None:
        mark = Path(options.out).expanduser() / MARK
        with refusing(mark.parent):
            begun = mark.exists()
        if begun:
            with contextlib.suppress(OSError, ValueError):
                if json.loads(mark.read_text()) == _settings(options, passed):
                    return mark.parent
            raise BadInput(
                f"--out {options.out}: was begun with other flags, see its {MARK}; give the same, "
                "or choose another folder"
            )
    files = (PAGE, TABLE, NUMBERS, FIGURE)
    return choose_page_folder(options.out, f"align-{options.world}", files, overwrite=False)


def _arguments(
    row: str, options: Options, passed: Sequence[str], folder: Path | None = None
) -> list[str]:
    """The flags of a row's run."""
    own = [*ROWS[row], "--world", options.world, "--seed", str(options.seed)]
    own += ["--num-seeds", str(options.num_seeds)]
    return [*passed, *own, *([] if folder is None else ["--out", str(folder / row), "--resume"])]


def _plan(row: str, options: Options, passed: Sequence[str], folder: Path | None = None) -> Plan:
    try:
        passed = [*_evaluate_often(row, options, passed), *passed]
        return read_plan(_arguments(row, options, passed, folder))
    except BadInput as error:
        raise BadInput(f"{row}: {error}") from None


def _evaluate_often(row: str, options: Options, passed: Sequence[str]) -> list[str]:
    """The flag that makes a line of many points, where the user's do not say how many."""
    plan = read_plan(_arguments(row, options, passed))
    if plan.options.eval_every is not None:
        return []
    updates = max(1, plan.num_updates // _EVALUATIONS[options.world])
    return ["--eval-every", str(updates * plan.batch_size)]


def _train(row: str, options: Options, passed: Sequence[str], folder: Path) -> int:
    """Runs the align program, silently: its run.log has what it says. Returns its status."""
    passed = [*_evaluate_often(row, options, passed), *passed]
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        return program.main(_arguments(row, options, passed, folder))


def _go_on(args: Sequence[str], folder: Path) -> list[str]:
    """The flags, with the folder if they did not name it."""
    return [*args, *(["--out", str(folder)] if flags.peek("--out", args) is None else [])]


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a row has come to.

    Attributes:
      row: its name.
      has_kl: whether a KL to the reference holds it back.
      reward: at each evaluation, of each seed [evaluations, seeds].
      kl: KL(pi || ref) of answers, likewise.
      distance: at the end, to where the method settles [seeds]; None where that is not known.
      loop_seconds: that training took, without compiling.
    """

    row: str
    has_kl: bool
    reward: np.ndarray
    kl: np.ndarray
    distance: np.ndarray | None
    loop_seconds: float

    @property
    def target(self) -> str:
        """In words, where there is no distance to it."""
        return _UNKNOWN if self.has_kl else _NO_TARGET

    def describe(self) -> str:
        reward, kl = self.reward[-1].mean(), self.kl[-1].mean()
        if self.distance is None:
            target = "target not known" if self.has_kl else _NO_TARGET
            return f"reward {reward:.3f}, KL {kl:.3f}, {target}"
        return f"reward {reward:.3f}, KL {kl:.3f}, target distance {self.distance.mean():.4f}"


def read_result(folder: Path, row: str, has_kl: bool) -> Result:
    """Reads a finished run.

    Raises:
      BadInput: its metrics are not there.
    """
    try:
        lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
        seconds = json.loads((folder / SUMMARY).read_text())["run_seconds"]
        evaluations = [line for line in lines if "reward" in line]
        reward, kl, distance = (
            np.array([line[name] for line in evaluations], float)  # None becomes NaN
            for name in ("reward", "kl_ref", "target_distance")
        )
        is_known = np.isfinite(distance[-1]).any()
        return Result(row, has_kl, reward, kl, distance[-1] if is_known else None, seconds)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise BadInput(f"{folder}: the run cannot be read: {error}") from None


def frontier_of(plan: Plan) -> Frontier:
    """That of a plan's world, at its temperature."""
    return Frontier.of(building.make_world(plan), plan.config.temperature)


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table: intervals over seeds, at the end of training."""

    result: Result
    reward: Interval
    kl: Interval
    share: Interval
    distance: Interval | None

    @classmethod
    def of(cls, result: Result, frontier: Frontier) -> "Line":
        reward, kl = result.reward[-1], result.kl[-1]
        distance = None
        if result.distance is not None:
            distance = Interval.of(result.distance)
            distance = distance._replace(low=max(distance.low, 0.0))  # NaN stays
        share = Interval.of(frontier.share(kl, reward))
        return cls(result, Interval.of(reward), Interval.of(kl), share, distance)

    def cells(self) -> list[str]:
        """Of the table that people read."""
        share = "-" if math.isnan(self.share.mean) else f"{self.share.show(2, 100)} %"
        if self.distance is None or self.result.distance is None:
            distance = [self.result.target, ""]
        else:
            distance = [self.distance.show(4), f"{self.result.distance.max():.4f}"]
        return [self.result.row, self.reward.show(4), self.kl.show(4), share, *distance]

    def numbers(self) -> dict[str, Any]:
        """Of the table that programs read; what is not known is empty."""
        numbers: dict[str, Any] = {"row": self.result.row, "seeds": self.result.reward.shape[1]}
        nothing = Interval(math.nan, math.nan, math.nan)
        for name, interval in (
            ("reward", self.reward),
            ("kl_ref", self.kl),
            ("share", self.share),
            ("target_distance", self.distance or nothing),
        ):
            values = [None if math.isnan(x) else x for x in interval]
            numbers |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        known = self.result.distance
        numbers["target_distance_largest"] = None if known is None else float(known.max())
        numbers["target"] = "known" if known is not None else self.result.target
        numbers["run_seconds"] = self.result.loop_seconds
        return numbers


def table(lines: Sequence[Line]) -> str:
    """In Markdown, with what its numbers are."""
    heads = ["row", "reward", "KL(pi \\|\\| ref)", "share of the frontier"]
    heads += ["target distance", "largest"]
    rows = [heads, ["---"] * len(heads), *(line.cells() for line in lines)]
    number = lines[0].result.reward.shape[1]
    intervals = (
        f"means over n = {number} seeds with 95 % intervals by Student's t "
        f"({number - 1} degree{'s' if number > 2 else ''} of freedom)"
        if number > 1
        else "of one seed, which has no interval"
    )
    return "\n".join(
        [
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            f"At the end of training; {intervals}. Reward and KL (nats, of answers) are exact "
            "expectations. Share of the frontier: the gain in reward over the reference, by the "
            "most that any policy of the same KL can gain. Target distance: the largest absolute "
            "difference in probability, over answers and prompts, to the policy at which the "
            "method's own expected gradient is 0; largest: the seed that is farthest.",
            "",
        ]
    )


def write(
    folder: Path,
    options: Options,
    results: Sequence[Result],
    frontier: Frontier,
    args: Sequence[str],
    broken: Sequence[str] = (),
) -> None:
    """Writes tables, figure and, last, the page; each file is replaced atomically."""
    from experiments.record.provenance import short_commit

    lines = [Line.of(result, frontier) for result in results]
    shown = table(lines)
    content = io.StringIO()
    numbers = [line.numbers() for line in lines]
    writer = csv.DictWriter(content, numbers[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(numbers)
    where = json.loads((folder / results[0].row / CONFIG).read_text())  # of when it was trained
    versions = where["versions"]
    commit = short_commit(where["git_commit"])
    names = ("rgpo-jax", "jax", "numpy", "python")
    made = [", ".join(f"{name} {versions[name]}" for name in names if versions[name])]
    made += [where["device"], where["machine"], *([f"commit {commit}"] if commit else [])]
    page = [
        f"# Alignment methods against the exact frontier: {options.world}",
        "",
        "```sh",
        f"{PROG} {shlex.join(args)}".strip(),
        "```",
        "",
        f"{'; '.join(made)}; {where['started']}.",
        "",
        f"![Reward against KL to the reference]({FIGURE})",
        "",
        shown,
    ]
    if broken:
        page += [f"Left out, as {HEADLINE.broken}: {', '.join(broken)}.", ""]
    write_atomically(folder / NUMBERS, content.getvalue().encode())
    write_atomically(folder / TABLE, shown.encode())
    write_atomically(folder / FIGURE, draw(results, frontier, options.world))
    write_atomically(folder / PAGE, "\n".join(page).encode())


def draw(results: Sequence[Result], frontier: Frontier, world: str) -> bytes:
    """Reward against KL, and what is missing to the frontier: a line for each row.

    Returns:
      A PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from experiments.record.curve import png

    number = results[0].reward.shape[1]
    figure = Figure(figsize=(13, 5.4), dpi=100, layout="constrained")
    whole, missing = figure.subplots(1, 2)
    largest = 1.05 * max(float(result.kl.max()) for result in results)
    kl, reward = frontier.at(np.exp(np.linspace(-12, 16, 2000)))
    end_kl, end_reward = frontier.end
    x = [0, *kl, end_kl, max(largest, end_kl)]
    y = [frontier.origin, *reward, end_reward, end_reward]
    black: Any = {"color": "black", "linewidth": 2.2}
    whole.plot(x, y, zorder=1, **black)
    handles = [Line2D([], [], label="exact frontier", **black)]
    ends = []
    for result in results:
        look = _look(result)
        kls = np.maximum(result.kl, 0.0)
        gaps = np.maximum(frontier.reward_at(kls) - result.reward, 0.0)  # rewards are in float32
        whole.plot(kls, result.reward, linewidth=0.4, alpha=0.25, **look)
        for axes, values in ((whole, result.reward), (missing, gaps)):
            mean_kl, mean = kls.mean(axis=1), values.mean(axis=1)
            axes.plot(mean_kl, mean, linewidth=1.4, alpha=0.9, **look)
            axes.plot(mean_kl[-1:], mean[-1:], zorder=5, **_mark(result), **look)
        ends.append((result.row, kls[-1].mean(), result.reward[-1].mean()))
        handles.append(Line2D([], [], label=result.row, **_mark(result), **look))
    for axes in (whole, missing):
        axes.set_xscale("function", functions=(_root, np.square))
        axes.set_xlim(0, largest)
        ticks = [tick for tick in _TICKS if tick <= largest]
        ticks = [b for a, b in zip([-1, *ticks], ticks, strict=False) if _are_apart(a, b, largest)]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel("KL(pi || ref) of whole answers, nats (square root scale)")
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    missing.set_yscale("symlog", linthresh=_LINEAR, linscale=0.4)
    missing.set_ylim(bottom=-_LINEAR / 20)
    whole.set_ylim(top=float(frontier.reward_at(largest)) + 0.03 * (end_reward - frontier.origin))
    whole.set_ylabel("expected reward")
    missing.set_ylabel("reward below the frontier at the same KL")
    each = "the seed" if number == 1 else f"thick: mean over {number} seeds, thin: each of them"
    whole.set_title(f"{each}; marked: the end of training", fontsize=9)
    missing.set_title(f"what is missing; linear below {_LINEAR:g}", fontsize=9)
    figure.suptitle(f"Alignment methods on {world}; dashed: without a KL term", fontsize=12)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    _label(whole, ends)
    return png(figure)


_LINEAR = 1e-3  # of reward: smaller ones are drawn on a linear scale, down to 0
_TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 10, 15, 20, 30)
_MARKERS = "osD^"
_NEAR = 0.03  # of the panel: ends so near to each other share a label


def _label(axes: Any, ends: Sequence[tuple[str, float, float]]) -> None:
    """Names of rows at the ends of their lines, those of neighbours together, below the lines."""
    figure = axes.figure
    figure.draw_without_rendering()
    to_panel = axes.transData + axes.transAxes.inverted()
    groups: list[tuple[np.ndarray, list[str]]] = []
    for row, x, y in sorted(ends, key=lambda end: end[1]):
        place = to_panel.transform((x, y))
        for where, names in groups:
            if np.hypot(*(place - where)) < _NEAR:
                names.append(row)
                break
        else:
            groups.append((place, [row]))
    taken: list[Any] = []
    look: Any = {"transform": axes.transAxes, "zorder": 6}
    for place, names in reversed(groups):  # from the right, where there is room below
        is_right = place[0] > 0.8
        x, y = place + ((0.0, -0.2) if is_right else (0.11, -0.08))
        lines, side = (
            "\n".join(textwrap.wrap(_together(names), 24)),
            "right" if is_right else "left",
        )
        text = axes.text(x, y, lines, ha=side, va="top", fontsize=7.5, **look)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0})
        while any(text.get_window_extent().overlaps(box) for box in taken) and y > 0.05:
            y -= 0.015
            text.set_position((x, y))
        taken.append(text.get_window_extent())
        axes.plot([place[0], x], [place[1], y], color="#606060", linewidth=0.5, **look)
    figure.set_layout_engine("none")  # labels stay where they were put


def _together(names: Sequence[str]) -> str:
    """Names in a list; all five of RGPO's are one."""
    duals = [row for row in ROWS if row.startswith("rgpo")]
    if set(duals) <= set(names):
        order = sorted({*names} - {*duals}, key=[*ROWS].index)
        return ", ".join([*order, "rgpo (all five)"])
    return ", ".join(sorted(names, key=[*ROWS].index))


def _are_apart(a: float, b: float, largest: float) -> bool:
    """Whether two ticks have room for their numbers."""
    return a < 0 or math.sqrt(b / largest) - math.sqrt(a / largest) > 0.045


def _root(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(x, 0.0))


def _look(result: Result) -> Mapping[str, Any]:
    looks = colors.of_variants([given[1].replace("-", "_") for given in ROWS.values()])
    return {
        "color": looks[[*ROWS].index(result.row)].color,
        "linestyle": "-" if result.has_kl else "--",
    }


def _mark(result: Result) -> Mapping[str, Any]:
    """Of the last point."""
    marker = _MARKERS[[*ROWS].index(result.row) // 7]
    return {"marker": marker, "markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.8}


if __name__ == "__main__":
    compiling.leave(main)
