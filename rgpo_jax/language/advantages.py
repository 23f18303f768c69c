"""Advantages of answers: from their rewards, their groups, or a critic."""

from typing import Literal

import jax
import jax.numpy as jnp

from rgpo_jax.advantages import generalized_advantages
from rgpo_jax.language.answers import last_tokens

Array = jax.Array
Baseline = Literal["none", "batch", "group", "leave_one_out"]
"""Of which rewards the mean is subtracted."""
Scale = Literal["none", "group", "batch"]
"""By the spread of which rewards advantages are divided."""


def _deviation(centred: Array, size: Array, axis: int | None = None) -> Array:
    """Standard deviation of what has mean 0; 0 where it is no more than rounding of `size`."""
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axis=axis, keepdims=True))
    resolution = 8 * jnp.finfo(centred.dtype).eps * jnp.max(jnp.abs(size), axis=axis, keepdims=True)
    return jnp.where(deviation > resolution, deviation, 0.0)


def _divide(centred: Array, deviation: Array) -> Array:
    return jnp.where(deviation > 0, centred / jnp.where(deviation > 0, deviation, 1.0), 0.0)


def group_advantages(reward: Array, baseline: Baseline, scale: Scale = "none") -> Array:
    """Advantages of whole answers.

    Args:
      reward: of G answers to each of P prompts [P, G].
      baseline: what is subtracted: nothing, the mean of all, that of the group, or that of the
        others in the group, with which the policy gradient is unbiased (RLOO, arXiv 2402.14740).
      scale: by whose standard deviation they are divided: nobody's, the group's (GRPO, arXiv
        2402.03300; of the population, over G), or the batch's. Without spread they are 0.

    Returns:
      [P, G]. With baseline "group" their mean is (1 - 1/G) times what it is with "leave_one_out".
    """
    size = reward.shape[1]
    within = reward - jnp.mean(reward, axis=1, keepdims=True)
    if baseline == "none":
        advantage = reward
    elif baseline == "batch":
        advantage = reward - jnp.mean(reward)
    elif baseline == "group":
        advantage = within
    else:
        advantage = within * (size / (size - 1))
    if scale == "group":
        return _divide(advantage, _deviation(within, reward, axis=1))
    if scale == "batch":
        return _divide(advantage, _deviation(advantage - jnp.mean(advantage), reward))
    return advantage


def has_spread(reward: Array) -> Array:
    """Whether the answers of a group differ in reward [P, 1], beyond rounding."""
    within = reward - jnp.mean(reward, axis=1, keepdims=True)
    return _deviation(within, reward, axis=1) > 0


def token_advantages(
    reward: Array, value: Array, mask: Array, gae_lambda: Array | float
) -> tuple[Array, Array]:
    """Generalised advantage estimation over the tokens of answers, without discount.

    Args:
      reward: of each token [n, T], 0 where masked.
      value: of the state in which each token was chosen [n, T].
      mask: which tokens are an answer's [n, T]; the last of them ends the episode.
      gae_lambda: lambda.

    Returns:
      Advantages and targets of the value function [n, T], 0 where masked.
    """
    last = last_tokens(mask)
    value = jnp.where(mask, value, 0.0)
    following = jnp.pad(value[:, 1:], ((0, 0), (0, 1)))
    advantage = generalized_advantages(
        reward.T, value.T, following.T, last.T, jnp.zeros_like(last.T), 1.0, gae_lambda
    ).T
    advantage = jnp.where(mask, advantage, 0.0)
    return advantage, advantage + value


def whiten(advantage: Array, mask: Array) -> Array:
    """Shifts and scales to mean 0 and standard deviation 1 over the tokens of a mask [n, T]."""
    mean = jnp.mean(advantage, where=mask)
    centred = jnp.where(mask, advantage - mean, 0.0)
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred), where=mask))
    resolution = (
        8 * jnp.finfo(advantage.dtype).eps * jnp.max(jnp.abs(advantage), where=mask, initial=0)
    )
    return _divide(centred, jnp.where(deviation > resolution, deviation, 0.0))
