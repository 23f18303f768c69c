"""ZPG: zeroth-order policy gradient from who wins, without a reward model (arXiv 2409.17401).

There is no KL in its objective: stop early, or it goes to the best answers.
"""

from agents.language.method import config, maker_zeroth
from rgpo_jax.language.zeroth_config import ZerothConfig

Config = config(__name__, ZerothConfig, max_grad_norm=10.0)
make = maker_zeroth(Config)
