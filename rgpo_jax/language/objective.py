"""The gated objective of answers: a loss per token or per answer, aggregated by name."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgpo_jax.diagnostics import LARGEST_LOG_RATIO
from rgpo_jax.gates import Gate
from rgpo_jax.language import kl
from rgpo_jax.language.config import SEQUENCE_AGGREGATIONS, Config

Array = jax.Array


class Terms(NamedTuple):
    """What the surrogate of a batch is made of: per token [n, T], or per answer [n].

    Attributes:
      log_ratio: log pi_theta - log pi_old.
      log_ratio_ref: log pi_theta - log pi_ref.
      advantage: of each.
      mask: which of them count.
    """

    log_ratio: Array
    log_ratio_ref: Array
    advantage: Array
    mask: Array


def terms(
    aggregation: str,
    log_prob: Array,
    old_log_prob: Array,
    log_prob_ref: Array,
    advantage: Array,
    mask: Array,
) -> Terms:
    """Ratios where the aggregation has them: of tokens, or one of each answer.

    Args:
      aggregation: `Config.aggregation`. The ratio of an answer is the product of those of its
        tokens ("sequence", RLOO), or their geometric mean ("sequence_mean", GSPO).
      log_prob: of the tokens, under the parameters that are trained [n, T].
      old_log_prob: under those that sampled [n, T].
      log_prob_ref: under the reference [n, T].
      advantage: [n, T]; of an answer that of its first token.
      mask: which tokens count [n, T].
    """
    # What is masked may be anything, and a NaN times 0 has a NaN for its gradient.
    log_ratio = jnp.where(mask, log_prob - old_log_prob, 0.0)
    log_ratio_ref = jnp.where(mask, log_prob - log_prob_ref, 0.0)
    if aggregation not in SEQUENCE_AGGREGATIONS:
        return Terms(log_ratio, log_ratio_ref, advantage, mask)
    length = jnp.maximum(jnp.sum(mask, axis=-1), 1) if aggregation == "sequence_mean" else 1
    return Terms(
        jnp.sum(log_ratio, axis=-1) / length,
        jnp.sum(log_ratio_ref, axis=-1) / length,
        advantage[:, 0],
        jnp.any(mask, axis=-1),
    )


def weight(aggregation: str, mask: Array) -> Array:
    """Of how many things an aggregated loss is the mean: tokens, or answers that have any."""
    if aggregation == "token_mean":
        return jnp.sum(mask)
    return jnp.sum(jnp.any(mask, axis=-1) if mask.ndim > 1 else mask)


def aggregate(values: Array, mask: Array, aggregation: str, length_constant: Any = 1.0) -> Array:
    """One number of a value per token [n, T], or per answer [n]; 0 if none counts.

    Equal values v of an answer with L of all N tokens, one of n answers, add up to: v L / N
    ("token_mean"), v / n ("answer_mean"), v L / (n c) ("token_sum", c = length_constant), and v / n
    where there is one value an answer.
    """
    values = jnp.where(mask, values, 0.0)
    if aggregation == "answer_mean":
        values = jnp.sum(values, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)
    elif aggregation == "token_sum":
        values = values / length_constant
    return jnp.sum(values) / jnp.maximum(weight(aggregation, mask), 1)


def policy_loss(
    config: Config,
    gate: Gate,
    is_dual: bool,
    parts: Terms,
    kl_coefficient: Any,
    length_constant: Any,
    old_kl_coefficient: Any = None,
) -> Array:
    """Minus the gated surrogate, and the KLs that are terms of the loss.

    Args:
      config: aggregation; where and by what estimate KL enters.
      gate: function (log_ratio, advantage) -> g; if `is_dual`, (log_ratio, advantage,
        log_ratio_ref) -> g.
      is_dual: whether the gate is one of two ratios.
      parts: of the batch.
      kl_coefficient: beta.
      length_constant: see `Config.length_constant`.
      old_kl_coefficient: of the KL to the policy that sampled; None: there is no such term.
    """
    log_ratio, log_ratio_ref, advantage, mask = parts
    advantage = jnp.where(mask, advantage, 1.0)  # and not 0, by which a gate may divide
    arguments = (log_ratio, advantage) + ((log_ratio_ref,) if is_dual else ())
    value = -gate(*arguments) * advantage
    if config.kl != "reward":
        penalty = kl.ESTIMATORS[config.kl_estimator](log_ratio_ref)
        if config.kl == "direct":  # the ratio is not detached: its gradient is the policy's
            penalty *= jnp.exp(jnp.minimum(log_ratio, LARGEST_LOG_RATIO))
        value += kl_coefficient * penalty
    if old_kl_coefficient is not None:
        value += old_kl_coefficient * kl.k2(log_ratio)
    return aggregate(value, mask, config.aggregation, length_constant)
