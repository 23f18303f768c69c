"""Reward distillation: beta log-ratios regressed to differences of reward (arXiv 2601.08421).

The policy's own pairs and the reward itself: without noise of labels it settles at pi_ref
exp(R / beta) / Z far sooner than DPO. The form is ours, after the paper's abstract.
"""

from agents.language.method import config, loss_of, maker_from_own
from rgpo_jax.language.pair_config import OwnPairsConfig

Config = config(__name__, OwnPairsConfig)
loss = loss_of("reward_distillation")
make = maker_from_own(Config, loss)
