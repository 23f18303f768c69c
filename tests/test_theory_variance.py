"""The study of variance: measured moments against sums and closed forms."""

import math

import numpy as np
import pytest
from scipy import integrate

from experiments.theory import family, ratios, variance
from experiments.theory.options import Options
from rgpo_jax import gates
from tests.probes import check_share


def test_measured_moments_are_those_of_the_draws(monkeypatch):
    monkeypatch.setattr(variance, "_CHUNK", 1000)
    model, at = ratios.ParetoBandit(1.5), np.array([100, 1000, 1500, 2500])
    found = variance.measure(model, {"r": gates.importance()}, at, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    r = np.exp(np.concatenate([model.draw(rng, n).log_ratio for n in (1000, 1000, 500)]))
    np.testing.assert_allclose(found["r"], [np.mean(r[:n] ** 2) for n in at], rtol=1e-12)


def test_exponents_are_fitted_powers():
    at = variance.sizes(1_000_000)
    assert at[0] == 100
    assert at[-1] == 1_000_000
    power, low, high = variance.exponent(at, np.outer([1.0, 2.0, 5.0], at**0.4))
    np.testing.assert_allclose([power, low, high], 0.4, atol=1e-9)
    _, low, high = variance.exponent(at, np.array([at**0.3, at**0.5]))
    assert low < 0.3 < 0.5 < high


def test_the_staircase_is_a_sum_over_its_steps():
    tail, least = 2.5, 0.6

    def square(r):  # the first step alone
        s = 1 / (1 + math.exp(-16.0 * (r - 2.0)))
        return (0.5 * 16.0 * r * s * (1 - s)) ** 2 * tail / least * (r / least) ** (-tail - 1)

    expected, _ = integrate.quad(square, 0.7, 4.0, points=[2.0], limit=200)
    sums = variance.staircase_moments(tail)
    assert sums[0] == pytest.approx(expected, rel=1e-6)
    steps = np.diff(sums)
    np.testing.assert_allclose(steps[3:] / steps[2:-1], 2 ** (3 - tail), rtol=1e-3)


def test_the_sine_gate_is_bounded_and_its_weight_is_not():
    gate, l = variance.ESTIMATORS[variance.SINE], np.linspace(-5.0, 12.0, 5001)
    g = family.values(gate, l, 1.0)
    assert 0.0 <= g.min() <= g.max() <= 1.0
    w, r = ratios.weights(gate, l, np.ones_like(l)), np.exp(l)
    np.testing.assert_allclose(w, r * np.cos(r - 1.0) / 2.0, atol=1e-9 * r.max())


@pytest.fixture(scope="module")
def small_variance():
    return variance.run(Options(samples=10_000, replicates=3), check_share)


def test_a_variance_that_no_sample_can_tell_is_not_told(small_variance):
    by_claim = {claim.claim[:5]: claim for claim in small_variance.claims}
    assert by_claim["RGPO'"].holds is True
    assert all(claim.holds is not False for claim in small_variance.claims)


def test_the_table_of_variance_has_all_cells(small_variance):
    table = small_variance.tables[0]
    assert len(table.rows) == len(variance.FORMS) * len(variance.TAILS) * len(variance.ESTIMATORS)
    for form, tail, name, exact, median, least, largest, bound, *_, theory in table.rows:
        assert least <= median <= largest
        if name.startswith("rgpo"):
            assert median == pytest.approx(exact, rel=0.3)
            assert exact < bound
            assert theory == 0.0
        if name == "importance" and tail < 2:
            assert (exact, theory) == (math.inf, pytest.approx(2 / tail - 1))
        assert form in variance.FORMS
