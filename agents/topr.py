"""TOPR: w = 1 where the advantage is positive, else min(r, 1)."""

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    del config
    return rgpo_jax.gates.topr()


make = maker(Config, gate)
