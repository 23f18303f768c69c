"""The gated objective: policy surrogate, value loss and entropy bonus."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgpo_jax.gates import Gate
from rgpo_jax.networks import Network

Array = jax.Array


class Batch(NamedTuple):
    """Samples of a policy-gradient estimate, batched over leading axes [...].

    Attributes:
      observation: [..., *observation_shape]; of a recurrent network a `networks.Sequence`, and
        all else is [B, T, ...].
      action: [...] or [..., d].
      log_prob: of the action under the policy that drew it, in nats [...].
      advantage: transformed as the agent wants it (normalised, weighted) [...].
      target: of the value function [...].
    """

    observation: Any
    action: Array
    log_prob: Array
    advantage: Array
    target: Array


class LossTerms(NamedTuple):
    """What a loss is made of, step by step [...]; reduced once per update, and not per minibatch.

    Attributes:
      log_ratio: log pi_theta - log pi_old.
      squared_error: (V - target)^2.
    """

    log_ratio: Array
    squared_error: Array


def surrogate(gate: Gate, log_ratio: Array, advantage: Array) -> Array:
    """The gated surrogate mean(g(l, A) A), to be ascended; a scalar."""
    return jnp.mean(gate(log_ratio, advantage) * advantage)


def squared_error(network: Network, critic_params: Any, batch: Batch) -> Array:
    """(V - target)^2 of each step [...]; the value loss is half its mean."""
    return jnp.square(network.value(critic_params, batch.observation) - batch.target)


def loss(
    params: Any,
    network: Network,
    gate: Gate,
    batch: Batch,
    value_coefficient: Any,
    entropy_coefficient: Any,
) -> tuple[Array, LossTerms]:
    """What a gradient step descends: -surrogate + c_v value loss - c_e entropy.

    Args:
      params: {"actor": ..., "critic": ...}.
      network: policy and value function.
      gate: function (log_ratio, advantage) -> g.
      batch: n samples.
      value_coefficient: c_v.
      entropy_coefficient: c_e.

    Returns:
      The loss and its terms.
    """
    distribution = network.policy(params["actor"], batch.observation)
    log_ratio = distribution.log_prob(batch.action) - batch.log_prob
    terms = LossTerms(log_ratio, squared_error(network, params["critic"], batch))
    total = (
        -surrogate(gate, log_ratio, batch.advantage)
        + value_coefficient * 0.5 * jnp.mean(terms.squared_error)
        - entropy_coefficient * jnp.mean(distribution.entropy())
    )
    return total, terms
