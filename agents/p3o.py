"""P3O's gate, without its KL penalty: w = 4 r sigmoid'(t (r - 1))."""

import dataclasses

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.ranges import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step, and the gate's numbers."""

    temperature: Positive = 4.0
    """Sharpness t of the gate."""


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    return rgpo_jax.gates.p3o(config.temperature)


make = maker(Config, gate)
