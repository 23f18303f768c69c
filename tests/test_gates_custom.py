"""A gate of a user's own: taken where it is one, and refused with the reason where it is not."""

import jax.numpy as jnp
import numpy as np
import pytest
from gate_probes import ADVANTAGE, DEFAULTS, LOG_RATIO

from rgpo_jax import gates
from rgpo_jax.tunable import Tunable


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
