"""Advantage estimation that tells truncation from termination."""

from typing import Any

import jax
import jax.numpy as jnp

from rgpo_jax.ranges import POSITIVE
from rgpo_jax.tunable import Tunable, require

Array = jax.Array


def generalized_advantages(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    discount: Any,
    gae_lambda: Any,
) -> Array:
    r"""Generalised advantage estimation over a batch of trajectories.

    .. math:: \delta_t = r_t + \gamma (1 - \text{terminated}_t) V(s'_t) - V(s_t), \qquad A_t =
              \delta_t + \gamma \lambda (1 - \text{terminated}_t) (1 - \text{truncated}_t) A_{t+1}

    A terminated step has no future; a truncated one bootstraps from the value of the observation
    that the step led to, and cuts the trace there, since what follows is another episode.

    Args:
      reward: [T, ...].
      value: V(s_t) [T, ...].
      next_value: V(s'_t) [T, ...], of the observation before any reset. Ignored where terminated.
      terminated: bool [T, ...].
      truncated: bool [T, ...].
      discount: gamma, scalar.
      gae_lambda: lambda, scalar.

    Returns:
      Advantages [T, ...]; value targets are advantages + value.

    Source: arXiv 1506.02438.
    """
    next_value = jnp.where(terminated, 0.0, next_value)
    delta = reward + discount * next_value - value
    decay = jnp.where(terminated | truncated, 0.0, discount * gae_lambda)
    return _compose_backwards(delta, decay)


def _compose_backwards(delta: Array, decay: Array) -> Array:
    """A_t = delta_t + decay_t A_{t+1}, with 0 after the last row [T, ...]."""
    if jax.default_backend() == "cpu":
        # XLA makes one function of a small loop: it compiles in a tenth of a tree's time, and takes
        # 80 microseconds for 128 steps of 1,024 environments (a tree 730), 24 for those of 8 (14).
        def step(later: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            advantage = row[0] + row[1] * later
            return advantage, advantage

        start = jnp.zeros_like(delta[0] * decay[0])
        return jax.lax.scan(step, start, (delta, decay), reverse=True)[1]

    # On a GPU every step of a loop is launched by itself. A composition of affine maps is
    # associative: a tree of them has log2(T) steps.
    def compose(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    return jax.lax.associative_scan(compose, (delta, decay), reverse=True)[0]


def normalize(advantage: Array) -> Array:
    """Shifts and scales to mean 0 and standard deviation 1 over all axes.

    Advantages without spread, up to the resolution of their type, become 0 and not noise.
    """
    # Twice: over a large batch the first mean is off by more than the type's resolution.
    centred = advantage - jnp.mean(advantage)
    centred -= jnp.mean(centred)
    std = jnp.sqrt(jnp.mean(jnp.square(centred)))
    resolution = 8 * jnp.finfo(advantage.dtype).eps * jnp.max(jnp.abs(advantage))
    has_spread = std > resolution
    return jnp.where(has_spread, centred / jnp.where(has_spread, std, 1.0), 0.0)


def _identity(advantage: Array) -> Array:
    return advantage


def identity() -> Tunable:
    """The transform of every agent that weighs samples by the advantage itself."""
    return Tunable(_identity)


def _exponential(advantage: Array, advantage_temperature: Any, advantage_cap: Any) -> Array:
    return jnp.exp(jnp.minimum(advantage / advantage_temperature, jnp.log(advantage_cap)))


def exponential(advantage_temperature: Any = 1.0, advantage_cap: Any = 20.0) -> Tunable:
    """Advantage-weighted regression: min(exp(A / b), cap) in the advantage's place.

    Args:
      advantage_temperature: b > 0, in units of the (normalised) advantage.
      advantage_cap: largest weight, above 0.

    Source: arXiv 1910.00177.
    """
    require("advantage_temperature", advantage_temperature, POSITIVE)
    require("advantage_cap", advantage_cap, POSITIVE)
    return Tunable(
        _exponential,
        {"advantage_temperature": advantage_temperature, "advantage_cap": advantage_cap},
    )
