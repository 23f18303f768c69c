"""GSPO: one ratio an answer, the geometric mean of its tokens', in a narrow clip (2507.18071)."""

from agents.gated import gate_of
from agents.language.method import config, maker
from rgpo_jax.gate_table import GATES

Config = config(
    __name__,
    GATES["ppo"].settings,
    clip=3e-4,
    clip_high=4e-4,
    baseline="group",
    scale="group",
    aggregation="sequence_mean",
    kl="published",
    kl_estimator="k3",
    kl_coefficient=0.0,
)
gate = gate_of("ppo")
make = maker(Config, gate)
