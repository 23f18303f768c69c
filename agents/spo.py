"""SPO: w = r (1 - sign(A) (r - 1) / clip), a parabola in the clip's place."""

import dataclasses

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.ranges import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step, and the gate's numbers."""

    clip: Positive = 0.2
    """Distance of the ratio from 1 at which the weight changes sign (epsilon)."""


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    return rgpo_jax.gates.spo(config.clip)


make = maker(Config, gate)
