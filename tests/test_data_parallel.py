"""Environments spread over devices: the same numbers as on one device, but for float sums."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import OBSERVATION_ACTION, Tabular

import agents
from rgpo_jax.agent import AgentState
from rgpo_jax.data_parallel import DataParallel

SETTINGS = {
    "num_envs": 4,
    "num_steps": 6,
    "num_epochs": 2,
    "num_minibatches": 3,
    "learning_rate": 1e-2,
    "hidden_sizes": (8,),
    "total_steps": 1200,
}
UPDATES = 3


@functools.cache
def trained(name, devices, **settings):
    """The state and metrics after some updates, as every device has them [devices, ...]."""
    module = agents.load(name)
    agent = module.make(
        Tabular(OBSERVATION_ACTION), module.Config(**(SETTINGS | settings)), axis_name="env"
    )

    def run(_):
        return jax.lax.scan(agent.step, agent.init(jax.random.key(0)), length=UPDATES)

    # A vmapped axis of virtual devices: collectives mean the same there as on real ones.
    return jax.jit(jax.vmap(run, axis_name="env"))(jnp.zeros(devices))


@functools.cache
def on_one_device(name, **settings):
    module = agents.load(name)
    agent = module.make(Tabular(OBSERVATION_ACTION), module.Config(**(SETTINGS | settings)))
    return jax.jit(lambda key: jax.lax.scan(agent.step, agent.init(key), length=UPDATES))(
        jax.random.key(0)
    )


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), a, b)


BY_MINIBATCH = {"normalize_advantages_over": "minibatch"}


@pytest.mark.parametrize(
    ("name", "devices", "settings"),
    [("rgpo", 4, BY_MINIBATCH), ("trpo", 2, {})],  # RGPO on 2: below; by whole batches: TRPO
)
def test_training_does_not_depend_on_the_number_of_devices(name, devices, settings):
    expected_state, expected_metrics = on_one_device(name, **settings)
    state, metrics = trained(name, devices, **settings)
    for device in range(devices):
        mine = jax.tree.map(operator.itemgetter(device), (state.learner, metrics))
        assert_close(
            (mine[0].params, mine[0].optimizer_state),
            (
                expected_state.learner.params,
                expected_state.learner.optimizer_state,
            ),
        )
        assert_close(mine[1], expected_metrics)
    together = jax.tree.map(lambda x: x.reshape(SETTINGS["num_envs"], *x.shape[2:]), state.rollout)
    # Environments took the very same steps: their shares, put together, are the whole.
    jax.tree.map(np.testing.assert_array_equal, together, expected_state.rollout)


def test_devices_keep_the_same_learner_to_the_bit():
    state, metrics = trained("rgpo", 4, **BY_MINIBATCH)
    for leaf in jax.tree.leaves((state.learner.params, state.learner.optimizer_state, metrics)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_microbatches_do_not_change_what_is_learnt():
    state, metrics = trained("rgpo", 2, microbatch_size=2, **BY_MINIBATCH)
    expected_state, expected_metrics = on_one_device("rgpo", **BY_MINIBATCH)
    mine: AgentState = jax.tree.map(lambda x: x[0], state)
    assert_close(
        (mine.learner.params, mine.learner.optimizer_state),
        (expected_state.learner.params, expected_state.learner.optimizer_state),
    )
    assert_close(jax.tree.map(lambda x: x[0], metrics), expected_metrics)


def test_environments_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4 does not divide into shares for 3 devices"):
        trained("rgpo", 3)


def test_a_share_that_does_not_divide_into_microbatches_is_refused():
    # A minibatch of 24 samples, 6 on each device.
    with pytest.raises(ValueError, match="6 samples of a minibatch do not divide into microb"):
        trained("rgpo", 4, num_minibatches=1, microbatch_size=4)


def test_shares_put_together_are_the_whole():
    x = jnp.arange(12.0).reshape(2, 6)
    parallel = DataParallel("env")

    def there_and_back(_):
        share = parallel.share(x, axis=1)
        assert share.shape == (2, 2)
        return parallel.gather(share, axis=1), parallel.sum(share), parallel.mean(share)

    whole, total, mean = jax.vmap(there_and_back, axis_name="env")(jnp.zeros(3))
    np.testing.assert_array_equal(whole, np.broadcast_to(x, (3, 2, 6)))
    np.testing.assert_array_equal(total[0], x[:, :2] + x[:, 2:4] + x[:, 4:])
    np.testing.assert_allclose(mean, total / 3)
