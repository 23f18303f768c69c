"""DAPO: GRPO with a wider clip above 1, a mean over all tokens, and no KL (arXiv 2503.14476).

Groups of equal reward count in no mean. The paper draws others in their place; here a batch then
has fewer answers.
"""

from agents.gated import gate_of
from agents.language.method import config, maker
from rgpo_jax.gate_table import GATES

Config = config(
    __name__,
    GATES["ppo"].settings,
    clip_high=0.28,
    baseline="group",
    scale="group",
    aggregation="token_mean",
    drop_equal_groups=True,
    kl="published",
    kl_estimator="k3",
    kl_coefficient=0.0,
)
gate = gate_of("ppo")
make = maker(Config, gate)
