"""Methods that learn from pairs, by sampling: where they settle, and what an update does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from language_probes import plain_descent

from agents import language as methods
from envs.language import bandit, tree
from rgpo_jax.config import ConfigError
from rgpo_jax.language import contrasts, pair_agent, pair_learner, pair_targets
from rgpo_jax.language.pair_config import DataConfig
from rgpo_jax.language.samples import Batch
from rgpo_jax.language.world import all_log_probs
from rgpo_jax.tunable import Tunable

BETA = 0.5


def train(method, world, num_updates, seeds=2, numbers=None, **settings):
    """The policies [seeds, N, M] and the last metrics, of seeds side by side.

    With `numbers`, name -> a value for each seed, these take the place of the settings.
    """
    module = methods.load(method)
    config = module.Config(num_updates=num_updates, max_grad_norm=10.0, **settings)
    agent = module.make(world, config)

    def of_seed(key, numbers):
        def step(state, _):
            return agent.step(state, world.frozen, world.prompts)

        state = agent.init(key, world.frozen, **numbers)
        state, metrics = jax.lax.scan(step, state, length=num_updates)
        policy = jnp.exp(all_log_probs(world, state.learner.params, world.frozen))
        return policy, {name: x[-1] for name, x in metrics.items()}

    keys = jax.random.split(jax.random.key(1), seeds)
    numbers = {name: jnp.array(values) for name, values in (numbers or {}).items()}
    return jax.jit(jax.vmap(of_seed))(keys, numbers)


def reference_of(world):
    return np.exp(np.asarray(all_log_probs(world, None, world.frozen)))


@pytest.mark.parametrize(
    ("method", "settings", "error"),
    [
        ("dpo", {"labels": "exact"}, 2e-4),
        # As DPO but for their losses, whose minima are held in test_pair_losses.
        pytest.param("ipo", {"labels": "exact"}, 2e-2, marks=pytest.mark.slow),
        pytest.param("rpo", {"labels": "exact", "eta": 0.3}, 2e-2, marks=pytest.mark.slow),
        ("rebel", {}, 2e-3),
        ("online_dpo", {}, 8e-2),
    ],
)
def test_a_method_settles_at_its_target(method, settings, error):
    world = bandit.make(num_prompts=2)
    settings = {"num_prompts": 64, "learning_rate": 0.02, "kl_coefficient": BETA, **settings}
    policy, _ = train(method, world, 1000, **settings)
    config = methods.load(method).Config(**settings)
    reference = reference_of(world)
    target = pair_targets.settled(method, config, reference, np.asarray(world.enumeration.reward))
    assert np.abs(target - reference).max() > 0.1
    assert np.abs(policy - target).max() < error


def test_answers_of_several_tokens_are_contrasted_as_a_whole():
    world = tree.make(vocabulary=3, length=2, num_prompts=1, end_id=0)
    settings = {"num_prompts": 64, "learning_rate": 0.02, "kl_coefficient": BETA}
    policy, _ = train("reward_distillation", world, 1500, **settings)
    config = methods.load("reward_distillation").Config(**settings)
    target = pair_targets.settled(
        "reward_distillation", config, reference_of(world), np.asarray(world.enumeration.reward)
    )
    assert np.abs(policy - target).max() < 5e-3


def test_dpo_may_let_go_of_the_chosen_answers_and_rpo_holds_them():
    """Few pairs: answers that no pair has take the probability of those that one has."""
    world = bandit.make(num_arms=20, num_prompts=1)
    settings = {"num_pairs": 8, "num_prompts": 8, "learning_rate": 0.05, "kl_coefficient": 0.1}
    # Without its second term RPO is DPO.
    etas = {"eta": [0.0, 0.0, 1.0, 1.0]}
    _, metrics = train("rpo", world, 400, seeds=4, numbers=etas, **settings)
    of_dpo, of_rpo = np.split(metrics["chosen_log_ratio"], 2)
    assert np.min(of_rpo) > np.max(of_dpo)
    assert np.all(metrics["accuracy"][:2] > 0.5)


# What an update is made of.


def batch_of(world, agent, seed=0):
    state = jax.jit(agent.init)(jax.random.key(seed), world.frozen)
    state, asked, answers = jax.jit(agent.sample)(state, world.frozen, world.prompts)
    return state, Batch(asked, answers, world.reward(asked, answers))


def test_pairs_are_the_best_and_the_worst_and_ties_are_counted():
    world = bandit.make(num_prompts=4)
    module = methods.load("online_dpo")
    config = module.Config(labels="reward", num_prompts=4, group_size=3, learning_rate=0.1)
    agent = module.make(world, config, optimizer=plain_descent)
    with pytest.raises(ValueError, match=r"optimizer: a Gradient.*expected a function"):
        module.make(world, config, optimizer=optax.sgd(0.1))
    state, batch = batch_of(world, agent)
    tied = batch._replace(reward=jnp.array([3, 1, 2] + [0, 0, 0] * 3, jnp.float32))
    after, metrics = jax.jit(agent.update)(state, world.frozen, tied)
    assert metrics["tied_pairs"] == 0.75
    change = after.learner.params["actor"] - state.learner.params["actor"]
    # Only the first prompt's pair counts, and a mean over the pairs that count is taken.
    tokens = np.asarray(batch.answers.tokens)[:, 0]
    expected = np.zeros(change.shape)
    prompt = int(batch.prompts[0])
    expected[prompt, 0, tokens[0]] += 0.5 * config.kl_coefficient
    expected[prompt, 0, tokens[1]] -= 0.5 * config.kl_coefficient
    np.testing.assert_allclose(change, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "pairing"), [("rebel", "neighbours"), ("online_dpo", "best_worst")]
)
def test_own_answers_are_read_once_and_what_was_read_goes_with_them(method, pairing, monkeypatch):
    """Encoding, and the reference, are most of what an update of a real model costs."""
    world = tree.make(num_prompts=2, end_id=3)
    encoded, seen = [], []

    def encode(frozen, prompts, answers):
        encoded.append(len(answers.tokens))
        return world.policy.encode(frozen, prompts, answers)

    def make(*args, **parts):
        learner = made(*args, **parts)

        def update(state, frozen, pairs):
            seen.append(pairs)
            return learner.update(state, frozen, pairs)

        return learner._replace(update=update)

    made = pair_learner.make
    monkeypatch.setattr(pair_learner, "make", make)
    module = methods.load(method)
    config = module.Config(num_prompts=4, group_size=4, pairing=pairing, num_minibatches=1)
    agent = module.make(world._replace(policy=world.policy._replace(encode=encode)), config)

    @jax.jit
    def update(key):
        state = agent.init(key, world.frozen)
        state, asked, answers = agent.sample(state, world.frozen, world.prompts)
        batch = Batch(asked, answers, world.reward(asked, answers))
        after, _ = agent.update(state, world.frozen, batch)
        assert encoded == [16]
        (pairs,) = seen
        again, _ = agent.learner.update(state.learner, world.frozen, pairs._replace(read=None))
        assert encoded == [16, 2 * len(pairs.gap)]
        return state.learner.params, after.learner.params, again.params

    before, after, again = update(jax.random.key(0))
    assert np.any(before["actor"] != after["actor"])
    np.testing.assert_allclose(after["actor"], again["actor"], rtol=1e-5, atol=1e-6)


def test_an_update_without_any_pair_that_counts_changes_nothing():
    world = bandit.make(num_prompts=4)
    module = methods.load("online_dpo")
    agent = module.make(world, module.Config(labels="reward", num_prompts=4, learning_rate=0.1))
    state, batch = batch_of(world, agent)
    equal = batch._replace(reward=jnp.zeros_like(batch.reward))
    after, metrics = jax.jit(agent.update)(state, world.frozen, equal)
    assert metrics["tied_pairs"] == 1.0
    assert metrics.weights["margin"] == 0
    np.testing.assert_array_equal(after.learner.params["actor"], state.learner.params["actor"])


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("kto", {"num_prompts": 8, "microbatch_size": 4}, "of which the KL is estimated"),
        ("kto", {"num_prompts": 1}, "at least 2 pairs"),
        ("rebel", {"group_size": 3}, "an even number with pairing neighbours"),
        ("dpo", {"num_pairs": 1}, "at least 2, or None"),
        ("zpg", {"feedback": "sign", "trim": 0.1}, "goes with feedback each or pooled"),
        ("zpg", {"num_prompts": 6, "num_directions": 4}, "a divisor of num_prompts = 6"),
    ],
)
def test_settings_that_go_together_badly_are_refused(method, settings, message):
    with pytest.raises(ConfigError, match=message):
        methods.load(method).Config(**settings)


def test_rpo_with_a_beta_that_newton_s_method_cannot_take_has_no_target():
    world = bandit.make()
    config = methods.load("rpo").Config(kl_coefficient=0.001)
    reward = np.asarray(world.enumeration.reward)
    assert pair_targets.settled("rpo", config, reference_of(world), reward) is None


@pytest.mark.parametrize("method", ["dpo", "rebel"])
def test_microbatches_give_the_gradient_of_all(method):
    world = tree.make()
    module, changes = methods.load(method), []
    for size in (None, 2):
        config = module.Config(num_prompts=8, num_epochs=1, microbatch_size=size)
        agent = module.make(world, config, optimizer=plain_descent)
        state = agent.init(jax.random.key(2), world.frozen)
        after, _ = jax.jit(agent.step)(state, world.frozen, world.prompts)
        changes.append(after.learner.params["actor"] - state.learner.params["actor"])
    assert np.abs(changes[0]).max() > 1e-3
    np.testing.assert_allclose(changes[0], changes[1], atol=1e-7)


def test_a_made_pair_is_known_by_its_number_alone():
    world = bandit.make()
    source = pair_agent.made_of_reference(world.policy, world.reward, "sampled")
    agent = pair_agent.from_data(
        world.policy, DataConfig(), Tunable(contrasts.dpo), source, optimizer=plain_descent
    )
    state = agent.init(jax.random.key(0), world.frozen)
    made = jax.jit(source)
    many = made(state, world.frozen, world.prompts, jnp.arange(2000))
    some = made(state, world.frozen, world.prompts, jnp.array([1999, 7, 7]))
    for ours, other in zip(jax.tree.leaves(some), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(ours, other[jnp.array([1999, 7, 7])])
    # Labels follow Bradley and Terry's model.
    for low, high in ((0.0, 0.5), (0.5, 1.0), (1.0, 3.0)):
        size = jnp.abs(many.gap)
        near = (size > low) & (size <= high)
        won, expected = (
            float(jnp.mean(x, where=near)) for x in (many.gap > 0, jax.nn.sigmoid(size))
        )
        # A standard deviation is at most 1 / (2 sqrt(n)).
        assert abs(won - expected) < 2.5 / np.sqrt(float(jnp.sum(near)))


@pytest.mark.parametrize(("num_pairs", "period"), [(6, 6), (None, None)])
def test_pairs_come_in_turn_and_none_is_met_twice_in_a_round(num_pairs, period):
    world, told = bandit.make(), []
    made = pair_agent.made_of_reference(world.policy, world.reward, "sampled")

    def source(state, frozen, data, which):
        told.append(which)
        return made(state, frozen, data, which)

    config = DataConfig(num_pairs=num_pairs, num_prompts=2)
    agent = pair_agent.from_data(world.policy, config, Tunable(contrasts.dpo), source)

    @jax.jit
    def update(state):
        state, _ = agent.update(state, world.frozen, world.prompts)
        return state, told[-1]

    state, met = agent.init(jax.random.key(0), world.frozen), []
    for _ in range(6):
        state, which = update(state)
        met.append(which)
    numbers = np.concatenate(met)
    if period is None:
        np.testing.assert_array_equal(numbers, np.arange(12))
    else:
        np.testing.assert_array_equal(np.sort(numbers[:6]), np.arange(6))
        np.testing.assert_array_equal(np.sort(numbers[6:]), np.arange(6))
        assert not np.array_equal(numbers[:6], numbers[6:])


def test_the_kl_of_kto_is_of_the_answers_of_other_pairs():
    world = bandit.make(num_prompts=3)
    seen = []

    def loss(contrast, beta):
        jax.debug.callback(lambda x: seen.append(float(x)), contrast.kl)
        return contrasts.dpo(contrast, beta)

    config = DataConfig(num_prompts=3)
    learner = pair_learner.make(world.policy, config, Tunable(loss), mismatched=True)
    state = learner.init(jax.random.key(0), world.frozen, learner.hyperparameters)
    rng = np.random.default_rng(0)
    moved = {"actor": state.params["actor"] + jnp.asarray(rng.normal(size=(3, 1, 5)), jnp.float32)}
    state = state._replace(params=moved)
    made = pair_agent.made_of_reference(world.policy, world.reward, "exact")
    agent = pair_agent.from_data(world.policy, config, Tunable(loss), made)
    whole = agent.init(jax.random.key(0), world.frozen)
    pairs = jax.jit(made)(whole, world.frozen, world.prompts, jnp.arange(3))
    jax.jit(learner.update)(state, world.frozen, pairs)
    log_pi = np.asarray(all_log_probs(world, moved, world.frozen))
    log_ref = np.asarray(all_log_probs(world, None, world.frozen))
    tokens = np.stack([pairs.chosen.tokens[:, 0], pairs.rejected.tokens[:, 0]], axis=1)
    prompts = np.asarray(pairs.prompts)[:, None]
    others = np.roll(tokens, 1, axis=0)
    expected = np.mean((log_pi - log_ref)[prompts, others])
    jax.effects_barrier()
    np.testing.assert_allclose(seen[0], expected, rtol=1e-5)
