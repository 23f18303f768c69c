"""Importance sampling: w = r, TRPO's surrogate under Adam and without a trust region."""

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    del config
    return rgpo_jax.gates.importance()


make = maker(Config, gate)
