"""Running statistics of observations and returns, and what is normalised by them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

_LARGEST = 10.0  # normalised values are clipped to this magnitude, as in OpenAI's baselines


class Moments(NamedTuple):
    """Mean and spread of everything seen so far, elementwise.

    Attributes:
      num_values: number of values seen, float32 [].
      mean: their mean [...].
      squares: sum of their squared distances from the mean [...].
    """

    num_values: Array
    mean: Array
    squares: Array

    @property
    def variance(self) -> Array:
        """Population variance [...]; 1 where nothing was seen, or nothing that varies.

        A spread below the resolution of the mean is rounding, and no spread.
        """
        variance = self.squares / jnp.maximum(self.num_values, 1.0)
        resolution = 8 * jnp.finfo(jnp.float32).eps * jnp.abs(self.mean)
        varies = variance > jnp.maximum(jnp.square(resolution), jnp.finfo(jnp.float32).tiny)
        return jnp.where(varies, variance, 1.0)


def empty(shape: tuple[int, ...]) -> Moments:
    """Moments of nothing; what is normalised by them passes unchanged but for the clipping."""
    return Moments(jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape))


def by_part(function: Callable[[Moments, Array], Any], moments: Any, values: Any) -> Any:
    """The function of each array and its moments, where both may be dicts."""
    return jax.tree.map(function, moments, values, is_leaf=lambda node: isinstance(node, Moments))


def include(moments: Moments, values: Array) -> Moments:
    """Takes a batch in; the result does not depend on how values are cut into batches.

    Args:
      moments: of values of shape [...].
      values: [n, ...].

    Source: Chan, Golub and LeVeque, 1983.
    """
    # The squares of half-precision numbers soon leave their range.
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    count = jnp.float32(values.shape[0])
    mean = jnp.mean(values, axis=0)
    squares = jnp.sum(jnp.square(values - mean), axis=0)
    total = moments.num_values + count
    distance = mean - moments.mean
    return Moments(
        total,
        moments.mean + distance * (count / total),
        moments.squares + squares + jnp.square(distance) * (moments.num_values * count / total),
    )


def standardize(moments: Moments, values: Array) -> Array:
    """(x - mean) / std, clipped to [-10, 10]; values [..., *shape of the moments]."""
    z = (values - moments.mean) * jax.lax.rsqrt(moments.variance)
    return jnp.clip(z, -_LARGEST, _LARGEST)


class ReturnScale(NamedTuple):
    """By what rewards are divided: the running spread of discounted returns.

    Attributes:
      running_return: discounted return of each environment's episode so far [B]; 0 where the last
        step ended one.
      moments: of the discounted returns after every step, scalars.
    """

    running_return: Array
    moments: Moments


def initial_return_scale(num_envs: int) -> ReturnScale:
    """The state before any reward."""
    return ReturnScale(jnp.zeros(num_envs), empty(()))


def scale_rewards(
    state: ReturnScale, reward: Array, done: Array, discount: Any
) -> tuple[ReturnScale, Array]:
    r"""Divides rewards by the standard deviation of discounted returns so far, these included.

    .. math:: R_t = r_t + \gamma (1 - \text{done}_{t-1}) R_{t-1}

    Args:
      state: as the last batch left it.
      reward: [T, B].
      done: bool [T, B]; the step ended an episode, of which nothing enters the next one's returns.
      discount: gamma, scalar.

    Returns:
      The new state, and r / std(R) clipped to [-10, 10]; the mean is not taken away.

    Source: `VecNormalize` of OpenAI's baselines, which leaks the last return of an episode into
    the next; this does not.
    """

    def step(running: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = xs
        running = discount * running + reward
        return jnp.where(done, 0.0, running), running

    running_return, returns = jax.lax.scan(step, state.running_return, (reward, done))
    moments = include(state.moments, returns.reshape(-1))
    scaled = reward * jax.lax.rsqrt(moments.variance)
    return ReturnScale(running_return, moments), jnp.clip(scaled, -_LARGEST, _LARGEST)
