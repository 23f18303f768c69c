"""An update whose policy takes one step in a trust region, while Adam trains the critic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from update_cases import STEP_TOLERANCE, advantages_and_targets, assert_close, case, flat


def mean_kl(c, old, new):
    """sum_a p log(p / q), in NumPy."""
    p, q = (
        np.asarray(c.outputs(params, c.trajectory.observation)[0].log_probs, np.float64)
        for params in (old, new)
    )
    return (np.exp(p) * (p - q)).sum(-1).mean()


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
