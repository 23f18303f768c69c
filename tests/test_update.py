"""The update step, through its lower door: a learner and trajectories made by hand."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import OBSERVATION_ACTION, Tabular
from test_advantages import by_definition

import agents
from rgpo_jax import advantages, gates, networks, samples, trust_region, update
from rgpo_jax.config import Config, ConfigError
from rgpo_jax.environment import Box, Discrete
from rgpo_jax.rollout import Trajectory
from rgpo_jax.tunable import Tunable

T, B, SIZE = 8, 4, 3
GAP = 3  # least number of steps between two truncations of an environment
DISCRETE = Discrete(3)
BOX = Box((2,), (-1.0, -1.0), (1.0, 1.0))
SETTINGS = {
    "num_steps": T,
    "num_envs": B,
    "total_steps": 10 * T * B,
    "hidden_sizes": (8,),
    "learning_rate": 1e-2,
    "num_epochs": 1,
    "num_minibatches": 1,
}


@functools.cache
def start(space):
    """A state and a trajectory that all learners of a space share: they differ in other things."""
    network = networks.make((SIZE,), space, Config(**SETTINGS))
    learner = update.make(network, Config(**SETTINGS), gates.reinforce())
    state = jax.jit(learner.init)(jax.random.key(0), learner.hyperparameters)
    outputs = jax.jit(
        lambda params, observation: (
            network.policy(params["actor"], observation),
            network.value(params["critic"], observation),
        )
    )
    return state, outputs, make_trajectory(outputs, state.params)


class Case:
    """A learner, its compiled update, and a state and a trajectory for it.

    `outputs` maps parameters and observations [T, B] to the policy and the values.
    """

    def __init__(self, gate, space=DISCRETE, max_episode_steps=None, parts=None, **settings):
        self.config = Config(**(SETTINGS | settings))
        self.network = networks.make((SIZE,), space, self.config)
        self.learner = update.make(self.network, self.config, gate, **(parts or {}))
        update_ = functools.partial(self.learner.update, max_episode_steps=max_episode_steps)
        self.update = jax.jit(update_)
        state, self.outputs, self.trajectory = start(space)
        self.state = state._replace(hyperparameters=self.learner.hyperparameters)

    def replace(self, **overrides):
        """The state with other hyper-parameters."""
        as_arrays = {name: jnp.float32(value) for name, value in overrides.items()}
        hyperparameters = self.state.hyperparameters.replace(**as_arrays)
        return self.state._replace(hyperparameters=hyperparameters)


@functools.cache
def case(name):
    """Cases that several tests share, compiled once."""
    if name == "reinforce":
        return Case(gates.reinforce())
    if name == "ppo":
        return Case(gates.ppo(0.2), max_episode_steps=GAP, num_epochs=3)
    if name == "box":
        plain = {"normalize_advantages": False, "anneal_learning_rate": False}
        return Case(gates.ppo(0.2), space=BOX, **plain)
    if name == "awr":
        parts = {"advantage_transform": advantages.exponential(0.5, 3.0)}
        return Case(gates.reinforce(), parts=parts)
    assert name == "trpo"
    parts = {"policy_step": trust_region.natural_gradient()}
    return Case(gates.importance(), parts=parts)


def truncations(gap, seed):
    """Truncations at least `gap` steps apart, at the first and the last row among others."""
    rng = np.random.default_rng(seed)
    truncated = np.zeros((T, B), bool)
    for b in range(B):
        t = rng.integers(0, gap)
        while t < T:
            truncated[t, b] = True
            t += gap + rng.integers(0, 2)
    truncated[:, 0] = np.arange(T) % gap == 0  # from the first row on, as many as there can be
    truncated[:, 1] = np.arange(T)[::-1] % gap == 0  # up to the last row
    truncated[:, 2] &= rng.random() < 0.5
    return truncated


def make_trajectory(outputs, params, seed=0, gap=GAP):
    """Random steps; the policy that acted is near the network's, so that ratios are not 1."""
    rng = np.random.default_rng(seed)
    observation, next_observation = rng.normal(size=(2, T, B, SIZE))
    truncated = truncations(gap, seed)
    terminated = (rng.random((T, B)) < 0.2) & ~truncated
    going_on = ~(terminated | truncated)[:-1, :, None]
    next_observation[:-1] = np.where(going_on, observation[1:], next_observation[:-1])
    observation = jnp.asarray(observation, jnp.float32)
    policy, _ = outputs(params, observation)
    action = policy.sample(jax.random.key(seed))
    return Trajectory(
        observation=observation,
        action=action,
        log_prob=policy.log_prob(action) - jnp.asarray(rng.normal(size=(T, B)) * 0.3, jnp.float32),
        reward=jnp.asarray(rng.normal(size=(T, B)), jnp.float32),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        final_observation=jnp.asarray(next_observation, jnp.float32),
    )


def advantages_and_targets(case, normalized=True):
    """By the definition, in NumPy's float64."""
    steps = case.trajectory
    value, next_value = (
        np.asarray(case.outputs(case.state.params, observation)[1], np.float64)
        for observation in (steps.observation, steps.final_observation)
    )
    rest = [np.asarray(x) for x in (steps.terminated, steps.truncated)]
    reward = np.asarray(steps.reward, np.float64)
    advantage = by_definition(
        reward, value, next_value, *rest, case.config.discount, case.config.gae_lambda
    )
    target = advantage + value
    if normalized:
        advantage = (advantage - advantage.mean()) / advantage.std()
    return jnp.asarray(advantage, jnp.float32), jnp.asarray(target, jnp.float32)


def train_by_hand(case, policy_objective, transform=lambda a: a, normalized=True, steps=1):
    """Gradient steps on the whole batch, by optax, on the parameters as they are."""
    advantage, target = advantages_and_targets(case, normalized)
    advantage = transform(advantage)
    trajectory, config = case.trajectory, case.config

    def loss(params):
        policy = case.network.policy(params["actor"], trajectory.observation)
        value = case.network.value(params["critic"], trajectory.observation)
        log_prob = policy.log_prob(trajectory.action)
        return (
            -jnp.mean(policy_objective(log_prob, trajectory.log_prob, advantage))
            + config.value_coefficient * 0.5 * jnp.mean((value - target) ** 2)
            - config.entropy_coefficient * jnp.mean(policy.entropy())
        )

    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(config.learning_rate, eps=1e-5),
    )

    @jax.jit
    def step(params, optimizer_state):
        gradient = jax.grad(loss)(params)
        changes, optimizer_state = optimizer.update(gradient, optimizer_state)
        return optax.apply_updates(params, changes), optimizer_state, gradient

    params = case.state.params
    optimizer_state, gradients = optimizer.init(params), []
    for _ in range(steps):
        params, optimizer_state, gradient = step(params, optimizer_state)
        gradients.append(gradient)
    return params, gradients


def assert_close(actual, expected, atol):
    for path, leaf in jax.tree.leaves_with_path(expected):
        other = functools.reduce(lambda tree, key: tree[key.key], path, actual)
        np.testing.assert_allclose(other, leaf, rtol=0, atol=atol, err_msg=str(path))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


@functools.cache
def reinforce_by_hand():
    return train_by_hand(case("reinforce"), log_prob_objective)


def log_prob_objective(log_prob, old, advantage):
    del old
    return log_prob * advantage


def ppo_objective(log_prob, old, advantage):
    ratio = jnp.exp(log_prob - old)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)


# A step of Adam moves a parameter by about 1e-2; these are 1 / 1000 of it, and float error.
STEP_TOLERANCE = 1e-5


def test_one_step_of_reinforce_is_one_written_by_hand():
    c = case("reinforce")
    state, metrics = c.update(c.state, c.trajectory)
    expected, gradients = reinforce_by_hand()
    assert_close(state.params, expected, STEP_TOLERANCE)
    assert np.abs(flat(state.params) - flat(c.state.params)).max() > 5e-3
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(flat(gradients[0])), rtol=1e-4)


@pytest.mark.parametrize("name", ["ppo", "box"])
def test_ppo_is_its_textbook_loss(name):
    c = case(name)
    state, metrics = c.update(c.state, c.trajectory)
    normalized, steps = c.config.normalize_advantages, c.config.num_epochs
    expected, gradients = train_by_hand(c, ppo_objective, normalized=normalized, steps=steps)
    assert_close(state.params, expected, steps * STEP_TOLERANCE)
    norms = [np.linalg.norm(flat(gradient)) for gradient in gradients]
    np.testing.assert_allclose(metrics["grad_norm"], np.mean(norms), rtol=1e-3)
    # The test would not tell PPO from importance sampling if nothing were clipped.
    assert metrics["clip_fraction"] > 0.1


def test_awr_weighs_the_log_likelihood_by_capped_exponentials():
    c = case("awr")
    state, _ = c.update(c.state, c.trajectory)

    def weights(advantage):
        return jnp.minimum(jnp.exp(advantage / 0.5), 3.0)

    assert 0.1 < np.mean(weights(advantages_and_targets(c)[0]) == 3.0) < 0.9
    expected, _ = train_by_hand(c, log_prob_objective, weights)
    assert_close(state.params, expected, STEP_TOLERANCE)


@pytest.mark.parametrize("name", ["reinforce", "ppo", "box", "awr", "trpo"])
def test_metrics_are_finite_scalars_of_float32(name):
    c = case(name)
    _, metrics = c.update(c.state, c.trajectory)
    for key, value in metrics.items():
        assert (value.shape, value.dtype) == ((), jnp.float32), key
        assert np.isfinite(value), key


def test_loss_terms_are_reported():
    c = case("reinforce")
    state, metrics = c.update(c.state, c.trajectory)
    advantage, target = advantages_and_targets(c)
    value = c.outputs(c.state.params, c.trajectory.observation)[1]  # before the update
    policy = c.outputs(state.params, c.trajectory.observation)[0]  # after it
    log_ratio = policy.log_prob(c.trajectory.action) - c.trajectory.log_prob
    expected = {
        "policy_loss": -np.mean(log_ratio * advantage),
        "value_loss": 0.5 * np.mean((value - target) ** 2),
        "entropy": np.mean(policy.entropy()),
        "approx_kl_k1": -np.mean(log_ratio),
        "explained_variance": 1 - np.var(target - value) / np.var(target),
    }
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("max_norm", [1e-6, 1e-2, 1e6])
def test_gradients_are_clipped_by_the_norm_of_all_parameters(max_norm):
    # In its first step Adam moves by lr g / (|g| + 1e-5): for gradients near 1e-6 that is nearly
    # linear, and shows by how much, and that all elements alike, they were scaled.
    c = case("reinforce")
    state, metrics = c.update(c.replace(max_grad_norm=max_norm), c.trajectory)
    gradient = flat(reinforce_by_hand()[1][0])
    norm = np.linalg.norm(gradient)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)  # of the unclipped one
    clipped = gradient * min(1.0, max_norm / norm)
    expected = -1e-2 * clipped / (np.abs(clipped) + 1e-5)
    change = flat(state.params) - flat(c.state.params)
    np.testing.assert_allclose(change, expected, rtol=0, atol=3e-3 * np.abs(expected).max())
    assert (1e-6 < 1e-2 < norm < 1e6) and np.abs(gradient).max() < 0.9 * norm


def test_learning_rate_falls_linearly_to_zero():
    c = case("reinforce")
    assert c.config.num_updates == 10
    state, rates, moved = c.state, [], []
    for _ in range(12):
        before = state.params
        state, metrics = c.update(state, c.trajectory)
        rates.append(metrics["learning_rate"])
        moved.append(np.abs(flat(state.params) - flat(before)).max())
    np.testing.assert_allclose(rates, [*np.linspace(1e-2, 1e-3, 10), 0.0, 0.0], rtol=1e-5)
    assert min(moved[:10]) > 0
    assert moved[10:] == [0.0, 0.0]
    assert state.updates == 12


def test_the_learning_rate_of_the_record_is_the_one_of_the_step():
    c = case("reinforce")
    changes = []
    for updates in (0, 5):
        state = c.state._replace(updates=jnp.int32(updates))
        changes.append(flat(c.update(state, c.trajectory)[0].params) - flat(state.params))
    np.testing.assert_allclose(changes[1], 0.5 * changes[0], atol=1e-6)


def test_learning_rate_may_stay():
    c = case("box")
    assert not c.config.anneal_learning_rate
    late = c.state._replace(updates=jnp.int32(10**6))
    first, last = (c.update(state, c.trajectory) for state in (c.state, late))
    assert first[1]["learning_rate"] == last[1]["learning_rate"] == np.float32(1e-2)
    np.testing.assert_array_equal(flat(first[0].params), flat(last[0].params))


@pytest.mark.parametrize("gap", [1, 2, 3, T - 1, T, 100])
def test_a_known_time_limit_changes_no_value(gap):
    c = case("reinforce")

    @functools.partial(jax.jit, static_argnums=1)
    def values(trajectory, limit):
        critic = c.state.params["critic"]
        return samples.bootstrap_values(c.network, critic, trajectory, limit)

    for seed in range(4):
        trajectory = make_trajectory(c.outputs, c.state.params, seed, gap)
        assert trajectory.truncated[0, 0]
        assert trajectory.truncated[-1, 1]
        expected = [
            c.outputs(c.state.params, observation)[1]
            for observation in (trajectory.observation, trajectory.final_observation)
        ]
        # Where an episode terminated, what follows has no value, and none is looked at.
        alive = ~np.asarray(trajectory.terminated)
        for limit in (None, gap):
            value, next_value = values(trajectory, limit)
            np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-6)
            actual, wanted = np.asarray(next_value)[alive], np.asarray(expected[1])[alive]
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


# Which samples are in which minibatch is read off the metrics: the log-ratios are labels, and with
# a learning rate of 0 they stay what they are.
N, PARTS = T * B, 4


def _is_sample(log_ratio, advantage, label):
    return (jnp.abs(log_ratio - label) < 0.01).astype(jnp.float32) + 0.0 * log_ratio * advantage


def with_log_ratios(c, log_ratio):
    """The trajectory, with ratios of one's choice [N], and a learning rate that keeps them."""
    policy, _ = c.outputs(c.state.params, c.trajectory.observation)
    log_prob = policy.log_prob(c.trajectory.action) - log_ratio.reshape(T, B)
    return c.replace(learning_rate=0.0), c.trajectory._replace(log_prob=log_prob)


@functools.cache
def labelled():
    """Function of a seed that gives metrics for each label in turn [N]; one epoch."""
    c = Case(Tunable(_is_sample, {"label": 0.0}), num_minibatches=PARTS)
    labels = jnp.arange(N) / N
    state, trajectory = with_log_ratios(c, labels)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def metrics(label, key):
        hyperparameters = state.hyperparameters.replace(label=label)
        relabelled = state._replace(hyperparameters=hyperparameters, key=key)
        return c.learner.update(relabelled, trajectory)[1]

    return lambda seed: metrics(labels, jax.random.key(seed))


@pytest.mark.parametrize("seed", range(3))
def test_the_minibatches_of_an_epoch_partition_the_batch(seed):
    # Without a change of parameters, the mean over an epoch's minibatches is that of the batch;
    # with samples drawn twice it would be another.
    c = Case(gates.reinforce(), num_minibatches=PARTS, num_epochs=1)
    still = c.replace(learning_rate=0.0)._replace(key=jax.random.key(seed))
    _, metrics = c.update(still, c.trajectory)
    _, target = advantages_and_targets(c)
    errors = (c.outputs(c.state.params, c.trajectory.observation)[1] - target) ** 2
    assert np.std(errors) > 0.1 * np.mean(errors)
    np.testing.assert_allclose(metrics["value_loss"], 0.5 * np.mean(errors), rtol=1e-5)


def test_the_batch_is_shuffled_anew():
    # The largest label of the first minibatch; in order it would be that of sample N / PARTS - 1.
    firsts = [float(np.log1p(labelled()(seed)["first_ratio_deviation"][0])) for seed in range(6)]
    assert len({round(N * first) for first in firsts}) > 1
    # The largest mean k3 of a minibatch depends on how the samples fall together, in any epoch.
    largest = [float(labelled()(seed)["approx_kl_max"][0]) for seed in range(6)]
    assert len({round(x, 5) for x in largest}) > 1


def test_each_epoch_is_shuffled_anew():
    # Two samples have a ratio of e. They meet in a minibatch of one epoch with probability 7/31;
    # in one of 32 orders almost surely, and then its mean k3 is twice as large.
    c = Case(gates.reinforce(), num_minibatches=PARTS, num_epochs=32)
    state, trajectory = with_log_ratios(c, jnp.zeros(N).at[jnp.array([0, N // 2])].set(1.0))
    apart = (np.e - 2.0) / (N // PARTS)
    for seed in range(4):
        _, metrics = c.update(state._replace(key=jax.random.key(seed)), trajectory)
        np.testing.assert_allclose(metrics["approx_kl_max"], 2 * apart, rtol=1e-4)


def test_updates_use_their_key_up():
    c = case("ppo")
    state, _ = c.update(c.state, c.trajectory)
    assert jax.random.key_data(state.key).tolist() != jax.random.key_data(c.state.key).tolist()


def mean_kl(c, old, new):
    """sum_a p log(p / q), in NumPy."""
    p, q = (
        np.asarray(c.outputs(params, c.trajectory.observation)[0].log_probs, np.float64)
        for params in (old, new)
    )
    return (np.exp(p) * (p - q)).sum(-1).mean()


def whole_batch_steps(num_epochs, **settings):
    """The state and metrics after so many gradient steps, each on the whole batch."""
    settings = {"anneal_learning_rate": False, "learning_rate": 0.1} | settings
    one = Case(gates.reinforce(), num_epochs=num_epochs, **settings)
    return one.update(one.state, one.trajectory)


def test_early_stopping_skips_the_steps_after_the_kl_was_met():
    kls, states = [], []  # of the policy before each step, and after it
    unstopped = {}  # number of steps -> metrics
    for num_epochs in (1, 2, 3, 4):
        state, metrics = whole_batch_steps(num_epochs)
        unstopped[num_epochs] = metrics
        states.append(state)
        kls.append(float(metrics["approx_kl"]))
        assert "gradient_step_rate" not in metrics
    assert kls[0] < kls[1] < kls[2], "the test needs a KL that rises"
    for taken, target in ((2, (kls[0] + kls[1]) / 2), (3, (kls[1] + kls[2]) / 2), (4, 1e3)):
        stopped, metrics = whole_batch_steps(4, target_kl=target)
        assert float(metrics["gradient_step_rate"]) == taken / 4
        for name in ("value_loss", "grad_norm"):  # means over the steps that were taken
            assert float(metrics[name]) == pytest.approx(float(unstopped[taken][name]), rel=1e-5)
        for ours, theirs in zip(
            jax.tree.leaves((stopped.params, stopped.optimizer_state)),
            jax.tree.leaves((states[taken - 1].params, states[taken - 1].optimizer_state)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6)
    start_state = Case(gates.reinforce()).state
    kept, metrics = whole_batch_steps(4, target_kl=1e-6)  # the very first is further off
    assert float(metrics["gradient_step_rate"]) == 0.0
    assert np.isnan([metrics["value_loss"], metrics["grad_norm"]]).all()
    jax.tree.map(np.testing.assert_array_equal, kept.params, start_state.params)


def test_early_stopping_is_refused_where_the_policy_takes_one_step():
    with pytest.raises(ValueError, match="target_kl: expected None with a policy_step"):
        Case(
            gates.importance(),
            parts={"policy_step": trust_region.natural_gradient()},
            num_epochs=2,
            target_kl=0.01,
        )
    trpo = case("trpo")
    with pytest.raises(ValueError, match="target_kl: expected None"):
        trpo.learner.init(jax.random.key(0), trpo.learner.hyperparameters.replace(target_kl=0.01))
    with pytest.raises(ConfigError, match="one gradient step"):
        Config(**SETTINGS, target_kl=0.01)
    with pytest.raises(ConfigError, match="TRPO has max_kl"):
        agents.load("trpo").Config(target_kl=0.01)


@pytest.mark.parametrize("max_kl", [1e-3, 1e-2, 5e-2])
def test_trpo_improves_within_its_trust_region(max_kl):
    c = case("trpo")
    before = c.replace(max_kl=max_kl)
    state, metrics = c.update(before, c.trajectory)
    assert metrics["line_search_accepted"] == 1.0
    kl = mean_kl(c, before.params, state.params)
    assert 0.1 * max_kl < kl <= max_kl * (1 + 1e-3)
    np.testing.assert_allclose(metrics["trust_region_kl"], kl, rtol=1e-2)

    advantage, _ = advantages_and_targets(c)

    def surrogate(params):
        policy, _ = c.outputs(params, c.trajectory.observation)
        ratio = np.exp(policy.log_prob(c.trajectory.action) - c.trajectory.log_prob)
        entropy = c.config.entropy_coefficient * np.mean(policy.entropy())
        return np.mean(ratio * advantage) + entropy

    assert surrogate(state.params) > surrogate(before.params)


def test_trpo_leaves_the_critic_to_adam():
    # Adam's first step is the same, whatever the policy does; epochs then train the critic alone.
    c = case("trpo")
    state, _ = c.update(c.state, c.trajectory)
    _, target = advantages_and_targets(c)

    @jax.jit
    def step(critic):
        def loss(critic):
            value = c.network.value(critic, c.trajectory.observation)
            return c.config.value_coefficient * 0.5 * jnp.mean((value - target) ** 2)

        optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2, eps=1e-5))
        changes, _ = optimizer.update(jax.grad(loss)(critic), optimizer.init(critic))
        return optax.apply_updates(critic, changes)

    assert_close(state.params["critic"], step(c.state.params["critic"]), STEP_TOLERANCE)


def test_a_refused_trust_region_step_keeps_the_actor_bit_by_bit():
    c = case("trpo")
    # NaN entropy bonus: no step can be seen to improve the surrogate.
    state, metrics = c.update(c.replace(entropy_coefficient=np.nan), c.trajectory)
    assert metrics["line_search_accepted"] == 0.0
    np.testing.assert_array_equal(flat(state.params["actor"]), flat(c.state.params["actor"]))
    assert not np.allclose(flat(state.params["critic"]), flat(c.state.params["critic"]))


NAMES = ("rgpo", "ppo", "reinforce")


@functools.cache
def built(name):
    """An agent, and the shapes of its state with the gate's numbers."""
    agent = agents.load(name).make(Tabular(OBSERVATION_ACTION))
    return agent, jax.eval_shape(agent.init, jax.random.key(0))


def with_gate(state, gate):
    hyperparameters = state.learner.hyperparameters.replace(gate=gate)
    return state._replace(learner=state.learner._replace(hyperparameters=hyperparameters))


def program(agent, state):
    """The step as text, without addresses in memory."""
    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(agent.step)(state)))


@pytest.mark.parametrize("gate_of", NAMES)
def test_rgpo_ppo_and_reinforce_are_one_program_given_one_gate(gate_of):
    gate = built(gate_of)[1].learner.hyperparameters.gate
    programs = {program(agent, with_gate(state, gate)) for agent, state in map(built, NAMES)}
    assert programs == {program(*built(gate_of))}


def test_rgpo_ppo_and_reinforce_are_different_programs_by_themselves():
    assert len({program(*built(name)) for name in NAMES}) == len(NAMES)


def test_the_hyperparameters_of_rgpo_ppo_and_reinforce_differ_in_the_gate_alone():
    defaults = [built(name)[0].learner.hyperparameters for name in NAMES]
    assert len({h.gate.function for h in defaults}) == len(NAMES)
    first, *others = [h.replace(gate=None) for h in defaults]
    for other in others:
        assert jax.tree.structure(other) == jax.tree.structure(first)
        assert jax.tree.leaves(other) == jax.tree.leaves(first)


def test_replace_sets_numbers_of_the_update_and_of_the_gate():
    before = Case(gates.rgpo(4.0)).learner.hyperparameters
    after = before.replace(discount=0.5, sharpness=2.0)
    assert (after.discount, after.gate.numbers) == (0.5, {"sharpness": 2.0})
    assert (before.discount, before.gate.numbers) == (np.float32(0.99), {"sharpness": 4.0})
    assert after.replace(discount=before.discount, sharpness=before.gate.numbers["sharpness"])


def test_replace_reaches_every_function_of_the_update():
    transformed = case("awr").learner.hyperparameters.replace(advantage_cap=7.0)
    assert transformed.advantage_transform.numbers["advantage_cap"] == 7.0
    stepped = case("trpo").learner.hyperparameters.replace(max_kl=0.5)
    assert stepped.policy_step.numbers["max_kl"] == 0.5


def test_replace_names_what_there_is():
    hyperparameters = case("trpo").learner.hyperparameters
    with pytest.raises(TypeError, match=r"'sharpness'.*learning_rate.*max_kl"):
        hyperparameters.replace(sharpness=2.0)
    with pytest.raises(TypeError, match=r"'lerning_rate'.*learning_rate"):
        hyperparameters.replace(lerning_rate=1.0)


def test_defaults_come_from_the_config_as_float32():
    hyperparameters = case("ppo").learner.hyperparameters
    config = case("ppo").config
    for name in (
        "learning_rate",
        "discount",
        "gae_lambda",
        "reward_scale",
        "entropy_coefficient",
        "value_coefficient",
        "max_grad_norm",
    ):
        value = getattr(hyperparameters, name)
        assert value.dtype == jnp.float32
        assert value == np.float32(getattr(config, name)), name
    assert hyperparameters.target_kl is None
    assert hyperparameters.gate.numbers["clip"] == np.float32(0.2)


def test_a_reward_scale_is_a_factor_on_rewards():
    c = case("reinforce")
    scaled, _ = c.update(c.replace(reward_scale=0.1), c.trajectory)
    small = c.trajectory._replace(reward=jnp.float32(0.1) * c.trajectory.reward)
    expected, _ = c.update(c.state, small)
    np.testing.assert_allclose(flat(scaled.params), flat(expected.params), rtol=0, atol=1e-6)
    assert not np.allclose(flat(scaled.params), flat(c.update(c.state, c.trajectory)[0].params))


@pytest.mark.parametrize("name", ["discount", "gae_lambda", "entropy_coefficient", "clip"])
def test_every_traced_number_matters(name):
    c = case("ppo")
    one, other = (
        c.update(state, c.trajectory)[0].params for state in (c.state, c.replace(**{name: 0.05}))
    )
    assert np.abs(flat(one) - flat(other)).max() > 1e-5
