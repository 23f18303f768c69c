"""CISPO: w = clip(r, low, high), whatever the advantage's sign."""

import dataclasses

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.config import ConfigError
from rgpo_jax.ranges import NonNegative, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step, and the gate's numbers."""

    low: NonNegative = 0.0
    """Least weight."""
    high: Positive = 5.0
    """Largest weight, above low."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high <= self.low:
            raise ConfigError("high", f"{self.high}: expected a number above low = {self.low}")


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """The gate that the Config describes."""
    return rgpo_jax.gates.cispo(config.low, config.high)


make = maker(Config, gate)
