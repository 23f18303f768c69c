"""Recurrent policies: what they remember, what they forget and when, and that it is of use."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import Recall

import agents
from experiments.training import devices
from rgpo_jax import advantages, networks, rollout, samples, shuffle, train
from rgpo_jax.agent import AgentState
from rgpo_jax.config import Config, ConfigError
from rgpo_jax.environment import Box, Discrete
from rgpo_jax.networks import Sequence

T, B, H = 7, 4, 5  # episodes of three steps: rollouts begin and end in the middle of one
SETTINGS = {
    "network": "gru",
    "num_steps": T,
    "num_envs": B,
    "num_epochs": 1,
    "num_minibatches": 1,
    "hidden_sizes": (6,),
    "recurrent_size": H,
    "total_steps": 100 * T * B,
    "learning_rate": 1e-2,
}
FLOAT_ERROR = {"rtol": 1e-5, "atol": 1e-6}


def make(name="reinforce", env=None, axis_name=None, **settings):
    module = agents.load(name)
    config = module.Config(**(SETTINGS | settings))
    return module.make(env or Recall(), config, axis_name=axis_name)


@functools.cache
def two_rollouts(dies=False):
    """An agent, its state, and [(rollout state before, trajectory, rollout state after), ...].

    Heads and observations are made larger than they are at first: all that is remembered shows.
    """
    agent = make(env=Recall(dies))

    @jax.jit
    def run():
        state = agent.init(jax.random.key(0))
        large = jax.tree.map(lambda x: x + 0.3, state.learner.params)
        learner, rollout_state = state.learner._replace(params=large), state.rollout
        policy, records = functools.partial(agent.learner.policy, learner), []
        for key in jax.random.split(jax.random.key(1), 2):
            before = rollout_state
            rollout_state, trajectory, _ = rollout.collect(agent.env, policy, before, key, T, 4)
            records.append((before, trajectory, rollout_state))
        return learner, records

    return agent, *run()


@functools.cache
def one_step():
    """(params, memory, s_t, a_t, s'_t) -> V(s_t), log pi(a_t), V(s'_t), memory."""
    agent, *_ = two_rollouts()
    network, no = agent.learner.network, jnp.zeros((B, 1), bool)

    @jax.jit
    def step(params, memory, observation, action, final_observation):
        def value(observation, memory):
            return network.value(params["critic"], Sequence(observation[:, None], no, memory))[:, 0]

        policy, after = network.recurrence.step(params, observation, memory)
        log_prob, next_value = policy.log_prob(action), value(final_observation, after)
        return value(observation, memory), log_prob, next_value, after

    return step


def step_by_step(params, before, trajectory):
    """The definition: one step at a time, memories set to zero by hand after an episode's end."""
    memory, log_probs, values, next_values = before.memory, [], [], []
    step = one_step()
    for t in range(T):
        value, log_prob, next_value, memory = step(
            params,
            memory,
            trajectory.observation[t],
            trajectory.action[t],
            trajectory.final_observation[t],
        )
        values.append(value)
        log_probs.append(log_prob)
        next_values.append(next_value)
        done = np.asarray(trajectory.terminated[t] | trajectory.truncated[t])
        memory = {name: jnp.asarray(np.asarray(m) * ~done[:, None]) for name, m in memory.items()}
    return memory, *map(jnp.stack, (log_probs, values, next_values))


@functools.cache
def unrolled():
    """(params, trajectory) -> V(s_t), V(s'_t), as the update sees them."""
    agent, *_ = two_rollouts()
    return jax.jit(
        lambda params, trajectory: samples.bootstrap_values(
            agent.learner.network, params["critic"], trajectory, 3
        )
    )


def test_whole_sequences_are_what_was_acted_step_by_step():
    _, learner, records = two_rollouts()
    for before, trajectory, after in records:
        memory, log_probs, values, next_values = step_by_step(learner.params, before, trajectory)
        np.testing.assert_allclose(trajectory.log_prob, log_probs, **FLOAT_ERROR)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **FLOAT_ERROR), after.memory, memory
        )
        actual = unrolled()(learner.params, trajectory)
        np.testing.assert_allclose(actual[0], values, **FLOAT_ERROR)
        np.testing.assert_allclose(actual[1], next_values, **FLOAT_ERROR)
    # The second rollout began in the middle of episodes, and so with something to remember.
    assert all((np.abs(m) > 1e-3).any(axis=-1).all() for m in records[1][0].memory.values())


def test_memory_is_forgotten_by_the_step_after_the_end_and_by_no_other():
    _, learner, records = two_rollouts()
    trajectory = records[1][1]
    done = np.asarray(trajectory.terminated | trajectory.truncated)
    ends = np.flatnonzero(done[:, 0])
    assert (done == done[:, :1]).all() and len(ends) == 2 and ends[0] > 0
    end = ends[0]

    def change(trajectory):
        """Where V(s_t) and V(s'_t) are no longer what they were, bool [T]."""
        pairs = zip(unrolled()(learner.params, trajectory), original, strict=True)
        return [(np.asarray(new) != np.asarray(old)).any(axis=1) for new, old in pairs]

    original = unrolled()(learner.params, trajectory)
    t = np.arange(T)
    # What came before the end, the very last observation included, and the stored memory itself.
    observation = trajectory.observation.at[end].add(1.0)
    value, next_value = change(trajectory._replace(observation=observation))
    np.testing.assert_array_equal(value, t == end)
    # The episode was cut: what it led to is valued by the memory of that episode.
    np.testing.assert_array_equal(next_value, t == end)
    memory = jax.tree.map(lambda m: m + 0.5, trajectory.memory)
    value, next_value = change(trajectory._replace(memory=memory))
    np.testing.assert_array_equal(value, t <= end)
    np.testing.assert_array_equal(next_value, t <= end)
    # The first observation of the next episode is remembered up to the end of that one.
    observation = trajectory.observation.at[end + 1].add(1.0)
    value, next_value = change(trajectory._replace(observation=observation))
    np.testing.assert_array_equal(value, (t > end) & (t <= ends[1]))
    np.testing.assert_array_equal(next_value, (t > end) & (t <= ends[1]))


def test_the_memory_before_an_episode_is_the_initial_one():
    _, _, records = two_rollouts()
    before, _, after = records[0]
    assert all((np.asarray(m) == 0).all() for m in before.memory.values())
    forgotten = networks.forget(after.memory, jnp.arange(B) < 2)
    for name, memory in forgotten.items():
        assert (np.asarray(memory[:2]) == 0).all()
        np.testing.assert_array_equal(memory[2:], after.memory[name][2:])


def test_minibatches_hold_whole_sequences():
    agent = make(num_minibatches=B, num_epochs=2, anneal_learning_rate=False)
    network, config = agent.learner.network, agent.config
    _, learner, records = two_rollouts()
    trajectory = records[1][1]
    state, _ = jax.jit(agent.learner.update)(learner, trajectory)

    value, next_value = unrolled()(learner.params, trajectory)
    advantage = advantages.generalized_advantages(
        trajectory.reward,
        value,
        next_value,
        trajectory.terminated,
        trajectory.truncated,
        config.discount,
        config.gae_lambda,
    )
    target = value + advantage
    advantage = advantages.normalize(advantage)
    done = trajectory.terminated | trajectory.truncated
    is_first = jnp.concatenate([jnp.zeros((1, B), bool), done[:-1]])

    def loss(params, b):
        memory = jax.tree.map(lambda m: m[0, b][None], trajectory.memory)
        sequence = Sequence(trajectory.observation[:, b][None], is_first[:, b][None], memory)
        policy = network.policy(params["actor"], sequence)
        error = network.value(params["critic"], sequence)[0] - target[:, b]
        return (
            -jnp.mean(policy.log_prob(trajectory.action[:, b][None])[0] * advantage[:, b])
            + config.value_coefficient * 0.5 * jnp.mean(error**2)
            - config.entropy_coefficient * jnp.mean(policy.entropy())
        )

    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(config.learning_rate, eps=1e-5),
    )

    @jax.jit
    def step(params, optimizer_state, b):
        gradient = jax.grad(loss)(params, b)
        changes, optimizer_state = optimizer.update(gradient, optimizer_state)
        return optax.apply_updates(params, changes), optimizer_state

    params, optimizer_state = learner.params, optimizer.init(learner.params)
    for key in jax.random.split(jax.random.split(learner.key)[1], 2):
        for b in shuffle.permutation(key, B):
            params, optimizer_state = step(params, optimizer_state, b)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), state.params, params
    )


# Normalised observations: rewards make the ratio move where statistics move too early.
STEPS = {
    "normalize_observations": True,
    "num_epochs": 2,
    "num_minibatches": 2,
    "learning_rate": 2e-2,
}
STOPPED = 1e-6  # a KL after which an update's other gradient steps are skipped
# Each has its key, and the KL at which it stops; all but the first never do.
SEEDS = jax.random.split(jax.random.key(0), 3)
LIMITS = jnp.array([STOPPED, 1e9, 1e9])


@functools.cache
def side_by_side():
    """RGPO's agent, its metrics after 2 updates of three seeds and after all, and both states."""
    agent = make("rgpo", Recall(dies=False), **STEPS, target_kl=STOPPED)
    first = jax.jit(jax.vmap(lambda key, kl: agent.init(key, target_kl=kl)))(SEEDS, LIMITS)
    train_on = jax.jit(jax.vmap(train.make_chunk(agent), in_axes=(0, None)))
    early, early_report = train_on(first, 2)
    late, _ = train_on(early, 78)
    late, late_report = train_on(late, 20)
    return agent, (early, early_report.metrics), (late, late_report.metrics)


def test_seeds_train_side_by_side_and_the_first_ratio_is_one():
    _, *stages = side_by_side()
    for states, metrics in stages:
        assert np.max(metrics["first_ratio_deviation"]) < 1e-5
        for key, values in metrics.items():
            assert values.shape == (3,), key
        assert np.isfinite(metrics["value_loss"]).all()
        leaves = jax.tree.leaves(states.learner.params)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert any((leaf[1] != leaf[2]).any() for leaf in leaves)


def test_what_was_seen_first_is_remembered_to_the_end():
    # Without a memory the return is 0, whatever is done: the last observation says nothing.
    _, (_, early), (_, late) = side_by_side()
    assert (np.abs(early["episode_return"]) < 0.8).all()
    assert (late["episode_return"][1:] > 0.95).all()  # of 1 at most


def test_trpo_keeps_to_its_trust_region_with_a_memory_too():
    _, learner, records = two_rollouts()
    agent = make("trpo", num_epochs=2, num_minibatches=2)

    @jax.jit
    def update(params, trajectory):
        state = agent.learner.init(jax.random.key(0))._replace(params=params)
        return agent.learner.update(state, trajectory)

    state, metrics = update(learner.params, records[1][1])
    assert metrics["first_ratio_deviation"] < 1e-5
    assert 0.0 < metrics["trust_region_kl"] <= agent.config.max_kl
    assert metrics["line_search_accepted"] == 1.0
    for old, new in zip(*map(jax.tree.leaves, (learner.params, state.params)), strict=True):
        assert np.isfinite(new).all()
        assert np.any(new != old)


def test_continuous_actions_have_a_memory_too():
    config = Config(**SETTINGS, policy="tanh_normal", state_dependent_std=True)
    network = networks.make((2,), Box((3,), (-1.0,) * 3, (1.0,) * 3), config)

    def act(key):
        before = network.initial_memory(B)
        policy, after = network.recurrence.step(network.init(key), jnp.ones((B, 2)), before)
        return policy.sample(key), after

    action, memory = jax.eval_shape(act, jax.random.key(0))
    assert action.shape == (B, 3)
    assert {name: m.shape for name, m in memory.items()} == {"actor": (B, H), "critic": (B, H)}


def test_environments_may_be_spread_over_devices():
    agent = make("rgpo", Recall(dies=False), axis_name="env", **STEPS, target_kl=STOPPED)

    def run(_):
        return train.make_chunk(agent)(agent.init(SEEDS[0]), 2)

    state, report = jax.jit(jax.vmap(run, axis_name="env"))(jnp.zeros(2))
    _, (alone, metrics), _ = side_by_side()
    assert metrics["gradient_step_rate"][0] < 1.0  # early stopping is the same on all of them
    expected = jax.tree.map(lambda x: x[0], (alone.learner.params, metrics))
    for device in range(2):
        actual = jax.tree.map(operator.itemgetter(device), (state.learner.params, report.metrics))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), actual, expected
        )
    together = jax.tree.map(lambda x: x.reshape(B, -1), state.rollout.memory)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[0], **FLOAT_ERROR),
        together,
        alone.rollout.memory,
    )


def test_layouts_share_out_whole_sequences():
    settings = {"num_envs": 64, "num_steps": 128, "total_steps": 10**6, "num_minibatches": 64}
    assert devices.choose(Config(**settings | {"num_steps": 2048}), 1, 2).env_devices == 2
    of_gru = Config(**settings | {"num_steps": 2048}, network="gru")  # a sequence a minibatch
    assert devices.choose(of_gru, 1, 2).env_devices == 1
    huge = Config(**settings | {"num_minibatches": 2}, network="gru")
    layout = devices.choose(huge, 1, 2)
    assert layout.env_devices == 2
    assert devices.fit_to_caches(huge, 10**4, 1, layout) == (huge, layout)


def test_acting_takes_the_memory_and_gives_the_next():
    agent, learner, records = two_rollouts()
    state = AgentState(learner, rollout=None, key=jax.random.key(0))
    observation = records[0][1].observation
    memory = agent.initial_memory(B)
    for t in range(3):  # an episode
        policy, expected = agent.learner.policy(learner, observation[t], memory)
        action, after = agent.act(state, observation[t], None, memory)
        np.testing.assert_array_equal(action, policy.mode())
        jax.tree.map(np.testing.assert_array_equal, after, expected)
        sample, _ = agent.act(state, observation[t], jax.random.key(t), memory)
        assert sample.shape == (B,)
        memory = after
    single, _ = agent.act(state, observation[0, 0], memory=agent.initial_memory())
    assert single.shape == ()
    with pytest.raises(TypeError, match="needs a memory"):
        agent.act(state, observation[0])


def test_feed_forward_agents_have_no_memory():
    agent = make(network="mlp")
    state = agent.init(jax.random.key(0))
    assert state.rollout.memory is None and agent.initial_memory(B) is None
    assert agent.act(state, jnp.zeros((B, 1))).shape == (B,)
    with pytest.raises(TypeError, match="takes no memory"):
        agent.act(state, jnp.zeros((B, 1)), memory=make().initial_memory(B))


def test_a_trajectory_without_its_memory_is_refused():
    agent, learner, records = two_rollouts()
    with pytest.raises(ValueError, match="trajectories that have its memory"):
        agent.learner.update(learner, records[0][1]._replace(memory=None))


def test_environments_must_divide_into_minibatches():
    with pytest.raises(ConfigError, match=r"num_minibatches 7: expected a divisor of num_envs = 4"):
        Config(**(SETTINGS | {"num_minibatches": 7}))
    assert Config(**(SETTINGS | {"num_minibatches": 7, "network": "mlp"})).num_minibatches == 7
    _, learner, records = two_rollouts()
    agent = make(num_minibatches=2)
    three = jax.tree.map(lambda x: x[:, :3], records[0][1])
    with pytest.raises(ValueError, match="3 samples do not divide into num_minibatches"):
        jax.eval_shape(agent.learner.update, learner, three)


def test_what_does_not_work_is_refused():
    with pytest.raises(ConfigError, match="microbatch_size 7: expected None with network gru"):
        Config(**SETTINGS, microbatch_size=7)

    class OnHost:
        name = "OnHost"
        observation_shape = (1,)
        observation_dtype = np.float32
        action_space = Discrete(2)
        max_episode_steps = None

        def make_pool(self, seeds):
            raise NotImplementedError

    with pytest.raises(ValueError, match="OnHost lives on the host: network gru is for compiled"):
        make(env=OnHost())
