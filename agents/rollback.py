"""PPO with rollback: w = r inside PPO's clip and -slope r beyond it."""

import dataclasses

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.ranges import Fraction, NonNegative


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step, and the gate's numbers."""

    clip: Fraction = 0.2
    """Clip range epsilon of the ratio, on both sides of 1."""
    slope: NonNegative = 0.3
    """How strongly ratios beyond the clip are pulled back (alpha); 0 is PPO."""


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    return rgpo_jax.gates.rollback(config.clip, config.slope)


make = maker(Config, gate)
