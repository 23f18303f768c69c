"""The settings that zeroth-order methods share. Does not import JAX."""

import dataclasses
from typing import Annotated, Literal

from rgpo_jax.config import ConfigError
from rgpo_jax.language.config import Common
from rgpo_jax.ranges import Count, Positive, Range

_HALF = Range(lambda x: (x > 0) & (x < 0.5), "a number above 0 and below 0.5")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZerothConfig(Common):
    """Settings of a gradient that is estimated from who wins, and from no reward."""

    num_prompts: Count = 64
    """Prompts of an update, each answered by two policies: all that there are come in turn,
    shuffled anew each time round."""
    num_directions: Count = 1
    """Directions that are tried in an update; must divide num_prompts, which are shared out."""
    smoothing: Positive = 0.5
    """How far along a direction the other policy is (mu), in units of the parameters."""
    central: bool = False
    """Compare the policies on both sides of the present one, and not one with the present one; the
    estimate has no error of second order."""
    common_random_numbers: bool = False
    """Let both policies draw with the same random numbers, so that they differ by their parameters
    alone; the papers sample independently."""
    num_judges: Count | None = 31
    """Judges of a pair (M), each of whom prefers an answer by Bradley and Terry's model of the
    reward. None: as many as it takes to know the probability."""
    feedback: Literal["each", "pooled", "sign"] = "each"
    """What is made of the wins. each: the logit of each pair's share of wins, cut off by trim; with
    few judges it is biased, by as much as trim says. pooled: the logit of the share of all pairs of
    a direction. sign: only which of the policies wins more often (arXiv 2506.03066)."""
    trim: Annotated[float, _HALF] = 0.05
    """Shares of wins are kept this far from 0 and 1 (delta), where a logit is infinite."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedback == "sign" and self.trim != type(self).trim:
            raise ConfigError("trim", f"{self.trim}: goes with feedback each or pooled")
        if self.num_prompts % self.num_directions:
            raise ConfigError(
                "num_directions",
                f"{self.num_directions}: expected a divisor of num_prompts = {self.num_prompts}",
            )

    @property
    def batch_size(self) -> int:
        return 2 * self.num_prompts

    @property
    def group_size(self) -> int:
        """Answers to each prompt of an update."""
        return 2
