"""DPO: a policy's own log-ratios as reward model, fitted to preferences (arXiv 2305.18290).

Where pairs are many and labelled by Bradley and Terry's model of R, the policy settles at pi_ref
exp(R / beta) / Z, whoever wrote the answers. The likelihood of the chosen answers may fall on the
way (`chosen_log_prob`); `rpo` holds it.
"""

from agents.language.method import config, loss_of, maker_from_data
from rgpo_jax.language.pair_config import DataConfig

Config = config(__name__, DataConfig)
loss = loss_of("dpo")
make = maker_from_data(Config, loss)
