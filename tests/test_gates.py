"""Gates against their published formulas, written out here in NumPy float64.

Every reference is a function of the ratio r and of s = sign(A), +1 or -1; of one that depends on
the size of A, s is A itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from gate_probes import DEFAULTS, away_from, sigmoid, value_and_weight
from scipy.special import erf

from rgpo_jax import gates
from rgpo_jax.tunable import Tunable

Reference = Callable[[Any, Any], Any]


class Case(NamedTuple):
    """A gate and what it must be; value None: published with a detached weight, so that the
    value has an arbitrary constant. At a kink the weight jumps, and is not compared."""

    gate: Tunable
    value: Reference | None
    weight: Reference
    kinks: tuple[float, ...] = ()
    by_size: bool = False

    def seen(self, advantage):
        """What the references see of an advantage."""
        return advantage if self.by_size else np.sign(advantage)


def sigmoid_slope(x):
    return sigmoid(x) * sigmoid(-x)


def rgpo_case(k, normalize=False):
    scale = 4.0 / k if normalize else 1.0
    return Case(
        gates.rgpo(k, normalize=normalize),
        lambda r, s: scale * sigmoid(k * (r - 1.0)),
        lambda r, s: scale * k * r * sigmoid_slope(k * (r - 1.0)),
    )


def rgpo_log_case(k, normalize=False):
    scale = 4.0 / k if normalize else 1.0
    return Case(
        gates.rgpo(k, "log", normalize),
        lambda r, s: scale * sigmoid(k * np.log(r)),
        lambda r, s: scale * k * sigmoid_slope(k * np.log(r)),
    )


def rgpo_pull_back_case(k, normalize=False):
    scale = 4.0 / k if normalize else 1.0

    def returning(r, s):
        return (r - 1.0) * s < 0

    return Case(
        gates.rgpo(k, normalize=normalize, pull_back=True),
        lambda r, s: (
            scale * np.where(returning(r, s), 0.5 + k / 4.0 * (r - 1.0), sigmoid(k * (r - 1.0)))
        ),
        lambda r, s: (
            scale * np.where(returning(r, s), k / 4.0 * r, k * r * sigmoid_slope(k * (r - 1.0)))
        ),
    )


def ppo_case(clip, clip_high=None, dual_clip=None):
    low, high = 1.0 - clip, 1.0 + (clip if clip_high is None else clip_high)
    cap = np.inf if dual_clip is None else dual_clip

    def value(r, s):
        objective_over_a = np.minimum(r * s, np.clip(r, low, high) * s)
        return s * np.where(s < 0, np.maximum(objective_over_a, cap * s), objective_over_a)

    def slope(r, s):
        return r * np.where(s > 0, r <= high, (r >= low) & (r <= cap))

    return Case(gates.ppo(clip, clip_high, dual_clip), value, slope, (low, high, cap))


def spo_case(clip):
    return Case(
        gates.spo(clip),
        lambda r, s: r - s * (r - 1.0) ** 2 / (2.0 * clip),
        lambda r, s: r * (1.0 - s * (r - 1.0) / clip),
    )


def rollback_case(clip, slope):
    low, high = 1.0 - clip, 1.0 + clip

    def value(r, s):
        rolled_up = -slope * r + (1.0 + slope) * high
        rolled_down = -slope * r + (1.0 + slope) * low
        rolled = np.where(r >= high, rolled_up, np.where(r <= low, rolled_down, r))
        return s * np.minimum(r * s, rolled * s)

    def weight_(r, s):
        return r * np.where(np.where(s > 0, r > high, r < low), -slope, 1.0)

    return Case(gates.rollback(clip, slope), value, weight_, (low, high))


def soft_clip_case(gate, positive, negative):
    def temperature(s):
        return np.where(s > 0, positive, negative)

    return Case(
        gate,
        lambda r, s: 4.0 / temperature(s) * sigmoid(temperature(s) * (r - 1.0)),
        lambda r, s: 4.0 * r * sigmoid_slope(temperature(s) * (r - 1.0)),
    )


def erf_case(t):
    return Case(
        gates.smooth("erf", t),
        lambda r, s: np.sqrt(np.pi / 2) / t * erf(t * (r - 1.0) / np.sqrt(2.0)),
        lambda r, s: r * np.exp(-((t * (r - 1.0)) ** 2) / 2),
    )


def arctan_case(t):
    return Case(
        gates.smooth("arctan", t),
        lambda r, s: np.arctan(t * (r - 1.0)) / t,
        lambda r, s: r / (1.0 + (t * (r - 1.0)) ** 2),
    )


def softsign_case(t):
    return Case(
        gates.smooth("softsign", t),
        lambda r, s: (r - 1.0) / np.sqrt(1.0 + (t * (r - 1.0)) ** 2),
        lambda r, s: r * (1.0 + (t * (r - 1.0)) ** 2) ** -1.5,
    )


def discovered_case(alpha, beta):
    def drift(r, a):
        rising, falling = (r - 1.0) * a, np.log(r) * a
        return np.maximum(
            np.where(
                a >= 0,
                rising - alpha * np.tanh(rising / alpha),
                falling - beta * np.tanh(falling / beta),
            ),
            0.0,
        )

    def slope(r, a):
        rising = r / np.cosh(np.minimum((r - 1.0) * a / alpha, 300.0)) ** 2
        falling = r - np.tanh(np.log(r) * a / beta) ** 2
        return np.where((a >= 0) & (r > 1), rising, np.where((a < 0) & (r < 1), falling, r))

    return Case(
        gates.discovered(alpha, beta), lambda r, a: r - drift(r, a) / a, slope, by_size=True
    )


# Keys begin with the constructor's name. 4.0 and the like are the published defaults, spelled out.
CASES = {
    "rgpo": rgpo_case(4.0),
    "rgpo-1": rgpo_case(1.0),
    "rgpo-8": rgpo_case(8.0),
    "rgpo-normalized-8": rgpo_case(8.0, normalize=True),
    "rgpo-pull-back": rgpo_pull_back_case(4.0),
    "rgpo-pull-back-normalized-8": rgpo_pull_back_case(8.0, normalize=True),
    "rgpo-log": rgpo_log_case(4.0),
    "rgpo-log-2": rgpo_log_case(2.0),
    "rgpo-log-normalized-2": rgpo_log_case(2.0, normalize=True),
    "ppo": ppo_case(0.2),
    "ppo-narrow": ppo_case(0.1),
    "ppo-clip-high": ppo_case(0.2, clip_high=0.28),
    "ppo-dual-clip": ppo_case(0.2, dual_clip=3.0),
    "ppo-all": ppo_case(0.3, clip_high=0.5, dual_clip=2.0),
    "reinforce": Case(gates.reinforce(), lambda r, s: np.log(r), lambda r, s: np.ones_like(r)),
    "importance": Case(gates.importance(), lambda r, s: r, lambda r, s: r),
    "truncated_importance": Case(
        gates.truncated_importance(), None, lambda r, s: np.minimum(r, 1.0)
    ),
    "truncated_importance-2": Case(
        gates.truncated_importance(2.0), None, lambda r, s: np.minimum(r, 2.0)
    ),
    "cispo": Case(gates.cispo(), None, lambda r, s: np.minimum(r, 5.0)),
    "cispo-both": Case(gates.cispo(0.8, 1.28), None, lambda r, s: np.clip(r, 0.8, 1.28)),
    "sapo": soft_clip_case(gates.sapo(), 1.0, 1.05),
    "sapo-apart": soft_clip_case(gates.sapo(2.0, 6.0), 2.0, 6.0),
    "p3o": soft_clip_case(gates.p3o(), 4.0, 4.0),
    "p3o-1.5": soft_clip_case(gates.p3o(1.5), 1.5, 1.5),
    "spo": spo_case(0.2),
    "spo-wide": spo_case(1.5),
    "rollback": rollback_case(0.2, 0.3),
    "rollback-steep": rollback_case(0.4, 1.5),
    "topr": Case(gates.topr(), None, lambda r, s: np.where(s > 0, 1.0, np.minimum(r, 1.0))),
    "smooth-erf": erf_case(10.0),
    "smooth-erf-2": erf_case(2.0),
    "smooth-arctan": arctan_case(10.0),
    "smooth-arctan-2": arctan_case(2.0),
    "smooth-softsign": softsign_case(10.0),
    "smooth-softsign-2": softsign_case(2.0),
    "discovered": discovered_case(2.0, 0.6),
    "discovered-wide": discovered_case(5.0, 1.5),
}
GRID = np.linspace(-4.0, 3.0, 281).astype(np.float32)


def test_every_constructor_has_a_case_with_its_defaults():
    assert {name.split("-")[0] for name in CASES} == set(gates.CONSTRUCTORS)
    for name, default in DEFAULTS.items():
        assert default in [case.gate for case in CASES.values()], name


@pytest.mark.parametrize("advantage", [-2.0, -0.5, 0.5, 2.0])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_value_is_the_closed_form(case, advantage):
    r, s = np.exp(GRID.astype(np.float64)), case.seen(advantage)
    actual = np.asarray(value_and_weight(case.gate, GRID, np.float32(advantage))[0])
    if case.value is None:
        # The integral of the weight over l, from l = 0 on both sides.
        fine = np.linspace(GRID[0], GRID[-1], 280_001, dtype=np.float64)
        slope = case.weight(np.exp(fine), s)
        steps = (slope[1:] + slope[:-1]) / 2 * np.diff(fine)
        integral = np.concatenate([[0.0], np.cumsum(steps)])
        expected = np.interp(GRID, fine, integral) - np.interp(0.0, fine, integral)
        actual = actual - actual[np.argmin(np.abs(GRID))]
    else:
        expected = case.value(r, s)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("advantage", [-2.0, -0.5, 0.5, 2.0])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_weight_is_the_closed_form(case, advantage):
    r = np.exp(GRID.astype(np.float64))
    smooth = away_from(case.kinks, r, 1e-4)
    actual = np.asarray(value_and_weight(case.gate, GRID, np.float32(advantage))[1])
    expected = case.weight(r, case.seen(advantage))
    # 1 - sigmoid is a multiple of 6e-8 in float32, and multiplies 4 r = 80 at the end of the grid.
    np.testing.assert_allclose(actual[smooth], expected[smooth], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
@pytest.mark.parametrize("name", gates.CONSTRUCTORS)
def test_default_weight_of_an_on_policy_sample_is_one(name, advantage):
    # Else agents would differ in the step they take from the same data, and not in w's shape.
    _, slope = value_and_weight(DEFAULTS[name], np.float32(0.0), np.float32(advantage))
    assert slope == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("advantage", [0.0, 1e-38, -1e-38, 1e-6, -1e-6])
def test_discovered_is_importance_sampling_where_the_advantage_vanishes(advantage):
    # Its drift is divided by A: to third order in A it is 0, and so is the quotient's limit.
    r = np.exp(GRID.astype(np.float64))
    value, slope = value_and_weight(DEFAULTS["discovered"], GRID, np.float32(advantage))
    np.testing.assert_allclose(value, r, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, r, rtol=1e-6, atol=1e-6)
