"""The study of bias: exact values against another quadrature, and its rule."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate

from experiments.theory import bias, estimators, ratios
from experiments.theory.options import Options
from rgpo_jax import gates


def test_the_identity_holds_for_the_normalised_gate_alone():
    assert estimators.identity_error() < 1e-13
    l = np.linspace(-2.0, 2.0, 101)
    r = np.exp(l)
    raw = ratios.weights(gates.rgpo(8.0), l, np.ones_like(l))
    assert np.max(np.abs(raw - r + r * np.tanh(4.0 * (r - 1.0)) ** 2)) > 0.5


@pytest.mark.parametrize(("kl", "k"), [(0.02, 4.0), (0.3, 16.0), (1e-4, 1.0)])
def test_bias_and_variance_by_another_quadrature(kl, k):
    signal, shift = 0.6, math.sqrt(2 * kl)

    def terms(x, power, biased):
        r = math.exp(shift * x - shift**2 / 2)
        w = r / math.cosh(k * (r - 1) / 2) ** 2 if k * abs(r - 1) < 600 else 0.0
        mean = signal * math.tanh(x) if power == 1 else 1.0
        density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        weight = w - r if biased else w
        return density * mean * (weight * (x - shift)) ** power

    def integral(*args):
        points = [-4, -1, 0, shift / 2, shift, 2, 4]
        return integrate.quad(terms, -12, 12, args=args, points=points, limit=500)[0]

    found = estimators.of_sharpness(k, ratios.Normals.at_distance(kl, signal).quadrature())
    assert found.bias == pytest.approx(integral(1, True), rel=1e-6)
    expected = integral(2, False) - integral(1, False) ** 2
    assert found.variance == pytest.approx(expected, rel=1e-6)
    assert found.error(10) == pytest.approx(found.bias**2 + found.variance / 10)


def test_the_share_of_bias_depends_on_the_advantages():
    of_tanh = estimators.share_of_bias(np.tanh, 0.02, 4.0)
    samples = ratios.Normals.at_distance(0.02, 1.0).quadrature()
    share = abs(estimators.of_sharpness(4.0, samples).bias) / estimators.true_gradient(samples)
    assert of_tanh == pytest.approx(share) == pytest.approx(0.288, abs=0.0005)
    shares = {
        name: estimators.share_of_bias(mean, 0.02, 4.0) for name, mean in estimators.SHAPES.items()
    }
    assert shares == pytest.approx({"sign(x)": 0.245, "x": 0.345, "exp(x)": 0.477}, abs=0.0005)

    def terms(x, biased):  # of the advantage x, by another quadrature
        shift = 0.2
        r = math.exp(shift * x - shift**2 / 2)
        factor = math.tanh(2 * (r - 1)) ** 2 if biased else 1.0
        return r * factor * x * (x - shift) * math.exp(-x * x / 2)

    bias_of_x, gradient = (integrate.quad(terms, -12, 12, args=(b,))[0] for b in (True, False))
    assert shares["x"] == pytest.approx(bias_of_x / gradient, rel=1e-6)


def test_bias_stays_below_its_bound_and_vanishes_with_sharpness():
    for kl in bias.KLS:
        samples = ratios.Normals.at_distance(kl, 1.0).quadrature()
        for k in (0.01, 1.0, 16.0):
            assert abs(estimators.of_sharpness(k, samples).bias) <= estimators.bound(k, samples)
        assert abs(estimators.of_sharpness(0.001, samples).bias) < 1e-3


@pytest.mark.parametrize("tail", ratios.TAILS)
def test_bias_under_a_tail_stays_below_its_bound_and_falls_as_the_tail_lets_it(tail):
    found, least = estimators.under_tail(tail), (tail - 1) / tail

    def terms(y, k):  # under the new policy, Exp(tail - 1)
        x = min(k * (least * math.exp(y) - 1) / 2, 300.0)
        advantage = 0.5 if y > math.log(2) / tail else -0.5
        score = 1 if y > math.log(2) / (tail - 1) else -1
        return -(math.tanh(x) ** 2) * advantage * score * (tail - 1) * math.exp(-(tail - 1) * y)

    points = [math.log(2) / tail, math.log(2) / (tail - 1), 5.0, 20.0]
    for k, value in zip(estimators.TAIL_SHARPNESSES[1:], found.bias[1:], strict=True):
        edges = sorted([0.0, *points, 30.0 / (tail - 1)])
        parts = [
            integrate.quad(terms, *ends, args=(k,), limit=200)[0]
            for ends in itertools.pairwise(edges)
        ]
        assert value == pytest.approx(sum(parts), rel=1e-6)
    assert np.all(np.abs(found.bias) <= found.bound)
    assert found.power == pytest.approx(min(tail - 1, 2), abs=0.05)


def test_the_best_sharpness_beats_its_neighbours():
    samples = ratios.Normals.at_distance(0.01, 0.3).quadrature()
    (choice,) = estimators.choose(0.3, 0.01, [500], samples)

    def error(k):
        return estimators.of_sharpness(k, samples).error(500)

    assert choice.low < choice.best < choice.high
    assert error(choice.best) <= min(error(choice.best * 1.1), error(choice.best / 1.1))
    assert error(choice.high * 1.2) > 1.05 * error(choice.best)
    assert choice.over["rgpo k=4"] == pytest.approx(error(4.0) / error(choice.best))
    assert choice.over["importance"] >= 1.0


def test_the_rule_is_fitted_where_it_applies():
    def choice(kl, n, best):
        return estimators.Choice(0.5, kl, n, best, 0.0, 1.0, 0.1, {})

    exact = [
        choice(kl, n, 2.0 / (0.5 * math.sqrt(n * kl))) for kl in (0.01, 0.1) for n in (50, 500)
    ]
    far = [choice(1.0, 100, 1000.0), choice(0.01, 100, 0.0), choice(0.01, 1, math.inf)]
    constant, factor = estimators.rule([c for c in exact + far if math.isfinite(c.best)])
    assert (constant, factor) == (pytest.approx(2.0), pytest.approx(1.0))


def test_the_study_as_a_whole_holds_and_draws_what_it_measured(monkeypatch):
    monkeypatch.setattr(bias, "KLS", (1e-4, 0.01, 0.02, 0.1))
    monkeypatch.setattr(bias, "SIZES", (64, 4096))
    study = bias.run(Options(samples=10_000), lambda share: None)
    assert all(claim.holds for claim in study.claims)
    figure, *_ = study.figures
    ratios_to_exact = []
    for style, k in enumerate(bias.SHOWN):
        exact, bound, measured = (
            [line for line in figure.panels[0].lines if line.style == style][i] for i in range(3)
        )
        assert exact.label == f"k = {k:g}" and len(exact.y) == len(bias.KLS)
        assert np.all(exact.y <= bound.y)
        seen = np.isin(exact.x, measured.x)
        ratios_to_exact += list(measured.y / exact.y[seen])
    assert len(ratios_to_exact) > 5
    assert np.median(ratios_to_exact) == pytest.approx(1.0, abs=0.15)
