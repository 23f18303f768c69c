"""Alignment methods where expectations are sums: what their own update steps follow, and where
they settle.

"The ascent" of a batch is by what one plain gradient step of the library's learner changes the
logits; "on average" is over all groups of answers there are, by their probability. In float64.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_probes import (
    every_group,
    exact_ascent,
    expected_ascent,
    groups_of_two_arms,
    in_float64,
    largest,
    logits_of,
    one_step,
)
from method_probes import (
    BETA,
    DUALS,
    answers_of_two_tokens,
    answers_that_end,
    arms,
    mean_ascent,
    reference_of,
    rewards_of,
    somewhere,
    target,
    two_arms,
    with_critic,
)

from agents.language import GATED, reinforce
from envs.language import bandit
from rgpo_jax.language import advantages, targets

pytestmark = pytest.mark.usefixtures("float64")


# What methods follow: unbiased or not


@pytest.mark.parametrize("make", [arms, answers_that_end])
@pytest.mark.parametrize(
    ("method", "size", "settings", "share"),
    [
        ("rloo", 2, {}, 1.0),
        ("reinforce", 1, {"baseline": "none"}, 1.0),
        ("reinforce", 2, {}, 1.0 / 2.0),  # the mean of a batch of 2 has the answer itself in it
    ],
)
def test_the_gradient_is_that_of_reward_minus_kl_at_any_policy(make, method, size, settings, share):
    world = make()
    params = somewhere(world)
    actual = mean_ascent(method, world, params, size, kl_coefficient=BETA, **settings)
    expected = exact_ascent(world, params, BETA)["actor"]
    np.testing.assert_allclose(actual, share * expected, atol=1e-14)
    assert largest(expected) > 0.05


def test_the_mean_of_a_batch_of_several_prompts_is_a_baseline_too():
    world = in_float64(bandit.make(num_arms=3, num_prompts=2))
    params = somewhere(world)
    settings = {"group_size": 2, "num_prompts": 2, "kl_coefficient": BETA}
    learner = one_step("reinforce", world, **settings)
    actual = expected_ascent(learner, world, params, every_group(3, 4), which_prompts=(0, 1))
    expected = exact_ascent(world, params, BETA)["actor"]
    np.testing.assert_allclose(actual["actor"], 0.75 * expected, atol=1e-14)


@pytest.mark.parametrize("make", [arms, answers_of_two_tokens])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_ppo_without_whitening_is_unbiased_whatever_the_critic_says(make, value):
    world = make()
    params = somewhere(world)
    settings = {"scale": "none", "gae_lambda": 1.0, "kl_coefficient": BETA}
    actual = mean_ascent("ppo", world, with_critic(world, params, value), **settings)
    expected = exact_ascent(world, params, BETA)["actor"] / world.policy.max_tokens
    np.testing.assert_allclose(actual, expected, atol=1e-14)


# Where methods settle


# Those that differ from one that is here by no more than their gate, whose weight is 1 on policy.
LIKE_GRPO = ("dr_grpo", "cispo", "sapo")


@pytest.mark.parametrize(
    "method",
    [pytest.param(x, marks=pytest.mark.slow) if x in LIKE_GRPO else x for x in GATED],
)
def test_with_the_kl_in_the_reward_every_method_rests_at_the_gibbs_policy(method):
    world = arms()
    settings = {"kl": "reward", "kl_estimator": "k1", "kl_coefficient": BETA}
    gibbs = targets.gibbs(reference_of(world), rewards_of(world), BETA)
    rests = target(method, world, **settings)
    np.testing.assert_allclose(rests, gibbs, atol=1e-14)
    at_gibbs, elsewhere = logits_of(world, gibbs), somewhere(world)
    if method == "ppo":
        at_gibbs, elsewhere = (with_critic(world, params) for params in (at_gibbs, elsewhere))
    assert largest(mean_ascent(method, world, at_gibbs, **settings)) < 1e-13
    assert largest(mean_ascent(method, world, elsewhere, **settings)) > 1e-3


def test_so_does_every_token_of_answers_of_different_length():
    # Though the gate is one of tokens: an advantage of 0 is 0 by any weight.
    world = answers_that_end()
    settings = {"kl": "reward", "kl_estimator": "k1", "kl_coefficient": BETA}
    gibbs = logits_of(world, targets.gibbs(reference_of(world), rewards_of(world), BETA))
    assert largest(mean_ascent("rgpo", world, gibbs, **settings)) < 1e-13
    assert largest(mean_ascent("rgpo", world, somewhere(world), **settings)) > 1e-3


IN_THE_LOSS = [("published", "k3"), ("published", "k2"), ("direct", "k1"), ("direct", "k3")]
FORMS = [("grpo", {}, *form) for form in IN_THE_LOSS]
FORMS += [("rgpo", {"dual": "product"}, "direct", "k1")]
FORMS += [("rloo", {"scale": "group"}, "direct", "k1")]  # its baseline leaves the answer out
# As above but for what they have in common: each compiles for seconds.
MORE = [(name, {}, "published", "k3") for name in ("reinforce", "rloo", "gspo", "cispo")]
MORE += [("rgpo", {"dual": dual}, "direct", "k1") for dual in DUALS[1:]]
MORE += [("sapo", {"temperature_negative": 1.0}, "published", "k3")]
MORE += [("rgpo", {"dual": dual}, "published", "k3") for dual in (*DUALS, "none")]
MORE += [("rgpo", {"dual": dual}, "direct", "k3") for dual in DUALS]


@pytest.mark.parametrize(
    ("method", "settings", "kl", "estimator"),
    FORMS + [pytest.param(*form, marks=pytest.mark.slow) for form in MORE],
)
def test_with_the_kl_in_the_loss_each_rests_at_its_own_policy(method, settings, kl, estimator):
    world = arms()
    settings = settings | {"kl": kl, "kl_estimator": estimator, "kl_coefficient": BETA}
    rests = target(method, world, group_size=3, **settings)
    at_rest = mean_ascent(method, world, logits_of(world, rests), 3, **settings)
    assert largest(at_rest) < 1e-11
    assert largest(mean_ascent(method, world, somewhere(world), 3, **settings)) > 1e-3


def test_in_a_tree_an_answers_ratio_settles_at_the_same_formula():
    world = answers_that_end()
    settings = {"kl": "direct", "kl_estimator": "k3", "kl_coefficient": BETA}
    rests = target("grpo", world, group_size=2, aggregation="sequence", **settings)
    moved = mean_ascent("grpo", world, logits_of(world, rests), aggregation="sequence", **settings)
    assert largest(moved) < 1e-11


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("rloo", {"kl_coefficient": 0.0}),
        ("rloo", {"entropy_coefficient": 0.1}),
        ("rloo", {"kl_target": 1.0}),
        ("rloo", {"kl_estimator": "k3"}),
        ("grpo", {"kl_estimator": "k1"}),
        ("grpo", {"kl": "direct", "kl_estimator": "k2"}),
        ("dapo", {"kl_coefficient": 0.5}),
        ("ppo", {"kl": "direct"}),
        ("reinforce", {"baseline": "none", "kl": "direct"}),
        ("grpo", {"group_size": 500}),
        ("reinforce", {"kl": "direct", "scale": "group", "group_size": 4}),
        ("rgpo", {"kl": "direct", "baseline": "batch", "dual": "geometric"}),
    ],
)
def test_no_target_is_given_where_none_is_known(method, settings):
    assert target(method, arms(), **settings) is None


@pytest.mark.parametrize(
    ("settings", "longest", "known"),
    [
        ({"baseline": "batch", "aggregation": "answer_mean"}, 1, True),
        ({"baseline": "batch", "aggregation": "answer_mean"}, 2, False),
        ({"baseline": "none", "aggregation": "answer_mean"}, 2, False),
        ({"baseline": "none", "aggregation": "token_mean"}, 2, False),
        ({"baseline": "none", "aggregation": "sequence_mean"}, 2, False),
        ({"baseline": "none", "aggregation": "sequence"}, 2, True),
        ({"baseline": "batch", "aggregation": "token_sum"}, 2, True),
        ({"baseline": "leave_one_out", "aggregation": "answer_mean"}, 2, True),
    ],
)
def test_a_mean_over_an_answers_tokens_moves_the_target_but_for_baselines_of_the_prompt(
    settings, longest, known
):
    config = reinforce.Config(kl="reward", kl_coefficient=BETA, group_size=2, **settings)
    assert targets.has_sequence_targets(config, longest) == known


def brute_force_advantage(policy, reward, size, divide=True):
    """E[A of the first | which it is], over all groups."""
    total = np.zeros(len(policy))
    for group in itertools.product(range(len(policy)), repeat=size):
        rewards = reward[list(group)]
        spread = rewards.std() if divide else 1.0
        advantage = 0.0 if spread < 1e-9 else (rewards[0] - rewards.mean()) / spread
        total[group[0]] += np.prod(policy[list(group[1:])]) * advantage
    return total


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_expected_advantage_of_a_group_is_the_sum_over_all_groups(size, ties):
    rng = np.random.default_rng(size)
    policy, reward = rng.dirichlet(np.ones(5)), rng.normal(size=5)
    if ties:
        reward = np.round(reward)
    actual = targets.expected_group_advantage(policy, reward, size)
    np.testing.assert_allclose(actual, brute_force_advantage(policy, reward, size), atol=1e-13)
    assert policy @ actual == pytest.approx(0.0, abs=1e-13)


def test_groups_with_too_many_cases_are_refused():
    with pytest.raises(ValueError, match="too many"):
        targets.expected_group_advantage(np.full(20, 0.05), np.arange(20.0), 64)


@pytest.mark.parametrize("size", [2, 3])
def test_grpo_as_published_settles_where_pi_times_1_minus_p_over_beta_is_the_reference(size):
    world = arms()
    policy = target("grpo", world, group_size=size, kl_coefficient=BETA)[0]
    p = brute_force_advantage(policy, rewards_of(world)[0], size)
    np.testing.assert_allclose(policy * (1.0 - p / BETA), reference_of(world)[0], atol=1e-11)


@pytest.mark.parametrize("size", [2, 3])
def test_grpo_with_the_direct_kl_settles_at_the_reference_times_exp_p_over_beta(size):
    world = arms()
    policy = target("grpo", world, group_size=size, kl_coefficient=BETA, kl="direct")[0]
    p = brute_force_advantage(policy, rewards_of(world)[0], size)
    expected = reference_of(world)[0] * np.exp(p / BETA)
    np.testing.assert_allclose(policy, expected / expected.sum(), atol=1e-11)


def test_an_advantage_in_a_group_of_two_is_the_sign_of_the_difference():
    rng = np.random.default_rng(0)
    policy, reward = rng.dirichlet(np.ones(5)), rng.normal(size=5)
    pairs = jnp.array([[a, b] for a in reward for b in reward])
    actual = advantages.group_advantages(pairs, "group", "group")
    np.testing.assert_allclose(actual[:, 0], np.sign(pairs[:, 0] - pairs[:, 1]), atol=1e-14)
    np.testing.assert_allclose(actual[:, 1], -actual[:, 0], atol=1e-14)
    beats = (reward[:, None] > reward) @ policy
    beaten = (reward[:, None] < reward) @ policy
    p = targets.expected_group_advantage(policy, reward, 2)
    np.testing.assert_allclose(p, beats - beaten, atol=1e-14)


def best_of_two(q, beta, gap=1.0):
    c = beta / gap
    return (1.0 - c + math.sqrt((1.0 - c) ** 2 + 4.0 * c * q)) / 2.0


def best_of_many(q, beta):
    root = math.sqrt(1.0 + 4.0 * beta**2 * q * (1.0 - q))
    return (2.0 * beta**2 * q + 1.0 + root) / (2.0 * (1.0 + beta**2))


@pytest.mark.parametrize(("q", "beta"), [(0.3, 1.0), (0.3, 0.25), (0.9, 2.0), (0.01, 0.5)])
def test_two_arms_in_groups_of_two_are_solved_by_a_quadratic(q, beta):
    world = two_arms(q, [2.0, 1.3])
    expected = best_of_two(q, beta)
    np.testing.assert_allclose(
        target("grpo", world, group_size=2, kl_coefficient=beta)[0, 0], expected
    )
    at_rest = logits_of(world, np.array([[expected, 1.0 - expected]]))
    learner = one_step("grpo", world, group_size=2)
    moved = expected_ascent(learner, world, at_rest, every_group(2, 2), kl_coefficient=beta)
    assert largest(moved) < 1e-14


def test_two_arms_without_scaling_are_the_same_quadratic_with_the_gap():
    # Dr. GRPO's advantages in groups of two: half of the gap, against the published KL.
    world = two_arms(0.3, [1.7, 1.0])
    settings = {"kl": "published", "kl_coefficient": 0.5}
    expected = best_of_two(0.3, 0.5, gap=0.7 / 2)
    np.testing.assert_allclose(target("dr_grpo", world, group_size=2, **settings)[0, 0], expected)


@pytest.mark.parametrize(("q", "beta"), [(0.3, 1.0), (0.5, 0.5)])
def test_two_arms_in_large_groups_tend_to_the_closed_form(q, beta):
    world, limit = two_arms(q, [1.0, 0.0]), best_of_many(q, beta)
    errors = {}
    for size in (32, 64):
        rests = target("grpo", world, group_size=size, kl_coefficient=beta)
        errors[size] = abs(rests[0, 0] - limit)
        assert errors[size] < 1.0 / size
    assert errors[32] / errors[64] == pytest.approx(2.0, abs=0.5)
    learner = one_step("grpo", world, group_size=64)
    at_rest = logits_of(world, rests)
    moved = expected_ascent(learner, world, at_rest, groups_of_two_arms(64), kl_coefficient=beta)
    assert largest(moved) < 1e-12
    # And the limit is where q = pi (1 - P / beta) with P = (R - E R) / sd(R).
    p = math.sqrt((1.0 - limit) / limit)
    assert limit * (1.0 - p / beta) == pytest.approx(q, abs=1e-14)


def test_three_answers_to_one_question():
    # q = .3, beta = 1, rewards 1 apart: groups of many, of two, and the maximum of E[R] - KL.
    assert best_of_many(0.3, 1.0) == pytest.approx(0.739, abs=5e-4)
    assert best_of_two(0.3, 1.0) == pytest.approx(0.548, abs=5e-4)
    gibbs = targets.gibbs(np.array([0.3, 0.7]), np.array([1.0, 0.0]), 1.0)
    assert gibbs[0] == pytest.approx(0.538, abs=5e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_dr_grpo_shrinks_advantages_and_with_them_the_optimum(size):
    world = arms()
    rng = np.random.default_rng(0)
    policy, reward = rng.dirichlet(np.ones(5)), rewards_of(world)[0]
    p = brute_force_advantage(policy, reward, size, divide=False)
    share = 1.0 - 1.0 / size
    np.testing.assert_allclose(p, share * (reward - policy @ reward), atol=1e-14)
    expected = targets.gibbs(reference_of(world), share * rewards_of(world), BETA)
    np.testing.assert_allclose(
        target("dr_grpo", world, group_size=size, kl_coefficient=BETA), expected, atol=1e-11
    )
    at_rest = mean_ascent("dr_grpo", world, logits_of(world, expected), size, kl_coefficient=BETA)
    assert largest(at_rest) < 1e-14


# Dual gates


def reward_and_kl(world, policy):
    reference = reference_of(world)
    return float(np.sum(policy * rewards_of(world))), float(
        np.sum(policy * np.log(policy / reference))
    )


@pytest.mark.parametrize(
    ("dual", "reward", "kl"),
    [("product", 0.764, 0.180), ("geometric", 0.803, 0.194), ("two_sided", 0.685, 0.107)],
)
def test_a_dual_gate_with_the_kl_in_the_loss_gives_less_reward_at_less_kl(dual, reward, kl):
    world = arms()
    best = reward_and_kl(world, targets.gibbs(reference_of(world), rewards_of(world), BETA))
    assert best == pytest.approx((1.033, 0.487), abs=5e-4)
    rests = target("rgpo", world, dual=dual, kl="direct", kl_coefficient=BETA)
    assert reward_and_kl(world, rests) == pytest.approx((reward, kl), abs=5e-4)


@functools.cache
def exact_training(dual):
    """Function (parameters, beta) -> those after every 1,000 of 8,000 steps along the mean."""
    world = arms()
    learner = one_step("rgpo", world, group_size=2, dual=dual)
    groups = every_group(5, 2)

    @jax.jit
    def train(params, beta):
        def step(params, _):
            change = expected_ascent(
                learner, world, params, groups, compiled=False, kl_coefficient=beta
            )
            return jax.tree.map(lambda x, y: x + 0.5 * y, params, change), None

        def thousand(params, _):
            params, _ = jax.lax.scan(step, params, None, length=1000)
            return params, params

        return jax.lax.scan(thousand, params, None, length=8)[1]

    return train


# Of each gate, test_language_ratios holds what a step of these thousands does.
LIKE_GEOMETRIC = ("product", "two_sided")


@pytest.mark.parametrize(
    "dual",
    [pytest.param(x, marks=pytest.mark.slow) if x in LIKE_GEOMETRIC else x for x in DUALS],
)
def test_no_dual_gate_is_a_regulariser_and_each_rests_at_gibbs_with_a_kl_in_the_reward(dual):
    world, train = arms(), exact_training(dual)
    gibbs = targets.gibbs(reference_of(world), rewards_of(world), BETA)
    _, kl_of_gibbs = reward_and_kl(world, gibbs)

    def kl_of(params):
        policies = np.asarray(jax.nn.softmax(params["actor"][:, :, 0]))
        return np.array([reward_and_kl(world, policy)[1] for policy in policies])

    start = {"actor": world.frozen["logits"]}
    drifting = kl_of(train(start, 0.0))
    assert np.all(np.diff(drifting) > 1e-3), drifting
    assert drifting[-1] > 2.0 * kl_of_gibbs
    held = kl_of(train(start, BETA))
    assert held[-1] < 1.001 * kl_of_gibbs
    # A gate is almost closed for an answer that the target all but rules out: what is left of the
    # way to it is slow. From the target itself nothing moves.
    resting = train(logits_of(world, gibbs), BETA)
    np.testing.assert_allclose(
        jax.nn.softmax(resting["actor"][:, :, 0]), np.broadcast_to(gibbs, (8, 1, 5)), atol=1e-12
    )


def test_two_kls_settle_where_one_does_whatever_the_second():
    world = answers_that_end()
    for weight_of_old in (0.2, 5.0):
        settings = {"kl_coefficient": BETA, "old_kl_coefficient": weight_of_old}
        rests = target("dual_kl", world, **settings)
        np.testing.assert_allclose(
            rests, targets.gibbs(reference_of(world), rewards_of(world), BETA), atol=1e-11
        )
        assert largest(mean_ascent("dual_kl", world, logits_of(world, rests), **settings)) < 1e-11
