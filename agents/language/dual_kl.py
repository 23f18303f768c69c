"""Two KLs in the place of a gate: to the reference, and to the policy that sampled.

One update climbs E[R] - a KL(pi || ref) - c KL(pi || old), with a = kl_coefficient and
c = old_kl_coefficient, whose maximum is ref^(a / (a + c)) old^(c / (a + c)) exp(R / (a + c)) / Z;
so its passes may be many. Updates settle at ref exp(R / a) / Z, whatever c. Both KLs are squares of
log-ratios of whole answers. REBEL (arXiv 2404.16767) with the KL in its reward has, by pairs, the
same maximum for c = 1 / eta - a; DAR (2602.11523) regresses to it. The form is ours.
"""

from agents.language.method import config, gate_of, maker

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
