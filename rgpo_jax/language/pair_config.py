"""The settings that methods which learn from pairs of answers share. Does not import JAX."""

import dataclasses
from typing import Literal

from rgpo_jax.config import ConfigError
from rgpo_jax.language.config import Minibatched
from rgpo_jax.ranges import Count, Finite, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig(Minibatched):
    """Settings of a loss of pairs; what differs between methods is the loss."""

    num_prompts: Count = 8
    """Pairs of an update, each of a prompt: all that there are come in turn, shuffled anew each
    time round."""
    num_epochs: Count = 1
    """Passes over the pairs of an update."""
    num_minibatches: Count = 1
    """Gradient steps a pass; must divide the pairs of an update."""
    kl_coefficient: Positive = 0.1
    """Weight of the KL to the reference (beta): the reward that a policy stands for is beta
    log(pi / ref) + constant."""

    @property
    def num_samples(self) -> int:
        return self.num_prompts

    @property
    def batch_size(self) -> int:
        return 2 * self.num_prompts

    @property
    def group_size(self) -> int:
        """Answers to each prompt of an update."""
        return 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(PairConfig):
    """Settings of methods that learn from a data set of pairs.

    In exact worlds the pairs are made: two answers of the reference, labelled by the world's reward
    with P(first preferred) = sigmoid of the difference (Bradley and Terry).
    """

    num_pairs: Count | None = None
    """The first so many pairs of the data set alone. In exact worlds, the size of the one that is
    made. None: all; in exact worlds new ones without end."""
    labels: Literal["sampled", "exact"] = "sampled"
    """Of the pairs that exact worlds make: drawn, or the probability itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_pairs is not None and self.num_pairs < 2:
            raise ConfigError("num_pairs", f"{self.num_pairs}: expected at least 2, or None")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnPairsConfig(PairConfig):
    """Settings of methods that learn from pairs of the policy's own answers."""

    num_prompts: Count = 8
    """Prompts of an update: all that there are come in turn, shuffled anew each time round."""
    group_size: Count = 2
    """Answers to each prompt (G)."""
    pairing: Literal["best_worst", "neighbours"] = "neighbours"
    """Pairs of a prompt's answers: the best and the worst by their reward; or the first and the
    second, the third and the fourth, and so on."""
    missing_end: Finite | None = None
    """The reward of an answer that has no end token, in the place of its own; None: its own."""

    def __post_init__(self) -> None:
        if self.group_size < 2 or (self.pairing == "neighbours" and self.group_size % 2):
            accepted = "an even number" if self.pairing == "neighbours" else "at least 2"
            raise ConfigError(
                "group_size",
                f"{self.group_size}: expected {accepted} with pairing {self.pairing}",
            )
        super().__post_init__()

    @property
    def num_samples(self) -> int:
        pairs = 1 if self.pairing == "best_worst" else self.group_size // 2
        return self.num_prompts * pairs

    @property
    def _samples_in_words(self) -> str:
        return "the pairs of an update"

    @property
    def batch_size(self) -> int:
        return self.num_prompts * self.group_size
