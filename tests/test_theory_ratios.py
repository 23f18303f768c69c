"""The catalogue of gates, and ratios: closed forms, and draws against quadratures."""

import math

import numpy as np
import pytest

from experiments.theory import bias, catalogue, family, ratios, variance
from rgpo_jax import gates


def test_every_gate_is_in_the_catalogue():
    functions = {gate.function for gate in catalogue.GATES.values()}
    assert functions == {constructor().function for constructor in gates.CONSTRUCTORS.values()}


@pytest.mark.parametrize(
    ("name", "at_one", "supremum", "at"),
    [  # by hand, from the table of formulas
        ("rgpo k=1", 0.25, 0.394, 2.06),
        ("rgpo k=2", 0.5, 0.599, 1.38),
        ("rgpo k=4", 1.0, 1.058, 1.11),
        ("rgpo k=8", 2.0, 2.031, 1.03),
        ("rgpo k=16", 4.0, 4.016, 1.01),
        ("ppo", 1.0, 1.2, 1.2),
        ("ppo clip-higher", 1.0, 1.28, 1.28),
        ("spo", 1.0, math.inf, math.inf),
    ],
)
def test_suprema_of_weights(name, at_one, supremum, at):
    found = family.facts(catalogue.GATES[name])
    assert found.at_one == pytest.approx(at_one, rel=1e-12)
    assert found.supremum == pytest.approx(supremum, abs=6e-4)
    assert family.supremum(catalogue.GATES[name], 1.0)[1] == pytest.approx(at, abs=6e-3)


def test_where_a_supremum_lies_in_words():
    words = {name: family.facts(gate) for name, gate in catalogue.DEFAULTS.items()}
    assert words["reinforce"].at == "every r"
    assert words["cispo"].at == "r ≥ 5"
    assert words["topr"].at_negative == "r ≥ 1"
    assert words["importance"].at == "as r grows"


def test_which_weights_are_bounded_and_which_gates_lie_in_the_unit_interval():
    found = {name: family.facts(gate) for name, gate in catalogue.GATES.items()}
    assert {name for name, row in found.items() if not row.is_bounded} == {
        *("ppo", "ppo clip-higher", "importance", "spo", "rollback", "discovered"),
    }
    assert math.isfinite(found["ppo"].supremum)  # only where A < 0
    acceptance = {name for name, row in found.items() if row.in_unit_interval}
    assert acceptance == {
        *map(catalogue.rgpo_name, catalogue.SHARPNESSES),
        *("rgpo k=16, normalised", "rgpo k=4, log form", "p3o"),
    }


MODELS = [
    *(form(tail) for form in variance.FORMS.values() for tail in variance.TAILS),
    *(ratios.Normals.at_distance(kl, 0.7) for kl in (1e-4, 0.1, 1.0)),
]


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_quadratures_are_old_policies(model):
    samples = model.quadrature()
    mass, r = samples.mass, np.exp(samples.log_ratio)
    assert np.all(mass >= 0)
    assert mass.sum() == pytest.approx(1.0, abs=1e-12)
    assert np.sum(mass * r) == pytest.approx(1.0, abs=1e-9)
    assert np.sum(mass * samples.advantage) == pytest.approx(0.0, abs=1e-12)
    # The score of the new policy has mean 0 under it.
    assert np.sum(mass * r * samples.score) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_draws_come_from_the_quadratures_distribution(model):
    exact, drawn = model.quadrature(), model.draw(np.random.default_rng(0), 200_000)
    for statistic in (
        lambda s: np.tanh(s.log_ratio),
        lambda s: s.advantage * np.tanh(s.score),
        lambda s: s.advantage * s.score * (s.log_ratio > 0),
    ):
        values = statistic(drawn)
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - np.sum(exact.mass * statistic(exact))) < 5 * error


def test_tails_fall_as_they_say():
    for tail in variance.TAILS:
        samples = ratios.ParetoBandit(tail).quadrature()
        for edge in (2.0, 10.0):  # no edges of the quadrature: a coarse check
            above = np.sum(samples.mass[samples.log_ratio > math.log(edge)])
            expected = ((tail - 1) / tail / edge) ** tail
            assert above == pytest.approx(expected, rel=0.03)
    assert ratios.Normals.with_tail(1.5).tail == pytest.approx(1.5)
    assert ratios.Normals.at_distance(0.1, 1.0).tail == math.inf


@pytest.mark.parametrize("kl", bias.KLS)
def test_distance_of_normals_is_their_kl(kl):
    samples = ratios.Normals.at_distance(kl, 1.0).quadrature()
    assert -np.sum(samples.mass * samples.log_ratio) == pytest.approx(kl, rel=1e-9)


@pytest.mark.parametrize("tail", [2.5, 4.0])
def test_second_moments_in_closed_form(tail):
    least = (tail - 1) / tail
    bandit, normal = variance.FORMS["bandit"](tail), variance.FORMS["normal"](tail)
    importance, truncated = gates.importance(), gates.truncated_importance(1.0)
    expected = least**2 * tail / (tail - 2)
    assert ratios.second_moment(importance, bandit) == pytest.approx(expected, rel=1e-9)
    expected = tail * least**tail * (1 - least ** (2 - tail)) / (2 - tail) + least**tail
    assert ratios.second_moment(truncated, bandit) == pytest.approx(expected, rel=1e-9)
    width = tail / (tail - 2)
    expected = width**1.5 / normal.std**6
    assert ratios.second_moment(importance, normal) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("form", variance.FORMS)
def test_second_moments_diverge_where_twice_the_growth_reaches_the_tail(form):
    for tail in variance.TAILS:
        model = variance.FORMS[form](tail)
        for gate, power in ((gates.importance(), 1), (gates.ppo(), 1), (gates.spo(), 2)):
            assert ratios.largest_growth(gate) == pytest.approx(power, abs=1e-6)
            assert math.isinf(ratios.second_moment(gate, model)) == (2 * power >= tail)
        for gate in (gates.rgpo(4.0), gates.cispo(), gates.ppo(dual_clip=3.0), gates.reinforce()):
            assert ratios.second_moment(gate, model) < 50


def test_weights_are_continued_beyond_the_range_of_gates():
    samples = ratios.Samples(*np.array([[30.0, 30.0, 0.5], [1.0, -1.0, 1.0], [1] * 3, [1] * 3]))
    w = ratios.continued_weights(gates.ppo(), samples)
    np.testing.assert_allclose(w, [0.0, math.exp(30.0), 0.0], rtol=1e-6)
