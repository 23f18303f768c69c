"""KTO: each answer is desirable or not by itself, judged against the KL (arXiv 2402.01306).

The point of reference z is the KL to the reference policy, estimated in each minibatch by answers
of other pairs to the same prompts; a minibatch of one pair would make it of that pair.
"""

import dataclasses

from agents.language.method import config, loss_of, maker_from_data
from rgpo_jax.language.pair_config import DataConfig
from rgpo_jax.ranges import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loss:
    desirable_weight: Positive = 1.0
    """Weight of chosen answers."""
    undesirable_weight: Positive = 1.0
    """Weight of rejected answers."""


Config = config(__name__, _Loss, DataConfig)
loss = loss_of("kto", _Loss)
make = maker_from_data(Config, loss, mismatched=True)
