"""REBEL: changes of log-probability regressed to relative rewards (arXiv 2404.16767).

One exact fit is pi_t exp(eta R) / Z, a step of mirror descent; with the KL in the reward the policy
settles at pi_ref exp(R / beta) / Z.
"""

import dataclasses

from agents.language.method import config, loss_of, maker_from_own
from rgpo_jax.language.pair_config import OwnPairsConfig
from rgpo_jax.ranges import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loss:
    eta: Positive = 1.0
    """Step size of mirror descent."""
    by_eta: bool = False
    """Divide the loss by eta^2, as the paper writes it; the paper's code does not. Where it is
    least is the same; a learning rate is not."""


Config = config(__name__, _Loss, OwnPairsConfig, num_epochs=4, kl_coefficient=0.05)
loss = loss_of("rebel", _Loss)
make = maker_from_own(Config, loss, kl_in_reward=True)
