"""REBEL: changes of log-probability regressed to relative rewards (arXiv 2404.16767).

One exact fit is pi_t exp(eta R) / Z, a step of mirror descent; with the KL in the reward the policy
settles at pi_ref exp(R / beta) / Z.
"""

import dataclasses

from agents.language.method import config, loss_of, maker_from_own
from rgpo_jax.language.pair_config import OwnPairsConfig
from rgpo_jax.ranges import NonNegative, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Loss:
    kl_coefficient: NonNegative = 0.05
    """Weight of the KL to the reference (beta), by which rewards are reduced; 0: none, and the
    policy goes to the best answers."""
    eta: Positive = 1.0
    """Step size of mirror descent."""
    by_eta: bool = False
    """Divide the loss by eta^2, as the paper writes it; the paper's code does not. Where it is
    least is the same; a learning rate is not."""


Config = config(__name__, _Loss, OwnPairsConfig, num_epochs=4)
loss = loss_of("rebel", ("eta", "by_eta"))
make = maker_from_own(Config, loss, kl_in_reward=True)
