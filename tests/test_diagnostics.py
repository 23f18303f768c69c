"""What agents report, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgpo_jax import gates
from rgpo_jax.diagnostics import (
    KL_SPIKE_THRESHOLDS,
    effective_sample_size,
    explained_variance,
    gate_diagnostics,
    k3,
)

RNG = np.random.default_rng(0)
LOG_RATIO = RNG.normal(size=(2, 3, 5)) * 0.4
ADVANTAGE = RNG.normal(size=(2, 3, 5))
RATIO = np.exp(LOG_RATIO)


def diagnose(gate, log_ratio=LOG_RATIO, final=slice(None)):
    """What is reported where the final policy has the log-ratios that these epochs met."""
    met, advantage = jnp.asarray(log_ratio, jnp.float32), jnp.asarray(ADVANTAGE, jnp.float32)
    arrays = met[final].ravel(), advantage[final].ravel(), met
    return {k: float(v) for k, v in jax.jit(gate_diagnostics)(gate, *arrays).items()}


def test_ratio_statistics():
    report = diagnose(gates.reinforce())
    k3 = RATIO - 1.0 - LOG_RATIO
    expected = {
        "first_ratio_deviation": np.abs(RATIO[0, 0] - 1.0).max(),  # of the first minibatch
        "approx_kl_k1": -LOG_RATIO.mean(),  # of the final policy
        "approx_kl": k3.mean(),
        "approx_kl_max": k3.mean(-1).max(),  # of the worst minibatch
        "policy_loss": -(LOG_RATIO * ADVANTAGE).mean(),
    }
    for name, value in expected.items():
        assert report[name] == pytest.approx(value, rel=1e-4), name


def test_gate_and_weight_statistics():
    k = 3.0
    report = diagnose(gates.rgpo(k))
    g = 1.0 / (1.0 + np.exp(-k * (RATIO - 1.0)))
    w = k * RATIO * g * (1.0 - g)
    expected = {
        "gate_mean": g.mean(),
        "gate_closed": (g < 0.05).mean(),
        "gate_open": (g > 0.95).mean(),
        "weight_mean": w.mean(),
        "weight_max": w.max(),
        "effective_sample_size": w.sum() ** 2 / (w.size * (w**2).sum()),
    }
    assert expected["weight_max"] > 1.1 * expected["weight_mean"]
    for name, value in expected.items():
        assert report[name] == pytest.approx(value, rel=1e-4), name
    assert "clip_fraction" not in report


def test_closed_and_open_gates_are_counted():
    log_ratio = np.zeros(LOG_RATIO.shape)
    log_ratio[0, 0], log_ratio[1, :2] = -1.0, 1.0
    # sigmoid(10 (1/e - 1)) = 0.002, sigmoid(0) = 1/2, sigmoid(10 (e - 1)) = 1.
    report = diagnose(gates.rgpo(10.0), log_ratio)
    assert report["gate_closed"] == pytest.approx(5 / 30)
    assert report["gate_open"] == pytest.approx(10 / 30)


def test_k3_and_its_slope_stay_finite_and_keep_their_sign():
    value, slope = jax.vmap(jax.value_and_grad(k3))(jnp.array([-1e4, 0.1, 19.0, 21.0, 89.0, 1e4]))
    assert np.isfinite(value).all() and np.isfinite(slope).all()
    assert (np.diff(value[1:]) > 0).all()
    np.testing.assert_allclose(slope, np.expm1([-1e4, 0.1, 19.0, 20.0, 20.0, 20.0]), rtol=1e-6)


@pytest.mark.parametrize("clip_high", [None, 0.5])
def test_clip_fraction_counts_both_sides(clip_high):
    report = diagnose(gates.ppo(0.2, clip_high))
    distance = RATIO - 1.0
    outside = np.where(distance < 0, -distance > 0.2, distance > (clip_high or 0.2))
    assert 0 < outside.mean() < 1
    assert report["clip_fraction"] == pytest.approx(outside.mean())


def test_kl_near_zero_does_not_cancel():
    # k3 = l^2 / 2 to first order; r - 1 - l in float32 would be 0 or 6e-8.
    report = diagnose(gates.reinforce(), np.full(LOG_RATIO.shape, 1e-3))
    assert report["approx_kl"] == pytest.approx(0.5e-6, rel=0.1)


@pytest.mark.parametrize("kl", [0.01, 0.03, 0.05, 0.1, 0.2])
def test_a_spike_is_a_kl_above_the_threshold(kl):
    log_ratio = np.full(LOG_RATIO.shape, np.sqrt(2 * kl))
    report = diagnose(gates.reinforce(), log_ratio)
    for threshold in KL_SPIKE_THRESHOLDS:
        assert report[f"kl_spike_rate_{threshold}"] == float(report["approx_kl"] > threshold)


def test_the_kl_of_a_spike_is_that_of_the_final_policy():
    log_ratio = np.zeros(LOG_RATIO.shape)
    log_ratio[0] = 1.0
    report = diagnose(gates.reinforce(), log_ratio, final=1)
    assert report["kl_spike_rate_0.02"] == 0.0
    assert report["approx_kl_max"] == pytest.approx(np.e - 2.0, rel=1e-5)
    report = diagnose(gates.reinforce(), log_ratio, final=0)
    assert report["kl_spike_rate_0.16"] == 1.0


@pytest.mark.parametrize("constant", [1e-8, 0.3, 1.0, 1e9])
def test_equal_weights_use_every_sample(constant):
    assert float(effective_sample_size(jnp.full(1000, constant))) == pytest.approx(1.0, abs=1e-5)


def test_effective_sample_size_is_the_share_of_the_samples_that_count():
    assert float(effective_sample_size(jnp.array([1.0, 0.0, 0.0, 0.0]))) == pytest.approx(0.25)
    assert float(effective_sample_size(jnp.array([2.0, 2.0, 0.0, 0.0]))) == pytest.approx(0.5)
    assert float(effective_sample_size(jnp.zeros(4))) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_effective_sample_size_is_in_the_unit_interval(seed):
    # SPO's weights may be negative.
    w = np.random.default_rng(seed).normal(size=64) * 10.0**seed
    size = float(effective_sample_size(jnp.asarray(w)))
    assert 0.0 <= size <= 1.0
    assert size == pytest.approx(w.sum() ** 2 / (64 * (w**2).sum()), rel=1e-3)


def test_explained_variance():
    target = jnp.array([1.0, 2.0, 3.0, 6.0])
    assert float(explained_variance(target, target)) == 1.0
    assert float(explained_variance(target + 5.0, target)) == pytest.approx(1.0)  # bias is forgiven
    assert float(explained_variance(jnp.full(4, 3.0), target)) == pytest.approx(0.0)
    assert float(explained_variance(-target, target)) == pytest.approx(-3.0)
    guess = jnp.array([1.0, 1.0, 4.0, 5.0])
    expected = 1.0 - np.var([0.0, 1.0, -1.0, 1.0]) / np.var([1.0, 2.0, 3.0, 6.0])
    assert float(explained_variance(guess, target)) == pytest.approx(expected)


@pytest.mark.parametrize("constant", [0.0, 1.0, -4.0])
def test_a_target_without_variance_has_no_explained_variance(constant):
    assert np.isnan(explained_variance(jnp.arange(8.0), jnp.full(8, constant)))


def test_a_target_whose_variance_is_rounding_has_no_explained_variance():
    assert np.isnan(explained_variance(jnp.arange(7.0), jnp.full(7, 0.1)))
