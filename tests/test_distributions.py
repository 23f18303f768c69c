"""Distributions against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from rgpo_jax.distributions import Categorical, Normal

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 2, 5)) * 2.0
OTHER_LOGITS = RNG.normal(size=(3, 2, 5)) * 2.0
MEAN, OTHER_MEAN = RNG.normal(size=(2, 3, 2, 4))
LOG_STD, OTHER_LOG_STD = RNG.normal(size=(2, 4)) * 0.5


def categorical(logits=LOGITS):
    return Categorical.from_logits(jnp.asarray(logits, jnp.float32))


def normal(mean=MEAN, log_std=LOG_STD):
    return Normal(jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32))


def test_categorical_log_prob():
    action = RNG.integers(0, 5, size=(3, 2))
    expected = np.take_along_axis(special.log_softmax(LOGITS, -1), action[..., None], -1)[..., 0]
    np.testing.assert_allclose(categorical().log_prob(jnp.asarray(action)), expected, rtol=1e-5)


def test_categorical_entropy():
    expected = stats.entropy(special.softmax(LOGITS, -1), axis=-1)
    np.testing.assert_allclose(categorical().entropy(), expected, rtol=1e-5)


def test_categorical_kl():
    p, q = special.softmax(LOGITS, -1), special.softmax(OTHER_LOGITS, -1)
    actual = categorical().kl(categorical(OTHER_LOGITS))
    np.testing.assert_allclose(actual, stats.entropy(p, q, axis=-1), rtol=1e-4)
    np.testing.assert_array_equal(categorical().kl(categorical()), 0.0)


def test_categorical_mode():
    np.testing.assert_array_equal(categorical().mode(), LOGITS.argmax(-1))


def test_categorical_samples_have_its_frequencies():
    probs = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    with np.errstate(divide="ignore"):
        one = categorical(np.log(probs))
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    samples = np.asarray(jax.vmap(one.sample)(keys))
    counts = np.bincount(samples, minlength=5)
    assert counts[4] == 0
    assert stats.chisquare(counts[:4], n * probs[:4]).pvalue > 1e-3


def test_categorical_batch_elements_are_sampled_apart():
    many = categorical(np.zeros((10_000, 2)))
    samples = np.asarray(many.sample(jax.random.key(1)))
    assert samples.shape == (10_000,)
    assert abs(samples.mean() - 0.5) < 0.02


def test_extreme_logits_are_finite():
    @jax.jit
    @jax.vmap
    def extremes(size):
        logits = size * jnp.array([[1.0, -1.0, 0.0], [-1.0, -1.0, 1.0]])

        def outcomes(logits):
            p, other = Categorical.from_logits(logits), Categorical.from_logits(-logits)
            return jnp.stack([p.log_prob(jnp.array([0, 2])), p.entropy(), p.kl(other)])

        return outcomes(logits), jax.jacobian(outcomes)(logits)

    outcomes, slopes = extremes(jnp.array([1e3, 1e10, 1e30]))
    assert np.isfinite(outcomes).all()
    assert np.isfinite(slopes).all()
    np.testing.assert_array_equal(outcomes[:, :2], 0.0)  # the likeliest action, no entropy


def test_the_gradient_of_log_prob_is_the_action_minus_the_probabilities():
    logits = jnp.asarray(LOGITS[0, 0], jnp.float32)
    slope = jax.grad(lambda x: Categorical.from_logits(x).log_prob(jnp.int32(3)))(logits)
    np.testing.assert_allclose(slope, np.eye(5)[3] - special.softmax(LOGITS[0, 0]), atol=1e-6)


def test_normal_log_prob():
    action = RNG.normal(size=MEAN.shape)
    expected = stats.norm.logpdf(action, MEAN, np.exp(LOG_STD)).sum(-1)
    np.testing.assert_allclose(normal().log_prob(jnp.asarray(action)), expected, rtol=1e-5)


def test_normal_entropy():
    expected = np.broadcast_to(stats.norm.entropy(0.0, np.exp(LOG_STD)).sum(), (3, 2))
    actual = normal().entropy()
    assert actual.shape == (3, 2)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("spread", [(0.0, 0.0), (-1.0, 0.5), (0.7, -0.3)])
def test_normal_kl_is_its_integral(spread):
    p = stats.norm(0.3, np.exp(spread[0]))
    q = stats.norm(-0.5, np.exp(spread[1]))
    expected, _ = integrate.quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), p.ppf(1e-15), p.isf(1e-15)
    )
    actual = normal([0.3], spread[:1]).kl(normal([-0.5], spread[1:]))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_normal_kl_adds_up_over_dimensions():
    total = normal().kl(normal(OTHER_MEAN, OTHER_LOG_STD))
    parts = [
        normal(MEAN[..., [i]], LOG_STD[[i]]).kl(normal(OTHER_MEAN[..., [i]], OTHER_LOG_STD[[i]]))
        for i in range(4)
    ]
    assert total.shape == (3, 2)
    np.testing.assert_allclose(total, sum(parts), rtol=1e-5)
    np.testing.assert_array_equal(normal().kl(normal()), 0.0)


def test_normal_kl_of_deviations_far_apart_is_finite():
    # ln(sigma_q / sigma_p) - 1/2, with sigma_q / sigma_p = e^50.
    actual = normal([0.0], [-25.0]).kl(normal([0.0], [25.0]))
    np.testing.assert_allclose(actual, 49.5, rtol=1e-5)


def test_normal_log_std_may_depend_on_the_state():
    log_std = np.broadcast_to(LOG_STD, MEAN.shape)
    action = jnp.asarray(OTHER_MEAN)
    other = normal(OTHER_MEAN, OTHER_LOG_STD)
    for method in (
        lambda p: p.log_prob(action),
        lambda p: p.entropy(),
        lambda p: p.kl(other),
        lambda p: p.sample(jax.random.key(0)),
    ):
        np.testing.assert_allclose(method(normal(MEAN, log_std)), method(normal()), rtol=1e-6)


def test_normal_mode_is_the_mean():
    np.testing.assert_array_equal(normal().mode(), np.asarray(MEAN, np.float32))


def test_normal_samples_are_normal():
    mean = np.broadcast_to([1.0, -2.0], (20_000, 2))
    samples = np.asarray(normal(mean, np.log([0.5, 3.0])).sample(jax.random.key(0)))
    assert samples.shape == (20_000, 2)
    assert stats.kstest(samples[:, 0], stats.norm(1.0, 0.5).cdf).pvalue > 1e-3
    assert stats.kstest(samples[:, 1], stats.norm(-2.0, 3.0).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(samples.T)[0, 1]) < 0.03


@pytest.mark.parametrize("make", [categorical, normal])
def test_is_a_pytree_that_vmaps(make):
    whole = make()
    action = whole.mode()
    axes = Normal(0, None) if isinstance(whole, Normal) else Categorical(0)
    mapped = jax.vmap(lambda p, a: p.log_prob(a), in_axes=(axes, 0))
    np.testing.assert_allclose(mapped(whole, action), whole.log_prob(action), rtol=1e-6)
