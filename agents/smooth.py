"""Smooth trust-region gates: w falls off from r = 1 as a Gaussian or more slowly."""

import dataclasses
from typing import Literal

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.ranges import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step, and the gate's numbers."""

    kind: Literal["erf", "arctan", "softsign"] = "erf"
    """Weight r exp(-x^2/2), r / (1 + x^2) or r (1 + x^2)^-1.5, with x = sharpness (r - 1)."""
    sharpness: Positive = 10.0
    """How fast the weight falls off (the paper: 10 to 12)."""


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    return rgpo_jax.gates.smooth(config.kind, config.sharpness)


make = maker(Config, gate)
