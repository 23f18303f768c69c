"""Dual gates at equal KL in transformers: all methods that learn from rewards of their answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.language import tiny
from experiments.comparing import intervals
from experiments.comparing.frontier import Frontier
from experiments.comparing.intervals import Interval, compare
from experiments.theory import alignment, dual_verdicts, equal_kl
from experiments.theory.alignment import Greek, words
from experiments.theory.equal_kl import DUAL, REGRESSIONS, ROWS, Chosen, Gains
from experiments.theory.options import Options
from experiments.theory.study import (
    Arrays,
    Claim,
    Figure,
    Line,
    Panel,
    Progress,
    Study,
    Table,
    Value,
)
from rgpo_jax.language.world import World

UPDATES, POINTS = 40, 20
PROMPTS, GROUP, EPOCHS, MINIBATCHES = 8, 8, 4, 4
TUNING_SEEDS = 3
# With these, runs of one transformer that is not reported ended between 0.15 and 4.5 nats.
COEFFICIENTS = (0.03, 0.1, 0.3, 1.0)
RATES = (1e-4, 3e-4)
LEVELS = np.geomspace(0.1, 10.0, 5)
TOLD = (1.0, 3.1622776601683795, 10.0)  # of LEVELS, on the page
PRIMARY = TOLD[0]
# Beside the rows of the other study those whose papers have no KL; here they are searched with one.
ALL = (*ROWS, "dr_grpo", "dapo", "gspo", "cispo", "sapo")


class Found(NamedTuple):
    """A row.

    Attributes:
      chosen: with the best settings at each KL.
      area: mean share over `LEVELS`, which are equally far apart in the logarithm [S].
      path: KL and reward of one setting along training, that of the primary comparison [2, S, P].
    """

    chosen: Chosen
    area: np.ndarray
    path: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        return {**self.chosen._asdict(), "area": self.area, "path": self.path}

    @classmethod
    def of(cls, arrays: Arrays) -> "Found":
        """The inverse of `arrays`."""
        return cls(
            Chosen(*(arrays[name] for name in Chosen._fields)), arrays["area"], arrays["path"]
        )


def _make(problem: Any) -> tuple[World, float]:
    return tiny.of(*problem), 0.0


def follow(
    row: str,
    frontiers: Sequence[Frontier],
    problems: Any,
    keys: jax.Array,
    numbers: dict[str, np.ndarray],
    updates: int,
    told: Callable[[float], None],
) -> equal_kl.Paths:
    """A row's runs with these settings [C], of each seed [S]."""
    settings = {
        "num_updates": updates,
        "num_prompts": PROMPTS,
        "group_size": GROUP,
        "num_epochs": EPOCHS,
        "num_minibatches": MINIBATCHES,
    }
    policies = equal_kl.learn(_make, row, problems, keys, settings, numbers, POINTS, told)
    return equal_kl.paths_of(policies, frontiers)


def learn(
    row: str,
    frontiers: Sequence[Frontier],
    problems: Any,
    keys: jax.Array,
    told: Callable[[float], None],
    updates: int = UPDATES,
) -> Found:
    """A row: all settings for the first seeds, which choose, and those chosen for the others.

    Args:
      row: of `ALL`.
      frontiers: of each seed's transformer.
      problems: the transformers, a tree of arrays [S, ...].
      keys: of each seed [S].
      told: called after each run with the share of the row that is done.
      updates: of each run.
    """
    grid = equal_kl.settings_of(COEFFICIENTS, RATES)

    def part(
        chosen: slice, numbers: dict[str, np.ndarray], after: float
    ) -> tuple[equal_kl.Paths, Gains]:
        known = frontiers[chosen]
        some = jax.tree.map(lambda x: x[chosen], problems)

        def tell(share: float) -> None:
            told(after + share / 2)

        paths = follow(row, known, some, keys[chosen], numbers, updates, tell)
        return paths, equal_kl.gains_of(paths, known, LEVELS)

    _, searched = part(slice(TUNING_SEEDS), grid, 0.0)
    best = searched.best()
    kept, at = np.unique(best, return_inverse=True)
    paths, gains = part(slice(TUNING_SEEDS, None), {name: x[kept] for name, x in grid.items()}, 0.5)
    chosen = equal_kl.take(gains, at, best)
    shown = at[_at(PRIMARY)]
    return Found(chosen, chosen.share.mean(axis=1), np.stack([x[shown] for x in paths]))


def _at(level: float) -> int:
    return int(np.argmin(np.abs(level - LEVELS)))


def run(options: Options, progress: Progress) -> Study:
    """All rows."""
    numbers = [*range(alignment.CHOICE, alignment.CHOICE + TUNING_SEEDS), *range(options.seeds)]
    frontiers, problems = equal_kl.draw(tiny, [options.seed + number for number in numbers])
    keys = jnp.concatenate([alignment.keys_of(options.seed + number, 1) for number in numbers])

    def arrays(row: str, told: Callable[[float], None]) -> Arrays:
        return learn(row, frontiers, problems, keys, told).arrays()

    kept = equal_kl.each(ALL, progress, arrays)
    found = {row: Found.of(x) for row, x in kept.items()}
    answers, searched = UPDATES * PROMPTS * GROUP, len(COEFFICIENTS) * len(RATES)
    return Study(
        "Dual gates at equal KL: transformers",
        (
            "The question of the study before, where a policy is a transformer of two layers: "
            f"{options.seeds} of them with random weights, prompts and rewards, 2,801 answers to "
            "each of 4 prompts; reward and KL of whole answers are exact sums. Every row has "
            f"{answers:,} answers, {PROMPTS} prompts \N{MULTIPLICATION SIGN} {GROUP} an update, "
            f"{EPOCHS} passes in {MINIBATCHES} minibatches, Adam, and {searched} settings "
            f"({Greek.beta} of {', '.join(f'{b:g}' for b in COEFFICIENTS)}; rates "
            f"{', '.join(f'{r:g}' for r in RATES)}), of which {TUNING_SEEDS} other transformers "
            f"choose the best at each KL, at this horizon. The policy is looked at {POINTS} times. "
            "Rows whose papers have no KL are searched with one like the others. Gates have "
            f"k = 4 and are normalised. {TOLD[-1]:g} nats are more than the best answers have: "
            "there a row has the most that it ever earned.",
            "Primary comparison, stated before the reported transformers were trained: the share "
            f"of the frontier's gain at {PRIMARY:.2g} nats, each of the four dual gates minus "
            f"PPO-RLHF: {len(DUAL)} tests, paired by transformer, by Student's t, corrected by "
            "Holm's method. Each claim's tests are corrected together. A difference of less than "
            f"{dual_verdicts.MATTERS:g} of a share is taken as of no use. Area: the mean share "
            f"over {len(LEVELS)} KLs from {LEVELS[0]:g} to {LEVELS[-1]:g} nats, equally far apart "
            "in the logarithm.",
        ),
        _claims(found),
        [_figure(found, frontiers[TUNING_SEEDS:], options.seeds)],
        [_table(found)],
    )


def _share(found: dict[str, Found], row: str, level: float = PRIMARY) -> np.ndarray:
    return found[row].chosen.share[:, _at(level)]


def _claims(found: dict[str, Found]) -> list[Claim]:
    return [
        _gains_over_ppo(found),
        _gains_over_no_reference(found),
        _larger_area_than_ppo(found),
        _regressions_gain(found),
    ]


def _gains_over_ppo(found: dict[str, Found]) -> Claim:
    tests = compare({row: _share(found, row) - _share(found, "ppo") for row in DUAL})
    return Claim(
        f"At equal KL ({PRIMARY:.2g} nats) some dual gate has more reward than PPO-RLHF, in "
        "transformers.",
        "ours",
        dual_verdicts.gains(tests),
        f"share of the frontier's gain, minus PPO-RLHF's: {words(tests)}",
        ("tiny_gates",),
    )


def _gains_over_no_reference(found: dict[str, Found]) -> Claim:
    tests = compare(
        {
            f"{row}, {level:.2g} nats": _share(found, row, level)
            - _share(found, "rgpo-none", level)
            for level in TOLD
            for row in DUAL
        }
    )
    return Claim(
        "A reference in the gate adds reward at equal KL to RGPO's gate without it, in "
        "transformers.",
        "ours",
        dual_verdicts.gains(tests),
        f"share minus that of rgpo-none: {words(tests)}",
        ("tiny_gates",),
    )


def _larger_area_than_ppo(found: dict[str, Found]) -> Claim:
    tests = compare({row: found[row].area - found["ppo"].area for row in DUAL})
    return Claim(
        "Some dual gate has a larger area under its frontier than PPO-RLHF.",
        "ours",
        dual_verdicts.gains(tests),
        f"mean share, {LEVELS[0]:g} to {LEVELS[-1]:g} nats, minus PPO-RLHF's: {words(tests)}",
        ("tiny_gates",),
    )


def _regressions_gain(found: dict[str, Found]) -> Claim:
    tests = compare(
        {
            f"{other} minus {row}": _share(found, other) - _share(found, row)
            for other in REGRESSIONS
            for row in DUAL
        }
    )
    return Claim(
        "REBEL and dual_kl have more reward at equal KL than every dual gate, in transformers.",
        "ours",
        intervals.agree(tests, 1),
        f"difference of shares at {PRIMARY:.2g} nats: {words(tests)}",
        ("tiny_gates",),
    )


def _figure(found: dict[str, Found], frontiers: Sequence[Frontier], seeds: int) -> Figure:
    paths = []
    for style, row in enumerate(ALL):
        kl, reward = found[row].path.mean(axis=1)
        paths.append(alignment.plain(row, kl, reward, style))
    largest = max(float(found[row].path[0].mean(axis=0).max()) for row in ALL)
    paths.append(equal_kl.frontier_line(frontiers, 1.05 * largest))
    nats = "KL(pi || ref), nats"
    return Figure(
        "tiny_gates",
        f"Left: the share of the frontier's gain at {PRIMARY:.2g} nats, {seeds} transformers, "
        "means with 95 % intervals. Right: along training, with the settings of that comparison, "
        "means; dashed: the exact frontier.",
        [
            _shares({row: Interval.of(_share(found, row)) for row in ALL}),
            Panel("along training", nats, "reward", paths),
        ],
    )


def _shares(intervals: Mapping[str, Interval]) -> Panel:
    """Intervals of all rows, the largest first."""
    best_first = sorted(intervals, key=lambda row: -intervals[row].mean)
    points = []
    for place, row in enumerate(best_first):
        mean, low, high = (np.array([end]) for end in intervals[row])
        style = ALL.index(row)
        points.append(Line(row, mean, np.array([place]), style, "", low, high, marker="o"))
    return Panel(
        f"reward at {PRIMARY:.2g} nats",
        "share of the frontier's gain",
        "",
        points,
        rows=tuple(best_first),
    )


def _table(found: dict[str, Found]) -> Table:
    grid = equal_kl.settings_of(COEFFICIENTS, RATES)
    columns = ["row"]
    for level in TOLD:
        columns += [f"reward at {level:.2g} nats", "from", "to", "share", "from", "to"]
    columns += ["area", "from", "to", f"{Greek.beta} at {PRIMARY:.2g} nats", "rate"]
    cells: list[tuple[Value, ...]] = []
    for row, value in found.items():
        line: list[Value] = [row]
        for level in TOLD:
            line += [*Interval.of(value.chosen.reward[:, _at(level)])]
            line += [*Interval.of(_share(found, row, level))]
        best = value.chosen.settings[_at(PRIMARY)]
        numbers = [float(grid[name][best]) for name in ("kl_coefficient", "learning_rate")]
        cells.append((*line, *Interval.of(value.area), *numbers))
    return Table(
        "tiny_gates",
        "The most reward while the KL is at most so large, its share of the frontier's gain, the "
        "area under the row's frontier, 95 % intervals by Student's t; and the settings chosen",
        columns,
        cells,
    )
