"""Truncated importance sampling (V-trace, TIS): w = min(cap, r)."""

import dataclasses

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.ranges import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step, and the gate's numbers."""

    cap: Positive = 1.0
    """Largest weight (V-trace 1, TIS 2)."""


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    return rgpo_jax.gates.truncated_importance(config.cap)


make = maker(Config, gate)
