"""PPO-RLHF: a critic and generalised advantage estimation over tokens (1909.08593, 2203.02155).

Each token's reward is reduced by the KL; the answer's reward comes at its last token. Advantages
are whitened over all tokens, and the value loss may be clipped.
"""

import dataclasses
from typing import Literal

from agents.gated import gate_of
from agents.language.method import config, maker
from rgpo_jax.gate_table import GATES
from rgpo_jax.ranges import NonNegative, Positive, UnitInterval


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Critic:
    baseline: Literal["value"] = "value"
    """A critic's value is subtracted, token by token."""
    value_coefficient: NonNegative = 0.1
    """Weight of the value loss, half the mean squared error."""
    value_clip: Positive | None = 0.2
    """Clip range of values around those before the update, as in OpenAI's PPO; None: no clip."""
    gae_lambda: UnitInterval = 0.95
    """Lambda of generalised advantage estimation, over tokens and without discount."""


Config = config(
    __name__,
    _Critic,
    GATES["ppo"].settings,
    scale="batch",
    aggregation="token_mean",
    num_epochs=4,
)
gate = gate_of("ppo")
make = maker(Config, gate)
