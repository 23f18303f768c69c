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
import envs
from experiments.training import devices
from rgpo_jax import advantages, networks, rollout, samples, shuffle, train
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


def step_by_step(network, params, before, trajectory):
    """The definition: one step at a time, memories set to zero by hand after an episode's end."""
    memory, log_probs, values, next_values = before.memory, [], [], []
    no = jnp.zeros((B, 1), bool)

    def value(observation, memory):
        return network.value(params["critic"], Sequence(observation[:, None], no, memory))[:, 0]

    for t in range(T):
        observation = trajectory.observation[t]
        values.append(value(observation, memory))
        policy, memory = network.recurrence.step(params, observation, memory)
        log_probs.append(policy.log_prob(trajectory.action[t]))
        next_values.append(value(trajectory.final_observation[t], memory))
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
    agent, learner, records = two_rollouts()
    for before, trajectory, after in records:
        memory, log_probs, values, next_values = step_by_step(
            agent.learner.network, learner.params, before, trajectory
        )
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


@pytest.mark.parametrize("name", ["rgpo", "trpo"])
def test_seeds_train_side_by_side_and_the_first_ratio_is_one(name):
    # Normalised observations: rewards make the ratio move where statistics move too early.
    settings = {"normalize_observations": True, "num_epochs": 2, "num_minibatches": 2}
    agent = make(name, Recall(dies=False), **settings)

    @jax.jit
    def run(keys):
        states = jax.vmap(agent.init)(keys)
        return jax.lax.scan(jax.vmap(agent.step), states, length=4)

    states, metrics = run(jax.random.split(jax.random.key(0), 2))
    assert np.max(metrics["first_ratio_deviation"]) < 1e-5
    for key, values in metrics.items():
        assert values.shape == (4, 2), key
    assert np.isfinite(metrics["value_loss"]).all()
    leaves = jax.tree.leaves(states.learner.params)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any((leaf[0] != leaf[1]).any() for leaf in leaves)
    if name == "trpo":
        assert np.max(metrics["trust_region_kl"]) <= agent.config.max_kl
        assert np.mean(metrics["line_search_accepted"]) > 0.5


def test_continuous_actions_have_a_memory_too():
    config = Config(**SETTINGS, policy="tanh_normal", state_dependent_std=True)
    network = networks.make((2,), Box((3,), (-1.0,) * 3, (1.0,) * 3), config)
    params = network.init(jax.random.key(0))
    memory = network.initial_memory(B)
    policy, memory = network.recurrence.step(params, jnp.ones((B, 2)), memory)
    assert policy.sample(jax.random.key(1)).shape == (B, 3)
    assert {name: m.shape for name, m in memory.items()} == {"actor": (B, H), "critic": (B, H)}


def test_environments_may_be_spread_over_devices():
    def trained(axis_name, size):
        settings = {"num_minibatches": 2, "num_epochs": 2, "target_kl": 1e-6}
        agent = make("rgpo", axis_name=axis_name, **settings)

        def run(_):
            return jax.lax.scan(agent.step, agent.init(jax.random.key(0)), length=2)

        return jax.jit(jax.vmap(run, axis_name=axis_name))(jnp.zeros(size))

    one, two = trained(None, 1), trained("env", 2)
    assert np.max(one[1]["gradient_step_rate"]) < 1.0  # early stopping is the same on all of them
    for device in range(2):
        expected = jax.tree.map(lambda x: x[0], (one[0].learner.params, one[1]))
        actual = jax.tree.map(operator.itemgetter(device), (two[0].learner.params, two[1]))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), actual, expected
        )
    together = jax.tree.map(lambda x: x.reshape(B, -1), two[0].rollout.memory)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[0], **FLOAT_ERROR),
        together,
        one[0].rollout.memory,
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
    state = agent.init(jax.random.key(0))._replace(learner=learner)
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
        agent.learner.update(learner, three)


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


def final_return(env, network):
    config = agents.load("ppo").Config(
        network=network,
        num_envs=16,
        num_steps=16,
        hidden_sizes=(16,),
        recurrent_size=16,
        learning_rate=5e-3,
        total_steps=20_000,
    )
    agent = agents.load("ppo").make(env, config)

    @jax.jit
    def run(key):
        state, report = train.make_chunk(agent)(agent.init(key), config.num_updates)
        returns, _ = train.make_evaluation(agent, 64, True)(state.learner, jax.random.key(1))
        return jnp.mean(returns), report.metrics["first_ratio_deviation"]

    score, deviation = run(jax.random.key(0))
    assert deviation < 1e-5
    return score


def test_memory_chains_are_learnt_with_a_memory_and_not_without():
    env = envs.make("MemoryChain-bsuite")
    assert final_return(env, "gru") > 0.95  # of 1 at most
    assert abs(final_return(env, "mlp")) < 0.5  # chance is 0, with 64 episodes within 0.125
