"""RGPO: a smooth acceptance gate in the ratio's place; w = k r sigmoid'(k (r - 1))."""

import dataclasses
from typing import Literal

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.ranges import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step, and the gate's numbers."""

    sharpness: Positive = 4.0
    """How fast the gate closes away from r = 1 (k); it also scales the policy loss by k / 4."""
    form: Literal["linear", "log"] = "linear"
    """Gate in the ratio (linear, the paper's) or in the log-ratio (log)."""
    normalize: bool = False
    """Multiply the gate by 4 / sharpness, so that sharpness changes its shape alone."""
    call_back: bool = False
    """Weigh samples that bring a ratio back to 1 by r, as PPO does: KL stays small (ours)."""


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    return rgpo_jax.gates.rgpo(config.sharpness, config.form, config.normalize, config.call_back)


make = maker(Config, gate)
