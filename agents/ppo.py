"""PPO: w = r inside the clip range, 0 beyond it; the side depends on the advantage's sign."""

import dataclasses

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.ranges import AboveOne, Fraction, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step, and the gate's numbers."""

    clip: Fraction = 0.2
    """Clip range epsilon of the ratio, on both sides of 1."""
    clip_high: Positive | None = None
    """Another clip range above 1 (DAPO uses 0.28); None: the same as clip."""
    dual_clip: AboveOne | None = None
    """Drop samples of negative advantage whose ratio is above this (commonly 3); None: keep."""


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    return rgpo_jax.gates.ppo(config.clip, config.clip_high, config.dual_clip)


make = maker(Config, gate)
