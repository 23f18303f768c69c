"""What every gated agent reports about its updates."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

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
    value = gate(log_ratio, advantage)
    w = weight(gate)(log_ratio, advantage)
    sampled = {
        "approx_kl_k1": -log_ratio,
        "approx_kl": _k3(log_ratio),
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
    means = jnp.mean(jnp.stack([x.astype(jnp.float32) for x in sampled.values()]), axis=-1)
    metrics = dict(zip(sampled, means, strict=True))
    approx_kl = metrics["approx_kl"]
    metrics |= {
        "first_ratio_deviation": jnp.max(jnp.abs(jnp.expm1(met_log_ratio[0, 0]))),
        "approx_kl_max": jnp.maximum(approx_kl, jnp.max(kl_k3(met_log_ratio))),
        "weight_max": jnp.max(w),
        "effective_sample_size": effective_sample_size(w),
    }
    for threshold in KL_SPIKE_THRESHOLDS:
        metrics[f"kl_spike_rate_{threshold}"] = (approx_kl > threshold).astype(jnp.float32)
    return metrics


def _k3(log_ratio: Array) -> Array:
    # expm1 keeps it exact near r = 1, where it cancels.
    return jnp.expm1(log_ratio) - log_ratio


def kl_k3(log_ratio: Array) -> Array:
    """Mean of r - 1 - l over the last axis, an estimate of KL(old || new) in nats."""
    return jnp.mean(_k3(log_ratio), axis=-1)


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Accumulator:
    """Metrics of many updates, reduced as they come.

    All in two arrays: an operation or two per metric would take longer, to compile above all.

    Attributes:
      names: of n metrics.
      values: their sums, or their maxima so far [n].
      counts: of what was taken into each, int32 [n].
    """

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    values: Array
    counts: Array


def empty(names: Iterable[str]) -> Accumulator:
    """An accumulator for metrics of these names, of no update yet."""
    names = tuple(sorted(names))
    values = [-jnp.inf if name in _MAXIMA else 0.0 for name in names]
    return Accumulator(names, jnp.array(values, jnp.float32), jnp.zeros(len(names), jnp.int32))


def accumulate(accumulator: Accumulator, metrics: Mapping[str, Array]) -> Accumulator:
    """Takes one update's metrics in. Episode statistics weigh an update by its episodes."""
    one = jnp.int32(1)

    def how_often(name: str) -> Array:
        if name in ("episode_return", "episode_length"):
            return metrics["episodes"].astype(jnp.int32)
        if name == "explained_variance":
            return jnp.isfinite(metrics[name]).astype(jnp.int32)
        if name in _OF_STEPS and "gradient_step_rate" in metrics:
            return (metrics["gradient_step_rate"] > 0).astype(jnp.int32)
        return one

    names = accumulator.names
    news = jnp.stack([jnp.asarray(metrics[name], jnp.float32) for name in names])
    counts = jnp.stack([how_often(name) for name in names])
    # NaN wins a maximum: a run that broke must not report its last good one.
    values = jnp.where(
        np.array([name in _MAXIMA for name in names]),
        jnp.maximum(accumulator.values, news),
        accumulator.values + jnp.where(counts > 0, news * counts, 0.0),
    )
    return Accumulator(names, values, accumulator.counts + counts)


def reduce(accumulator: Accumulator) -> dict[str, Array]:
    """The accumulated maxima, means and number of episodes; NaN where nothing was defined.

    Its arrays may be batched [..., n], and NumPy's: then NumPy reduces them.
    """
    names, values, counts = accumulator.names, accumulator.values, accumulator.counts
    xp = values.__array_namespace__()
    whole = np.array([name in _MAXIMA or name == "episodes" for name in names])
    reduced = values / xp.where(whole, 1, xp.maximum(counts, 1)).astype(values.dtype)
    defined = (counts > 0) | np.array([name == "episodes" for name in names])
    rows = xp.moveaxis(xp.where(defined, reduced, xp.nan), -1, 0)
    return dict(zip(names, rows, strict=True))
