"""The protocol: units of actions, and restarts that keep what the last step led to."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgpo_jax.environment import (
    Box,
    Discrete,
    MultiDiscrete,
    TimeStep,
    restart_where_done,
    to_environment_units,
)

TERMINATED = jnp.array([True, False, False, True])
TRUNCATED = jnp.array([False, True, False, False])
DONE = [True, True, False, True]


def timestep(observation, terminated=TERMINATED, truncated=TRUNCATED):
    reward = jnp.arange(len(terminated), dtype=jnp.float32)
    return TimeStep(observation, reward, terminated, truncated, observation)


def batch(offset):
    """State and observation of four environments, with leaves of every rank."""
    keys = jax.random.split(jax.random.key(offset), 4)
    state = {
        "time": jnp.arange(4) + offset,
        "board": jnp.arange(4 * 2 * 3).reshape(4, 2, 3) + offset,
        "hit": jnp.arange(4) % 2 == offset % 2,
        "key": keys,
    }
    return state, jnp.arange(8.0).reshape(4, 2) + offset


@pytest.mark.parametrize("compile_it", [False, True])
def test_starts_anew_where_done_and_nowhere_else(compile_it):
    state, observation = batch(0)
    start = batch(101)
    restart = jax.jit(restart_where_done) if compile_it else restart_where_done
    new_state, new = restart(state, timestep(observation), start)

    def raw(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    for got, old, fresh in zip(
        jax.tree.leaves((new_state, new.observation)),
        jax.tree.leaves((state, observation)),
        jax.tree.leaves(start),
        strict=True,
    ):
        assert got.dtype == old.dtype
        for i, done in enumerate(DONE):
            np.testing.assert_array_equal(raw(got)[i], raw(fresh if done else old)[i])
            assert not np.array_equal(raw(fresh)[i], raw(old)[i])  # else nothing was shown


def test_keeps_what_the_step_gave_but_for_the_observation():
    state, observation = batch(0)
    before = timestep(observation)
    _, after = restart_where_done(state, before, batch(101))
    np.testing.assert_array_equal(after.final_observation, observation)
    assert not np.array_equal(after.observation, after.final_observation)
    for name in ("reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_done_is_either_end():
    np.testing.assert_array_equal(timestep(jnp.zeros((4, 1))).done, DONE)


def test_discrete_actions_pass():
    action = jnp.array([0, 3, 2])
    result = to_environment_units(Discrete(4), action)
    assert result.dtype == action.dtype
    np.testing.assert_array_equal(result, action)


def test_discrete_actions_begin_where_the_space_does():
    action = jnp.array([0, 3, 2])
    np.testing.assert_array_equal(to_environment_units(Discrete(4, start=-1), action), [-1, 2, 1])


def test_many_discrete_actions_take_their_starts_and_the_shape_of_the_space():
    space = MultiDiscrete((2, 3, 4, 2), start=(0, 5, -1, 1), shape=(2, 2))
    result = to_environment_units(space, jnp.array([[[0, 2, 3, 1]], [[1, 0, 0, 0]]]))
    assert result.dtype == jnp.int32
    np.testing.assert_array_equal(result, [[[[0, 7], [2, 2]]], [[[1, 5], [-1, 1]]]])
    assert MultiDiscrete((2, 3)) == MultiDiscrete((2, 3), (0, 0), (2,))


ASYMMETRIC = Box((2,), (-1.0, 10.0), (3.0, 20.0))


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ([-1.0, -1.0], [-1.0, 10.0]),
        ([0.0, 0.0], [1.0, 15.0]),
        ([1.0, 1.0], [3.0, 20.0]),
        ([0.5, -0.5], [2.0, 12.5]),
        ([7.0, -1.001], [3.0, 10.0]),
        ([math.inf, -math.inf], [3.0, 10.0]),
    ],
)
def test_the_unit_interval_is_mapped_onto_the_bounds_and_clipped(action, expected):
    result = to_environment_units(ASYMMETRIC, jnp.array(action))
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_unbounded_elements_pass_beside_bounded_ones():
    space = Box((2,), (-math.inf, -2.0), (math.inf, 2.0))
    result = to_environment_units(space, jnp.array([[5.0, 5.0], [-5.0, 0.25]]))
    np.testing.assert_allclose(result, [[5.0, 2.0], [-5.0, 0.5]])


def test_no_rounding_leads_beyond_a_bound():
    rng = np.random.default_rng(0)
    low = rng.normal(size=1000).astype(np.float32)
    high = low + rng.exponential(size=1000).astype(np.float32)
    space = Box((1000,), tuple(low.tolist()), tuple(high.tolist()))
    actions = jnp.linspace(-1.0, 1.0, 21)[:, None] * jnp.ones(1000)
    result = np.asarray(jax.jit(to_environment_units, static_argnums=0)(space, actions))
    assert ((low <= result) & (result <= high)).all()
    np.testing.assert_allclose(result[[0, -1]], [low, high], rtol=0, atol=1e-6)


def test_an_unbounded_element_has_finite_gradients():
    # inf - inf behind a `where` would give NaN here.
    space = Box((2,), (-math.inf, -2.0), (math.inf, 2.0))
    gradient = jax.grad(lambda a: jnp.sum(to_environment_units(space, a)))(jnp.array([5.0, 0.5]))
    np.testing.assert_allclose(gradient, [1.0, 2.0])


def test_bounds_of_a_matrix_go_to_their_elements_under_leading_axes():
    space = Box((2, 2), (0.0, 0.0, 0.0, 0.0), (1.0, 2.0, 3.0, 4.0))
    result = to_environment_units(space, jnp.ones((5, 3, 4)))  # policies act in vectors
    assert result.shape == (5, 3, 2, 2)
    np.testing.assert_allclose(result, np.broadcast_to([[1.0, 2.0], [3.0, 4.0]], (5, 3, 2, 2)))


def test_a_scalar_space_takes_the_only_element():
    result = to_environment_units(Box((), (-2.0,), (2.0,)), jnp.full((5, 1), 0.5))
    np.testing.assert_allclose(result, np.ones(5))


def test_an_element_with_one_bound_is_clipped_to_it():
    inf = float("inf")
    space = Box((2,), (0.0, -inf), (inf, 2.0))
    result = to_environment_units(space, jnp.array([[-3.0, -3.0], [5.0, 5.0]]))
    np.testing.assert_array_equal(result, [[0.0, -3.0], [5.0, 2.0]])


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_bounds_that_are_arrays_are_numbers(array):
    space = Box((2, 1), array([[-1.0], [-2.0]]), array([[1.0], [math.inf]]))
    assert space == Box((2, 1), (-1.0, -2.0), (1.0, math.inf))
    assert hash(space) == hash(Box((2, 1), (-1.0, -2.0), (1.0, math.inf)))
