"""Bradley and Terry's loss, accuracy, calibration and intervals, against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rgpo_jax.language import bradley_terry


@pytest.mark.parametrize("label", [1.0, 0.0, 0.3])
def test_the_loss_and_its_gradient_have_their_closed_forms(label):
    margins = np.array([-30.0, -2.0, 0.0, 0.5, 4.0, 30.0])
    with jax.enable_x64():
        found = np.asarray(bradley_terry.loss(jnp.asarray(margins), label))
        slope = jax.grad(lambda m: bradley_terry.loss(m, label).sum())(jnp.asarray(margins))
    likelihood = -label * scipy.special.log_expit(margins)
    likelihood -= (1 - label) * scipy.special.log_expit(-margins)
    np.testing.assert_allclose(found, likelihood, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(slope, scipy.special.expit(margins) - label, rtol=0, atol=1e-14)
    assert bradley_terry.log_loss(margins, label) == pytest.approx(likelihood.mean(), rel=1e-12)


def test_shares_have_wilsons_interval():
    for successes, number in ((0, 7), (7, 7), (3, 11), (286, 460)):
        expected = scipy.stats.binomtest(successes, number).proportion_ci(0.95, "wilson")
        found = bradley_terry.wilson(successes, number)
        np.testing.assert_allclose(found, (successes / number, *expected), atol=1e-12)
    assert all(map(math.isnan, bradley_terry.wilson(0, 0)))


def test_ties_are_half_right():
    margin = np.array([2.0, -1.0, 0.0, 3.0])
    np.testing.assert_array_equal(bradley_terry.right(margin), [1, 0, 0.5, 1])
    np.testing.assert_array_equal(bradley_terry.right(margin, [0, 0, 1, 1]), [0, 1, 0.5, 1])
    assert bradley_terry.accuracy(margin).value == 0.625
    gain = bradley_terry.gain([1, 1, 0, 1], [0, 1, 0, 0.5])
    differences = [1, 0, 0, 0.5]
    half = 1.959964 * np.std(differences, ddof=1) / 2
    np.testing.assert_allclose(gain, (0.375, 0.375 - half, 0.375 + half), rtol=1e-6)


def test_calibration_by_hand():
    def margin(p):
        return math.log(p / (1 - p))

    margins = [margin(0.72), margin(0.28), margin(0.78), margin(0.95), 0.0]
    found = bradley_terry.calibration(margins, num_bins=5)
    assert [b.number for b in found.bins] == [1, 0, 3, 0, 1]
    assert found.bins[0].accuracy.value == 0.5  # a tie
    assert found.bins[2].accuracy.value == pytest.approx(2 / 3)
    assert found.bins[2].confidence == pytest.approx((0.72 + 0.72 + 0.78) / 3)
    error = (0 + 3 * abs(2 / 3 - 0.74) + 0.05) / 5
    assert found.error == pytest.approx(error)
    brier = np.mean([0.28**2, 0.72**2, 0.22**2, 0.05**2, 0.25])
    assert bradley_terry.brier(margins) == pytest.approx(brier)
    # Which answer comes first says nothing.
    turned = bradley_terry.calibration(np.negative(margins), 0.0, 5)
    assert turned.error == pytest.approx(found.error)


def test_calibrated_predictions_have_no_error():
    rng = np.random.default_rng(0)
    margins = rng.normal(scale=1.5, size=200_000)
    labels = (rng.random(200_000) < bradley_terry.probability(margins)).astype(float)
    assert bradley_terry.calibration(margins, labels).error < 0.005
    assert bradley_terry.calibration(3 * margins, labels).error > 0.1
    # Labels that are probabilities say the same without noise.
    exact = bradley_terry.probability(margins)
    assert bradley_terry.calibration(margins, exact).error < 1e-12
