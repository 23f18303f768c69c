"""Every float32 log-ratio in [-1e4, 1e4], every sign of A, gates' numbers large and small."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from gate_probes import away_from, value_and_weight
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from setting_probes import NUMBERS, programs

from rgpo_jax import gates


def float32(x):
    return float(np.float32(x))


MAGNITUDE = st.floats(-2.0, 3.0).map(lambda e: float32(10.0**e))  # 0.01 to 1000
FRACTION = st.floats(0.001, 0.999).map(float32)
ABOVE_ONE = st.floats(1.01, 100.0).map(float32)
DRAWN = {
    "a number above 0": MAGNITUDE,
    "a number of at least 0": st.just(0.0) | MAGNITUDE,
    "a number between 0 and 1, both excluded": FRACTION,
    "a number above 1": ABOVE_ONE,
}


def admitted(build):
    """A gate, or None where its numbers do not fit together."""
    try:
        return build()
    except ValueError:
        return None


def drawn(name, program):
    """Gates of one program, with numbers drawn from their ranges."""
    numbers = {n.field: DRAWN[n.accepted] for n in NUMBERS[name] if n.field not in program}
    build = functools.partial(functools.partial, gates.CONSTRUCTORS[name], **program)
    return st.builds(build, **numbers).map(admitted).filter(lambda gate: gate is not None)


SEARCH = {
    "-".join([name, *(f"{k}={v}" for k, v in program.items())]): drawn(name, program)
    for name in gates.CONSTRUCTORS
    for program in programs(name)
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
search = hypothesis.settings(max_examples=15, deadline=None, database=None)


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
    # Where a gate's number is small beside A, a weight may fall within less than the difference.
    log_ratio, advantage = with_edges(log_ratio, np.clip(advantage, -10.0, 10.0))
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
        gates.rgpo(k, form, True, pull_back)
        for k in (1e-6, 1e10)
        for form in ("linear", "log")
        for pull_back in (False, True)
    ),
    *(gates.smooth(kind, t) for t in (1e-6, 1e10) for kind in ("erf", "arctan", "softsign")),
    *(gates.p3o(t) for t in (1e-6, 1e10)),
    *(gates.spo(clip) for clip in (1e-6, 1e10)),
    *(gates.truncated_importance(cap) for cap in (1e-6, 1e10)),
    *(gates.discovered(alpha, beta) for alpha in (1e-6, 1e10) for beta in (1e-6, 0.6)),
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
