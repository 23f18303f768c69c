"""SAPO: RGPO's gate with a temperature for each sign of the advantage."""

import dataclasses

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.ranges import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step, and the gate's numbers."""

    temperature_positive: Positive = 1.0
    """Sharpness where the advantage is positive."""
    temperature_negative: Positive = 1.05
    """Sharpness elsewhere."""


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    return rgpo_jax.gates.sapo(config.temperature_positive, config.temperature_negative)


make = maker(Config, gate)
