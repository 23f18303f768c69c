"""What users of alignment libraries report, as tests: each is named by what goes wrong."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_probes import (
    ascent,
    every_group,
    expected_ascent,
    in_float64,
    largest,
    one_step,
)

from agents.language import grpo, ppo, rloo
from envs.language import bandit, tree
from rgpo_jax.config import ConfigError
from rgpo_jax.gates import importance
from rgpo_jax.language import agent as agents
from rgpo_jax.language import kl, objective
from rgpo_jax.language import learner as learners
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.config import Config
from rgpo_jax.language.samples import Batch, shape_reward, token_rewards
from rgpo_jax.language.world import expectations

MASK = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], bool)


@functools.cache
def answers_that_end():
    return tree.make(vocabulary=3, length=2, num_prompts=2, end_id=2)


@functools.cache
def full_batch():
    """An answer of one token and one of two, to each of two prompts; two of them are off policy."""
    world = in_float64(answers_that_end())
    answers = jax.tree.map(lambda x: x[jnp.array([0, 6, 3, 6])], world.enumeration.answers)
    prompts = jnp.array([0, 0, 1, 1])
    params = {"actor": world.frozen["logits"] + 0.5 * jnp.sin(jnp.arange(24.0).reshape(2, 4, 3))}
    log_prob = world.policy.predict(params, world.frozen, prompts, answers, 1.0).log_prob
    shift = jnp.array([[0.1, -0.05], [0.0, 0.0], [0.2, 0.1], [0.0, 0.0]])
    answers = answers._replace(log_prob=jnp.where(answers.mask, log_prob - shift, 0.0))
    return world, params, Batch(prompts, answers, jnp.array([1.0, 0.25, 0.5, 0.0]))


# Log-probabilities of the sampler and of training


@functools.cache
def trained_by_grpo(world_name):
    world = bandit.make() if world_name == "bandit" else answers_that_end()
    config = grpo.Config(num_prompts=4, group_size=4, learning_rate=0.1)
    return world, grpo.make(world, config)


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("world_name", ["bandit", "tree"])
def test_the_first_ratio_is_1_at_every_temperature(world_name, temperature):
    world, agent = trained_by_grpo(world_name)
    state = agent.init(jax.random.key(0), world.frozen, temperature=temperature)
    for _ in range(5):
        state, metrics = agent.step(state, world.frozen, world.prompts)
        assert float(metrics["first_ratio_deviation"]) < 1e-5
        assert float(metrics["kl_ref_k3"]) >= 0.0
    assert (
        largest(jax.tree.map(jnp.subtract, state.learner.params["actor"], world.frozen["logits"]))
        > 0.1
    )


def first_step(world, sample, recomputes=False, **settings):
    """Metrics of a first update whose answers another sampler has given."""
    config = grpo.Config(num_prompts=4, group_size=4, **settings)
    policy = world.policy._replace(sample=sample, recomputes=recomputes)
    agent = agents.make(policy, config, grpo.gate(config), world.reward)
    state = agent.init(jax.random.key(0), world.frozen)
    return agent.step(state, world.frozen, world.prompts)[1]


def test_a_sampler_that_forgets_the_temperature_is_seen_in_the_first_ratio():
    world = bandit.make()

    def forgetful(params, frozen, prompts, key, temperature):
        del temperature
        return world.policy.sample(params, frozen, prompts, key, 1.0)

    metrics = first_step(world, forgetful, temperature=0.6)
    assert float(metrics["first_ratio_deviation"]) > 0.1


def test_a_sampler_that_cuts_the_distribution_is_seen_in_the_first_ratio():
    world = bandit.make()

    def of_the_best_two(params, frozen, prompts, key, temperature):
        logits = params["actor"][prompts, 0] / temperature
        cut = jnp.where(logits >= jnp.sort(logits)[:, -2][:, None], logits, -jnp.inf)
        tokens = jax.random.categorical(key, cut)[:, None]
        mask = jnp.ones(tokens.shape, bool)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(cut), tokens, axis=1)
        return Answers(tokens, mask, log_prob, mask[:, 0])

    metrics = first_step(world, of_the_best_two)
    assert float(metrics["first_ratio_deviation"]) > 0.1


def test_a_sampler_that_rounds_is_measured_and_not_believed():
    world = bandit.make()

    def rounding(params, frozen, prompts, key, temperature):
        answers = world.policy.sample(params, frozen, prompts, key, temperature)
        return answers._replace(log_prob=answers.log_prob + jnp.array([[0.1], [-0.02]] * 8))

    metrics = first_step(world, rounding, recomputes=True)
    assert float(metrics["sampler_ratio_deviation"]) == pytest.approx(-math.expm1(-0.1), abs=1e-6)
    assert float(metrics["sampler_log_ratio"]) == pytest.approx(0.06, abs=1e-6)
    assert float(metrics["first_ratio_deviation"]) < 1e-6


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 0.0099, -1.0, math.nan])
def test_a_temperature_near_0_is_refused(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        Config(temperature=temperature)
    world, agent = trained_by_grpo("bandit")
    with pytest.raises(ValueError, match="temperature"):
        agent.init(jax.random.key(0), world.frozen, temperature=temperature)
    assert Config(temperature=0.01).temperature == 0.01


# Where answers end


def test_the_end_token_is_trained_though_it_is_the_padding_too():
    world = in_float64(tree.make(vocabulary=3, length=2, num_prompts=1, end_id=2))
    answers = world.enumeration.answers
    at_once = [list(map(int, row)) for row in answers.tokens].index([2, 2])
    assert answers.mask[at_once].tolist() == [True, False]  # by position, and not by token
    learner = one_step("reinforce", world, baseline="none", group_size=1, kl_coefficient=0.0)
    params = {"actor": world.frozen["logits"]}
    answer = jax.tree.map(lambda x: x[at_once : at_once + 1], answers)
    log_prob = jax.nn.log_softmax(params["actor"])[0, 0, 2]
    answer = answer._replace(log_prob=jnp.array([[1.0, 0.0]]) * log_prob)
    with jax.enable_x64(True):
        batch = Batch(jnp.array([0]), answer, jnp.ones(1))
        change = np.asarray(ascent(learner, world, params, batch)["actor"])[0]
    expected = np.eye(3)[2] - np.asarray(jax.nn.softmax(params["actor"]))[0, 0]
    np.testing.assert_allclose(change[0], expected, atol=1e-6)
    np.testing.assert_array_equal(change[1:], 0.0)  # and padding is not


def test_sampled_answers_are_masked_after_their_first_end_and_padded_with_it():
    world = answers_that_end()
    prompts = jnp.zeros(256, jnp.int32)
    params = {"actor": world.frozen["logits"]}
    answers = world.policy.sample(params, world.frozen, prompts, jax.random.key(1), 1.0)
    tokens, mask = np.asarray(answers.tokens), np.asarray(answers.mask)
    np.testing.assert_array_equal(mask[:, 0], True)
    np.testing.assert_array_equal(mask[:, 1], tokens[:, 0] != 2)
    np.testing.assert_array_equal(answers.ended, (tokens == 2).any(axis=1))
    assert np.all(tokens[~mask] == 2)
    assert np.all(np.asarray(answers.log_prob)[~mask] == 0.0)
    assert len({tuple(row) for row in tokens}) == len(world.enumeration.answers.tokens)


def test_the_reward_lies_on_the_last_token_of_an_answer_and_not_on_padding():
    penalty = jnp.array([[0.1, 0.2, 0.3], [0.4, 0.5, 9.0], [0.6, 9.0, 9.0]])
    actual = token_rewards(jnp.array([1.0, 2.0, 3.0]), jnp.asarray(MASK), penalty)
    # The first fills its space: no end token came, and no padding follows.
    expected = [[-0.1, -0.2, 0.7], [-0.4, 1.5, 0.0], [2.4, 0.0, 0.0]]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def answers_with(ended):
    nothing = jnp.zeros(MASK.shape)
    return Answers(nothing.astype(jnp.int32), jnp.asarray(MASK), nothing, jnp.asarray(ended))


def test_a_missing_end_replaces_the_reward():
    reward = jnp.array([5.0, 6.0, 7.0])
    answers = answers_with([False, True, True])
    np.testing.assert_array_equal(shape_reward(reward, answers, -1.0), [-1.0, 6.0, 7.0])
    np.testing.assert_array_equal(shape_reward(reward, answers, 0.0), [0.0, 6.0, 7.0])
    np.testing.assert_array_equal(shape_reward(reward, answers, None), reward)


def test_an_end_token_in_the_prompt_does_not_end_the_answer():
    # Prompt 2 has the number of the end token; its answers of other tokens have no end.
    world = tree.make(vocabulary=3, length=2, num_prompts=3, end_id=2)
    settings = {"baseline": "none", "kl_coefficient": 0.0, "missing_end": 0.5}
    learner = one_step("reinforce", world, group_size=1, **settings)
    params = {"actor": world.frozen["logits"]}
    tokens = [list(map(int, row)) for row in world.enumeration.answers.tokens]
    changes = {}
    for reward in (0.5, 100.0):
        for answer in ([0, 1], [0, 2]):
            i = tokens.index(answer)
            chosen = jax.tree.map(lambda x, i=i: x[i : i + 1], world.enumeration.answers)
            prompt = jnp.array([2])
            predicted = world.policy.predict(params, world.frozen, prompt, chosen, 1.0)
            batch = Batch(prompt, chosen._replace(log_prob=predicted.log_prob), jnp.array([reward]))
            changes[reward, answer[1]] = np.asarray(ascent(learner, world, params, batch)["actor"])
    np.testing.assert_array_equal(changes[0.5, 1], changes[100.0, 1])  # replaced
    np.testing.assert_allclose(changes[100.0, 2], 200.0 * changes[0.5, 2], rtol=1e-5)  # its own


def test_a_penalty_for_length_rises_over_the_last_tokens():
    reward = jnp.zeros(3)
    answers = answers_with([False, True, True])
    np.testing.assert_allclose(shape_reward(reward, answers, None, 2), [-1.0, -0.5, 0.0])
    np.testing.assert_allclose(shape_reward(reward, answers, None, 1), [-1.0, 0.0, 0.0])


# What the KL's gradient is of


@functools.cache
def divergences():
    """A bandit away from its reference, and the gradients there of four functionals."""
    world = in_float64(bandit.make(num_prompts=1))
    logits = world.frozen["logits"][0, 0]
    reference = jax.nn.log_softmax(logits)
    noisy = logits + jnp.array([0.5, -1.0, 0.3, 1.0, -0.2])

    def gradient(functional):
        def of_logits(logits):
            log_policy = jax.nn.log_softmax(logits)
            return functional(jnp.exp(log_policy), log_policy - reference)

        return np.asarray(jax.grad(of_logits)(noisy))

    constant = jax.nn.log_softmax(noisy) - reference
    gradients = {
        "none": np.zeros(5),
        "KL(pi || ref)": gradient(lambda p, m: p @ m),
        "KL(ref || pi)": gradient(lambda p, m: -jnp.exp(reference) @ m),
        "E[d^2 / 2]": gradient(lambda p, m: p @ (0.5 * m**2)),
        "of no divergence": gradient(lambda p, m: p @ (0.5 * constant**2)),
    }
    gradients["KL(pi || ref) - KL(ref || pi)"] = (
        gradients["KL(pi || ref)"] - gradients["KL(ref || pi)"]
    )
    return world, noisy, reference, gradients


PLACES = [
    ("reward", "k1", "KL(pi || ref)"),
    ("reward", "k2", "of no divergence"),
    ("reward", "k3", "KL(pi || ref) - KL(ref || pi)"),
    ("published", "k1", "none"),
    ("published", "k2", "KL(pi || ref)"),
    ("published", "k3", "KL(ref || pi)"),
    ("direct", "k1", "KL(pi || ref)"),
    ("direct", "k2", "E[d^2 / 2]"),
    ("direct", "k3", "KL(pi || ref)"),
]


def test_what_the_kls_gradient_may_be_differs():
    with jax.enable_x64(True):
        gradients = list(divergences()[-1].values())
    for i, one in enumerate(gradients):
        for other in gradients[:i]:
            assert np.max(np.abs(one - other)) > 0.02


@pytest.mark.parametrize(("place", "estimator", "divergence"), PLACES)
def test_the_kl_has_the_gradient_that_it_is_said_to_have(place, estimator, divergence):
    with jax.enable_x64(True):
        world, noisy, reference, gradients = divergences()
        if place == "reward":
            settings = {"kl": place, "kl_estimator": estimator, "kl_coefficient": 0.5}
            learner = one_step("reinforce", world, baseline="none", group_size=1, **settings)
            enumeration = world.enumeration._replace(reward=jnp.zeros((1, 5)))
            world = world._replace(enumeration=enumeration)
            params = {"actor": noisy[None, None]}
            change = expected_ascent(learner, world, params, every_group(5, 1))["actor"]
            actual = -change[0, 0]
        else:
            config = Config(kl=place, kl_estimator=estimator, aggregation="token_mean")
            old = jax.nn.log_softmax(noisy)

            def loss(logits):  # of each arm, on its own
                log_prob = jax.nn.log_softmax(logits)
                arms = (x[:, None, None] for x in (log_prob, old, reference))
                return jax.vmap(
                    lambda new, old, ref: objective.policy_loss(
                        config,
                        importance(),
                        False,
                        objective.terms(
                            "token_mean", new, old, ref, jnp.zeros((1, 1)), jnp.ones((1, 1), bool)
                        ),
                        0.5,
                        1.0,
                    )
                )(*(x[..., None] if x.ndim < 3 else x for x in arms))

            actual = jnp.exp(old) @ jax.jacobian(loss)(noisy)
        np.testing.assert_allclose(actual, 0.5 * gradients[divergence], atol=1e-14)


def test_estimates_are_unbiased_and_finite_far_away():
    with jax.enable_x64(True):
        _, noisy, reference, _ = divergences()
        log_policy = jax.nn.log_softmax(noisy)
        exact = jnp.exp(log_policy) @ (log_policy - reference)
        for name in ("k1", "k3"):
            estimate = jnp.exp(log_policy) @ kl.ESTIMATORS[name](log_policy - reference)
            assert float(estimate) == pytest.approx(float(exact), abs=1e-14)
    for estimator in kl.ESTIMATORS.values():
        for m in (-1e4, 1e4):
            assert math.isfinite(float(estimator(jnp.float32(m))))
            assert math.isfinite(float(jax.grad(estimator)(jnp.float32(m))))


# Groups of equal reward


@pytest.mark.parametrize("dropped", [False, True])
def test_groups_of_equal_reward_are_counted_and_may_be_left_out(dropped):
    world = answers_that_end()
    settings = {"num_prompts": 2, "group_size": 2, "kl_coefficient": 0.5}
    config = grpo.Config(**settings, num_minibatches=1, drop_equal_groups=dropped)
    agent = grpo.make(world, config)
    state = agent.init(jax.random.key(0), world.frozen)
    # Away from the reference, where the KL pushes whatever the reward.
    params = {"actor": world.frozen["logits"] + 0.5 * jnp.arange(3.0)}
    learner = state.learner._replace(params=params)
    update = jax.jit(agent.learner.update)
    state, prompts, answers = agent.sample(
        state._replace(learner=learner), world.frozen, world.prompts
    )
    for reward, share in (
        ([0.1, 0.1, 0.3, 0.3], 1.0),
        ([0.1, 0.1, 0.3, 0.4], 0.5),
        ([0.2, 0.1, 0.3, 0.4], 0.0),
    ):
        after, metrics = update(learner, world.frozen, Batch(prompts, answers, jnp.array(reward)))
        assert float(metrics["equal_groups"]) == share
        moved = largest(jax.tree.map(jnp.subtract, after.params, params)) > 0
        assert moved == (not dropped or share < 1)


# Steps that are not finite


@functools.cache
def breaking():
    """A learner whose policy says NaN of log-probabilities of arms that `frozen` calls bad."""
    world = bandit.make(num_prompts=1)

    def predict(params, frozen, encoded, answers, temperature):
        predicted = world.policy.predict(params, frozen, encoded, answers, temperature)
        is_bad = frozen["bad"][answers.tokens]
        return predicted._replace(log_prob=predicted.log_prob * jnp.where(is_bad, jnp.nan, 1.0))

    config = Config(
        num_prompts=1,
        group_size=2,
        num_epochs=3,
        num_minibatches=2,
        learning_rate=0.1,
        baseline="none",
    )
    policy = world.policy._replace(predict=predict)
    learner = learners.make(policy, config, importance())
    return world, learner._replace(update=jax.jit(learner.update))


@pytest.mark.parametrize(("bad", "share"), [([], 0.0), ([4], 0.5), ([0, 4], 1.0)])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad, share):
    world, learner = breaking()
    frozen = world.frozen | {"bad": jnp.isin(jnp.arange(5), jnp.array(bad))}
    state = learner.init(jax.random.key(0), frozen, learner.hyperparameters)
    answers = jax.tree.map(lambda x: x[jnp.array([0, 4])], world.enumeration.answers)
    log_prob = world.policy.predict(state.params, world.frozen, jnp.zeros(2, int), answers, 1.0)
    answers = answers._replace(log_prob=log_prob.log_prob)
    batch = Batch(jnp.zeros(2, int), answers, jnp.array([1.0, 2.0]))
    after, metrics = learner.update(state, frozen, batch)
    assert float(metrics["nonfinite_step_rate"]) == share
    assert float(metrics["gradient_step_rate"]) == 1.0 - share
    assert bool(learners.is_broken(metrics)) == (share == 1.0)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(after.params))
    assert (largest(jax.tree.map(jnp.subtract, after.params, state.params)) > 0) == (share < 1)
    # Adam has counted the steps that were taken, and no others.
    counts = [x for x in jax.tree.leaves(after.optimizer_state) if x.dtype == jnp.int32]
    assert counts and all(int(x) == round(6 * (1 - share)) for x in counts)


# Sums over parts


CUT = [("token_mean", False), ("sequence", False), ("answer_mean", True)]
MORE = [("answer_mean", False), ("token_sum", False), ("sequence_mean", False)]


@pytest.mark.parametrize(
    ("aggregation", "dropped"),
    CUT + [pytest.param(*case, marks=pytest.mark.slow) for case in MORE],
)
def test_the_gradient_does_not_depend_on_microbatches_nor_on_the_order(aggregation, dropped):
    with jax.enable_x64(True):
        world, params, batch = full_batch()
        if dropped:  # the second group counts in no mean
            batch = batch._replace(reward=jnp.array([1.0, 0.25, 0.5, 0.5]))
        settings = {"num_prompts": 2, "group_size": 2, "kl_coefficient": 0.1}
        settings |= {"aggregation": aggregation, "drop_equal_groups": dropped}

        def gradient(batch, size):
            learner = one_step("grpo", world, microbatch_size=size, **settings)
            return np.asarray(ascent(learner, world, params, batch)["actor"])

        whole = gradient(batch, None)
        assert largest(whole) > 0.01
        np.testing.assert_allclose(gradient(batch, 1), whole, atol=1e-12)
        learner = one_step("grpo", world, **settings)
        for order in ([1, 0, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1]):
            moved = jax.tree.map(lambda x, order=order: x[jnp.array(order)], batch)
            actual = np.asarray(ascent(learner, world, params, moved)["actor"])
            np.testing.assert_allclose(actual, whole, atol=1e-12)


# The coefficient that adapts


@functools.cache
def adapting():
    world = bandit.make()
    config = rloo.Config(
        num_prompts=16,
        group_size=8,
        learning_rate=0.03,
        kl_coefficient=2.0,
        kl_target=0.3,
        kl_horizon=2000.0,
        num_updates=1500,
    )
    agent = rloo.make(world, config)

    @jax.jit
    def train(state):
        def step(state, _):
            state, metrics = agent.step(state, world.frozen, world.prompts)
            return state, (metrics["kl_ref_k1"], metrics["kl_coefficient"])

        return jax.lax.scan(step, state, None, length=config.num_updates)

    state, told = train(agent.init(jax.random.key(0), world.frozen))
    return world, config, state, *map(np.asarray, told)


def test_the_coefficient_moves_by_zieglers_formula():
    _, config, state, met, coefficient = adapting()
    assert coefficient[0] == 2.0
    error = np.clip(met / config.kl_target - 1.0, -0.2, 0.2)
    expected = coefficient * (1.0 + error * config.batch_size / config.kl_horizon)
    coefficient = np.append(coefficient[1:], state.learner.kl_coefficient)
    np.testing.assert_allclose(coefficient, expected, rtol=1e-6)


def test_the_coefficient_brings_the_kl_to_its_target():
    world, config, state, met, coefficient = adapting()
    # Held too close at first; then the coefficient falls, and with it what holds the policy.
    assert met[20:50].mean() < config.kl_target / 2
    assert coefficient[-1] < 0.6 * coefficient[0]
    exact = expectations(world, state.learner.params, world.frozen).kl_ref
    assert float(exact) == pytest.approx(config.kl_target, rel=0.1)


# Going on


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _order_of(key, start, updates, num_prompts, num_all):
    of = jax.vmap(lambda i: agents.prompts_of_update(key, i, num_prompts, num_all))
    return of(start + jnp.arange(updates, dtype=jnp.int32))


def order_of(*arguments):
    return np.asarray(_order_of(*arguments))


@pytest.mark.parametrize(("num_prompts", "num_all"), [(4, 12), (5, 12), (3, 1), (10, 4), (8, 4)])
def test_every_prompt_comes_once_a_round(num_prompts, num_all):
    updates = 3 * num_all
    drawn = order_of(jax.random.key(3), 0, updates, num_prompts, num_all)
    rounds = drawn.reshape(-1, num_all)
    np.testing.assert_array_equal(
        np.sort(rounds, axis=1), np.broadcast_to(np.arange(num_all), rounds.shape)
    )
    if num_all > 3:
        assert len({tuple(x) for x in rounds}) > 1  # shuffled anew
    # The position in the data follows from the number of updates, and the order from the key.
    np.testing.assert_array_equal(
        order_of(jax.random.key(3), 2, updates, num_prompts, num_all)[:-2], drawn[2:]
    )
    if num_all > 1:
        assert np.any(order_of(jax.random.key(4), 0, updates, num_prompts, num_all) != drawn)


def to_host(tree):
    """Plain arrays of NumPy, as a file would hold them."""
    return jax.device_get(
        jax.tree.map(
            lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
            tree,
        )
    )


def from_host(stored, like):
    return jax.tree.map(
        lambda x, y: (
            jax.random.wrap_key_data(jnp.asarray(x))
            if jnp.issubdtype(y.dtype, jax.dtypes.prng_key)
            else jnp.asarray(x)
        ),
        stored,
        like,
    )


def test_a_run_that_goes_on_is_the_run_that_never_stopped():
    world = tree.make(end_id=3)
    config = ppo.Config(num_prompts=3, group_size=4, learning_rate=0.01, kl_target=0.5)
    agent = ppo.make(world, config)
    state = agent.init(jax.random.key(0), world.frozen)
    like = jax.eval_shape(lambda: state)
    for i in range(6):
        state, metrics = agent.step(state, world.frozen, world.prompts)
        if i == 2:
            stored = to_host(state)
    again = from_host(stored, like)
    for _ in range(3):
        again, told = agent.step(again, world.frozen, world.prompts)
    jax.tree.map(np.testing.assert_array_equal, to_host(again), to_host(state))
    jax.tree.map(np.testing.assert_array_equal, to_host(told), to_host(metrics))
    assert float(state.learner.kl_coefficient) != config.kl_coefficient


def test_progress_is_told_by_reward_and_gradient_where_the_loss_says_nothing():
    # On policy the advantages of a group add up to 0, and so does the loss; its gradient does not.
    world, agent = trained_by_grpo("bandit")
    state = agent.init(jax.random.key(0), world.frozen)
    _, metrics = agent.step(state, world.frozen, world.prompts)
    assert float(metrics["grad_norm"]) > 0.01
    assert {"sampled_reward", "kl_ref_k1", "kl_ref_k3", "entropy"} <= set(metrics)
