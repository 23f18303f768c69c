"""Gates of two ratios against their formulas, written out here in NumPy float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gate_probes import sigmoid
from gate_probes import value_and_weight as single_ratio

from rgpo_jax import gates
from rgpo_jax.gates import weight

DUAL = tuple(gates.DUAL_CONSTRUCTORS)
L, M = (x.ravel() for x in np.meshgrid(np.linspace(-2.0, 1.5, 15), np.linspace(-1.9, 1.6, 15)))


@jax.jit
def value_and_weight(gate, log_ratio, advantage, log_ratio_ref):
    arguments = (log_ratio, advantage, log_ratio_ref)
    return gate(*arguments), weight(gate)(*arguments)


@jax.jit
def slopes(gate, log_ratio, advantage, log_ratio_ref):
    """dg/dl and dg/dm."""
    return jax.grad(lambda l, m: jnp.sum(gate(l, advantage, m)), argnums=(0, 1))(
        log_ratio, log_ratio_ref
    )


def at(gate, l, m, advantage=1.0):
    with jax.enable_x64(True):
        l, m, advantage = np.float64(l), np.float64(m), np.float64(advantage)
        return tuple(map(np.asarray, value_and_weight(gate, l, advantage, m)))


def slopes_at(gate, l, m):
    with jax.enable_x64(True):
        return tuple(map(np.asarray, slopes(gate, np.float64(l), np.float64(1.0), np.float64(m))))


def acceptance(k, x):
    """sigmoid(k (e^x - 1)), and its derivative in x."""
    s = sigmoid(k * (np.exp(x) - 1.0))
    return s, k * np.exp(x) * s * sigmoid(-k * (np.exp(x) - 1.0))


def product(k, l, m):
    (g, dg), (h, dh) = acceptance(k, l), acceptance(k, m)
    return g * h, dg * h + g * dh


def geometric(mix):
    # u moves with either ratio, by shares that add up to 1.
    return lambda k, l, m: acceptance(k, mix * l + (1.0 - mix) * m)


def two_sided(k, l, m):
    g, dg = acceptance(k, l)
    factor = 4.0 * sigmoid(k * m) * sigmoid(-k * m)
    return g * factor, dg * factor


def smaller(k, l, m):
    (g, dg), (h, dh) = acceptance(k, l), acceptance(k, m)
    return np.minimum(g, h), np.where(l < m, dg, dh)


FORMULAS = {
    "product": ("dual_product", {}, product),
    "geometric": ("dual_geometric", {}, geometric(0.5)),
    "geometric-to-the-reference": ("dual_geometric", {"mix": 0.0}, geometric(0.0)),
    "geometric-.8": ("dual_geometric", {"mix": 0.8}, geometric(0.8)),
    "two_sided": ("dual_two_sided", {}, two_sided),
    "min": ("dual_min", {}, smaller),
}


def test_every_dual_gate_has_a_formula_here():
    assert {name for name, _, _ in FORMULAS.values()} == set(DUAL)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("sharpness", [1.0, 4.0, 8.0])
@pytest.mark.parametrize(("name", "settings", "formula"), FORMULAS.values(), ids=FORMULAS)
def test_value_and_weight_are_the_closed_form(name, settings, formula, sharpness, normalize):
    gate = gates.make(name, sharpness=sharpness, normalize=normalize, **settings)
    scale = 4.0 / sharpness if normalize else 1.0
    value, slope = formula(sharpness, L, M)
    for advantage in (-2.0, 0.5):  # none of them depends on it
        actual_value, actual_slope = at(gate, L, M, np.full_like(L, advantage))
        np.testing.assert_allclose(actual_value, scale * value, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(actual_slope, scale * slope, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("sharpness", [0.5, 4.0, 20.0])
@pytest.mark.parametrize("name", DUAL)
def test_weight_where_both_ratios_are_one(name, sharpness):
    assert at(gates.make(name, sharpness=sharpness), 0.0, 0.0)[1] == pytest.approx(
        sharpness / 4.0, rel=1e-14
    )
    assert at(gates.make(name, sharpness=sharpness, normalize=True), 0.0, 0.0)[1] == pytest.approx(
        1.0, rel=1e-14
    )


def test_product_on_policy_keeps_half_of_its_weight_for_the_reference():
    k, rho = 3.0, np.exp(M)
    s = sigmoid(k * (rho - 1.0))
    expected = k / 4.0 * s + 0.5 * k * rho * s * (1.0 - s)
    actual = at(gates.dual_product(k), np.zeros_like(M), M)[1]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_geometric_of_the_sampling_ratio_alone_is_rgpo_to_the_bit(dtype, normalize):
    with jax.enable_x64(True):
        l, m, a = L.astype(dtype), M.astype(dtype), np.ones_like(L, dtype)
        dual = value_and_weight(gates.dual_geometric(5.0, 1.0, normalize), l, a, m)
        single = single_ratio(gates.rgpo(5.0, normalize=normalize), l, a)
    for x, y in zip(dual, single, strict=True):
        assert np.asarray(x).dtype == dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, {}) for name in DUAL] + [("dual_geometric", {"mix": mix}) for mix in (0.0, 1.0)],
)
def test_value_and_weight_are_finite_however_far_the_ratios_are(name, settings):
    far = (-1e4, -88.0, -1.0, 0.0, 1.0, 20.0, 88.0, 1e4)
    l, m = np.array(list(itertools.product(far, far)), np.float32).T
    for sharpness in (1e-3, 4.0, 100.0):
        for advantage in (-1.0, 0.0, 1.0):
            gate = gates.make(name, sharpness=sharpness, **settings)
            value, slope = value_and_weight(gate, l, np.full_like(l, advantage), m)
            assert np.all(np.isfinite(value))
            assert np.all(np.isfinite(slope))
            assert np.all((value >= 0) & (value <= 1))


@pytest.mark.parametrize("name", DUAL)
def test_numbers_may_be_traced_and_batched(name):
    numbers = {"sharpness": jnp.array([1.0, 4.0, 9.0])}
    if name == "dual_geometric":
        numbers["mix"] = jnp.array([0.0, 0.5, 1.0])
    batched = gates.make(name, **numbers)
    l, m, a = L.astype(np.float32), M.astype(np.float32), np.ones(L.shape, np.float32)
    together = jax.vmap(value_and_weight, in_axes=(0, None, None, None))(batched, l, a, m)

    @jax.jit
    def traced(*values):
        gate = gates.make(name, **dict(zip(numbers, values, strict=True)))
        return value_and_weight(gate, l, a, m)

    for i in range(3):
        alone = gates.make(name, **{key: float(x[i]) for key, x in numbers.items()})
        for actual, inside, expected in zip(
            together,
            traced(*(x[i] for x in numbers.values())),
            value_and_weight(alone, l, a, m),
            strict=True,
        ):
            np.testing.assert_allclose(actual[i], expected, rtol=2e-6, atol=1e-7)
            np.testing.assert_allclose(inside, expected, rtol=2e-6, atol=1e-7)


def test_the_factor_of_two_sided_weighs_and_has_no_gradient():
    gate = gates.dual_two_sided(4.0)
    by_l, by_m = slopes_at(gate, L, M)
    np.testing.assert_array_equal(by_m, 0.0)
    np.testing.assert_allclose(by_l, two_sided(4.0, L, M)[1], rtol=1e-11, atol=1e-14)


def test_two_sided_closes_on_both_sides_and_the_others_do_not():
    m = np.array([-3.0, 0.0, 3.0])
    _, slope = at(gates.dual_two_sided(4.0), np.zeros(3), m)
    assert slope[0] == pytest.approx(slope[2], rel=1e-12)
    assert slope[0] < 1e-4 < 0.99 < slope[1]
    # Those that rise with rho alone are RGPO's gate again, far above 1.
    for name in ("dual_product", "dual_min"):
        _, slope = at(gates.make(name), 0.0, 3.0)
        assert slope == pytest.approx(1.0, rel=1e-12)


def test_the_smaller_gate_takes_all_of_the_weight_and_a_tie_is_shared():
    gate, k = gates.dual_min(4.0), 4.0
    by_l, by_m = slopes_at(gate, [-0.5, 0.5], [0.5, -0.5])
    expected = acceptance(k, -0.5)[1]
    np.testing.assert_allclose(by_l, [expected, 0.0], rtol=1e-12)
    np.testing.assert_allclose(by_m, [0.0, expected], rtol=1e-12)
    equal = np.linspace(-1.0, 1.0, 5)
    by_l, by_m = slopes_at(gate, equal, equal)
    np.testing.assert_allclose(by_l, acceptance(k, equal)[1] / 2, rtol=1e-12)
    np.testing.assert_allclose(by_m, acceptance(k, equal)[1] / 2, rtol=1e-12)


@pytest.mark.parametrize("name", DUAL)
@pytest.mark.parametrize("sharpness", [0.0, -1.0, float("nan"), float("inf"), "four"])
def test_a_sharpness_out_of_range_is_refused(name, sharpness):
    with pytest.raises(ValueError, match="sharpness"):
        gates.make(name, sharpness=sharpness)


@pytest.mark.parametrize("mix", [-0.1, 1.1, float("nan")])
def test_a_mix_that_is_no_share_is_refused(mix):
    with pytest.raises(ValueError, match="mix"):
        gates.dual_geometric(mix=mix)


def test_a_switch_must_be_one():
    with pytest.raises(ValueError, match="normalize"):
        gates.dual_min(normalize=1)


def test_gates_are_made_by_their_names():
    for name in DUAL:
        assert gates.make(name) == gates.DUAL_CONSTRUCTORS[name]()
        assert gates.make(name) == getattr(gates, name)()
    assert not set(DUAL) & set(gates.CONSTRUCTORS)
    with pytest.raises(TypeError):
        gates.make("dual_product", mix=0.5)
    with pytest.raises(ValueError, match="dual_product"):
        gates.make("dual_prod")


@pytest.mark.parametrize("name", DUAL)
def test_weight_is_that_of_the_surrogate_for_any_shape(name):
    gate = gates.make(name)
    l = np.float32([[0.1], [-0.2]])
    m = np.float32([[0.3, 0.0, -0.4]])
    slope = value_and_weight(gate, l, np.float32(1.0), m)[1]
    assert slope.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        assert slope[i, j] == pytest.approx(float(at(gate, l[i, 0], m[0, j])[1]), rel=1e-5)
