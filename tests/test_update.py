"""The update step, through its lower door: losses written by hand, gradients, rates and values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from update_cases import (
    STEP_TOLERANCE,
    Case,
    T,
    advantages_and_targets,
    assert_close,
    case,
    flat,
    make_trajectory,
)

from rgpo_jax import gates, samples


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


@functools.cache
def reinforce_by_hand():
    return train_by_hand(case("reinforce"), log_prob_objective)


def log_prob_objective(log_prob, old, advantage):
    del old
    return log_prob * advantage


def ppo_objective(log_prob, old, advantage):
    ratio = jnp.exp(log_prob - old)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)


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


def lamb(hyperparameters, step_size):
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.max_grad_norm), optax.lamb(step_size)
    )


def test_an_optimiser_of_ones_own_sees_layers():
    # LAMB scales the step of each by its norm.
    plain = Case(gates.reinforce(), parts={"optimizer": lamb})
    layers = Case(gates.reinforce(), parts={"optimizer": lamb, "flatten": False})
    as_one = Case(gates.reinforce(), parts={"optimizer": lamb, "flatten": True})
    found = []
    for each in (plain, layers, as_one):
        state = each.learner.init(jax.random.key(0))
        state, _ = each.update(state._replace(params=each.state.params), each.trajectory)
        found.append(flat(state.params))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-4


def test_an_optimiser_that_keeps_the_first_parameters_can_be_donated():
    prodigy = {"optimizer": lambda _, size: optax.contrib.prodigy(size)}
    c = Case(gates.reinforce(), parts=prodigy)
    state = c.learner.init(jax.random.key(0))
    after, _ = jax.jit(c.learner.update, donate_argnums=0)(state, c.trajectory)
    assert np.isfinite(flat(after.params)).all()


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


def test_truncations_are_found_in_float64_too():
    c = case("reinforce")
    trajectory = make_trajectory(c.outputs, c.state.params, 0, 3)
    critic = c.state.params["critic"]
    with jax.enable_x64(True):
        values = samples.bootstrap_values(c.network, critic, trajectory, 3)
    expected = samples.bootstrap_values(c.network, critic, trajectory, None)
    alive = ~np.asarray(trajectory.terminated)
    for actual, wanted in zip(values, expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(actual)[alive], np.asarray(wanted)[alive], rtol=1e-5, atol=1e-6
        )


def test_updates_use_their_key_up():
    c = case("ppo")
    state, _ = c.update(c.state, c.trajectory)
    assert jax.random.key_data(state.key).tolist() != jax.random.key_data(c.state.key).tolist()


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
