"""REINFORCE: w = 1, whatever the ratio."""

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    del config
    return rgpo_jax.gates.reinforce()


make = maker(Config, gate)
