"""Bounds on improvement: tabular processes solved exactly, and values by hand."""

import math

import jax
import numpy as np
import pytest

from experiments.theory import bounds, catalogue, improvement, tabular
from rgpo_jax import gates
from tests.probes import check_share


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
    outcome = improvement.sample(np.random.default_rng(7), 64, check_share)
    assert len(outcome.improvement) == 64 * 3 * improvement._STEPS
    assert np.mean(outcome.improvement > 0) > 0.3
    for name in improvement.BOUNDS:
        assert improvement.judge(outcome, name).violations == 0, name
    name = "importance (Achiam et al.)"
    raised = outcome.bounds | {name: outcome.bounds[name] + 0.01}
    assert improvement.judge(outcome._replace(bounds=raised), name).violations > 0


def test_the_linear_bound_certifies_nothing_up_to_4_and_the_cubic_one_does():
    outcome = improvement.sample(np.random.default_rng(8), 64, check_share)
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
