"""Dr. GRPO: GRPO without the two divisions that bias it, by spread and by length (2503.20783).

The mean of a group has the answer itself in it, so advantages are (1 - 1/G) times what they would
be without: with a KL in the loss the policy settles at ref exp((1 - 1/G) R / beta) / Z. The paper
has no KL (beta 0).
"""

from agents.gated import gate_of
from agents.language.method import config, maker
from rgpo_jax.gate_table import GATES

Config = config(
    __name__,
    GATES["ppo"].settings,
    baseline="group",
    aggregation="token_sum",
    kl="direct",
    kl_estimator="k3",
)
gate = gate_of("ppo")
make = maker(Config, gate)
