"""Online DPO: DPO on the best and the worst of the policy's own answers (arXiv 2402.04792).

The reference stays. Labels are drawn by Bradley and Terry's model of the reward, so that the policy
settles where DPO does; with labels reward the larger one always wins, and nothing holds the margin.
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


Config = config(__name__, _Labels, OwnPairsConfig, group_size=4, pairing="best_worst")
loss = loss_of("dpo")
make = maker_from_own(Config, loss)
