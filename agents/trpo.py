"""TRPO: the importance gate, and a natural-gradient step in the optimiser's place."""

import dataclasses

import rgpo_jax
from agents.gated import maker
from rgpo_jax.config import Config as BaseConfig
from rgpo_jax.config import ConfigError
from rgpo_jax.ranges import Count, Fraction, NonNegative, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Settings of the update step and of the trust region; Adam trains the critic alone."""

    max_kl: Positive = 0.01
    """Largest mean KL(old || new) of one policy step, in nats (delta)."""
    damping: NonNegative = 0.1
    """Added to the Fisher matrix's diagonal."""
    backtrack_factor: Fraction = 0.8
    """By which the line search shortens a refused step."""
    cg_iterations: Count = 10
    """Iterations of conjugate gradient."""
    line_search_steps: Count = 15
    """Step lengths that the line search tries before it keeps the old policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_kl is not None:
            raise ConfigError("target_kl", f"{self.target_kl}: TRPO has max_kl; expected None")
        if self.shared_torso:  # the critic's gradient steps would move the policy
            raise ConfigError("shared_torso", "True: expected False with TRPO")
        if self.normalize_advantages_over != "rollout":
            raise ConfigError("normalize_advantages_over", "minibatch: expected rollout with TRPO")
        for name in ("kl_coefficient", "value_clip"):
            if getattr(self, name) is not None:
                raise ConfigError(name, f"{getattr(self, name)}: expected None with TRPO")


def gate(config: Config) -> "rgpo_jax.gates.Tunable":
    """w = r."""
    del config
    return rgpo_jax.gates.importance()


make = maker(
    Config,
    gate,
    policy_step=lambda config: rgpo_jax.trust_region.natural_gradient(
        config.max_kl,
        config.damping,
        config.backtrack_factor,
        config.cg_iterations,
        config.line_search_steps,
    ),
)
