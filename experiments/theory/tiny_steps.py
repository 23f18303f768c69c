"""Dual gates at equal steps in transformers: where runs end, as RGPO's paper compares methods."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from envs.language import tiny
from experiments.comparing import intervals
from experiments.comparing.frontier import Frontier
from experiments.comparing.intervals import Interval
from experiments.theory import alignment, equal_kl, tiny_gates
from experiments.theory.alignment import Greek, plain, tell_ratio, words
from experiments.theory.dual_verdicts import at_equal_steps
from experiments.theory.equal_kl import DUAL, Paths
from experiments.theory.options import Options
from experiments.theory.study import Arrays, Claim, Figure, Panel, Progress, Study, Table, Value

ALL = ("ppo", "grpo-published", "rgpo-none", *DUAL)
COEFFICIENTS = tiny_gates.COEFFICIENTS
# For all rows: what GRPO as published and three of five RGPO choose at 1 nat in `tiny_gates`.
COEFFICIENT, RATE = 0.3, 3e-4


def learn(
    row: str,
    frontiers: Sequence[Frontier],
    problems: Any,
    keys: jax.Array,
    told: Callable[[float], None],
) -> Paths:
    """A row's KL and reward at the end, with each coefficient [C, S].

    Args:
      row: of `ALL`.
      frontiers: of each seed's transformer.
      problems: the transformers, a tree of arrays [S, ...].
      keys: of each seed [S].
      told: called after each run with the share of the row that is done.
    """
    numbers = equal_kl.settings_of(COEFFICIENTS, (RATE,))
    paths = tiny_gates.follow(row, frontiers, problems, keys, numbers, tiny_gates.UPDATES, told)
    return Paths(*(x[..., -1] for x in paths))


def run(options: Options, progress: Progress) -> Study:
    """All rows."""
    seeds = [options.seed + number for number in range(options.seeds)]
    frontiers, problems = equal_kl.draw(tiny, seeds)
    keys = jnp.concatenate([alignment.keys_of(seed, 1) for seed in seeds])  # as in tiny_gates

    def arrays(row: str, told: Callable[[float], None]) -> Arrays:
        return learn(row, frontiers, problems, keys, told)._asdict()

    kept = equal_kl.each(ALL, progress, arrays)
    found = {row: Paths(**x) for row, x in kept.items()}
    return Study(
        "Dual gates at equal steps: transformers",
        (
            f"Where runs end, by coefficient: {options.seeds} transformers and all settings as in "
            f"the study at equal KL, but for one rate ({RATE:g}) and one {Greek.beta} for all "
            "rows: those of GRPO as published, RGPO without a reference, product and min there at "
            "1 nat; geometric and two-sided chose another rate (1e-4), PPO-RLHF both (0.1, 1e-4). "
            "Where a run stands at one step depends on how fast its method goes and "
            "how strongly it is held, so that this tells methods' speed, and not which is nearer "
            "to the frontier.",
            f"Compared with {Greek.beta} = {COEFFICIENT:g}, each of the four dual gates against "
            "PPO-RLHF and against GRPO as published, KL and reward: each claim's tests are paired "
            "by transformer, by Student's t, and corrected together by Holm's method.",
        ),
        _claims(found),
        [_figure(found, frontiers, options.seeds)],
        [_table(found)],
    )


def _claims(found: dict[str, Paths]) -> list[Claim]:
    which = COEFFICIENTS.index(COEFFICIENT)
    ends = {row: Paths(*(x[which] for x in last)) for row, last in found.items()}
    at_end = at_equal_steps({"transformers": ends})
    same = f"with one {Greek.beta} ({COEFFICIENT:g}) and one rate ({RATE:g}) for all"
    return [
        Claim(
            f"At equal steps, {same}, dual gates end at less KL than PPO-RLHF and than GRPO as "
            "published, in transformers.",
            "ours",
            intervals.agree(at_end.kl, -1),
            f"ratio of KLs: {words(at_end.kl, tell_ratio)}",
            ("tiny_steps",),
        ),
        Claim(
            f"At equal steps, {same}, dual gates have more reward than PPO-RLHF and than GRPO as "
            "published, in transformers.",
            "ours",
            intervals.agree(at_end.reward, 1),
            f"difference of rewards: {words(at_end.reward)}",
            ("tiny_steps",),
        ),
    ]


def _figure(found: dict[str, Paths], frontiers: Sequence[Frontier], seeds: int) -> Figure:
    lines, largest = [], 0.0
    for style, row in enumerate(ALL):
        kl, reward = (x.mean(axis=1) for x in found[row])
        largest = max(largest, float(kl.max()))
        lines.append(plain(row, kl, reward, style, marker="o"))
    lines.append(equal_kl.frontier_line(frontiers, 1.05 * largest))
    return Figure(
        "tiny_steps",
        f"Where runs end with {Greek.beta} of {', '.join(f'{b:g}' for b in COEFFICIENTS)} (points, "
        f"from right to left), rate {RATE:g}. Means over {seeds} transformers; dashed: the exact "
        "frontier.",
        [Panel("transformers", "KL(pi || ref), nats", "reward", lines)],
    )


def _table(found: dict[str, Paths]) -> Table:
    columns = ["row", Greek.beta, "KL", "from", "to", "reward", "from", "to"]
    cells: list[tuple[Value, ...]] = [
        (row, coefficient, *Interval.of(last.kl[i]), *Interval.of(last.reward[i]))
        for row, last in found.items()
        for i, coefficient in enumerate(COEFFICIENTS)
    ]
    return Table("tiny_steps", "KL and reward at the end, 95 % intervals", columns, cells)
