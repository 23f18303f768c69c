"""Two KLs in the place of a gate: to the reference, and to the policy that sampled.

An answer has the weight A - c l - a m, with l = log(pi / old), m = log(pi / ref),
a = kl_coefficient and c = old_kl_coefficient: squares of whole answers' log-ratios hold an update
near to both policies, so that its passes may be many. Updates settle at ref exp(R / a) / Z,
whatever c. One update comes near to the maximum of E[R] - a KL(pi || ref) - c KL(pi || old),
ref^(a / (a + c)) old^(c / (a + c)) exp(R / (a + c)) / Z, and not onto it, since A is not shifted
by the constant that it would take. REBEL (arXiv 2404.16767), by pairs, comes onto it. The form is
ours; DAR (2602.11523) is a relative.
"""

from agents.gated import gate_of
from agents.language.method import config, maker

Config = config(
    __name__,
    num_epochs=4,
    aggregation="sequence",
    kl="published",
    kl_estimator="k2",
    old_kl_coefficient=1.0,
)
gate = gate_of("reinforce")
make = maker(Config, gate)
