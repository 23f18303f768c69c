"""On-policy DPO in rounds: fresh pairs of the policy, then a full fit (arXiv 2601.08421).

An update is a round: `num_prompts` pairs of the present policy, labelled once, and `num_epochs`
passes over them to the fixed reference. Its error falls geometrically with the rounds to a floor
that the pairs of a round set; that of pairs of the reference alone as 1 / sqrt(N).
"""

import dataclasses
from typing import Literal

from agents.language.method import config, loss_of, maker_from_own
from rgpo_jax.language.pair_config import OwnPairsConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Labels:
    labels: Literal["sampled", "reward"] = "sampled"
    """Who is preferred: drawn, with P = sigmoid of the difference of rewards; or the one of the
    larger reward, where ties are skipped and counted. In worlds of texts, reward by default."""


Config = config(
    __name__,
    _Labels,
    OwnPairsConfig,
    num_updates=8,
    num_prompts=64,
    num_epochs=16,
    anneal_learning_rate=False,
)
loss = loss_of("dpo")
make = maker_from_own(Config, loss)
