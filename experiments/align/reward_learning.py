"""What learning a reward gives, of whichever kind it is."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from envs.language.learnt_reward import LearntReward
from envs.language.preferences import Pair
from experiments.align.reward_options import Options

Say = Callable[[str], None]


class Learnt(NamedTuple):
    """What was learnt, and what it says of pairs that it has not seen.

    Attributes:
      reward: as it is saved.
      margins: [K, n], each member's reward of chosen minus rejected.
      held_out: these pairs as texts [n].
      notes: lines on the data.
      history: of epochs, or of members.
    """

    reward: LearntReward
    margins: np.ndarray
    held_out: Sequence[Pair]
    notes: Sequence[str]
    history: list[dict[str, Any]]


class Broken(Exception):
    """Training came to nothing; the message is one line."""


def member_name(number: int, options: Options) -> str:
    """Which member a line is of; nothing where there is one."""
    return f"member {number + 1} of {options.ensemble}, " if options.ensemble > 1 else ""
