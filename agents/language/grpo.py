"""GRPO: rewards shifted and scaled within their group, PPO's clip, KL in the loss (2402.03300).

As published (`kl="published"`) the KL's gradient is that of KL(ref || pi), and the policy settles
where pi (1 - P / beta) = ref, with P the expected advantage (arXiv 2502.18548); with `kl="direct"`,
today's usual form, where pi = ref exp(P / beta) / Z. Neither is the maximum of E[R] - beta KL.
"""

from agents.gated import gate_of
from agents.language.method import config, maker
from rgpo_jax.gate_table import GATES

Config = config(
    __name__,
    GATES["ppo"].settings,
    baseline="group",
    scale="group",
    aggregation="answer_mean",
    kl="published",
    kl_estimator="k3",
)
gate = gate_of("ppo")
make = maker(Config, gate)
