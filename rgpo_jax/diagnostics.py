"""What every gated agent reports about its updates."""

import math

import jax
import jax.numpy as jnp

from rgpo_jax.gates import weight
from rgpo_jax.metrics import Metrics, maxima, means
from rgpo_jax.tunable import Tunable

Array = jax.Array

KL_SPIKE_THRESHOLDS = (0.02, 0.04, 0.08, 0.16)
"""KLs of an update, in nats, of which the share of updates beyond is reported."""
LARGEST_LOG_RATIO = 20.0
"""Log-ratio beyond which e^l goes on otherwise, so that it stays finite in float32."""


def gate_diagnostics(
    gate: Tunable,
    log_ratio: Array,
    advantage: Array,
    met_log_ratio: Array,
    log_ratio_ref: Array | None = None,
    where: Array | None = None,
    met_where: Array | None = None,
) -> Metrics:
    """Statistics of one update: its final policy against the one that drew the samples.

    Args:
      gate: of the update.
      log_ratio: log pi_theta - log pi_old of the final policy, over the whole batch [n].
      advantage: as the gate saw it [n].
      met_log_ratio: log-ratios as each minibatch met them [epochs, minibatches, m].
      log_ratio_ref: log pi_theta - log pi_ref, for a gate of two ratios [n].
      where: which samples count [n]; None: all.
      met_where: the same of those that minibatches met [epochs, minibatches, m].

    Returns:
      first_ratio_deviation: max|r - 1| over the first minibatch; 0 to float error, unless policy
        and rollout disagree.
      approx_kl_k1, approx_kl: means of -l and of r - 1 - l (k1 and k3 estimates of KL(old || new),
        in nats).
      approx_kl_max: largest mean k3 that a minibatch, or the final policy, met.
      kl_spike_rate_X: 1 if approx_kl > X, so that its mean over updates is a rate.
      policy_loss: minus the gated surrogate.
      gate_mean, gate_closed, gate_open: mean of g, fractions of g < 0.05 and g > 0.95.
      weight_mean, weight_max: of w = dg/dl.
      effective_sample_size: (sum w)^2 / (n sum w^2) in [0, 1].
      clip_fraction: fraction of ratios outside [1 - clip, 1 + clip_high]; gates with a clip only.
    """
    arguments = (log_ratio, advantage) + (() if log_ratio_ref is None else (log_ratio_ref,))
    value = gate(*arguments)
    w = weight(gate)(*arguments)
    if where is not None and met_where is not None:
        w = jnp.where(where, w, 0.0)
        met_log_ratio = jnp.where(met_where, met_log_ratio, 0.0)
    sampled = {
        "approx_kl_k1": -log_ratio,
        "approx_kl": k3(log_ratio),
        "policy_loss": -value * advantage,
        "gate_mean": value,
        "gate_closed": value < 0.05,
        "gate_open": value > 0.95,
        "weight_mean": w,
    }
    clip = gate.numbers.get("clip")
    if clip is not None:
        clip_high = gate.numbers.get("clip_high")
        ceiling = 1.0 + (clip if clip_high is None else clip_high)
        ratio = jnp.exp(log_ratio)
        sampled["clip_fraction"] = (ratio < 1.0 - clip) | (ratio > ceiling)
    # One reduction for all: a dozen would take longer, to compile above all.
    stacked = jnp.stack([x.astype(jnp.float32) for x in sampled.values()])
    averages = jnp.mean(stacked, axis=-1, where=where)
    some = None if where is None else jnp.any(where)  # of none nothing is known
    metrics = means(dict(zip(sampled, averages, strict=True)), some)
    approx_kl = metrics["approx_kl"]
    metrics |= means({"effective_sample_size": effective_sample_size(w, where)}, some)
    metrics |= maxima(
        {
            "first_ratio_deviation": jnp.max(jnp.abs(jnp.expm1(met_log_ratio[0, 0]))),
            "approx_kl_max": jnp.maximum(approx_kl, jnp.max(kl_k3(met_log_ratio, met_where))),
            "weight_max": jnp.max(w),
        },
        some,
    )
    spikes = {f"kl_spike_rate_{x}": approx_kl > x for x in KL_SPIKE_THRESHOLDS}
    return metrics | means({name: x.astype(jnp.float32) for name, x in spikes.items()}, some)


def k3(log_ratio: Array) -> Array:
    """r - 1 - log r of actions that the old policy drew: estimates KL(old || new) in nats [...].

    Unbiased and never negative (Schulman 2020, "Approximating KL divergence"). Beyond log r = 20
    it goes on along its tangent: it and its slope stay finite.
    """
    bent = jnp.minimum(log_ratio, LARGEST_LOG_RATIO)
    # expm1 keeps it exact near r = 1, where it cancels.
    beyond = jnp.maximum(log_ratio - LARGEST_LOG_RATIO, 0.0)
    return jnp.expm1(bent) - bent + math.expm1(LARGEST_LOG_RATIO) * beyond


def kl_k3(log_ratio: Array, where: Array | None = None) -> Array:
    """Mean of r - 1 - l over the last axis, an estimate of KL(old || new) in nats.

    `where` says which samples count; of none the mean is 0.
    """
    if where is None:
        return jnp.mean(k3(log_ratio), axis=-1)
    total = jnp.sum(jnp.where(where, k3(jnp.where(where, log_ratio, 0.0)), 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(where, axis=-1), 1)


def effective_sample_size(w: Array, where: Array | None = None) -> Array:
    """(sum w)^2 / (n sum w^2), a share of the n samples; 0 where all weights are 0.

    `where` says which samples count; the weights of others are 0.
    """
    size = w.size if where is None else jnp.sum(where)
    squares = size * jnp.sum(jnp.square(w))
    return jnp.where(squares > 0, jnp.square(jnp.sum(w)) / jnp.where(squares > 0, squares, 1), 0)


def explained_variance(prediction: Array, target: Array) -> Array:
    """1 - Var(target - prediction) / Var(target); NaN where the target does not vary."""
    centred = target - jnp.mean(target)
    variance = jnp.var(centred)  # of the centred: a constant's rounding is no variance
    resolution = 8 * jnp.finfo(target.dtype).eps * jnp.max(jnp.abs(target))
    varies = variance > jnp.square(resolution)
    safe = jnp.where(varies, variance, 1.0)
    return jnp.where(varies, 1.0 - jnp.var(target - prediction) / safe, jnp.nan)
