"""RLOO: the baseline is the mean reward of the others in the group (arXiv 2402.14740).

One ratio an answer, clipped as PPO clips; the KL is in the reward, of the policy that sampled. On
policy the gradient is unbiased for every group size.
"""

from agents.gated import gate_of
from agents.language.method import config, maker
from rgpo_jax.gate_table import GATES

Config = config(__name__, GATES["ppo"].settings, aggregation="sequence")
gate = gate_of("ppo")
make = maker(Config, gate)
