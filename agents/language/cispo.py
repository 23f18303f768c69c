"""CISPO: the weight is the ratio, cut off from above and never 0 (arXiv 2506.13585)."""

from agents.gated import gate_of
from agents.language.method import config, maker
from rgpo_jax.gate_table import GATES

Config = config(
    __name__,
    GATES["cispo"].settings,
    baseline="group",
    scale="group",
    aggregation="token_mean",
    kl="published",
    kl_estimator="k3",
    kl_coefficient=0.0,
)
gate = gate_of("cispo")
make = maker(Config, gate)
