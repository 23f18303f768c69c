"""Distributions against SciPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from rgpo_jax.distributions import Categorical, Categoricals, Normal, TanhNormal

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 2, 5)) * 2.0
OTHER_LOGITS = RNG.normal(size=(3, 2, 5)) * 2.0
MEAN, OTHER_MEAN = RNG.normal(size=(2, 3, 2, 4))
LOG_STD, OTHER_LOG_STD = RNG.normal(size=(2, 4)) * 0.5


def categorical(logits=LOGITS):
    return Categorical.from_logits(jnp.asarray(logits, jnp.float32))


def normal(mean=MEAN, log_std=LOG_STD):
    return Normal(jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32))


def tanh_normal(mean=MEAN, log_std=LOG_STD):
    return TanhNormal(jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32))


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


def test_an_action_of_no_probability_leaves_entropy_kl_and_gradients_finite():
    logits = jnp.array([0.0, 1.0, -jnp.inf])
    masked, two = Categorical.from_logits(logits), Categorical.from_logits(logits[:2])
    np.testing.assert_allclose(masked.entropy(), two.entropy(), rtol=1e-6)
    assert masked.kl(masked) == 0
    gradient = jax.grad(lambda x: Categorical.from_logits(x).entropy())(logits)
    assert np.isfinite(gradient).all() and gradient[2] == 0


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


EQUAL, UNEQUAL = (3, 3, 3), (2, 5, 1, 3)
MANY_LOGITS = RNG.normal(size=(2, 4, sum(UNEQUAL))) * 2.0


def categoricals(sizes, logits=MANY_LOGITS):
    logits = jnp.asarray(logits[..., : sum(sizes)], jnp.float32)
    return Categoricals.from_logits(logits, sizes)


def elements(sizes, logits=MANY_LOGITS):
    """Each element's own distribution."""
    ends = np.cumsum(sizes)
    return [categorical(logits[..., e - n : e]) for n, e in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL])
def test_categoricals_are_independent(sizes):
    action = np.stack([RNG.integers(0, n, (2, 4)) for n in sizes], axis=-1)
    others = -MANY_LOGITS[::-1]
    whole, other = categoricals(sizes), categoricals(sizes, others)
    parts, other_parts = elements(sizes), elements(sizes, others)
    log_probs = [part.log_prob(action[..., i]) for i, part in enumerate(parts)]
    kls = [part.kl(other) for part, other in zip(parts, other_parts, strict=True)]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(whole.log_prob(jnp.asarray(action)), sum(log_probs))
    close(whole.entropy(), sum(part.entropy() for part in parts))
    close(whole.kl(other), sum(kls))
    np.testing.assert_array_equal(whole.kl(whole), 0.0)
    np.testing.assert_array_equal(whole.mode(), np.stack([p.mode() for p in parts], -1))


def test_probabilities_of_all_joint_actions_give_the_entropy_and_the_kl():
    p, q = categoricals(UNEQUAL), categoricals(UNEQUAL, -MANY_LOGITS)
    actions = jnp.array(list(itertools.product(*map(range, UNEQUAL))))
    log_p, log_q = (d.log_prob(actions[:, None, None]) for d in (p, q))
    np.testing.assert_allclose(np.exp(log_p).sum(0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(-(np.exp(log_p) * log_p).sum(0), p.entropy(), rtol=1e-4)
    np.testing.assert_allclose((np.exp(log_p) * (log_p - log_q)).sum(0), p.kl(q), rtol=1e-4)


def test_gradients_of_categoricals_are_those_of_their_elements():
    logits = jnp.asarray(MANY_LOGITS[0, 0], jnp.float32)
    action = jnp.array([1, 4, 0, 2])
    slope = jax.grad(lambda x: Categoricals.from_logits(x, UNEQUAL).log_prob(action))(logits)
    chosen = np.concatenate([np.eye(n)[a] for n, a in zip(UNEQUAL, action, strict=True)])
    probs = np.concatenate([np.exp(p.log_probs[0, 0]) for p in elements(UNEQUAL)])
    np.testing.assert_allclose(slope, chosen - probs, atol=1e-6)

    def kl(x):  # whose Hessian at its minimum is the Fisher matrix, which TRPO asks for
        old = Categoricals.from_logits(logits, UNEQUAL)
        return old.kl(Categoricals.from_logits(x, UNEQUAL))

    blocks = np.split(probs, np.cumsum(UNEQUAL)[:-1])
    start, fisher = 0, np.zeros((len(probs), len(probs)))
    for p in blocks:
        part = slice(start, start + len(p))
        fisher[part, part] = np.diag(p) - np.outer(p, p)
        start += len(p)
    np.testing.assert_allclose(jax.jacfwd(jax.grad(kl))(logits), fisher, atol=1e-6)


def test_categoricals_of_extreme_logits_are_finite_and_never_leave_their_numbers():
    sizes = (1, 3)
    logits = jnp.array([[-1e30, -1e30, 1e30, -1e30], [1e30, -1e12, -1e12, -1e12]])

    def outcomes(logits):
        p, other = (Categoricals.from_logits(x, sizes) for x in (logits, -logits))
        return jnp.stack([p.log_prob(jnp.array([[0, 1], [0, 0]])), p.entropy(), p.kl(other)])

    assert np.isfinite(outcomes(logits)).all()
    assert np.isfinite(jax.jacobian(outcomes)(logits)).all()
    p = Categoricals.from_logits(logits, sizes)
    drawn = np.asarray(p.sample_from(p.noise(jax.random.key(0), (2000, 2))))
    assert drawn.shape == (2000, 2, 2)
    assert (drawn[..., 0] == 0).all()  # its only number
    assert (drawn[:, 0, 1] == 1).all()
    assert set(drawn[:, 1, 1]) == {0, 1, 2}


def test_elements_of_an_action_are_sampled_apart_with_their_frequencies():
    logits = np.log([0.25, 0.75, 0.5, 0.5, 1e-30])
    n = 20_000
    p = Categoricals.from_logits(jnp.broadcast_to(jnp.float32(logits), (n, 5)), (2, 3))
    drawn = np.asarray(p.sample(jax.random.key(0)))
    counts = np.zeros((2, 3))
    np.add.at(counts, tuple(drawn.T), 1)
    expected = n * np.outer([0.25, 0.75], [0.5, 0.5])
    assert counts[:, 2].sum() == 0
    assert stats.chisquare(counts[:, :2].ravel(), expected.ravel()).pvalue > 1e-3


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


# Means and standard deviations of u: from a spike to mass piled up at both bounds.
MEANS, STDS = (0.0, 0.3, -2.0, 5.0, -5.0), (0.01, 0.5, 1.0, 3.0)
each_shape = pytest.mark.parametrize(("mean", "std"), [(m, s) for m in MEANS for s in STDS])


def log_slope(u):
    """log of d tanh(u) / du."""
    return 2.0 * (np.log(2.0) - np.abs(u) - np.log1p(np.exp(-2.0 * np.abs(u))))


def mean_over_u(function, mean, std):
    """E f(u) of u normal, by adaptive quadrature."""

    def integrand(z):
        return stats.norm.pdf(z) * function(mean + std * z)

    # Where tanh turns is where the integrand does, if u is wide.
    points = [z for z in ((-mean + d) / std for d in (-2.0, 0.0, 2.0)) if -10 < z < 10]
    return integrate.quad(integrand, -10, 10, points=points, epsabs=1e-11, limit=200)[0]


@functools.cache
def density_of_u():
    """(u, mean, std) -> log p(tanh(u)), elementwise in float64."""
    each = jax.vmap(lambda u, m, s: TanhNormal(m[None], jnp.log(s)[None]).log_prob(u[None]))
    return jax.jit(each)


@each_shape
def test_tanh_normal_probabilities_are_integrals_of_its_density(mean, std):
    with jax.enable_x64(True):

        def density(v):
            # a = tanh(v): the integral over a, in a variable in which its ends are far away.
            log_prob = density_of_u()(*(jnp.full(1, x, jnp.float64) for x in (v, mean, std)))
            return float(jnp.exp(log_prob[0]) * (1.0 - jnp.tanh(v) ** 2))

        # The change of variable loses 1 - tanh^2 to rounding beyond |v| of about 8.
        quantiles = stats.norm.ppf([1e-9, 0.1, 0.5, 0.8, 1 - 1e-9], mean, std)
        cuts = np.clip(quantiles, -8.0, 8.0)
        actual = [
            integrate.quad(density, *ends, epsabs=1e-9, limit=30)[0]
            for ends in itertools.pairwise(cuts)
        ]
    expected = np.diff(stats.norm.cdf(cuts, mean, std))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_tanh_normal_density_integrates_to_one_over_the_actions_themselves():
    # In a and not in u, where that is possible: the density vanishes at both ends.
    with jax.enable_x64(True):
        a, weight = np.polynomial.legendre.leggauss(400)
        for mean, std in [(0.0, 0.5), (0.3, 0.3), (-0.5, 0.4)]:
            parameters = (jnp.full(a.size, x) for x in (mean, std))
            density = np.exp(density_of_u()(jnp.arctanh(a), *parameters))
            np.testing.assert_allclose(weight @ density, 1.0, atol=1e-9)
            below = a < np.tanh(mean)  # the median
            assert abs(weight[below] @ density[below] - 0.5) < 0.02


@each_shape
def test_tanh_normal_log_prob_is_a_change_of_variables(mean, std):
    u = mean + std * np.linspace(-4.0, 4.0, 17)
    u = u[np.abs(u) < 6]  # beyond, a difference of tanh is rounding
    step = 1e-6
    slope = (np.tanh(u + step) - np.tanh(u - step)) / (2 * step)
    expected = stats.norm.logpdf(u, mean, std) - np.log(slope)
    with jax.enable_x64(True):
        actual = density_of_u()(jnp.asarray(u), *(jnp.full(u.size, x) for x in (mean, std)))
    np.testing.assert_allclose(actual, expected, atol=2e-4)
    exact = stats.norm.logpdf(u, mean, std) - log_slope(u)
    np.testing.assert_allclose(actual, exact, rtol=1e-10, atol=1e-10)


def test_tanh_normal_log_prob_adds_up_over_dimensions():
    u = RNG.normal(size=MEAN.shape) * 2.0
    expected = (stats.norm.logpdf(u, MEAN, np.exp(LOG_STD)) - log_slope(u)).sum(-1)
    actual = tanh_normal().log_prob(jnp.asarray(u, jnp.float32))
    assert actual.shape == (3, 2)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("u", [0.0, 20.0, -20.0, 1e3, -1e3, 1e4, -1e4])
def test_tanh_normal_log_prob_of_saturated_actions_is_finite(u):
    def log_prob(u, mean, log_std):
        return TanhNormal(mean[None], log_std[None]).log_prob(u[None])

    arguments = (jnp.float32(u), jnp.float32(0.5), jnp.float32(0.0))
    value, slopes = jax.value_and_grad(log_prob, argnums=(0, 1, 2))(*arguments)
    np.testing.assert_allclose(value, stats.norm.logpdf(u, 0.5) - log_slope(u), rtol=1e-5)
    # d/du, d/dmean and d/dlog_std, by hand.
    z = u - 0.5
    np.testing.assert_allclose(slopes, [-z + 2 * np.tanh(u), z, z * z - 1.0], rtol=1e-5)
    squashed = tanh_normal([0.5], [0.0]).squash(jnp.float32([u]))
    assert np.abs(squashed) <= 1.0


def entropy(mean, log_std):
    return TanhNormal(mean[None], log_std[None]).entropy()


@each_shape
def test_tanh_normal_entropy_and_its_gradient_are_within_their_stated_error(mean, std):
    def exact(mean, std):
        return stats.norm.entropy(mean, std) + mean_over_u(log_slope, mean, std)

    arguments = (jnp.float32(mean), jnp.log(jnp.float32(std)))
    value, slopes = jax.value_and_grad(entropy, argnums=(0, 1))(*arguments)
    np.testing.assert_allclose(value, exact(mean, std), rtol=0, atol=3e-5)
    d = 1e-3
    by_mean = (exact(mean + d, std) - exact(mean - d, std)) / (2 * d)
    by_log_std = (exact(mean, std * np.exp(d)) - exact(mean, std * np.exp(-d))) / (2 * d)
    np.testing.assert_allclose(slopes, [by_mean, by_log_std], rtol=0, atol=1e-4)


def test_tanh_normal_entropy_errs_below_its_bound_on_a_fine_grid():
    z = np.linspace(-10.0, 10.0, 4001)
    weight = stats.norm.pdf(z) * (z[1] - z[0])
    mean, std = (x.ravel() for x in np.meshgrid(np.linspace(0, 12, 25), np.geomspace(1e-3, 20, 25)))
    expected = [
        stats.norm.entropy(m, s) + weight @ log_slope(m + s * z)
        for m, s in zip(mean, std, strict=True)
    ]
    actual = jax.vmap(entropy)(jnp.float32(mean), jnp.log(jnp.float32(std)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-5)
    mirrored = jax.vmap(entropy)(jnp.float32(-mean), jnp.log(jnp.float32(std)))
    np.testing.assert_allclose(mirrored, actual, rtol=0, atol=1e-6)


def test_tanh_normal_entropy_adds_up_over_dimensions():
    total = tanh_normal().entropy()
    assert total.shape == (3, 2)
    parts = sum(tanh_normal(MEAN[..., [i]], LOG_STD[[i]]).entropy() for i in range(4))
    np.testing.assert_allclose(total, parts, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.5), (-2.0, 1.0), (5.0, 1.0), (0.0, 3.0)])
def test_tanh_normal_kl_is_the_integral_of_its_log_ratio(mean, std):
    other = TanhNormal(jnp.float32([-0.5]), jnp.log(jnp.float32([0.8])))

    def log_ratio(u):
        # Of the densities of a; the Jacobians cancel here, which is what makes it a KL of normals.
        p = stats.norm.logpdf(u, mean, std) - log_slope(u)
        return p - (stats.norm.logpdf(u, -0.5, 0.8) - log_slope(u))

    actual = tanh_normal([mean], [np.log(std)]).kl(other)
    np.testing.assert_allclose(actual, mean_over_u(log_ratio, mean, std), rtol=1e-4)


def test_tanh_normal_samples_follow_its_distribution_function():
    mean = np.broadcast_to([1.0, -2.0], (20_000, 2))
    p = tanh_normal(mean, np.log([0.5, 3.0]))
    a = np.asarray(p.squash(p.sample(jax.random.key(0))), np.float64)
    assert a.shape == (20_000, 2)
    assert (np.abs(a) <= 1.0).all()
    for i, (m, s) in enumerate([(1.0, 0.5), (-2.0, 3.0)]):
        inside = np.abs(a[:, i]) < 0.9999  # float32 has ties nearer to the bounds

        def distribution(x, m=m, s=s):
            low, high = stats.norm.cdf(np.arctanh([-0.9999, 0.9999]), m, s)
            return (stats.norm.cdf(np.arctanh(x), m, s) - low) / (high - low)

        assert stats.kstest(a[inside, i], distribution).pvalue > 1e-3


def test_tanh_normal_mode_is_the_median_of_its_actions():
    p = tanh_normal(np.broadcast_to([0.7], (20_000, 1)), [np.log(2.0)])
    a = p.squash(p.sample(jax.random.key(0)))
    np.testing.assert_allclose(p.squash(p.mode())[0], np.tanh(0.7), rtol=1e-6)
    assert abs(np.mean(np.asarray(a) < np.tanh(0.7)) - 0.5) < 0.02


def test_only_tanh_normal_squashes():
    action = jnp.array([3.0, -0.5])
    np.testing.assert_array_equal(normal().squash(action), action)
    np.testing.assert_array_equal(categorical().squash(action), action)
    np.testing.assert_allclose(tanh_normal().squash(action), np.tanh([3.0, -0.5]), rtol=1e-6)


@pytest.mark.parametrize("make", [categorical, normal, tanh_normal])
def test_is_a_pytree_that_vmaps(make):
    whole = make()
    action = whole.mode()
    axes = Categorical(0) if isinstance(whole, Categorical) else type(whole)(0, None)
    mapped = jax.vmap(lambda p, a: p.log_prob(a), in_axes=(axes, 0))
    np.testing.assert_allclose(mapped(whole, action), whole.log_prob(action), rtol=1e-6)
