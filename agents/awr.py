"""AWR on policy: no ratio, no replay; actions are imitated by weights min(exp(A / b), cap)."""

import dataclasses

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.ranges import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step, and of the weights."""

    advantage_temperature: Positive = 1.0
    """Temperature b, in units of the (normalised) advantage."""
    advantage_cap: Positive = 20.0
    """Largest weight of a sample."""


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """w = 1."""
    del config
    return rgpo_jax.gates.reinforce()


make = maker(
    Config,
    gate,
    advantage_transform=lambda config: rgpo_jax.advantages.exponential(
        config.advantage_temperature, config.advantage_cap
    ),
)
