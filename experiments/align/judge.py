"""What scores the answers of a run, and what becomes of a user's reward that fails."""

from typing import NamedTuple

import numpy as np

from envs.language import rewards
from envs.language.rewards import TextPreference, TextReward


class RewardFailed(Exception):
    """A user's reward raised something, or gave what is no reward."""


class Judge(NamedTuple):
    """What scores answers.

    Attributes:
      name: of the reward, as it was given.
      reward: what is trained on.
      gold_name: of the other.
      gold: what is measured alone; None: nothing.
      preference_name: of the judge of pairs.
      preference: what learning takes in the place of the reward; None: the reward.
    """

    name: str
    reward: TextReward
    gold_name: str | None = None
    gold: TextReward | None = None
    preference_name: str | None = None
    preference: TextPreference | None = None

    def compare(self, prompts: list[str], answers: list[str], group_size: int) -> np.ndarray | None:
        """Rewards [n] that stand for a judge's preferences within groups; None without a judge.

        Raises:
          RewardFailed: it does not give probabilities.
        """
        if self.preference is None:
            return None
        name = f"--preference {self.preference_name}"
        try:
            return rewards.of_preference(name, self.preference, prompts, answers, group_size)
        except ValueError as error:
            raise RewardFailed(str(error)) from None

    def score(self, prompts: list[str], answers: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
        """Rewards and gold rewards [n].

        Raises:
          RewardFailed: one of them does not give n numbers.
        """
        try:
            scores = rewards.score(f"--reward {self.name}", self.reward, prompts, answers)
            if self.gold is None:
                return scores, None
            return scores, rewards.score(f"--gold {self.gold_name}", self.gold, prompts, answers)
        except ValueError as error:
            raise RewardFailed(str(error)) from None
