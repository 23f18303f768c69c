"""When a dual gate is said to gain, and its comparison with others at equal steps."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.comparing.intervals import Comparison, compare
from experiments.theory.equal_kl import DUAL, Paths

MATTERS = 0.02  # of a share: a smaller difference is of no use to anybody


def gains(tests: Sequence[Comparison]) -> bool | None:
    """Whether some difference is shown to be above 0, and is of use; False where none can be."""
    if any(test.sign > 0 and test.interval.mean > MATTERS for test in tests):
        return True
    return False if all(test.interval.high < MATTERS for test in tests) else None


def in_all(groups: Sequence[Sequence[Comparison]]) -> bool | None:
    """Whether all differences of some group are gains; False if none can be: each has one that is
    shown to be below 0, or that can be of no use.
    """
    if any(all(gains([test]) for test in group) for group in groups):
        return True
    lost = [any(t.sign < 0 or gains([t]) is False for t in group) for group in groups]
    return False if all(lost) else None


class AtEnd(NamedTuple):
    """Comparisons after all steps, of logarithms of KL and of rewards."""

    kl: list[Comparison]
    reward: list[Comparison]


def at_equal_steps(ends: Mapping[str, Mapping[str, Paths]]) -> AtEnd:
    """Dual gates against PPO-RLHF and GRPO as published, all worlds' tests together.

    Args:
      ends: world -> row -> KL and reward after all steps [S].
    """
    kl: dict[str, np.ndarray] = {}
    reward: dict[str, np.ndarray] = {}
    for world, rows in ends.items():
        for row in DUAL:
            for other in ("ppo", "grpo-published"):
                name = f"{row} against {other}, {world}"
                kl[name] = np.log(rows[row].kl) - np.log(rows[other].kl)
                reward[name] = rows[row].reward - rows[other].reward
    return AtEnd(compare(kl), compare(reward))
