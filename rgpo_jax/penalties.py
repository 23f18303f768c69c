"""Further terms of the loss: Tunables (prediction, batch, hyper-parameters) -> a value per sample.

The mean of what they give is added to the loss that a gradient step descends.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rgpo_jax.learner import Hyperparameters
from rgpo_jax.objective import Batch, Prediction
from rgpo_jax.ranges import NON_NEGATIVE, POSITIVE
from rgpo_jax.tunable import Tunable, require

Array = jax.Array


def _kl(
    prediction: Prediction, batch: Batch, hyperparameters: Hyperparameters, *, kl_coefficient: Any
) -> Array:
    del batch, hyperparameters
    log_ratio = prediction.log_ratio
    return kl_coefficient * (jnp.expm1(log_ratio) - log_ratio)


def kl(coefficient: Any = 1.0) -> Tunable:
    """KL(old || new) of the policy by the estimate r - 1 - log r, times `kl_coefficient`.

    The estimate is unbiased where r is the ratio of the actions that the old policy drew, and never
    negative. P3O's penalty (arXiv 2205.10047).
    """
    require("kl_coefficient", coefficient, NON_NEGATIVE)
    return Tunable(_kl, {"kl_coefficient": coefficient})


def _value_clip(
    prediction: Prediction, batch: Batch, hyperparameters: Hyperparameters, *, value_clip: Any
) -> Array:
    if batch.old_value is None:
        raise ValueError("value_clip: expected batches that have old_value")
    change = jnp.clip(prediction.value - batch.old_value, -value_clip, value_clip)
    clipped = jnp.square(batch.old_value + change - batch.target)
    excess = clipped - jnp.square(prediction.value - batch.target)
    return hyperparameters.value_coefficient * 0.5 * jnp.maximum(excess, 0.0)


def value_clip(clip: Any = 0.2) -> Tunable:
    """What PPO's clipped value loss adds to the plain one, where values move less than `clip`.

    The two together are c_v / 2 max((V - target)^2, (V_old + clip(V - V_old, -clip, clip) -
    target)^2), as in OpenAI's baselines.
    """
    require("value_clip", clip, POSITIVE)
    return Tunable(_value_clip, {"value_clip": clip})
