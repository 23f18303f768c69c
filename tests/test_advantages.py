"""Advantage estimation against its definition, and the transforms of advantages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgpo_jax.advantages import exponential, generalized_advantages, identity, normalize

advantages = jax.jit(generalized_advantages)
normalized = jax.jit(normalize)


def random_steps(seed, num_steps, num_envs):
    rng = np.random.default_rng(seed)
    shape = (num_steps, num_envs)
    reward, value, next_value = rng.normal(size=(3, *shape))
    terminated = rng.random(shape) < 0.2
    truncated = (rng.random(shape) < 0.2) & ~terminated
    # Where an episode goes on, what the step led to is the next row.
    going_on = ~(terminated | truncated)[:-1]
    next_value[:-1] = np.where(going_on, value[1:], next_value[:-1])
    return reward, value, next_value, terminated, truncated


def by_definition(reward, value, next_value, terminated, truncated, discount, gae_lambda):
    """sum_l (gamma lambda)^l delta_{t+l} up to the end of the episode, one term at a time."""
    advantage = np.zeros_like(reward)
    num_steps, num_envs = reward.shape
    for b in range(num_envs):
        for t in range(num_steps):
            factor = 1.0
            for s in range(t, num_steps):
                future = 0.0 if terminated[s, b] else next_value[s, b]
                delta = reward[s, b] + discount * future - value[s, b]
                advantage[t, b] += factor * delta
                factor *= discount * gae_lambda
                if terminated[s, b] or truncated[s, b]:
                    break
    return advantage


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (17, 5)])
def test_equals_the_definition(shape, gae_lambda, backend, monkeypatch):
    """In a loop, and in the tree of accelerators."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    advantages = jax.jit(lambda *args: generalized_advantages(*args))  # of this backend
    steps = random_steps(0, *shape)
    assert ("scan[" in str(jax.make_jaxpr(advantages)(*steps, 0.9, gae_lambda))) == (
        backend == "cpu"
    )
    expected = by_definition(*steps, 0.9, gae_lambda)
    with jax.enable_x64(True):
        actual = advantages(*map(jnp.asarray, steps), 0.9, gae_lambda)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    single = [jnp.asarray(x, bool if x.dtype == bool else jnp.float32) for x in steps]
    actual = advantages(*single, 0.9, gae_lambda)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_axes_behind_time_are_independent():
    steps = [jnp.asarray(x) for x in random_steps(1, 9, 3)]
    both = advantages(*steps, 0.9, 0.8)
    for b in range(3):
        alone = advantages(*(x[:, b] for x in steps), 0.9, 0.8)
        np.testing.assert_allclose(both[:, b], alone, rtol=1e-6, atol=1e-6)


def test_lambda_zero_is_the_one_step_error():
    reward, value, next_value, terminated, truncated = random_steps(2, 9, 3)
    expected = reward + 0.9 * np.where(terminated, 0.0, next_value) - value
    actual = advantages(
        *map(jnp.asarray, (reward, value, next_value, terminated, truncated)), 0.9, 0.0
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_lambda_one_is_the_return_minus_the_value():
    reward, value, next_value, terminated, truncated = random_steps(3, 9, 3)
    expected = np.zeros_like(reward)
    future = next_value[-1]
    for t in reversed(range(9)):
        future = np.where(truncated[t], next_value[t], future)
        future = reward[t] + 0.9 * np.where(terminated[t], 0.0, future)
        expected[t] = future - value[t]
    actual = advantages(
        *map(jnp.asarray, (reward, value, next_value, terminated, truncated)), 0.9, 1.0
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_a_time_limit_is_not_death(gae_lambda):
    # Reward 1 for ever: V = 1 / (1 - gamma) in every state, and no step is better than expected.
    # The clock stops the episode every third step.
    discount, exact = 0.9, 10.0
    reward, value = jnp.ones((9, 3)), jnp.full((9, 3), exact)
    limit = jnp.tile(jnp.array([0, 0, 1], bool), 3)[:, None] & jnp.ones((1, 3), bool)
    never = jnp.zeros_like(limit)
    right = advantages(reward, value, value, never, limit, discount, gae_lambda)
    np.testing.assert_allclose(right, 0.0, atol=1e-5)
    wrong = advantages(reward, value, value, limit, never, discount, gae_lambda)
    np.testing.assert_allclose(wrong[2], 1.0 - exact, atol=1e-5)


@pytest.mark.parametrize("nonsense", [np.nan, np.inf, 1e30])
def test_what_lies_behind_a_termination_is_ignored(nonsense):
    reward, value, next_value, terminated, truncated = random_steps(4, 9, 3)
    assert terminated.any()
    next_value = np.where(terminated, nonsense, next_value)
    expected = by_definition(reward, value, next_value, terminated, truncated, 0.9, 0.95)
    steps = map(jnp.asarray, (reward, value, next_value, terminated, truncated))
    np.testing.assert_allclose(advantages(*steps, 0.9, 0.95), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(2,), (16, 4)])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (-3.0, 1e-4), (100.0, 5.0), (0.0, 1e6)])
def test_normalized_has_mean_zero_and_deviation_one(shape, shift, scale):
    x = np.random.default_rng(0).normal(size=shape) * scale + shift
    y = np.asarray(normalized(jnp.asarray(x, jnp.float32)), np.float64)
    # A shift of 3 beside a spread of 1e-4 leaves float32 two to three digits of the spread.
    np.testing.assert_allclose(y.mean(), 0.0, atol=1e-2)
    np.testing.assert_allclose(y.std(), 1.0, atol=1e-2)
    np.testing.assert_allclose(y, (x - x.mean()) / x.std(), atol=2e-2)


CONSTANTS = [0.0, 0.1, -1 / 3, 0.7, 1e6, -1e-30]


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (7,), (512,)])
def test_no_spread_becomes_zero_and_not_noise(constant, shape):
    y = normalized(jnp.full(shape, constant))
    np.testing.assert_array_equal(y, np.zeros(shape, np.float32))


# The mean of many equal float32 numbers is not that number: its rounding grows with their count.
@pytest.mark.parametrize("shape", [(128, 64), (128, 256)])
def test_no_spread_over_a_large_batch_becomes_zero(shape):
    y = [normalized(jnp.full(shape, constant)) for constant in CONSTANTS]
    np.testing.assert_array_equal(y, np.zeros((len(CONSTANTS), *shape), np.float32))


def test_exponential_is_capped_and_has_a_temperature():
    x = jnp.array([-2.0, 0.0, 1.0, 5.0, 1e30])
    expected = np.minimum(np.exp(np.asarray(x, np.float64).clip(max=100.0) / 0.5), 7.0)
    np.testing.assert_allclose(exponential(0.5, 7.0)(x), expected, rtol=1e-5)


def test_exponential_has_the_published_defaults():
    x = jnp.array([0.5, 2.9, 3.1])
    np.testing.assert_allclose(exponential()(x), [np.exp(0.5), np.exp(2.9), 20.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"advantage_temperature": 0.0}, "advantage_temperature"),
        ({"advantage_temperature": np.nan}, "advantage_temperature"),
        ({"advantage_cap": -1.0}, "advantage_cap"),
    ],
)
def test_exponential_names_the_setting_that_is_out_of_range(settings, named):
    with pytest.raises(ValueError, match=named):
        exponential(**settings)


def test_identity_changes_nothing():
    x = jnp.array([-1.0, 0.0, 3.0])
    np.testing.assert_array_equal(identity()(x), x)
