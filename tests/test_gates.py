"""Gates against their published formulas, which are written out here in NumPy or as losses."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.lax import stop_gradient
from scipy.special import erf

from rgpo_jax import gates, objective
from rgpo_jax.gates import weight
from rgpo_jax.tunable import Tunable


@jax.jit
def value_and_weight(gate, log_ratio, advantage):
    """Compiled once for all numbers of a gate; `with jax.enable_x64(True)` once more."""
    return gate(log_ratio, advantage), weight(gate)(log_ratio, advantage)


# --- Value and weight in closed form, NumPy float64 ------------------------------------------
# Every reference is a function of the ratio r and of s = sign(A), +1 or -1.

Reference = Callable[[Any, Any], Any]


class Case(NamedTuple):
    """A gate and what it must be; value None: published with a detached weight, so that the
    value has an arbitrary constant. At a kink the weight jumps, and is not compared."""

    gate: Tunable
    value: Reference | None
    weight: Reference
    kinks: tuple[float, ...] = ()


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


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


def rgpo_call_back_case(k, normalize=False):
    scale = 4.0 / k if normalize else 1.0

    def returning(r, s):
        return (r - 1.0) * s < 0

    return Case(
        gates.rgpo(k, normalize=normalize, call_back=True),
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


# Keys begin with the constructor's name. 4.0 and the like are the published defaults, spelled out.
CASES = {
    "rgpo": rgpo_case(4.0),
    "rgpo-1": rgpo_case(1.0),
    "rgpo-8": rgpo_case(8.0),
    "rgpo-normalized-8": rgpo_case(8.0, normalize=True),
    "rgpo-call-back": rgpo_call_back_case(4.0),
    "rgpo-call-back-normalized-8": rgpo_call_back_case(8.0, normalize=True),
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
}
DEFAULTS = {name: constructor() for name, constructor in gates.CONSTRUCTORS.items()}
GRID = np.linspace(-4.0, 3.0, 281).astype(np.float32)


def away_from(kinks, r, distance):
    return np.all([np.abs(r - kink) > distance for kink in (-1.0, *kinks)], axis=0)


def test_every_constructor_has_a_case_with_its_defaults():
    assert {name.split("-")[0] for name in CASES} == set(gates.CONSTRUCTORS)
    for name, default in DEFAULTS.items():
        assert default in [case.gate for case in CASES.values()], name


@pytest.mark.parametrize("advantage", [-2.0, -0.5, 0.5, 2.0])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_value_is_the_closed_form(case, advantage):
    r, s = np.exp(GRID.astype(np.float64)), np.sign(advantage)
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
    expected = case.weight(r, np.sign(advantage))
    # 1 - sigmoid is a multiple of 6e-8 in float32, and multiplies 4 r = 80 at the end of the grid.
    np.testing.assert_allclose(actual[smooth], expected[smooth], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
@pytest.mark.parametrize("name", gates.CONSTRUCTORS)
def test_default_weight_of_an_on_policy_sample_is_one(name, advantage):
    # Else agents would differ in the step they take from the same data, and not in w's shape.
    _, slope = value_and_weight(DEFAULTS[name], np.float32(0.0), np.float32(advantage))
    assert slope == pytest.approx(1.0, abs=1e-6)


# --- Gradients against the losses as they are published --------------------------------------
# Each is a function of log pi, log pi_old and A that is ascended in its mean.


def published_rgpo(log_prob, old, a):
    return jax.nn.sigmoid(4.0 * (jnp.exp(log_prob - old) - 1.0)) * a


def published_ppo(log_prob, old, a, low=0.8, high=1.2):
    r = jnp.exp(log_prob - old)
    return jnp.minimum(r * a, jnp.clip(r, low, high) * a)


def published_dual_clip(log_prob, old, a):
    clipped = published_ppo(log_prob, old, a)
    return jnp.where(a < 0, jnp.maximum(clipped, 3.0 * a), clipped)


def published_sapo(log_prob, old, a):
    r = jnp.exp(log_prob - old)
    positive = 4.0 / 1.0 * jax.nn.sigmoid(1.0 * (r - 1.0))
    negative = 4.0 / 1.05 * jax.nn.sigmoid(1.05 * (r - 1.0))
    return jnp.where(a > 0, positive, negative) * a


def published_p3o(log_prob, old, a):
    return 4.0 / 4.0 * jax.nn.sigmoid(4.0 * (jnp.exp(log_prob - old) - 1.0)) * a


def published_spo(log_prob, old, a):
    r = jnp.exp(log_prob - old)
    return r * a - jnp.abs(a) / (2 * 0.2) * (r - 1.0) ** 2


def published_rollback(log_prob, old, a):
    r = jnp.exp(log_prob - old)
    rolled = jnp.where(r <= 0.8, -0.3 * r + 1.3 * 0.8, r)
    rolled = jnp.where(r >= 1.2, -0.3 * r + 1.3 * 1.2, rolled)
    return jnp.minimum(r * a, rolled * a)


def published_importance(log_prob, old, a):
    return jnp.exp(log_prob - old) * a


def published_reinforce(log_prob, old, a):
    return log_prob * a


def published_tis(log_prob, old, a):
    return stop_gradient(jnp.minimum(jnp.exp(log_prob - old), 2.0)) * log_prob * a


def published_v_trace(log_prob, old, a):
    return stop_gradient(jnp.minimum(jnp.exp(log_prob - old), 1.0)) * log_prob * a


def published_cispo(log_prob, old, a):
    return stop_gradient(jnp.clip(jnp.exp(log_prob - old), 0.8, 1.28)) * log_prob * a


def published_topr(log_prob, old, a):
    tapered = jnp.clip(jnp.exp(log_prob - old), 0.0, 1.0)
    return stop_gradient(jnp.where(a >= 0, 1.0, tapered)) * log_prob * a


PUBLISHED = {
    "rgpo": (gates.rgpo(4.0), published_rgpo),
    "ppo": (gates.ppo(0.2), published_ppo),
    "clip-higher": (
        gates.ppo(0.2, clip_high=0.28),
        functools.partial(published_ppo, low=0.8, high=1.28),
    ),
    "dual-clip": (gates.ppo(0.2, dual_clip=3.0), published_dual_clip),
    "sapo": (gates.sapo(), published_sapo),
    "p3o": (gates.p3o(4.0), published_p3o),
    "spo": (gates.spo(0.2), published_spo),
    "rollback": (gates.rollback(0.2, 0.3), published_rollback),
    "importance": (gates.importance(), published_importance),
    "reinforce": (gates.reinforce(), published_reinforce),
    "tis": (gates.truncated_importance(2.0), published_tis),
    "v-trace": (gates.truncated_importance(1.0), published_v_trace),
    "cispo": (gates.cispo(0.8, 1.28), published_cispo),
    "topr": (gates.topr(), published_topr),
}


@pytest.mark.parametrize(("gate", "published"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_gradient_of_the_surrogate_is_that_of_the_published_loss(gate, published):
    n = 512
    generator = np.random.default_rng(0)
    old = generator.uniform(-3.0, 0.0, n).astype(np.float32)
    log_prob = (old + generator.normal(0.0, 0.7, n)).astype(np.float32)
    advantage = generator.normal(0.0, 1.5, n).astype(np.float32)
    actual = jax.grad(lambda p: objective.surrogate(gate, p - old, advantage))(log_prob)
    expected = jax.grad(lambda p: jnp.mean(published(p, old, advantage)))(log_prob)
    smooth = away_from((0.8, 1.2, 1.28, 3.0), np.exp(log_prob - old), 1e-5)
    assert smooth.sum() > 500
    np.testing.assert_allclose(n * actual[smooth], n * expected[smooth], rtol=1e-4, atol=1e-5)


# --- Identities, in float64 ------------------------------------------------------------------


def weight64(gate, r, advantage=1.0):
    with jax.enable_x64(True):
        return np.asarray(value_and_weight(gate, np.log(np.float64(r)), np.float64(advantage))[1])


def value64(gate, r, advantage=1.0):
    with jax.enable_x64(True):
        return np.asarray(value_and_weight(gate, np.log(np.float64(r)), np.float64(advantage))[0])


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
def test_surrogate_of_rgpo_with_call_back_is_a_lower_bound(k):
    """(r - f) A >= 0, as of PPO: the improvement bound of TRPO then needs no term for the gate."""
    for advantage in (-1.0, 1.0):
        f = 1.0 + value64(gates.rgpo(k, normalize=True, call_back=True), R, advantage) - 2.0 / k
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


# GATES.md, section 2: k: (sup w, at r, {r: w}).
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


# --- Search: every float32 log-ratio in [-1e4, 1e4], every sign of A, numbers large and small --


def float32(x):
    return float(np.float32(x))


MAGNITUDE = st.floats(-2.0, 3.0).map(lambda e: float32(10.0**e))  # 0.01 to 1000
FRACTION = st.floats(0.001, 0.999).map(float32)
ABOVE_ONE = st.floats(1.01, 100.0).map(float32)
SEARCH = {
    "rgpo": st.builds(gates.rgpo, MAGNITUDE),
    "rgpo-log": st.builds(gates.rgpo, MAGNITUDE, st.just("log")),
    "rgpo-normalized": st.builds(gates.rgpo, MAGNITUDE, st.just("linear"), st.just(True)),
    "rgpo-log-normalized": st.builds(gates.rgpo, MAGNITUDE, st.just("log"), st.just(True)),
    "rgpo-call-back": st.builds(
        gates.rgpo, MAGNITUDE, st.sampled_from(["linear", "log"]), st.booleans(), st.just(True)
    ),
    "ppo": st.builds(gates.ppo, FRACTION),
    "ppo-all": st.builds(gates.ppo, FRACTION, MAGNITUDE, ABOVE_ONE),
    "reinforce": st.just(gates.reinforce()),
    "importance": st.just(gates.importance()),
    "truncated_importance": st.builds(gates.truncated_importance, MAGNITUDE),
    "cispo": st.builds(
        lambda high, part: gates.cispo(float32(part * high), high),
        MAGNITUDE,
        st.floats(0.0, 0.99),
    ),
    "sapo": st.builds(gates.sapo, MAGNITUDE, MAGNITUDE),
    "p3o": st.builds(gates.p3o, MAGNITUDE),
    "spo": st.builds(gates.spo, MAGNITUDE),
    "rollback": st.builds(gates.rollback, FRACTION, MAGNITUDE),
    "topr": st.just(gates.topr()),
    "smooth-erf": st.builds(gates.smooth, st.just("erf"), MAGNITUDE),
    "smooth-arctan": st.builds(gates.smooth, st.just("arctan"), MAGNITUDE),
    "smooth-softsign": st.builds(gates.smooth, st.just("softsign"), MAGNITUDE),
}
# Half of the draws where gates bend. Zero and both signs of A come up of themselves; a subnormal
# A is flushed to zero or not as the backend likes, and stays out.
LOG_RATIOS = arrays(
    np.float32, 24, elements=st.floats(-1e4, 1e4, width=32) | st.floats(-3, 3, width=32)
)
ADVANTAGES = arrays(np.float32, 24, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))
# Where float32 overflows or underflows, and where the ratio's continuation begins.
EDGES = np.array([-1e4, -104, -88, -70, 0, 20, 44, 88, 89, 1e4], np.float32)
# No database: what was found before is not searched for first, so a run depends on no file.
search = hypothesis.settings(max_examples=30, deadline=None, database=None)


def with_edges(log_ratio, advantage):
    signs = np.repeat(np.array([-1, 0, 1], np.float32), len(EDGES))
    return np.concatenate([log_ratio, np.tile(EDGES, 3)]), np.concatenate([advantage, signs])


@jax.jit
def central_difference(gate, log_ratio, advantage):
    h = 1e-6
    return (gate(log_ratio + h, advantage) - gate(log_ratio - h, advantage)) / (2 * h)


def kinks_of(gate):
    """Log-ratios at which PPO's and the rollback's weights jump."""
    numbers = {name: number for name, number in gate.numbers.items() if number is not None}
    if "clip" not in numbers or gate.function is gates.spo().function:
        return ()
    high = numbers.get("clip_high", numbers["clip"])
    return np.log([1.0 - numbers["clip"], 1.0 + high, numbers.get("dual_clip", 1.0 + high)])


def test_search_covers_every_constructor():
    assert {name.split("-")[0] for name in SEARCH} == set(gates.CONSTRUCTORS)


@pytest.mark.parametrize("name", SEARCH)
@search
@hypothesis.given(data=st.data(), log_ratio=LOG_RATIOS, advantage=ADVANTAGES)
def test_value_and_weight_are_finite(name, data, log_ratio, advantage):
    gate = data.draw(SEARCH[name])
    log_ratio, advantage = with_edges(log_ratio, advantage)
    value, slope = value_and_weight(gate, log_ratio, advantage)
    assert np.all(np.isfinite(value)), log_ratio[~np.isfinite(value)]
    assert np.all(np.isfinite(slope)), log_ratio[~np.isfinite(slope)]


@pytest.mark.parametrize("name", SEARCH)
@search
@hypothesis.given(data=st.data(), log_ratio=LOG_RATIOS, advantage=ADVANTAGES)
def test_weight_is_the_derivative_in_the_log_ratio(name, data, log_ratio, advantage):
    gate = data.draw(SEARCH[name])
    log_ratio, advantage = with_edges(log_ratio, advantage)
    _, actual = value_and_weight(gate, log_ratio, advantage)
    with jax.enable_x64(True):
        expected = central_difference(
            gate, log_ratio.astype(np.float64), advantage.astype(np.float64)
        )
    smooth = away_from(kinks_of(gate), log_ratio.astype(np.float64), 1e-4)
    # float32 rounds a ratio near 1 by 1e-4 of the weight where the sharpness is 1000, and
    # 1 - sigmoid by 6e-8, which multiplies a ratio of 1000 where it is 0.01.
    np.testing.assert_allclose(
        np.asarray(actual)[smooth], np.asarray(expected)[smooth], rtol=1e-3, atol=1e-3
    )


EXTREME = [
    *(
        gates.rgpo(k, form, True, call_back)
        for k in (1e-6, 1e10)
        for form in ("linear", "log")
        for call_back in (False, True)
    ),
    *(gates.smooth(kind, t) for t in (1e-6, 1e10) for kind in ("erf", "arctan", "softsign")),
    *(gates.p3o(t) for t in (1e-6, 1e10)),
    *(gates.spo(clip) for clip in (1e-6, 1e10)),
    *(gates.truncated_importance(cap) for cap in (1e-6, 1e10)),
    gates.rollback(1e-6, slope=1e10),
    gates.ppo(1e-6, clip_high=1e10, dual_clip=1e10),
]


def describe(gate):
    """A test's name; not repr, whose function's address differs between pytest-xdist's workers."""
    settings = (*gate.numbers.values(), *(value for _, value in gate.options))
    return "-".join([gate.function.__name__.lstrip("_"), *map(str, settings)])


@pytest.mark.parametrize("gate", EXTREME, ids=describe)
def test_extreme_numbers_do_not_overflow(gate):
    for advantage in (-1.0, 0.0, 1.0):
        value, slope = value_and_weight(gate, EDGES, np.float32(advantage))
        assert np.all(np.isfinite(slope))
        with jax.enable_x64(True):
            expected, _ = value_and_weight(gate, np.float64(EDGES), np.float64(advantage))
        np.testing.assert_allclose(value, np.asarray(expected), rtol=1e-3, atol=1e-15)


def test_ratio_is_exact_up_to_e20_and_its_slope_is_frozen_beyond():
    inside, beyond = np.linspace(-40, 20, 61, dtype=np.float32), np.float32([21, 89, 1e4])
    value, slope = value_and_weight(gates.importance(), inside, 1.0)
    np.testing.assert_allclose(value, np.exp(np.float64(inside)), rtol=1e-5)
    np.testing.assert_allclose(slope, np.exp(np.float64(inside)), rtol=1e-5)
    value, slope = value_and_weight(gates.importance(), beyond, 1.0)
    np.testing.assert_allclose(value, np.exp(20.0) * (np.float64(beyond) - 19.0), rtol=1e-5)
    np.testing.assert_allclose(slope, np.exp(20.0), rtol=1e-5)


# --- Numbers are leaves, shapes broadcast ----------------------------------------------------

LOG_RATIO = np.linspace(-2.0, 2.0, 9).astype(np.float32)
ADVANTAGE = np.where(np.arange(9) % 2, 1.0, -1.0).astype(np.float32)


@pytest.mark.parametrize(
    ("constructor", "numbers"),
    [
        (gates.rgpo, (0.5, 4.0, 9.0)),
        (functools.partial(gates.rgpo, form="log", normalize=True), (0.5, 4.0, 9.0)),
        (gates.ppo, (0.1, 0.2, 0.3)),
        (gates.cispo, (0.1, 0.2, 0.3)),
        (functools.partial(gates.smooth, "arctan"), (2.0, 10.0, 12.0)),
    ],
    ids=["rgpo", "rgpo-log", "ppo", "cispo", "smooth"],
)
def test_vmap_over_a_number_equals_a_loop(constructor, numbers):
    batched = jax.vmap(lambda k: weight(constructor(k))(LOG_RATIO, ADVANTAGE))(jnp.array(numbers))
    loop = [weight(constructor(k))(LOG_RATIO, ADVANTAGE) for k in numbers]
    np.testing.assert_allclose(batched, np.stack(loop), rtol=1e-6, atol=1e-7)


def test_vmapped_constructor_builds_a_batched_gate():
    ks = jnp.array([1.0, 4.0, 9.0])
    batch = jax.vmap(gates.rgpo)(ks)
    np.testing.assert_array_equal(batch.numbers["sharpness"], ks)
    weights = jax.vmap(lambda gate: weight(gate)(LOG_RATIO, ADVANTAGE))(batch)
    loop = [weight(gates.rgpo(k))(LOG_RATIO, ADVANTAGE) for k in (1.0, 4.0, 9.0)]
    np.testing.assert_allclose(weights, np.stack(loop), rtol=1e-6, atol=1e-7)


def test_jit_traces_once_for_all_numbers_of_a_gate():
    traces = []

    @jax.jit
    def total(gate):
        traces.append(gate.function)
        return jnp.sum(gate(LOG_RATIO, ADVANTAGE))

    totals = [total(gates.rgpo(k)) for k in (0.5, 4.0, 9.0)]
    assert len(traces) == 1
    assert len({float(x) for x in totals}) == 3  # and the number was not baked in
    total(gates.rgpo(4.0, form="log"))  # the form selects another program
    assert len(traces) == 2


def test_surrogate_is_differentiable_in_the_gates_numbers():
    def surrogate(k):
        return objective.surrogate(gates.rgpo(k, normalize=True), LOG_RATIO, ADVANTAGE)

    def in_numpy(k):
        r = np.exp(LOG_RATIO.astype(np.float64))
        return np.mean(4.0 / k * sigmoid(k * (r - 1.0)) * ADVANTAGE)

    expected = (in_numpy(2.0 + 1e-6) - in_numpy(2.0 - 1e-6)) / 2e-6
    assert jax.grad(surrogate)(2.0) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", gates.CONSTRUCTORS)
def test_samples_do_not_see_one_another(name):
    gate = DEFAULTS[name]
    pairs = zip(LOG_RATIO, ADVANTAGE, strict=True)
    one_by_one = [value_and_weight(gate, l, a) for l, a in pairs]
    together = value_and_weight(gate, LOG_RATIO, ADVANTAGE)
    np.testing.assert_allclose(np.array(together).T, np.array(one_by_one), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "shape"),
    [((), (), ()), ((4,), (), (4,)), ((), (4,), (4,)), ((3, 1), (1, 2), (3, 2)), ((0,), (), (0,))],
)
@pytest.mark.parametrize("name", gates.CONSTRUCTORS)
def test_shapes_broadcast(name, log_ratio, advantage, shape):
    gate = DEFAULTS[name]
    arguments = jnp.full(log_ratio, 0.1), jnp.full(advantage, -1.0)
    assert jax.eval_shape(weight(gate), *arguments).shape == shape
    # g may lack the shape of an A that it does not look at; g A, which is what counts, has it.
    assert jax.eval_shape(lambda l, a: gate(l, a) * a, *arguments).shape == shape


# --- What is refused -------------------------------------------------------------------------

POSITIVE = ("a number above 0", (0.0, -1.0))
NON_NEGATIVE = ("a number of at least 0", (-1.0, -1e-6))
BETWEEN_0_AND_1 = ("a number between 0 and 1, both excluded", (0.0, 1.0, -0.2, 1.5))
RANGES = {
    "rgpo": {"sharpness": POSITIVE},
    "ppo": {
        "clip": BETWEEN_0_AND_1,
        "clip_high": POSITIVE,
        "dual_clip": ("a number above 1", (1.0, 0.5, -3.0)),
    },
    "reinforce": {},
    "importance": {},
    "truncated_importance": {"cap": POSITIVE},
    "cispo": {"low": NON_NEGATIVE, "high": POSITIVE},
    "sapo": {"temperature_positive": POSITIVE, "temperature_negative": POSITIVE},
    "p3o": {"temperature": POSITIVE},
    "spo": {"clip": POSITIVE},
    "rollback": {"clip": BETWEEN_0_AND_1, "slope": NON_NEGATIVE},
    "topr": {},
    "smooth": {"sharpness": POSITIVE},
}
BAD_NUMBERS = [
    (name, number, value, accepted)
    for name, numbers in RANGES.items()
    for number, (accepted, values) in numbers.items()
    for value in (*values, float("nan"), float("inf"), float("-inf"))
]


def test_the_range_of_every_number_is_tested():
    for name, constructor in gates.CONSTRUCTORS.items():
        options = {"form", "kind", "normalize", "call_back"}
        assert set(inspect.signature(constructor).parameters) - options == set(RANGES[name])


@pytest.mark.parametrize(("name", "number", "value", "accepted"), BAD_NUMBERS)
def test_bad_number_is_refused_by_name(name, number, value, accepted):
    with pytest.raises(ValueError) as caught:
        gates.make(name, **{number: value})
    assert str(caught.value) == f"{number} = {value}: expected {accepted}"


@pytest.mark.parametrize("option", ["normalize", "call_back"])
def test_a_switch_is_true_or_false(option):
    with pytest.raises(ValueError, match=f"{option} = 1: expected True or False"):
        gates.rgpo(**{option: 1})


def test_calling_back_leaves_the_weight_on_the_way_out():
    log_ratio = np.linspace(-2.0, 2.0, 9)
    for advantage in (-1.0, 1.0):
        ours = weight64(gates.rgpo(8.0, call_back=True), np.exp(log_ratio), advantage)
        returning = log_ratio * advantage < 0
        out = weight64(gates.rgpo(8.0), np.exp(log_ratio), advantage)
        np.testing.assert_allclose(ours[~returning], out[~returning], rtol=1e-12)
        np.testing.assert_allclose(ours[returning], 2 * np.exp(log_ratio[returning]), rtol=1e-12)


def test_one_bad_number_among_many_is_refused():
    with pytest.raises(ValueError, match=r"sharpness = \[ ?2\. -1\.\]: expected a number above 0"):
        gates.rgpo(np.array([2.0, -1.0]))


@pytest.mark.parametrize("high", [0.5, 1.0])
def test_cispo_needs_high_above_low(high):
    with pytest.raises(ValueError, match=rf"high = {high}: expected a number above low = 1\.0"):
        gates.cispo(1.0, high)


@pytest.mark.parametrize(
    ("name", "option", "known"),
    [("rgpo", "form", ("linear", "log")), ("smooth", "kind", ("erf", "arctan", "softsign"))],
)
def test_bad_option_is_refused_with_the_known_ones(name, option, known):
    with pytest.raises(ValueError, match=f"^{option} = 'cubic'") as caught:
        gates.make(name, **{option: "cubic"})
    assert all(repr(word) in str(caught.value) for word in known)


def test_make_names_the_nearest_gate():
    with pytest.raises(ValueError, match=r"'rgp0': did you mean rgpo\b") as caught:
        gates.make("rgp0")
    assert all(name in str(caught.value) for name in gates.CONSTRUCTORS)


def test_make_without_a_near_name_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown gate '\?': known gates: rgpo, ppo"):
        gates.make("?")


def test_make_refuses_a_setting_that_the_gate_does_not_have():
    with pytest.raises(TypeError, match="sharpnes"):
        gates.make("rgpo", sharpnes=2.0)


def test_make_passes_settings_on():
    assert gates.make("ppo", clip=0.1, dual_clip=3.0) == gates.ppo(0.1, dual_clip=3.0)


# --- A gate of one's own ---------------------------------------------------------------------


def users_gate(log_ratio, advantage):
    """A trust region whose side depends on the advantage, as a user would write it."""
    distance = jnp.exp(log_ratio) - 1.0
    outside = jnp.maximum(jnp.sign(advantage) * distance - 0.2, 0.0)
    return jnp.tanh(distance) - jnp.sign(advantage) * jnp.square(outside)


def one_argument(log_ratio):
    return log_ratio


def three_arguments(log_ratio, advantage, sharpness):
    return sharpness * log_ratio * advantage


def averaged(log_ratio, advantage):
    return jnp.mean(log_ratio * advantage)


def flattened(log_ratio, advantage):
    return (log_ratio * advantage).reshape(-1)


def nan_value(log_ratio, advantage):
    return jnp.log(log_ratio)


def nan_weight(log_ratio, advantage):
    # The value is finite; the branch that is not taken has an infinite slope.
    return jnp.where(log_ratio > 0, jnp.sqrt(log_ratio), 0.0)


def nan_for_bad_samples(log_ratio, advantage):
    return log_ratio * jnp.sqrt(advantage)


def test_check_wraps_a_users_function():
    gate = gates.check(users_gate)
    assert isinstance(gate, Tunable)
    np.testing.assert_array_equal(gate(LOG_RATIO, ADVANTAGE), users_gate(LOG_RATIO, ADVANTAGE))


@pytest.mark.parametrize("name", gates.CONSTRUCTORS)
def test_check_accepts_every_gate_as_it_is(name):
    assert gates.check(DEFAULTS[name]) is DEFAULTS[name]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (one_argument, "takes 1 positional argument"),
        (three_arguments, "missing 1 required positional argument: 'sharpness'"),
        (averaged, r"not elementwise: shape \(2, 3\) became \(\)"),
        (flattened, r"not elementwise: shape \(2, 3\) became \(6,\)"),
        (nan_value, "not finite"),
        (nan_weight, "not finite"),
        (nan_for_bad_samples, "not finite"),
        ("rgpo", "not a gate"),
    ],
)
def test_check_refuses_what_is_no_gate(function, reason):
    with pytest.raises(ValueError, match=reason):
        gates.check(function)


def test_a_boolean_function_is_no_gate():
    with pytest.raises(ValueError, match="expected a float"):
        gates.check(lambda log_ratio, advantage: log_ratio > 0)


def test_integers_have_a_weight():
    assert float(gates.weight(gates.rgpo())(0, 1)) == 1.0


def test_a_word_is_no_number():
    with pytest.raises(ValueError, match="sharpness = 'four': expected a number above 0"):
        gates.rgpo("four")
