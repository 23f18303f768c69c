"""What theory says of gates, and of one gate by another, in float64."""

import numpy as np
import pytest
from gate_probes import away_from, value64, weight64

from rgpo_jax import gates

R = np.exp(np.linspace(-6.0, 6.0, 2001))  # 1 among them
SHARPNESSES = [0.01, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 100.0]


@pytest.mark.parametrize("k", SHARPNESSES)
def test_bias_of_normalized_rgpo_is_a_squared_tanh(k):
    bias = weight64(gates.rgpo(k, normalize=True), R) - R
    expected = -R * np.tanh(k * (R - 1.0) / 2) ** 2
    np.testing.assert_allclose(bias, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", SHARPNESSES)
def test_normalized_rgpo_is_lipschitz_close_to_the_ratio(k):
    # f = 1 + (4/k)(sigmoid - 1/2) is the gate up to a constant; |r - f| <= |r - 1|.
    f = 1.0 + value64(gates.rgpo(k, normalize=True), R) - 2.0 / k
    assert np.all(np.abs(R - f) <= np.abs(R - 1.0) + 1e-12 / k)


@pytest.mark.parametrize("k", [1e-3, *SHARPNESSES, 1e3])
def test_surrogate_of_rgpo_with_pull_back_is_a_lower_bound(k):
    """(r - f) A >= 0, as of PPO: the improvement bound of TRPO then needs no term for the gate."""
    for advantage in (-1.0, 1.0):
        f = 1.0 + value64(gates.rgpo(k, normalize=True, pull_back=True), R, advantage) - 2.0 / k
        assert np.min((R - f) * advantage) >= -1e-12
    f = 1.0 + value64(gates.rgpo(k, normalize=True), R, -1.0) - 2.0 / k
    assert np.max(R - f) > 0  # not without


@pytest.mark.parametrize("k", [1e-3, *SHARPNESSES, 1e3])
def test_weight_of_rgpo_is_bounded(k):
    x = np.linspace(max(-40.0, -k * (1.0 - 1e-9)), 40.0, 20001)  # x = k (r - 1)
    assert weight64(gates.rgpo(k), 1.0) == pytest.approx(k / 4, rel=1e-12)
    assert np.max(weight64(gates.rgpo(k), 1.0 + x / k)) <= k / 4 + 0.2239


def test_bound_on_the_weight_of_rgpo_is_tight():
    # Reached as k -> 0, where the search above could otherwise have looked in the wrong place.
    w = weight64(gates.rgpo(1e-3), 1.0 + np.linspace(0.0, 3.0, 3001) / 1e-3)
    assert np.max(w) > 0.2238


@pytest.mark.parametrize("k", SHARPNESSES)
def test_log_form_is_bounded_by_its_weight_at_one(k):
    assert np.max(weight64(gates.rgpo(k, "log"), R)) == pytest.approx(k / 4, rel=1e-12)


# k: (sup w, at r, {r: w}), computed apart from the library.
RGPO_TABLE = {
    1: (0.394, 2.06, {0.5: 0.118, 0.8: 0.198, 1.2: 0.297, 1.5: 0.353, 2: 0.393, 3: 0.315}),
    2: (0.599, 1.38, {0.5: 0.197, 0.8: 0.384, 1.2: 0.577, 1.5: 0.590, 2: 0.420, 3: 0.106}),
    4: (1.058, 1.11, {0.5: 0.210, 0.8: 0.685, 1.2: 1.027, 1.5: 0.630, 2: 0.141, 3: 0.004}),
    8: (2.031, 1.03, {0.5: 0.071, 0.8: 0.895, 1.2: 1.342, 1.5: 0.212, 2: 0.005, 3: 0.000}),
    16: (4.016, 1.01, {}),
}


@pytest.mark.parametrize("k", RGPO_TABLE)
def test_weights_of_rgpo_are_those_of_the_table(k):
    largest, at, weights = RGPO_TABLE[k]
    r = np.linspace(0.01, 5.0, 49901)
    w = weight64(gates.rgpo(float(k)), r)
    assert np.max(w) == pytest.approx(largest, abs=0.0006)
    assert r[np.argmax(w)] == pytest.approx(at, abs=0.006)
    np.testing.assert_allclose(
        np.interp(list(weights), r, w), list(weights.values()), rtol=0, atol=0.0006
    )


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
@pytest.mark.parametrize("twin", [gates.p3o(4.0), gates.sapo(4.0, 4.0)], ids=["p3o", "sapo"])
def test_rgpo_at_four_has_the_weight_of_its_forerunners(twin, advantage):
    expected = weight64(gates.rgpo(4.0), R, advantage)
    np.testing.assert_allclose(weight64(twin, R, advantage), expected, rtol=1e-12)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_rollback_without_slope_is_ppo(advantage):
    rollback, ppo = gates.rollback(0.3, slope=0.0), gates.ppo(0.3)
    np.testing.assert_allclose(
        value64(rollback, R, advantage), value64(ppo, R, advantage), rtol=1e-12
    )
    smooth = away_from((0.7, 1.3), R, 1e-9)
    np.testing.assert_array_equal(
        weight64(rollback, R, advantage)[smooth], weight64(ppo, R, advantage)[smooth]
    )


def test_pulling_back_leaves_the_weight_on_the_way_out():
    log_ratio = np.linspace(-2.0, 2.0, 9)
    for advantage in (-1.0, 1.0):
        ours = weight64(gates.rgpo(8.0, pull_back=True), np.exp(log_ratio), advantage)
        returning = log_ratio * advantage < 0
        out = weight64(gates.rgpo(8.0), np.exp(log_ratio), advantage)
        np.testing.assert_allclose(ours[~returning], out[~returning], rtol=1e-12)
        np.testing.assert_allclose(ours[returning], 2 * np.exp(log_ratio[returning]), rtol=1e-12)
