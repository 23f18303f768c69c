"""Further terms of the loss: Tunables (prediction, batch, hyper-parameters) -> a value per sample.

The mean of what they give is added to the loss that a gradient step descends.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rgpo_jax.diagnostics import k3
from rgpo_jax.learner import Hyperparameters
from rgpo_jax.objective import Batch, Prediction
from rgpo_jax.ranges import NON_NEGATIVE, POSITIVE
from rgpo_jax.tunable import Tunable, require

Array = jax.Array


def clipped_value_excess(value: Array, old_value: Array, target: Array, clip: Any) -> Array:
    """By how much (V - target)^2 falls short of PPO's clipped value loss [...].

    With it the squared error is max((V - target)^2, (V_old + clip(V - V_old, -clip, clip) -
    target)^2), as in OpenAI's baselines.
    """
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    return jnp.maximum(jnp.square(clipped - target) - jnp.square(value - target), 0.0)


def _penalty(
    prediction: Prediction,
    batch: Batch,
    hyperparameters: Hyperparameters,
    *,
    kl_coefficient: Any,
    value_clip: Any,
) -> Array:
    total = jnp.zeros_like(prediction.log_ratio)
    if kl_coefficient is not None:
        total += kl_coefficient * k3(prediction.log_ratio)
    if value_clip is not None:
        if batch.old_value is None:
            raise ValueError("value_clip: expected batches that have old_value")
        excess = clipped_value_excess(prediction.value, batch.old_value, batch.target, value_clip)
        total += hyperparameters.value_coefficient * 0.5 * excess
    return total


def make(kl_coefficient: Any = None, value_clip: Any = None) -> Tunable | None:
    """The penalties that a Config has; None if it has none.

    Args:
      kl_coefficient: weight of KL(old || new), estimated by k3, as in P3O (arXiv 2205.10047);
        None: off.
      value_clip: range of PPO's clipped value loss; None: off.

    Raises:
      ValueError: a number out of range.
    """
    if kl_coefficient is None and value_clip is None:
        return None
    if kl_coefficient is not None:
        require("kl_coefficient", kl_coefficient, NON_NEGATIVE)
    if value_clip is not None:
        require("value_clip", value_clip, POSITIVE)
    return Tunable(_penalty, {"kl_coefficient": kl_coefficient, "value_clip": value_clip})
