"""Rank tests of RGPO's returns against PPO's, corrected for their number."""

import dataclasses

import numpy as np
from scipy import stats

from experiments.report import scores
from experiments.report.run_files import FINISHED
from experiments.reproduction.claims import Cells, short_name
from experiments.reproduction.rows import ALL, CONTESTS
from rgpo_jax.statistics import holm

LEVEL = 0.05  # a corrected p below this shows a difference
AHEAD, BEHIND, UNSHOWN = "ahead", "behind", "not shown"


@dataclasses.dataclass(frozen=True)
class RankTest:
    """One comparison of returns, by the policy's mode or by its samples.

    Attributes:
      better: share of the pairs of seeds in which ours has the higher return; ties count half.
      p: of an exact two-sided rank test (Mann-Whitney).
      corrected: p by Holm's correction for all tests of the page's table.
    """

    better: float
    p: float
    corrected: float

    @property
    def difference(self) -> str:
        """AHEAD or BEHIND where the corrected p shows it, else UNSHOWN."""
        if not self.corrected < LEVEL:
            return UNSHOWN
        return AHEAD if self.better > 0.5 else BEHIND


@dataclasses.dataclass(frozen=True)
class Contest:
    """A row of RGPO and a row of PPO on one task.

    Attributes:
      task: without the library that it comes from.
      ours, theirs: names of the rows.
      seeds: of each.
      mode, sampled: of the policy's mode, and of its samples; None where not evaluated.
    """

    task: str
    ours: str
    theirs: str
    seeds: tuple[int, int]
    mode: RankTest | None
    sampled: RankTest | None


def contests(cells: Cells) -> list[Contest]:
    """The contests of `rows.CONTESTS` on every task where both rows are finished.

    All their tests, by modes and by samples, are corrected together.
    """
    pairs = [
        (task, ours, theirs)
        for ours, theirs in CONTESTS
        for task in sorted({task for task, _ in cells})
        if all(_is_finished(cells, task, row) for row in (ours, theirs))
    ]
    found: dict[tuple[str, str, str, str], tuple[float, float]] = {}
    for task, ours, theirs in pairs:
        for metric in (scores.SCORE, scores.SAMPLED):
            a, b = (cells[task, ALL[row].name].final(metric) for row in (ours, theirs))
            if len(a) and len(b):
                found[task, ours, theirs, metric] = rank_test(a, b)
    corrected = holm([p for _, p in found.values()])
    tests = {
        key: RankTest(*values, p) for (key, values), p in zip(found.items(), corrected, strict=True)
    }
    return [
        Contest(
            short_name(task),
            ALL[ours].name,
            ALL[theirs].name,
            (len(cells[task, ALL[ours].name].seeds), len(cells[task, ALL[theirs].name].seeds)),
            tests.get((task, ours, theirs, scores.SCORE)),
            tests.get((task, ours, theirs, scores.SAMPLED)),
        )
        for task, ours, theirs in pairs
    ]


def _is_finished(cells: Cells, task: str, row: str) -> bool:
    cell = cells.get((task, ALL[row].name))
    return cell is not None and cell.status == FINISHED


def rank_test(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Share of pairs in which ours is larger, and p of the exact two-sided Mann-Whitney test."""
    test = stats.mannwhitneyu(ours, theirs, method="exact")
    return float(test.statistic) / (len(ours) * len(theirs)), float(test.pvalue)


def say(p: float) -> str:
    """`0.0015`, `8e-05`: two digits."""
    return f"{p:.2g}"
