"""SAPO: GRPO with a soft gate, whose temperature depends on the advantage's sign (2511.20347)."""

from agents.gated import gate_of
from agents.language.method import config, maker
from rgpo_jax.gate_table import GATES

Config = config(
    __name__,
    GATES["sapo"].settings,
    baseline="group",
    scale="group",
    aggregation="answer_mean",
    kl="published",
    kl_estimator="k3",
    kl_coefficient=0.0,
)
gate = gate_of("sapo")
make = maker(Config, gate)
