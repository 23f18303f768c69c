"""RPO: DPO with the likelihood of the chosen answers as regulariser (Liu et al., 2405.16436).

The regulariser is an adversary's reward model come down to a supervised loss, the sum over an
answer's tokens. Two other methods carry the name: Iterative RPO (2404.19733), whose likelihood is
divided by length, and reward-aware preference optimisation.
"""

import dataclasses

from agents.language.method import config, loss_of, maker_from_data
from rgpo_jax.language.pair_config import DataConfig
from rgpo_jax.ranges import NonNegative


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loss:
    eta: NonNegative = 0.005
    """Weight of the likelihood of chosen answers, times kl_coefficient."""


Config = config(__name__, _Loss, DataConfig, kl_coefficient=0.01)
loss = loss_of("rpo", ("eta",))
make = maker_from_data(Config, loss)
