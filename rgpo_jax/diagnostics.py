"""What every gated agent reports about its updates."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rgpo_jax.gates import weight
from rgpo_jax.tunable import Tunable

Array = jax.Array

KL_SPIKE_THRESHOLDS = (0.02, 0.04, 0.08, 0.16)

# Reduced over updates by their maximum; every other metric by its mean over the updates in which
# it is defined.
_MAXIMA = frozenset({"first_ratio_deviation", "approx_kl_max", "weight_max"})
# Means over the gradient steps of an update, undefined where early stopping left none.
_OF_STEPS = frozenset({"value_loss", "grad_norm"})


def gate_diagnostics(
    gate: Tunable, log_ratio: Array, advantage: Array, met_log_ratio: Array
) -> dict[str, Array]:
    """Statistics of one update: its final policy against the one that drew the samples.

    Args:
      gate: of the update.
      log_ratio: log pi_theta - log pi_old of the final policy, over the whole batch [n].
      advantage: as the gate saw it [n].
      met_log_ratio: log-ratios as each minibatch met them [epochs, minibatches, m].

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
    ratio = jnp.exp(log_ratio)
    approx_kl = kl_k3(log_ratio)
    value = gate(log_ratio, advantage)
    w = weight(gate)(log_ratio, advantage)
    metrics = {
        "first_ratio_deviation": jnp.max(jnp.abs(jnp.expm1(met_log_ratio[0, 0]))),
        "approx_kl_k1": -jnp.mean(log_ratio),
        "approx_kl": approx_kl,
        "approx_kl_max": jnp.maximum(approx_kl, jnp.max(kl_k3(met_log_ratio))),
        "policy_loss": -jnp.mean(value * advantage),
        "gate_mean": jnp.mean(value),
        "gate_closed": jnp.mean(value < 0.05),
        "gate_open": jnp.mean(value > 0.95),
        "weight_mean": jnp.mean(w),
        "weight_max": jnp.max(w),
        "effective_sample_size": effective_sample_size(w),
    }
    for threshold in KL_SPIKE_THRESHOLDS:
        metrics[f"kl_spike_rate_{threshold}"] = (approx_kl > threshold).astype(jnp.float32)
    clip = gate.numbers.get("clip")
    if clip is not None:
        clip_high = gate.numbers.get("clip_high")
        ceiling = 1.0 + (clip if clip_high is None else clip_high)
        metrics["clip_fraction"] = jnp.mean((ratio < 1.0 - clip) | (ratio > ceiling))
    return metrics


def kl_k3(log_ratio: Array) -> Array:
    """Mean of r - 1 - l over the last axis, an estimate of KL(old || new) in nats.

    expm1 keeps it exact near r = 1, where it cancels.
    """
    return jnp.mean(jnp.expm1(log_ratio) - log_ratio, axis=-1)


def effective_sample_size(w: Array) -> Array:
    """(sum w)^2 / (n sum w^2), a share of the n samples; 0 where all weights are 0."""
    squares = w.size * jnp.sum(jnp.square(w))
    return jnp.where(squares > 0, jnp.square(jnp.sum(w)) / jnp.where(squares > 0, squares, 1), 0)


def explained_variance(prediction: Array, target: Array) -> Array:
    """1 - Var(target - prediction) / Var(target); NaN where the target does not vary."""
    centred = target - jnp.mean(target)
    variance = jnp.var(centred)  # of the centred: a constant's rounding is no variance
    resolution = 8 * jnp.finfo(target.dtype).eps * jnp.max(jnp.abs(target))
    varies = variance > jnp.square(resolution)
    safe = jnp.where(varies, variance, 1.0)
    return jnp.where(varies, 1.0 - jnp.var(target - prediction) / safe, jnp.nan)


# Running reduction over updates: metrics of many updates in memory that does not grow with them.


def empty(metrics: Mapping[str, Any]) -> dict[str, dict[str, Array]]:
    """An accumulator for metrics of these names (values may be shapes)."""
    return {
        name: {"value": jnp.float32(-jnp.inf if name in _MAXIMA else 0.0), "count": jnp.int32(0)}
        for name in metrics
    }


def accumulate(
    accumulator: dict[str, dict[str, Array]], metrics: Mapping[str, Array]
) -> dict[str, dict[str, Array]]:
    """Takes one update's metrics in. Episode statistics weigh an update by its episodes."""
    result = {}
    for name, metric in metrics.items():
        value, count = accumulator[name]["value"], accumulator[name]["count"]
        if name in _MAXIMA:
            # NaN wins: a run that broke must not report its last good maximum.
            value, increment = jnp.maximum(value, metric), jnp.int32(1)
        elif name in ("episode_return", "episode_length"):
            increment = metrics["episodes"].astype(jnp.int32)
            value += jnp.where(increment > 0, metric * increment, 0.0)
        elif name == "explained_variance":
            increment = jnp.isfinite(metric).astype(jnp.int32)
            value += jnp.where(increment > 0, metric, 0.0)
        elif name in _OF_STEPS and "gradient_step_rate" in metrics:
            increment = (metrics["gradient_step_rate"] > 0).astype(jnp.int32)
            value += jnp.where(increment > 0, metric, 0.0)
        else:
            value, increment = value + metric, jnp.int32(1)
        result[name] = {"value": value, "count": count + increment}
    return result


def reduce(accumulator: dict[str, dict[str, Array]]) -> dict[str, Array]:
    """The accumulated maxima, means and number of episodes; NaN where nothing was defined."""
    result = {}
    for name, entry in accumulator.items():
        value, count = entry["value"], entry["count"]
        if name == "episodes":
            result[name] = value
        elif name in _MAXIMA:
            result[name] = jnp.where(count > 0, value, jnp.nan)
        else:
            result[name] = jnp.where(count > 0, value / jnp.maximum(count, 1), jnp.nan)
    return result
