"""The natural-gradient step against dense linear algebra, and a line search that may say no."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgpo_jax.trust_region import conjugate_gradient, natural_gradient


def positive_definite(n, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    return root @ root.T + 0.5 * np.eye(n), rng.normal(size=n)


@functools.partial(jax.jit, static_argnums=(2, 3))
def solve(matrix, b, iterations, tolerance=1e-10):
    return conjugate_gradient(lambda v: matrix @ v, b, iterations, tolerance)


@pytest.mark.parametrize("iterations", [12, 60])
def test_conjugate_gradient_solves(iterations):
    matrix, b = positive_definite(8)
    with jax.enable_x64(True):
        x = solve(jnp.asarray(matrix), jnp.asarray(b), iterations, 1e-26)
        np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-9)
    x = solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32), iterations)
    residual = np.linalg.norm(matrix @ np.asarray(x, np.float64) - b) / np.linalg.norm(b)
    assert residual < 1e-4


def test_conjugate_gradient_needs_one_iteration_per_distinct_eigenvalue():
    matrix = np.diag([1.0, 1.0, 5.0, 5.0, 5.0, 20.0])
    b = np.arange(1.0, 7.0)
    with jax.enable_x64(True):
        three = solve(jnp.asarray(matrix), jnp.asarray(b), 3)
        two = solve(jnp.asarray(matrix), jnp.asarray(b), 2)
        np.testing.assert_allclose(three, b / np.diag(matrix), rtol=1e-9)
        assert not np.allclose(two, b / np.diag(matrix), rtol=1e-2)


def test_conjugate_gradient_of_zero_is_zero():
    matrix, b = positive_definite(8)
    np.testing.assert_array_equal(solve(jnp.asarray(matrix), jnp.zeros_like(b), 12), 0.0)


def test_conjugate_gradient_vmaps():
    problems = [positive_definite(8, seed) for seed in range(3)]
    matrices, bs = (jnp.asarray(np.stack(x), jnp.float32) for x in zip(*problems, strict=True))
    xs = jax.vmap(lambda m, b: solve(m, b, 12))(matrices, bs)
    for matrix, b, x in zip(matrices, bs, xs, strict=True):
        np.testing.assert_allclose(x, solve(matrix, b, 12), rtol=1e-3, atol=1e-4)


# A softmax policy over 4 actions in 3 states with 6 samples of a state and an action.
STATE = np.array([0, 0, 0, 1, 1, 2])
RNG = np.random.default_rng(0)
TAKEN = RNG.integers(0, 4, 6)
GAIN = RNG.normal(size=6)
WEIGHTS, BIAS = RNG.normal(size=(3, 4)), RNG.normal(size=4)


def dense_step(max_kl, damping):
    """sqrt(2 delta / x (F + lambda I) x) x, from scores written out by hand, in NumPy."""
    logits = WEIGHTS + BIAS
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def score(state, action):
        # d log p(a|s) / d logits = onehot(a) - p; ravel_pytree puts the bias first, by name.
        by_logit = np.eye(4)[action] - probs[state]
        return np.concatenate([by_logit, np.kron(np.eye(3)[state], by_logit)])

    fisher = np.zeros((16, 16))
    for state in STATE:
        for action in range(4):
            s = score(state, action)
            fisher += probs[state, action] * np.outer(s, s) / len(STATE)
    scores = np.stack([score(s, a) for s, a in zip(STATE, TAKEN, strict=True)])
    gradient = (GAIN[:, None] * scores).mean(0)
    damped = fisher + damping * np.eye(16)
    x = np.linalg.solve(damped, gradient)
    return np.sqrt(2 * max_kl / (x @ damped @ x)) * x, gradient


@jax.jit
def softmax_step(params, max_kl, damping):
    def log_probs(params):
        return jax.nn.log_softmax(params["weights"] + params["bias"])[STATE]

    old = log_probs(params)

    def surrogate(params):
        ratio = jnp.exp(log_probs(params) - old)[jnp.arange(6), TAKEN]
        return jnp.mean(ratio * GAIN)

    def kl(params):
        return jnp.mean(jnp.sum(jnp.exp(old) * (old - log_probs(params)), -1))

    new, report = natural_gradient(max_kl, damping, cg_iterations=16)(params, surrogate, kl)
    return new, report, surrogate(new) - surrogate(params), kl(new)


@pytest.mark.parametrize("damping", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("max_kl", [1e-4, 1e-3])
def test_the_full_step_is_that_of_the_dense_fisher_matrix(max_kl, damping):
    with jax.enable_x64(True):
        params = {"bias": jnp.asarray(BIAS), "weights": jnp.asarray(WEIGHTS)}
        new, report, improvement, kl = softmax_step(params, max_kl, damping)
        expected, gradient = dense_step(max_kl, damping)
        change = np.concatenate([(new[k] - params[k]).ravel() for k in ("bias", "weights")])
        # Conjugate gradient stops at a residual of 1e-5.
        np.testing.assert_allclose(change, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_allclose(report.grad_norm, np.linalg.norm(gradient), rtol=1e-9)
        np.testing.assert_allclose(report.kl, kl, rtol=1e-9)
        np.testing.assert_allclose(report.improvement, improvement, rtol=1e-9)
        assert report.accepted == 1.0
        assert report.step_scale == 1.0
        assert 0 < report.kl <= max_kl
        assert report.improvement > 0


# Line search. One parameter x, from 0; surrogate x and KL x^2 / 2, so that gradient and Fisher
# "matrix" are 1; with damping 1 and max_kl 0.04 the full step is 0.2, the next 0.1, 0.05, 0.025.
MAX_KL = 0.04
NOWHERE = (9.0, 9.0)
BEYOND_FULL, BEYOND_HALF = (0.15, 9.0), (0.07, 9.0)
ANYWHERE = (1e-6, 9.0)


def inside(x, interval):
    return (x > interval[0]) & (x < interval[1])


def climb(kl_broken=NOWHERE, worse_in=NOWHERE, bad=-1.0, kl_value=1.0, steps=6, start=0.0, **more):
    """One step; KL and surrogate have bad values in the intervals."""

    def surrogate(params):
        x = params["x"][0] - start
        return jnp.where(inside(x, worse_in), bad, x)

    def kl(params):
        x = params["x"][0] - start
        return jnp.where(inside(x, kl_broken), kl_value, 0.5 * x * x)

    settings = {"max_kl": MAX_KL, "damping": 1.0, "backtrack_factor": 0.5} | more
    step = natural_gradient(**settings, line_search_steps=steps)
    params = {"x": jnp.full(1, start, jnp.float32), "other": jnp.full((2, 2), 0.1)}
    return step(params, surrogate, kl)


@functools.partial(jax.jit, static_argnames=("steps",))
def climb_jitted(kl_broken, worse_in, bad, kl_value, steps=6):
    return climb(kl_broken, worse_in, bad, kl_value, steps)


ACCEPTED = {
    "the full step": (NOWHERE, NOWHERE, 1.0),
    "half, for the KL": (BEYOND_FULL, NOWHERE, 0.5),
    "half, for the surrogate": (NOWHERE, BEYOND_FULL, 0.5),
    # Neither condition alone would refuse both the full step and its half.
    "a quarter, for either": (BEYOND_FULL, (0.07, 0.12), 0.25),
    "a quarter, for the other": ((0.07, 0.12), BEYOND_FULL, 0.25),
    "an eighth": (BEYOND_HALF, (0.04, 0.06), 0.125),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_the_first_step_that_meets_both_conditions_is_taken(case):
    kl_broken, worse_in, scale = ACCEPTED[case]
    params, report = climb_jitted(kl_broken, worse_in, -1.0, 1.0)
    assert report.accepted == 1.0
    assert float(report.step_scale) == scale
    np.testing.assert_allclose(params["x"], 0.2 * scale, rtol=1e-5)
    np.testing.assert_allclose(report.kl, 0.5 * (0.2 * scale) ** 2, rtol=1e-4)
    np.testing.assert_allclose(report.improvement, 0.2 * scale, rtol=1e-5)
    np.testing.assert_array_equal(params["other"], jnp.full((2, 2), 0.1))


NAN, INF = float("nan"), float("inf")
REFUSED = {
    "KL too large": (ANYWHERE, NOWHERE, -1.0, 1.0),
    "surrogate worse": (NOWHERE, ANYWHERE, -1.0, 1.0),
    "surrogate as it was": (NOWHERE, ANYWHERE, 0.0, 1.0),
    "surrogate NaN": (NOWHERE, ANYWHERE, NAN, 1.0),
    "surrogate -inf": (NOWHERE, ANYWHERE, -INF, 1.0),
    "KL NaN": (ANYWHERE, NOWHERE, -1.0, NAN),
    "KL inf": (ANYWHERE, NOWHERE, -1.0, INF),
    "first one, then the other": (BEYOND_HALF, (1e-6, 0.12), -1.0, 1.0),
}


def assert_unchanged(params, report, x=0.0):
    np.testing.assert_array_equal(params["x"], np.float32([x]))
    np.testing.assert_array_equal(params["other"], np.full((2, 2), 0.1, np.float32))
    assert [float(r) for r in report[:4]] == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("case", REFUSED)
def test_where_no_step_is_acceptable_nothing_moves(case):
    assert_unchanged(*climb_jitted(*REFUSED[case]))


@pytest.mark.parametrize("start", [0.1, 1e8, -0.3])
def test_a_refused_step_leaves_every_bit(start):
    assert_unchanged(*jax.jit(lambda: climb(ANYWHERE, start=start))(), x=start)


def test_a_step_may_be_refused_for_want_of_trials():
    case = (BEYOND_HALF, (0.04, 0.06), -1.0, 1.0)
    assert_unchanged(*climb_jitted(*case, steps=3))
    assert climb_jitted(*case, steps=4)[1].accepted == 1.0


@pytest.mark.parametrize("slope", [0.0, NAN, INF, -INF])
def test_a_gradient_that_is_no_direction_moves_nothing(slope):
    def step(params, slope):
        return natural_gradient()(
            params, lambda p: slope * jnp.sum(p), lambda p: 0.5 * jnp.sum(jnp.square(p - 0.7))
        )

    start = jnp.full(3, 0.7)
    params, report = jax.jit(step)(start, slope)
    np.testing.assert_array_equal(params, start)
    assert report.accepted == 0.0
    assert report.kl == 0.0


def test_vmaps_over_steps_that_differ_in_length_and_verdict():
    cases = [(*case[:2], -1.0, 1.0) for case in ACCEPTED.values()] + list(REFUSED.values())
    stacked = jax.tree.map(lambda *x: jnp.asarray(x), *cases)
    many, reports = jax.jit(jax.vmap(climb))(*stacked)
    for i, case in enumerate(cases):
        params, report = climb_jitted(*case)
        np.testing.assert_allclose(many["x"][i], params["x"], rtol=1e-6)
        np.testing.assert_allclose([r[i] for r in reports], report, rtol=1e-5)
    np.testing.assert_array_equal(many["x"][len(ACCEPTED) :], 0.0)


def test_scans():
    step = natural_gradient(max_kl=0.01, damping=0.0)
    target = jnp.array([1.0, -2.0])

    def once(x, _=None):
        return step(
            x,
            lambda p: -jnp.sum(jnp.square(p - target)),
            lambda p: 0.5 * jnp.sum(jnp.square(p - jax.lax.stop_gradient(x))),
        )

    last, reports = jax.jit(lambda x: jax.lax.scan(once, x, length=30))(jnp.zeros(2))
    assert reports.accepted.shape == (30,)
    x = jnp.zeros(2)
    for i in range(3):
        x, report = jax.jit(once)(x)
        np.testing.assert_allclose(report.improvement, reports.improvement[i], rtol=1e-4)
    # Each step is sqrt(2 * 0.01) long; the target is sqrt(5) away, 16 steps.
    np.testing.assert_allclose(last, target, atol=0.05)


def test_numbers_may_be_traced():
    sizes = jnp.array([0.005, 0.02, 0.08])
    params, report = jax.jit(jax.vmap(lambda d: climb(max_kl=d)))(sizes)
    np.testing.assert_allclose(params["x"][:, 0], np.sqrt(np.asarray(sizes)), rtol=1e-5)
    np.testing.assert_array_equal(report.accepted, 1.0)


@pytest.mark.parametrize(
    "setting",
    [
        {"max_kl": 0.0},
        {"damping": -0.1},
        {"backtrack_factor": 1.0},
        {"cg_iterations": 0},
        {"line_search_steps": 0},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_names_the_setting_that_is_out_of_range(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        natural_gradient(**setting)
