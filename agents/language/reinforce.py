"""REINFORCE: w = 1, with the mean reward of the batch as baseline.

The KL in the reward makes it the gradient of E[R] - beta KL(pi || ref), whose maximum is
pi_ref exp(R / beta) / Z. (Williams 1992; with the KL: arXiv 1909.08593.)
"""

from agents.gated import gate_of
from agents.language.method import config, maker

Config = config(__name__, baseline="batch")
gate = gate_of("reinforce")
make = maker(Config, gate)
