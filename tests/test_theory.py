"""The theory bench: its exact parts against closed forms, and what it writes."""

import csv
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import integrate

from experiments import results
from experiments.theory import (
    __main__ as program,
)
from experiments.theory import (
    bias,
    bounds,
    catalogue,
    drawing,
    family,
    improvement,
    ratios,
    tabular,
    variance,
)
from experiments.theory.options import STUDIES, Options
from experiments.theory.study import Claim, Figure, Line, Panel, say
from rgpo_jax import gates
from tests import browser

ROOT = Path(__file__).parents[1]


def ignore(share):
    assert 0.0 <= share <= 1.0


# --- The family -------------------------------------------------------------------------------


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
        *("ppo", "ppo clip-higher", "importance", "spo", "rollback"),
    }
    assert math.isfinite(found["ppo"].supremum)  # only where A < 0
    acceptance = {name for name, row in found.items() if row.in_unit_interval}
    assert acceptance == {
        *map(catalogue.rgpo_name, catalogue.SHARPNESSES),
        *("rgpo k=16, normalised", "rgpo k=4, log form", "p3o"),
    }


# --- Ratios -----------------------------------------------------------------------------------

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


# --- Variance ---------------------------------------------------------------------------------


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
    return variance.run(Options(samples=10_000, replicates=3), ignore)


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


# --- Bias -------------------------------------------------------------------------------------


def test_the_identity_holds_for_the_normalised_gate_alone():
    assert bias.identity_error() < 1e-13
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

    found = bias.of_sharpness(k, ratios.Normals.at_distance(kl, signal).quadrature())
    assert found.bias == pytest.approx(integral(1, True), rel=1e-6)
    expected = integral(2, False) - integral(1, False) ** 2
    assert found.variance == pytest.approx(expected, rel=1e-6)
    assert found.error(10) == pytest.approx(found.bias**2 + found.variance / 10)


def test_bias_stays_below_its_bound_and_vanishes_with_sharpness():
    for kl in bias.KLS:
        samples = ratios.Normals.at_distance(kl, 1.0).quadrature()
        for k in (0.01, 1.0, 16.0):
            assert abs(bias.of_sharpness(k, samples).bias) <= bias.bound(k, samples)
        assert abs(bias.of_sharpness(0.001, samples).bias) < 1e-3


@pytest.mark.parametrize("tail", ratios.TAILS)
def test_bias_under_a_tail_stays_below_its_bound_and_falls_as_the_tail_lets_it(tail):
    found, least = bias.under_tail(tail), (tail - 1) / tail

    def terms(y, k):  # under the new policy, Exp(tail - 1)
        x = min(k * (least * math.exp(y) - 1) / 2, 300.0)
        advantage = 0.5 if y > math.log(2) / tail else -0.5
        score = 1 if y > math.log(2) / (tail - 1) else -1
        return -(math.tanh(x) ** 2) * advantage * score * (tail - 1) * math.exp(-(tail - 1) * y)

    points = [math.log(2) / tail, math.log(2) / (tail - 1), 5.0, 20.0]
    for k, value in zip(bias._TAIL_SHARPNESSES[1:], found.bias[1:], strict=True):
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
    (choice,) = bias.choose(0.3, 0.01, [500], samples)

    def error(k):
        return bias.of_sharpness(k, samples).error(500)

    assert choice.low < choice.best < choice.high
    assert error(choice.best) <= min(error(choice.best * 1.1), error(choice.best / 1.1))
    assert error(choice.high * 1.2) > 1.05 * error(choice.best)
    assert choice.over["rgpo k=4"] == pytest.approx(error(4.0) / error(choice.best))
    assert choice.over["importance"] >= 1.0


def test_the_rule_is_fitted_where_it_applies():
    def choice(kl, n, best):
        return bias.Choice(0.5, kl, n, best, 0.0, 1.0, 0.1, {})

    exact = [
        choice(kl, n, 2.0 / (0.5 * math.sqrt(n * kl))) for kl in (0.01, 0.1) for n in (50, 500)
    ]
    far = [choice(1.0, 100, 1000.0), choice(0.01, 100, 0.0), choice(0.01, 1, math.inf)]
    constant, factor = bias.rule([c for c in exact + far if math.isfinite(c.best)])
    assert (constant, factor) == (pytest.approx(2.0), pytest.approx(1.0))


# --- Improvement ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    """Processes, an old policy and a new one."""
    rng = np.random.default_rng(1)
    processes = tabular.garnets(rng, 20, 7, 3, 4, 0.93)
    old, new = (rng.dirichlet(np.ones(3), (20, 7)) for _ in range(2))
    return processes, old, new


def test_garnets_are_processes(pairs):
    transition = pairs[0].transition
    np.testing.assert_allclose(transition.sum(-1), 1.0, atol=1e-12)
    assert np.all(np.sum(transition > 0, axis=-1) == 4)
    np.testing.assert_allclose(pairs[0].start.sum(-1), 1.0, atol=1e-12)


def test_solutions_are_what_stepping_leads_to(pairs):
    processes, policy, _ = pairs
    found = tabular.solve(processes, policy)
    gamma, state = processes.discount[0], processes.start
    value, visits = np.zeros(20), np.zeros((20, 7))
    for t in range(600):
        joint = state[..., None] * policy
        value += gamma**t * np.einsum("nsa,nsa->n", joint, processes.reward)
        visits += (1 - gamma) * gamma**t * state
        state = np.einsum("nsa,nsat->nt", joint, processes.transition)
    np.testing.assert_allclose(found.value, value, atol=1e-10)
    np.testing.assert_allclose(found.occupancy, visits, atol=1e-10)
    mean = np.einsum("nsa,nsa->ns", policy, found.advantage)
    np.testing.assert_allclose(mean, 0.0, atol=1e-10)


def test_performance_difference(pairs):
    processes, old, new = pairs
    before, after = tabular.solve(processes, old), tabular.solve(processes, new)
    expected = np.einsum("ns,nsa,nsa->n", after.occupancy, new, before.advantage)
    expected /= 1.0 - processes.discount
    np.testing.assert_allclose(after.value - before.value, expected, atol=1e-10)


def test_bounds_of_an_unchanged_policy_are_0(pairs):
    processes, old, _ = pairs
    outcome = improvement.compare(processes, old, old, "none")
    for name, bound in outcome.bounds.items():
        np.testing.assert_allclose(bound, 0.0, atol=1e-12, err_msg=name)


def by_hand(discount=0.5):
    """Two states with advantages and policies that can be reckoned with."""
    old = np.array([[[0.5, 0.5], [0.5, 0.5]]])
    new = np.array([[[0.75, 0.25], [0.5, 0.5]]])
    advantage = np.array([[[2.0, -2.0], [4.0, -4.0]]])
    return bounds.Pair(np.array([discount]), np.array([[0.6, 0.4]]), advantage, old, new)


def test_bounds_by_hand():
    pair = by_hand()
    variation, surrogate = 0.6 * 0.25, 0.6 * (0.75 * 2 - 0.25 * 2)  # eps is 1, A_max is 4
    shift = 2 * 0.5 * 1.0 / 0.5 * variation
    assert bounds.importance(pair) == pytest.approx((surrogate - shift) / 0.5)
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # the larger of two
    penalty = 4 * 0.5 * 4.0 / 0.5 * divergence
    assert bounds.trpo(pair) == pytest.approx((surrogate - penalty) / 0.5)
    clipped = 0.6 * 0.5 * (1.2 * 2 - 0.8 * 2)
    assert bounds.ppo(pair) == pytest.approx((clipped - shift) / 0.5)

    def g(r, k):
        return 1 / (1 + math.exp(-k * (r - 1)))

    for k, slope in ((4.0, 1.0), (16.0, 3.0)):
        gated = 0.6 * 0.5 * 2 * (g(1.5, k) - g(0.5, k))
        gap = 2 * slope * 4.0 * variation
        assert bounds.linear(pair, k) == pytest.approx((gated - gap - shift) / 0.5)
        assert bounds.without_shift(pair, k) == pytest.approx((gated - gap) / 0.5)
        gap = 4.0 * 0.6 * min(0.5, k**2 * 0.5**3 / 12)
        assert bounds.cubic(pair, k) == pytest.approx((4 / k * gated - gap - shift) / 0.5)


def test_no_bound_is_violated_and_a_higher_one_would_be():
    outcome = improvement.sample(np.random.default_rng(7), 64, ignore)
    assert len(outcome.improvement) == 64 * 3 * improvement._STEPS
    assert np.mean(outcome.improvement > 0) > 0.3
    for name in improvement.BOUNDS:
        assert improvement.judge(outcome, name).violations == 0, name
    name = "importance (Achiam et al.)"
    raised = outcome.bounds | {name: outcome.bounds[name] + 0.01}
    assert improvement.judge(outcome._replace(bounds=raised), name).violations > 0


def test_the_linear_bound_certifies_nothing_up_to_4_and_the_cubic_one_does():
    outcome = improvement.sample(np.random.default_rng(8), 64, ignore)
    for k in catalogue.SHARPNESSES:
        if k <= 4:
            assert outcome.bounds[f"{improvement.LINEAR} k={k:g}"].max() <= 0.0
        assert improvement.judge(outcome, f"{improvement.CUBIC} k={k:g}").certified > 0.3


def test_states_that_are_not_visited_refute_a_bound_without_them():
    outcome = improvement.compare(*tabular.trap(discount=0.99, leak=0.05, cost=1.0), "trap")
    (truth,) = outcome.improvement
    assert truth < outcome.bounds[f"{improvement.WITHOUT_SHIFT} k=4"][0] - 0.5
    for name, bound in outcome.bounds.items():
        if not name.startswith(improvement.WITHOUT_SHIFT):
            assert bound[0] <= truth, name


def test_the_traps_tell_a_bound_that_forgets_the_states_from_those_that_do_not():
    outcome = improvement.traps()
    for name in improvement.BOUNDS:
        violations = improvement.judge(outcome, name).violations
        assert (violations > 10) == name.startswith(improvement.WITHOUT_SHIFT), name


@pytest.mark.parametrize("k", catalogue.SHARPNESSES)
def test_the_inequality_under_the_cubic_bound(k):
    r = np.exp(np.linspace(-12.0, 6.0, 20_001))
    with jax.enable_x64(True):
        f = 1.0 + 4.0 / k * (np.asarray(gates.rgpo(k)(np.log(r), np.ones_like(r))) - 0.5)
    limit = np.minimum(np.abs(r - 1), k**2 * np.abs(r - 1) ** 3 / 12)
    assert np.all(np.abs(r - f) <= limit + 1e-14)
    assert np.max(np.abs(r - f) / np.maximum(limit, 1e-6)) > 0.9
    assert improvement.largest_slope(k, 4.0 / k) < 1.0
    assert improvement.largest_slope(k, 1.0) == pytest.approx(max(1.0, k / 4 - 1), rel=2e-3)


# --- What is written --------------------------------------------------------------------------


def test_values_as_people_read_them():
    said = {
        1234567.0: "1.23e6",
        12345.0: "12,300",
        0.000012: "1.2e-5",
        -0.5: "-0.5",
        math.inf: "∞",
        7: "7",
        54321: "54,321",
        "x": "x",
    }
    assert {value: say(value).replace("\N{MINUS SIGN}", "-") for value in said} == said
    assert say(math.nan) == say(None) == "\N{EN DASH}"
    assert (say(True), say(False)) == ("yes", "no")


def test_a_verdict_is_a_truth_value():
    with pytest.raises(TypeError, match="expected True, False or None"):
        Claim("1 < 2", "ours", np.bool_(True), "", ())


def test_a_figure_in_the_page_takes_the_text_colour_and_its_own_names():
    x = np.array([1.0, 2.0])
    panel = Panel("p", "x", "y", [Line("a", x, x, None), Line("b", x, -x, 1)])
    picture = drawing.svg(Figure("some", "", [panel]))
    assert picture.startswith("<svg viewBox=")
    assert "currentColor" in picture
    names = {part.split('"')[0] for part in picture.split(' id="')[1:]}
    assert names
    assert all(name.startswith("some-") for name in names)
    used = {part.split('"')[0] for part in picture.split('href="#')[1:]}
    used |= {part.split(")")[0] for part in picture.split("url(#")[1:]}
    assert used <= names
    assert drawing.png(Figure("some", "", [panel])).startswith(b"\x89PNG")


SMALL = ("--studies", "family", "improvement", "--mdps", "16")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("theory") / "out"
    assert program.main(["--out", str(out), *SMALL]) == 0
    return out


def test_every_figure_and_table_is_a_file(written):
    names = {path.name for path in written.iterdir()}
    assert {"index.html", "claims.json", "theory.log", "family.png", "improvement.csv"} <= names
    rows = list(csv.reader((written / "family.csv").read_text().splitlines()))
    assert [len(row) for row in rows] == [8] * (1 + len(catalogue.GATES))
    assert rows[1][0] == "rgpo k=1"
    assert float(rows[1][1]) == 0.25
    lines = (written / "improvement_curves.csv").read_text().splitlines()
    curves = list(csv.DictReader(lines))
    assert {row["panel"] for row in curves} >= {"looseness", "certified improvements"}


def test_claims_have_what_others_read(written):
    claims = json.loads((written / "claims.json").read_text())
    assert {claim["study"] for claim in claims} == {"family", "improvement"}
    for claim in claims:
        assert {"claim", "holds", "evidence", "figures", "source"} <= set(claim)
        assert claim["holds"] in (True, False, None)
        assert claim["source"] in ("paper", "reader", "ours")
        assert all((written / f"{figure}.png").exists() for figure in claim["figures"])
    refuted = [claim["claim"][:6] for claim in claims if claim["holds"] is False]
    assert refuted == ["Eq. 40", "Eq. 38"]


@pytest.mark.skipif(browser.find() is None, reason="no Chromium here")
def test_the_page_opens_by_itself(written, tmp_path):
    page = browser.Browser(tmp_path)
    try:
        for width, dark in ((1200, False), (390, True)):
            page.open(written / "index.html", width=width, dark=dark)
            assert page.complaints == []
            assert [url for url in page.requests if not url.startswith("file:")] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            drawn = "[...document.querySelectorAll('.figure svg')].map(s => s.clientWidth)"
            assert len(page.evaluate(drawn)) == 4
            assert min(page.evaluate(drawn)) > 300
            assert page.evaluate("document.querySelectorAll('.verdict.no').length") == 2
        ink = "getComputedStyle(document.querySelector('#figure-family svg text')).fill"
        page.scheme("light")
        light = page.evaluate(ink)
        page.scheme("dark")
        assert page.evaluate(ink) != light
    finally:
        page.close()


def test_nothing_is_replaced_without_being_asked(written, capsys):
    before = (written / "index.html").read_bytes()
    with pytest.raises(SystemExit) as refused:
        program.main(["--out", str(written), *SMALL])
    assert refused.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (written / "index.html").read_bytes() == before


def test_what_an_earlier_call_drew_goes_when_it_is_replaced(tmp_path):
    (tmp_path / "index.html").write_text("old")
    (tmp_path / "variance.png").write_text("old")
    (tmp_path / "mine.png").write_text("mine")
    arguments = ["--out", str(tmp_path), "--overwrite", "--studies", "improvement", "--mdps", "2"]
    assert program.main(arguments) == 0
    assert not (tmp_path / "variance.png").exists()
    assert (tmp_path / "mine.png").read_text() == "mine"
    assert (tmp_path / "improvement.png").exists()


BAD = [
    ("--studies", "varianz"),
    ("--studies",),
    ("--samples", "100"),
    ("--samples", "x"),
    ("--replicates", "1"),
    ("--mdps", "0"),
    ("--pairs", "1.5"),
    ("--seed", "-1"),
    ("--out", ""),
    ("--out", "a\0b"),
    ("--out", "/proc/nowhere"),
    ("--sample", "1"),
    ("more",),
]


@pytest.mark.parametrize("args", BAD, ids=" ".join)
def test_bad_input_is_one_line(args, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        program.main(list(args))
    captured = capsys.readouterr()
    assert refused.value.code == 2
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_or_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    (tmp_path / "file").touch()
    for name, reason in (("run", "holds a run"), ("file", "is a file")):
        with pytest.raises(SystemExit) as refused:
            program.main(["--out", str(tmp_path / name), "--overwrite", *SMALL])
        assert refused.value.code == 2
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_full_disk_is_said(when, tmp_path, capsys, monkeypatch):
    def refuse(folder, needed):
        raise OSError("no room")

    if when == "at once":
        monkeypatch.setattr(results, "require_space", refuse)
    else:  # the log is replaced by the device that is always full
        monkeypatch.setattr(program, "LOG", "full")
        (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(SystemExit) as refused:
        program.main(["--out", str(tmp_path), "--studies", "improvement", "--mdps", "2"])
    assert refused.value.code == 2
    captured = capsys.readouterr()
    assert "cannot be written" in captured.err
    assert ("improvement" in captured.out) == (when == "later")
    assert not (tmp_path / "index.html").exists()


def test_an_interrupt_leaves_nothing_half_written(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.theory", "--out", str(out), "--studies", "variance"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 120
    while not (out / "theory.log").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert {path.name for path in out.iterdir()} == {".lock", "theory.log"}


def test_the_studies_have_modules():
    for name in STUDIES:
        assert (ROOT / "experiments" / "theory" / f"{name}.py").exists()
