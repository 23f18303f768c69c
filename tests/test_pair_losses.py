"""Losses of pairs against closed forms: where each is least, in float64, and its gradient."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit, logit

from rgpo_jax.language import contrasts
from rgpo_jax.language.contrasts import Contrast
from rgpo_jax.language.pair_targets import ipo_policy, preferences, rpo_policy
from rgpo_jax.language.targets import gibbs

pytestmark = pytest.mark.usefixtures("float64")

ARMS = 5


def problem(seed=0, arms=ARMS):
    rng = np.random.default_rng(seed)
    q = np.exp(rng.normal(size=arms))
    return q / q.sum(), rng.normal(size=arms)


def contrast_of(log_pi, q, first, second, label, gap, log_old=None, kl=0.0):
    def of_both(x):
        return jnp.stack([x[first], x[second]], axis=1)

    return Contrast(
        of_both(log_pi),
        of_both(log_pi - jnp.log(q)),
        of_both(log_pi - (log_pi if log_old is None else log_old)),
        jnp.ones((len(first), 2)),
        jnp.asarray(label),
        jnp.asarray(gap),
        kl,
    )


def all_pairs(reward):
    first, second = (x.ravel() for x in np.meshgrid(*[np.arange(len(reward))] * 2, indexing="ij"))
    return first, second, preferences(reward)[first, second], reward[first] - reward[second]


@functools.cache
def compiled(total):
    """Value and gradient, and Hessian, of (logits, *numbers)."""

    def of_logits(x, *numbers):
        return total(jax.nn.log_softmax(x), *numbers)

    return jax.jit(jax.value_and_grad(of_logits)), jax.jit(jax.hessian(of_logits))


def minimise(total, q, *numbers):
    """The policy at which a loss (log_pi, *numbers) is least: BFGS, then Newton's method."""
    value, hessian = compiled(total)
    found = optimize.minimize(
        lambda x: tuple(map(np.asarray, value(x, *numbers))),
        np.log(q),
        jac=True,
        method="BFGS",
        tol=1e-9,
    ).x
    for _ in range(5):
        gradient = np.asarray(value(found, *numbers)[1])
        # What is added to all logits changes nothing.
        inverse = np.linalg.pinv(np.asarray(hessian(found, *numbers)), rcond=1e-12)
        found = found - inverse @ gradient
    return np.asarray(jax.nn.softmax(jnp.asarray(found)))


def test_dpo_with_exact_labels_is_least_at_the_gibbs_policy_for_any_pairs():
    q, reward = problem()
    first, second, label, gap = all_pairs(reward)
    weight = np.random.default_rng(1).uniform(0.1, 1.0, len(first))  # whoever wrote the answers

    def total(log_pi, beta):
        losses = contrasts.dpo(contrast_of(log_pi, q, first, second, label, gap), beta)
        return jnp.mean(weight * losses)

    for beta in (0.1, 0.5, 2.0):
        np.testing.assert_allclose(minimise(total, q, beta), gibbs(q, reward, beta), atol=4e-8)


def test_dpo_is_log_2_at_the_reference_and_so_is_its_gradient_known():
    q, reward = problem()
    first, second, label, gap = all_pairs(reward)

    def losses(log_pi):
        return contrasts.dpo(contrast_of(log_pi, q, first, second, label, gap), 0.3)

    at = jnp.log(q)
    np.testing.assert_allclose(losses(at), np.log(2.0), atol=1e-15)
    gradient = jax.grad(lambda x: losses(x)[1])(at)  # of the pair (0, 1)
    expected = np.zeros(ARMS)
    expected[[0, 1]] = np.array([-1, 1]) * 0.3 * (label[1] - 0.5)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_the_margin_of_ipo_for_two_arms():
    q = np.array([0.3, 0.7])

    def total(log_pi, p, beta):
        one = contrast_of(log_pi, q, np.array([0]), np.array([1]), [p], [0.0])
        return contrasts.ipo(one, beta)[0]

    for p, beta in itertools.product((0.6, 0.8, 0.99), (0.1, 1.0)):
        policy = minimise(total, q, p, beta)
        margin = logit(policy[0]) - logit(q[0])
        np.testing.assert_allclose(margin, (p - 0.5) / beta, atol=2e-9)


def test_ipo_divided_by_length_is_the_same_for_answers_of_one_token():
    q, reward = problem()
    pairs = contrast_of(jnp.log(q) + reward, q, *all_pairs(reward))
    np.testing.assert_array_equal(contrasts.ipo(pairs, 0.2), contrasts.ipo(pairs, 0.2, True))
    longer = pairs._replace(length=pairs.length * 4, log_ratio_ref=pairs.log_ratio_ref * 4)
    np.testing.assert_allclose(contrasts.ipo(pairs, 0.2), contrasts.ipo(longer, 0.2, True))


def test_ipo_settles_at_its_closed_form_with_pairs_of_the_reference():
    q, reward = problem(3)
    first, second, label, gap = all_pairs(reward)

    def total(log_pi):
        losses = contrasts.ipo(contrast_of(log_pi, q, first, second, label, gap), 0.7)
        return jnp.sum(q[first] * q[second] * losses)

    np.testing.assert_allclose(minimise(total, q), ipo_policy(q, reward, 0.7), atol=1e-9)


def kto_total(log_pi, q, beta, desirable, undesirable, kl=0.0):
    first, second = np.array([0, 1]), np.array([2, 3])
    pairs = contrast_of(log_pi, q, first, second, [1.0, 1.0], [0.0, 0.0], kl=kl)
    return contrasts.kto(pairs, beta, desirable, undesirable)


def test_kto_at_the_reference():
    q, _ = problem()
    losses = kto_total(jnp.log(q), q, 0.1, 1.5, 0.7)
    np.testing.assert_allclose(losses, (1.5 + 0.7) / 2, atol=1e-15)
    gradient = jax.grad(lambda x: jnp.sum(kto_total(x, q, 0.1, 1.5, 0.7)))(jnp.log(q))
    np.testing.assert_allclose(gradient[:2], -0.1 * 1.5 / 4, atol=1e-12)  # more of the chosen
    np.testing.assert_allclose(gradient[2:4], 0.1 * 0.7 / 4, atol=1e-12)


def test_the_point_of_reference_of_kto_has_no_gradient_and_is_never_negative():
    q, _ = problem()
    at = jnp.log(q) + 0.3 * jnp.arange(ARMS)
    negative = kto_total(at, q, 0.5, 1.0, 1.0, kl=-0.4)
    np.testing.assert_array_equal(negative, kto_total(at, q, 0.5, 1.0, 1.0))

    def with_kl(x):
        return jnp.sum(kto_total(at, q, 0.5, 1.0, 1.0, kl=x))

    assert jax.grad(with_kl)(0.4) == 0.0
    assert with_kl(0.4) != with_kl(0.0)


def test_rpo_for_two_arms():
    q, p, beta, eta = 0.3, 0.8, 0.5, 0.5

    def total(log_pi):
        pair = contrast_of(log_pi, np.array([q, 1 - q]), np.array([0]), np.array([1]), [p], [0.0])
        return contrasts.rpo(pair, beta, eta)[0]

    h = optimize.brentq(
        lambda h: expit(h) + eta * expit(h / beta + logit(q)) - (1 + eta) * p, -20, 20, xtol=1e-14
    )
    expected = expit(h / beta + logit(q))
    found = minimise(total, np.array([q, 1 - q]))[0]
    np.testing.assert_allclose(found, expected, atol=2e-9)
    np.testing.assert_allclose(found, 0.842, atol=5e-4)
    dpo = optimize.brentq(lambda h: expit(h) - p, -20, 20)
    np.testing.assert_allclose(expit(dpo / beta + logit(q)), 0.873, atol=5e-4)


def test_rpo_is_the_adversary_s_problem_come_down_to_a_supervised_loss():
    """NLL(R) + eta (beta log Z(R) - E_base R) at R = beta log rho, up to what no policy changes."""
    q, reward = problem(5)
    first, second, label, gap = all_pairs(reward)
    beta, eta = 0.4, 0.3
    weight = q[first] * q[second]
    base = np.zeros(ARMS)  # whose answers the adversary is held to: the chosen ones
    np.add.at(base, first, weight * label)
    np.add.at(base, second, weight * (1 - label))
    differences = []
    for seed in range(4):
        log_pi = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(seed).normal(size=ARMS)))
        model = beta * (log_pi - jnp.log(q))
        h = model[first] - model[second]
        nll = jnp.sum(
            weight * (-label * jax.nn.log_sigmoid(h) - (1 - label) * jax.nn.log_sigmoid(-h))
        )
        log_z = jax.nn.logsumexp(jnp.log(q) + model / beta)
        adversary = nll + eta * (beta * log_z - base @ model)
        pairs = contrast_of(log_pi, q, first, second, label, gap)
        differences.append(float(jnp.sum(weight * contrasts.rpo(pairs, beta, eta)) - adversary))
    np.testing.assert_allclose(differences, differences[0], atol=1e-13)


def test_rpo_settles_where_newton_s_method_says():
    q, reward = problem(6)
    first, second, label, gap = all_pairs(reward)

    def total(log_pi, eta):
        losses = contrasts.rpo(contrast_of(log_pi, q, first, second, label, gap), 0.5, eta)
        return jnp.sum(q[first] * q[second] * losses)

    for eta in (0.0, 0.05, 1.0):
        expected = rpo_policy(q, reward, 0.5, eta)
        np.testing.assert_allclose(minimise(total, q, eta), expected, atol=1e-9)
    without = rpo_policy(q, reward, 0.5, 0.0)
    np.testing.assert_allclose(without, gibbs(q, reward, 0.5), atol=1e-9)


def test_reward_distillation_is_least_at_the_gibbs_policy_whoever_writes():
    q, reward = problem(7)
    first, second, label, gap = all_pairs(reward)
    weight = np.random.default_rng(2).uniform(0.01, 1.0, len(first))

    def total(log_pi):
        pairs = contrast_of(log_pi, q, first, second, label, gap)
        return jnp.mean(weight * contrasts.reward_distillation(pairs, 0.3))

    np.testing.assert_allclose(minimise(total, q), gibbs(q, reward, 0.3), atol=4e-10)


@pytest.mark.parametrize("by_eta", [False, True])
def test_one_exact_fit_of_rebel_is_a_step_of_mirror_descent(by_eta):
    q, reward = problem(8)
    old = np.asarray(gibbs(q, np.random.default_rng(4).normal(size=ARMS), 1.0))
    eta, beta = 0.7, 0.25
    with_kl = reward - beta * (np.log(old) - np.log(q))
    first, second, label, gap = all_pairs(with_kl)

    def total(log_pi):
        pairs = contrast_of(log_pi, q, first, second, label, gap, np.log(old))
        return jnp.mean(contrasts.rebel(pairs, beta, eta, by_eta))

    step = old ** (1 - eta * beta) * q ** (eta * beta) * np.exp(eta * reward)
    np.testing.assert_allclose(minimise(total, q), step / step.sum(), atol=2e-9)


def test_rebel_by_eta_is_the_same_loss_over_eta_squared():
    q, reward = problem(8)
    pairs = contrast_of(jnp.log(q) + reward, q, *all_pairs(reward), np.log(q))
    ours, theirs = (contrasts.rebel(pairs, 0.1, 0.2, by_eta) for by_eta in (False, True))
    np.testing.assert_allclose(theirs * 0.04, ours, rtol=1e-12)


def test_steps_of_mirror_descent_with_the_kl_in_the_reward_end_at_the_gibbs_policy():
    q, reward = problem(9)
    policy, eta, beta = q.copy(), 0.5, 0.4
    for _ in range(400):
        policy = policy ** (1 - eta * beta) * q ** (eta * beta) * np.exp(eta * reward)
        policy /= policy.sum()
    np.testing.assert_allclose(policy, gibbs(q, reward, beta), atol=3e-16 * 4)


def test_one_gauss_newton_step_of_rebel_is_the_natural_gradient():
    """theta + eta F^+ grad J, for on-policy pairs."""
    q, reward = problem(10)
    theta, eta = jnp.log(jnp.asarray(q)), 0.9
    first, second, _, gap = all_pairs(reward)
    weight = jnp.asarray(q[first] * q[second])

    def change(x):
        log_pi = jax.nn.log_softmax(x)
        return log_pi[first] - log_pi[second]

    jacobian = jax.jacobian(change)(theta)
    residual = change(theta) - change(theta) - eta * gap
    normal = jacobian.T @ (weight[:, None] * jacobian)
    step = -jnp.linalg.pinv(normal) @ (jacobian.T @ (weight * residual))
    policy = jax.nn.softmax(theta)
    fisher = jnp.diag(policy) - jnp.outer(policy, policy)
    gradient = policy * (reward - policy @ reward)
    np.testing.assert_allclose(step, eta * jnp.linalg.pinv(fisher) @ gradient, atol=1e-10)
