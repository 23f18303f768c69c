"""A gate's numbers are leaves of a pytree, its shapes broadcast, and what is wrong is refused."""

import functools
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gate_probes import ADVANTAGE, DEFAULTS, LOG_RATIO, value_and_weight
from scipy.special import expit
from setting_probes import NUMBERS, OPTIONS, WORDS

from rgpo_jax import gates, objective
from rgpo_jax.gate_table import GATES
from rgpo_jax.gates import weight


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
        return np.mean(4.0 / k * expit(k * (r - 1.0)) * ADVANTAGE)

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


def test_integers_have_a_weight():
    assert float(gates.weight(gates.rgpo())(0, 1)) == 1.0


# --- What is refused -------------------------------------------------------------------------

BAD_NUMBERS = [
    (name, number.field, value, number.accepted)
    for name, numbers in NUMBERS.items()
    for number in numbers
    for value in (*WORDS[number.accepted][0], float("nan"), float("inf"), float("-inf"))
]


@pytest.mark.parametrize("name", GATES)
def test_every_setting_is_a_number_with_a_range_or_an_option(name):
    # So that the tests below leave none out, and none goes unchecked.
    settings = {number.field for number in NUMBERS[name]} | set(OPTIONS[name])
    assert settings == set(inspect.signature(gates.CONSTRUCTORS[name]).parameters)


@pytest.mark.parametrize(("name", "number", "value", "accepted"), BAD_NUMBERS)
def test_bad_number_is_refused_by_name(name, number, value, accepted):
    with pytest.raises(ValueError) as caught:
        gates.make(name, **{number: value})
    assert str(caught.value) == f"{number} = {value}: expected {accepted}"


@pytest.mark.parametrize(
    ("name", "option", "known"),
    [
        (name, option, known)
        for name, known_ones in OPTIONS.items()
        for option, known in known_ones.items()
    ],
)
def test_bad_option_is_refused_with_the_known_ones(name, option, known):
    for value in ("cubic", 1, None):
        with pytest.raises(ValueError, match=f"^{option} = {value!r}: expected") as caught:
            gates.make(name, **{option: value})
        assert all(repr(choice) in str(caught.value) for choice in known)


def test_what_is_expected_is_told_in_a_sentence():
    with pytest.raises(ValueError, match=r"normalize = 1: expected True or False$"):
        gates.rgpo(normalize=1)
    with pytest.raises(ValueError, match=r"expected 'erf', 'arctan' or 'softsign'$"):
        gates.smooth("cubic")


def test_one_bad_number_among_many_is_refused():
    with pytest.raises(ValueError, match=r"sharpness = \[ ?2\. -1\.\]: expected a number above 0"):
        gates.rgpo(np.array([2.0, -1.0]))


@pytest.mark.parametrize("high", [0.5, 1.0])
def test_cispo_needs_high_above_low(high):
    with pytest.raises(ValueError, match=rf"high = {high}: expected a number above low = 1\.0"):
        gates.cispo(1.0, high)


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


def test_a_word_is_no_number():
    with pytest.raises(ValueError, match="sharpness = 'four': expected a number above 0"):
        gates.rgpo("four")


@pytest.mark.parametrize("name", GATES)
def test_a_constructor_says_what_it_takes_and_where_it_is_from(name):
    constructor = gates.CONSTRUCTORS[name]
    assert getattr(gates, name) is constructor
    for text in (*GATES[name].references, *(f"{n.field}: {n.accepted}" for n in NUMBERS[name])):
        assert text in constructor.__doc__


@pytest.mark.parametrize("name", GATES)
def test_a_gate_can_be_pickled(name):
    assert pickle.loads(pickle.dumps(DEFAULTS[name])) == DEFAULTS[name]
