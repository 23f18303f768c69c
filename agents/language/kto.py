"""KTO: each answer is desirable or not by itself, judged against the KL (arXiv 2402.01306).

The point of reference z is the KL to the reference policy, estimated in each minibatch by answers
of other pairs to the same prompts; a minibatch of one pair would make it of that pair.
"""

import dataclasses

from agents.language.method import config, loss_of, maker_from_data
from rgpo_jax.config import ConfigError
from rgpo_jax.language.pair_config import DataConfig
from rgpo_jax.ranges import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loss(DataConfig):
    """Settings of a loss of answers one by one, and of the pairs that they are of."""

    desirable_weight: Positive = 1.0
    """Weight of chosen answers."""
    undesirable_weight: Positive = 1.0
    """Weight of rejected answers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        minibatch_size = self.num_samples // self.num_minibatches
        size = self.microbatch_size
        if size is not None and size < minibatch_size:
            raise ConfigError(
                "microbatch_size",
                f"{size}: expected None or a whole minibatch's {minibatch_size} pairs, of which "
                "the KL is estimated",
            )
        if minibatch_size < 2:
            raise ConfigError(
                "num_minibatches", f"{self.num_minibatches}: expected at least 2 pairs in each"
            )


Config = config(__name__, _Loss)
loss = loss_of("kto", ("desirable_weight", "undesirable_weight"))
make = maker_from_data(Config, loss, mismatched=True)
