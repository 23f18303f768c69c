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
    ascent,
    every_group,
    exact_ascent,
    expected_ascent,
    groups_of_two_arms,
    in_float64,
    largest,
    logits_of,
    one_step,
)

from agents.language import GATED, dapo, gspo, load, rgpo
from envs.language import bandit, tree
from rgpo_jax.gates import weight
from rgpo_jax.language import advantages, objective, tabular, targets
from rgpo_jax.language.samples import Batch
from rgpo_jax.language.world import Enumeration, World, all_log_probs, expectations

pytestmark = pytest.mark.usefixtures("float64")

BETA = 0.5
DUALS = ("product", "geometric", "two_sided", "min")
TWO_ARMS = tabular.make(2, length=1)


@functools.cache
def arms(number=5):
    return in_float64(bandit.make(number, num_prompts=1))


@functools.cache
def answers_that_end():
    """Seven answers of one or two tokens."""
    return in_float64(tree.make(vocabulary=3, length=2, num_prompts=1, end_id=2))


@functools.cache
def answers_of_two_tokens():
    return in_float64(tree.make(vocabulary=2, length=2, num_prompts=1))


def two_arms(q, reward):
    logits = jnp.log(jnp.array([[[q, 1.0 - q]]]))
    enumeration = Enumeration(tabular.all_answers(2, 1), jnp.array([reward]))
    return World("two arms", jnp.arange(1), TWO_ARMS, {"logits": logits}, None, enumeration)


def reference_of(world):
    return np.asarray(jnp.exp(all_log_probs(world, None, world.frozen)))


def rewards_of(world):
    return np.asarray(world.enumeration.reward)


def somewhere(world, seed=3):
    noise = np.random.default_rng(seed).normal(size=world.frozen["logits"].shape)
    return {"actor": world.frozen["logits"] + noise}


def with_critic(world, params, value=0.0):
    return params | {"critic": jnp.full(world.frozen["logits"].shape[:-1], value)}


def target(method, world, **settings):
    module = load(method)
    config = module.Config(**{"num_prompts": 1, "num_minibatches": 1} | settings)
    is_dual = getattr(config, "dual", "none") != "none"
    reference, reward = reference_of(world), rewards_of(world)
    return targets.stationary_policy(config, module.gate(config), is_dual, reference, reward)


def mean_ascent(method, world, params, size=2, **settings):
    learner = one_step(method, world, group_size=size, **settings)
    number = len(world.enumeration.answers.tokens)
    return expected_ascent(learner, world, params, every_group(number, size))["actor"]


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
    ],
)
def test_no_target_is_given_where_none_is_known(method, settings):
    assert target(method, arms(), **settings) is None


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


@pytest.mark.parametrize("dual", DUALS)
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


# Ratios away from 1, on a single batch


@functools.cache
def of_tokens(policy):
    """Log-probabilities of tokens by params and by the reference; gradient of a sum of them."""

    def log_probs(params, frozen, prompts, answers):
        predicted = policy.predict(params, frozen, prompts, answers, 1.0)
        return predicted.log_prob, policy.reference(frozen, prompts, answers, 1.0)

    def total(params, frozen, prompts, answers, token_weights):
        return jnp.sum(token_weights * log_probs(params, frozen, prompts, answers)[0])

    return jax.jit(log_probs), jax.jit(jax.grad(total))


class Met:
    """One batch of answers, sampled by another policy than that which is trained."""

    def __init__(self, world, chosen, log_ratio, reward=None):
        self.world, self.chosen = world, np.array(chosen)
        self.params = somewhere(world)
        answers = jax.tree.map(lambda x: np.asarray(x)[self.chosen], world.enumeration.answers)
        self.prompts, self.mask = np.zeros(len(chosen), np.int32), answers.mask
        log_prob, self.log_prob_ref = map(
            np.asarray,
            of_tokens(world.policy)[0](self.params, world.frozen, self.prompts, answers),
        )
        self.log_ratio = np.where(self.mask, log_ratio, 0.0)
        self.log_ratio_ref = np.where(self.mask, log_prob - self.log_prob_ref, 0.0)
        old_log_prob = np.where(self.mask, log_prob - self.log_ratio, 0.0)
        self.answers = answers._replace(log_prob=old_log_prob)
        own = rewards_of(world)[0][self.chosen]
        self.reward = own if reward is None else np.array(reward, np.float64)

    def ascent(self, method, **settings):
        settings = {"group_size": len(self.chosen)} | settings
        learner = one_step(method, self.world, **settings)
        params = self.params
        if method == "ppo":
            params = with_critic(self.world, params)
        batch = Batch(self.prompts, self.answers, self.reward)
        return np.asarray(ascent(learner, self.world, params, batch)["actor"])

    def along(self, token_weights):
        """The sum of token_weights [n, T] times the gradient of each token's log-probability."""

        weights = np.where(self.mask, token_weights, 0.0)
        arguments = (self.params, self.world.frozen, self.prompts, self.answers, weights)
        return np.asarray(of_tokens(self.world.policy)[1](*arguments)["actor"])


def test_dapos_weight_is_the_ratio_up_to_its_wider_clip():
    config = dapo.Config()
    for r, a, expected in (
        (1.25, 1.0, 1.25),
        (1.3, 1.0, 0.0),
        (0.85, -1.0, 0.85),
        (0.75, -1.0, 0.0),
    ):
        assert float(weight(dapo.gate(config))(math.log(r), a)) == pytest.approx(
            expected, rel=1e-12
        )
        met = Met(arms(2), [0, 1], np.log([[r], [1.0]]), reward=[a, -a])
        weights = np.array([[expected * a], [-a]])
        np.testing.assert_allclose(met.ascent("dapo"), met.along(weights / 2), atol=1e-7)


def test_groups_of_equal_reward_change_neither_loss_nor_denominator():
    world = answers_that_end()
    long, short = 0, len(world.enumeration.answers.tokens) - 1
    lengths = np.asarray(jnp.sum(world.enumeration.answers.mask, axis=-1))
    assert lengths[long] == 2
    assert lengths[short] == 1
    alone = Met(world, [long, short], 0.1, reward=[1.0, 0.0])
    both = Met(world, [long, short, long, long], 0.1, reward=[1.0, 0.0, 0.5, 0.5])
    expected = alone.ascent("dapo")
    assert largest(expected) > 0.01
    twice = {"num_prompts": 2, "group_size": 2}
    np.testing.assert_allclose(both.ascent("dapo", **twice), expected, atol=1e-15)
    kept = both.ascent("dapo", **twice, drop_equal_groups=False)
    np.testing.assert_allclose(kept, expected * 3 / 7, atol=1e-15)  # 3 of its 7 tokens


def test_gspo_gives_an_answer_the_geometric_mean_of_its_ratios():
    world = answers_that_end()
    log_ratio = [[0.1, 0.2], [0.3, -0.1], [-0.2, 0.0], [0.05, 0.0]]
    met = Met(world, [0, 1, 6, 4], log_ratio, reward=[3.0, 1.0, 0.0, -1.0])
    length = met.mask.sum(axis=1, keepdims=True)
    assert sorted(length.ravel()) == [1, 2, 2, 2]
    s = np.exp(met.log_ratio.sum(axis=1, keepdims=True) / length)
    a = np.asarray(met.reward - met.reward.mean())[:, None] / np.std(met.reward)
    expected = met.along(s * a / length / 4)  # nothing is clipped
    wide = {"clip": 0.75, "clip_high": 0.75}
    np.testing.assert_allclose(met.ascent("gspo", **wide), expected, atol=1e-15)
    # Its own clip is so narrow that of these only answers that come back count.
    back = np.where(a > 0, s <= 1 + gspo.Config().clip_high, s >= 1 - gspo.Config().clip)
    assert 0 < back.sum() < 4
    np.testing.assert_allclose(met.ascent("gspo"), met.along(s * a * back / length / 4), atol=1e-15)


def test_gspo_of_single_tokens_is_the_ppo_clip():
    met = Met(arms(), [0, 1, 2, 3], np.array([[0.3], [-0.1], [0.1], [-0.3]]))
    clip = {"clip": 0.25, "clip_high": 0.25, "kl_coefficient": 0.0}
    expected = met.ascent("grpo", **clip)
    assert largest(expected) > 0.01
    np.testing.assert_allclose(met.ascent("gspo", **clip), expected, atol=1e-15)


def test_cispos_weight_is_the_ratio_cut_off_from_above():
    r = np.array([[7.0], [0.1], [3.0], [1.0]])
    met = Met(arms(), [0, 1, 2, 3], np.log(r))
    a = np.asarray(met.reward - met.reward.mean())[:, None] / np.std(met.reward)
    expected = met.along(np.minimum(r, 5.0) * a / 4)
    np.testing.assert_allclose(met.ascent("cispo"), expected, atol=1e-14)
    on_policy = Met(arms(), [0, 1, 2, 3], 0.0)
    expected = on_policy.ascent("reinforce", scale="group", kl_coefficient=0.0)
    np.testing.assert_allclose(on_policy.ascent("cispo"), expected, atol=1e-15)


def test_sapo_is_rgpos_gate_normalised():
    met = Met(arms(), [0, 1, 2, 3], np.array([[0.5], [-0.7], [0.2], [-0.1]]))
    same = {"baseline": "group", "scale": "group", "kl_coefficient": 0.0}
    same |= {"aggregation": "answer_mean"}
    expected = met.ascent("rgpo", dual="none", sharpness=2.0, normalize=True, **same)
    actual = met.ascent("sapo", temperature_positive=2.0, temperature_negative=2.0)
    np.testing.assert_allclose(actual, expected, atol=1e-15)
    assert largest(actual - met.ascent("sapo")) > 1e-3


@pytest.mark.parametrize("dual", DUALS)
def test_both_ratios_of_a_dual_gate_move_with_the_policy(dual):
    met = Met(arms(), [0, 1, 2, 3], np.array([[0.5], [-0.7], [0.2], [-0.1]]))
    gate = rgpo.gate(rgpo.Config(dual=dual))
    w = np.asarray(weight(gate)(met.log_ratio, np.ones((4, 1)), met.log_ratio_ref))
    a = np.asarray(met.reward - met.reward.mean())[:, None] * 4 / 3
    np.testing.assert_allclose(
        met.ascent("rgpo", dual=dual, kl_coefficient=0.0), met.along(w * a / 4), atol=1e-15
    )


# Two KLs in the place of a gate


def test_the_kl_to_the_policy_that_sampled_pulls_an_answer_back_by_its_log_ratio():
    """And that to the reference by the other: the weight is A - c l - a m, of whole answers."""
    world = answers_that_end()
    log_ratio = [[0.1, 0.2], [0.3, -0.1], [-0.2, 0.0], [0.05, 0.0]]
    met = Met(world, [0, 1, 6, 4], log_ratio, reward=[3.0, 1.0, 0.0, -1.0])
    advantage = np.asarray(met.reward - met.reward.mean())[:, None] * 4 / 3
    to_old = met.log_ratio.sum(axis=1, keepdims=True)
    to_reference = np.where(met.mask, met.log_ratio_ref, 0.0).sum(axis=1, keepdims=True)
    pulled = advantage - 0.7 * to_old - 0.3 * to_reference
    actual = met.ascent("dual_kl", old_kl_coefficient=0.7, kl_coefficient=0.3)
    np.testing.assert_allclose(actual, met.along(pulled / 4), atol=1e-15)


def test_two_kls_settle_where_one_does_whatever_the_second():
    world = answers_that_end()
    for weight_of_old in (0.2, 5.0):
        settings = {"kl_coefficient": BETA, "old_kl_coefficient": weight_of_old}
        rests = target("dual_kl", world, **settings)
        np.testing.assert_allclose(
            rests, targets.gibbs(reference_of(world), rewards_of(world), BETA), atol=1e-11
        )
        assert largest(mean_ascent("dual_kl", world, logits_of(world, rests), **settings)) < 1e-11


# PPO: tokens, padding, critic


MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)


def test_returns_to_go_are_hand_sums_and_padding_is_in_none():
    reward = jnp.array([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 9.0, 9.0], [7.0, 9.0, 9.0, 9.0]])
    reward = jnp.where(MASK, reward, 0.0)
    garbage = jnp.where(MASK, 0.0, jnp.nan)  # of a critic that looked at padding
    for value in (jnp.zeros((3, 4)), garbage):
        advantage, aim = advantages.token_advantages(reward, value, MASK, 1.0)
        expected = [[15, 14, 12, 8], [8, 5, 0, 0], [7, 0, 0, 0]]
        np.testing.assert_array_equal(advantage, expected)
        np.testing.assert_array_equal(aim, expected)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_a_perfect_critic_leaves_no_advantage(gae_lambda):
    rng = np.random.default_rng(0)
    reward = np.where(MASK, rng.normal(size=(3, 4)), 0.0)
    value = np.cumsum(reward[:, ::-1], axis=1)[:, ::-1]
    padded = jnp.where(MASK, value, 100.0)
    advantage, aim = advantages.token_advantages(jnp.asarray(reward), padded, MASK, gae_lambda)
    np.testing.assert_allclose(advantage, 0.0, atol=1e-15)
    np.testing.assert_allclose(aim, np.where(MASK, value, 0.0), atol=1e-15)


def test_generalised_advantages_are_the_recursion():
    rng = np.random.default_rng(1)
    reward, value = np.where(MASK, rng.normal(size=(2, 3, 4)), 0.0)
    actual, _ = advantages.token_advantages(jnp.asarray(reward), jnp.asarray(value), MASK, 0.7)
    expected = np.zeros((3, 4))
    for row, length in enumerate(MASK.sum(axis=1)):
        later = following = 0.0
        for t in reversed(range(length)):
            later = reward[row, t] + following - value[row, t] + 0.7 * later
            expected[row, t], following = later, value[row, t]
    np.testing.assert_allclose(actual, expected, atol=1e-15)


def test_whitening_is_over_the_mask_alone():
    advantage = jnp.where(MASK, jnp.arange(12.0).reshape(3, 4), 1e6)
    actual = np.asarray(advantages.whiten(advantage, MASK))
    inside = np.asarray(advantage)[MASK]
    np.testing.assert_allclose(actual[MASK], (inside - inside.mean()) / inside.std(), atol=1e-14)
    assert np.all(actual[~MASK] == 0.0)
    for constant in (0.0, 0.1, 1e6):
        flat = jnp.where(MASK, constant, jnp.nan)
        np.testing.assert_array_equal(advantages.whiten(flat, MASK), 0.0)


@pytest.mark.parametrize("whitened", [False, True])
def test_ppos_advantage_of_a_token_is_what_comes_from_there_on(whitened):
    world = answers_that_end()
    met = Met(world, [0, 1, 6, 4], [[0.1, 0.1], [-0.1, 0.1], [0.05, 0.0], [0.0, 0.1]])
    # The reward at the last token, and each token's KL of the policy that sampled.
    reward = -BETA * np.where(met.mask, met.answers.log_prob - met.log_prob_ref, 0.0)
    last = met.mask.sum(axis=1) - 1
    reward[np.arange(4), last] += met.reward
    advantage = np.where(met.mask, np.cumsum(reward[:, ::-1], axis=1)[:, ::-1], 0.0)
    if whitened:
        inside = advantage[met.mask]
        advantage = np.where(met.mask, (advantage - inside.mean()) / inside.std(), 0.0)
    expected = met.along(np.exp(met.log_ratio) * advantage / met.mask.sum())
    scale = "batch" if whitened else "none"
    actual = met.ascent("ppo", gae_lambda=1.0, kl_coefficient=BETA, scale=scale, clip=0.5)
    np.testing.assert_allclose(actual, expected, atol=1e-14)


# Aggregation, and KL of tokens and answers


def test_an_answers_share_of_the_loss_is_that_of_its_aggregation():
    lengths, answers, tokens, constant = MASK.sum(axis=1), 3, MASK.sum(), 4.0
    shares = {
        "token_mean": lengths / tokens,
        "answer_mean": np.ones(3) / answers,
        "token_sum": lengths / (answers * constant),
    }
    value = np.array([1.0, 10.0, 100.0])
    by_token = jnp.where(MASK, value[:, None], jnp.nan)
    for name, share in shares.items():
        actual = objective.aggregate(by_token, MASK, name, constant)
        assert actual == pytest.approx(share @ value, rel=1e-14), name
        nothing = objective.aggregate(by_token, np.zeros_like(MASK), name, constant)
        assert nothing == 0.0
    for name in ("sequence", "sequence_mean"):
        assert objective.aggregate(value, np.ones(3, bool), name) == pytest.approx(37.0)
        assert objective.aggregate(value, np.array([1, 0, 1], bool), name) == pytest.approx(50.5)


@pytest.mark.parametrize(
    ("aggregation", "shares"),
    [
        ("token_mean", [2 / 3, 1 / 3]),
        ("answer_mean", [1 / 2, 1 / 2]),
        ("token_sum", [2 / 8, 1 / 8]),
        ("sequence", [2 / 2, 1 / 2]),
        ("sequence_mean", [1 / 2, 1 / 2]),
    ],
)
def test_answers_of_equal_reward_weigh_by_their_length_as_the_aggregation_says(aggregation, shares):
    met = Met(answers_that_end(), [0, 6], 0.0, reward=[1.0, 1.0])
    length = met.mask.sum(axis=1, keepdims=True)
    expected = met.along(np.array(shares)[:, None] / length)
    settings = {"baseline": "none", "kl_coefficient": 0.0, "length_constant": 4.0}
    actual = met.ascent("reinforce", aggregation=aggregation, **settings)
    np.testing.assert_allclose(actual, expected, atol=1e-15)


@pytest.mark.parametrize("make", [answers_that_end, answers_of_two_tokens])
def test_the_kl_of_answers_is_the_expected_sum_of_that_of_their_tokens(make):
    world, params = make(), somewhere(make())
    answers = world.enumeration.answers
    prompts = jnp.zeros(len(answers.tokens), jnp.int32)
    log_prob = world.policy.predict(params, world.frozen, prompts, answers, 1.0).log_prob
    log_ref = world.policy.reference(world.frozen, prompts, answers, 1.0)
    mask, tokens = np.asarray(answers.mask), np.asarray(answers.tokens)
    # Of a token's whole distribution, by the probability to come to where it is chosen.
    table, reference = (
        np.asarray(jax.nn.log_softmax(x))[0] for x in (params["actor"], world.frozen["logits"])
    )
    vocabulary, length = table.shape[-1], mask.shape[-1]
    visits = np.zeros(len(table))
    probability = np.exp(np.where(mask, log_prob, 0.0).sum(axis=1))
    for p, answer, counts in zip(probability, tokens, mask, strict=True):
        prefix = 0
        for t in range(length):
            if counts[t]:
                visits[tabular.num_prefixes(vocabulary, t) + prefix] += p
            prefix = prefix * vocabulary + answer[t]
    chained = visits @ np.sum(np.exp(table) * (table - reference), axis=-1)
    k1 = probability @ np.where(mask, log_prob - log_ref, 0.0).sum(axis=1)
    exact = float(expectations(world, params, world.frozen).kl_ref)
    assert probability.sum() == pytest.approx(1.0, abs=1e-14)
    assert chained == pytest.approx(exact, abs=1e-14)
    assert k1 == pytest.approx(exact, abs=1e-14)
