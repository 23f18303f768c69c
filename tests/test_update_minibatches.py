"""Epochs of minibatches: how they part the batch, and where they stop early."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from update_cases import (
    SETTINGS,
    B,
    Case,
    T,
    advantages_and_targets,
    assert_close,
    case,
    flat,
)

import agents
from rgpo_jax import gates, shuffle, trust_region
from rgpo_jax.config import Config, ConfigError
from rgpo_jax.tunable import Tunable

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


def test_advantages_of_each_minibatch_may_be_normalised():
    settings = {"num_minibatches": PARTS, "max_grad_norm": 1e9, "value_coefficient": 0.0}
    over = "minibatch"
    sgd = {"optimizer": lambda _, size: optax.sgd(size)}
    c = Case(gates.importance(), parts=sgd, normalize_advantages_over=over, **settings)
    state = c.learner.init(jax.random.key(2))._replace(params=c.state.params)
    after, metrics = c.update(state, c.trajectory)
    advantage, _ = advantages_and_targets(c, normalized=False)
    steps = jax.tree.map(lambda x: x.reshape(N, *x.shape[2:]), c.trajectory)
    advantage, params = advantage.reshape(N), state.params

    def loss(params, rows):
        policy = c.network.policy(params["actor"], steps.observation[rows])
        ratio = jnp.exp(policy.log_prob(steps.action[rows]) - steps.log_prob[rows])
        own = (advantage[rows] - advantage[rows].mean()) / advantage[rows].std()
        entropy = c.config.entropy_coefficient * jnp.mean(policy.entropy())
        return -jnp.mean(ratio * own) - entropy

    shuffle_key = jax.random.split(jax.random.split(state.key)[1], 1)[0]
    for rows in shuffle.permutation(shuffle_key, N).reshape(PARTS, -1):
        gradient = jax.grad(loss)(params, rows)
        params = jax.tree.map(lambda x, g: x - c.config.learning_rate * g, params, gradient)
    assert_close(after.params["actor"], params["actor"], atol=1e-6)
    plain = Case(gates.importance(), parts=sgd, **settings)
    other, _ = plain.update(state, plain.trajectory)
    assert np.abs(flat(other.params["actor"]) - flat(after.params["actor"])).max() > 1e-5
    assert np.isfinite(metrics["approx_kl"])


def test_a_step_on_the_rollout_has_no_minibatches_to_normalise():
    with pytest.raises(ValueError, match="normalize_advantages_over minibatch: expected rollout"):
        Case(
            gates.importance(),
            parts={"policy_step": trust_region.natural_gradient()},
            normalize_advantages_over="minibatch",
        )


def whole_batches(num_epochs, **settings):
    """A case whose update makes so many gradient steps, each on the whole batch."""
    settings = {"anneal_learning_rate": False, "learning_rate": 0.1} | settings
    return Case(gates.reinforce(), num_epochs=num_epochs, **settings)


def test_early_stopping_skips_the_steps_after_the_kl_was_met():
    kls, unstopped = {}, {}  # number of steps -> KL of the policy before the last; what came of all
    for num_epochs in (1, 2, 4):
        case_ = whole_batches(num_epochs)
        unstopped[num_epochs] = state, metrics = case_.update(case_.state, case_.trajectory)
        kls[num_epochs] = float(metrics["approx_kl"])
        assert "gradient_step_rate" not in metrics
    assert kls[1] < kls[2], "the test needs a KL that rises"
    may_stop = whole_batches(4, target_kl=1e3)
    for taken, target in ((2, (kls[1] + kls[2]) / 2), (4, 1e3)):
        state = may_stop.replace(target_kl=target)
        stopped, metrics = may_stop.update(state, may_stop.trajectory)
        expected, expected_metrics = unstopped[taken]
        assert float(metrics["gradient_step_rate"]) == taken / 4
        for name in ("value_loss", "grad_norm"):  # means over the steps that were taken
            assert float(metrics[name]) == pytest.approx(float(expected_metrics[name]), rel=1e-5)
        for ours, theirs in zip(
            jax.tree.leaves((stopped.params, stopped.optimizer_state)),
            jax.tree.leaves((expected.params, expected.optimizer_state)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6)
    start = may_stop.replace(target_kl=1e-6)  # the very first is further off
    kept, metrics = may_stop.update(start, may_stop.trajectory)
    assert float(metrics["gradient_step_rate"]) == 0.0
    assert np.isnan([metrics["value_loss"], metrics["grad_norm"]]).all()
    jax.tree.map(np.testing.assert_array_equal, kept.params, start.params)


def test_weight_decay_does_not_move_a_policy_past_its_trust_region():
    def parts(decay):
        return {
            "policy_step": trust_region.natural_gradient(),
            "optimizer": lambda _, size: optax.adamw(size, weight_decay=decay),
        }

    actors = []
    for decay in (0.0, 10.0):
        learns = Case(gates.importance(), parts=parts(decay), num_epochs=2)
        state = learns.learner.init(jax.random.key(0))._replace(params=learns.state.params)
        after, _ = learns.update(state, learns.trajectory)
        actors.append(after.params["actor"])
    jax.tree.map(np.testing.assert_array_equal, *actors)


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
