"""The gated objective: policy surrogate, value loss and entropy bonus."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgpo_jax.distributions import Distribution
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
      old_value: what the value function said before the update [...]; None: unknown.
    """

    observation: Any
    action: Array
    log_prob: Array
    advantage: Array
    target: Array
    old_value: Array | None = None


class Prediction(NamedTuple):
    """What parameters say of a batch [...].

    Attributes:
      policy: distribution of actions.
      log_ratio: log pi_theta - log pi_old of the actions.
      value: of the observations.
    """

    policy: Distribution
    log_ratio: Array
    value: Array


def surrogate(gate: Gate, log_ratio: Array, advantage: Array, where: Array | None = None) -> Array:
    """The gated surrogate mean(g(l, A) A), to be ascended; a scalar.

    Args:
      gate: function (log_ratio, advantage) -> g.
      log_ratio: log pi_theta - log pi_old [...].
      advantage: [...].
      where: which samples count [...]; None: all. Of none the surrogate is 0.

    Raises:
      ValueError: the shapes differ; [n, 1] against [n] would be [n, n] in silence.
    """
    for name, array in {"advantage": advantage, "where": where}.items():
        if array is not None and jnp.shape(array) != jnp.shape(log_ratio):
            raise ValueError(
                f"{name} {jnp.shape(array)}: expected the log-ratio's shape {jnp.shape(log_ratio)}"
            )
    if where is None:
        return jnp.mean(gate(log_ratio, advantage) * advantage)
    # What is masked may be anything, and a NaN times 0 has a NaN for its gradient.
    log_ratio = jnp.where(where, log_ratio, 0.0)
    advantage = jnp.where(where, advantage, 1.0)  # and not 0, by which a gate may divide
    total = jnp.sum(jnp.where(where, gate(log_ratio, advantage) * advantage, 0.0))
    return total / jnp.maximum(jnp.sum(where), 1)


def loss(
    params: Any,
    network: Network,
    gate: Gate,
    batch: Batch,
    value_coefficient: Any,
    entropy_coefficient: Any,
    penalty: Callable[[Prediction, Batch], Array] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """What a gradient step descends: -surrogate + c_v value loss - c_e entropy + penalty.

    Args:
      params: {"actor": ..., "critic": ...}.
      network: policy and value function.
      gate: function (log_ratio, advantage) -> g.
      batch: n samples.
      value_coefficient: c_v.
      entropy_coefficient: c_e.
      penalty: of each sample [...], of which the mean is added; None: none.

    Returns:
      The loss, and what it is made of, sample by sample [...]: "log_ratio", "squared_error"
      (V - target)^2, and "penalty" if there is one; to be reduced once per update, and not per
      minibatch.
    """
    policy, value = network.policy_and_value(params, batch.observation)
    log_ratio = policy.log_prob(batch.action) - batch.log_prob
    terms = {"log_ratio": log_ratio, "squared_error": jnp.square(value - batch.target)}
    total = (
        -surrogate(gate, log_ratio, batch.advantage)
        + value_coefficient * 0.5 * jnp.mean(terms["squared_error"])
        - entropy_coefficient * jnp.mean(policy.entropy())
    )
    if penalty is not None:
        terms["penalty"] = penalty(Prediction(policy, log_ratio, value), batch)
        total += jnp.mean(terms["penalty"])
    return total, terms
