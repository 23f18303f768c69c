"""A2C: one gradient step per short rollout, so that r = 1 and a gate contributes w(1) alone.

What it says that `reinforce` does not: without a second look at a batch there is nothing to gate.
"""

import dataclasses

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.ranges import Count, Positive, UnitInterval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step: 16 environments, 8 steps, one step of Adam."""

    num_envs: Count = 16
    num_steps: Count = 8
    num_epochs: Count = 1
    num_minibatches: Count = 1
    learning_rate: Positive = 1e-3
    gae_lambda: UnitInterval = 1.0


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """w = 1."""
    del config
    return rgpo_jax.gates.reinforce()


make = maker(Config, gate)
