"""Chunks of updates and evaluation, and the run that must not hang."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import ACTION, ENDLESS, OBSERVATION_ACTION, Fragile, ShortOrLong, Tabular
from xla_flags import SAME_IN_A_BATCH

from agents import rgpo
from rgpo_jax import gates, train
from rgpo_jax.agent import make

SETTINGS = {
    "num_envs": 4,
    "num_steps": 3,
    "num_epochs": 2,
    "num_minibatches": 1,
    "learning_rate": 1e-2,
    "hidden_sizes": (8,),
    "total_steps": 1200,
}
TRACES = []


def counting_gate(log_ratio, advantage):
    """RGPO's gate, with a record of how often it was traced."""
    TRACES.append(1)
    return gates.rgpo()(log_ratio, advantage)


@functools.cache
def agent():
    # Episodes of 4 steps and rollouts of 3: in some updates no episode ends.
    env = Tabular(ENDLESS._replace(reward=OBSERVATION_ACTION.reward))
    return rgpo.make(env, rgpo.Config(**SETTINGS), gate=counting_gate)


NUM_SEEDS = 4


@functools.cache
def start():
    return jax.jit(jax.vmap(agent().init))(jax.random.split(jax.random.key(0), NUM_SEEDS))


@functools.cache
def chunk():
    """The compiled chunk of all seeds; with NaN for a learning rate, a seed breaks at once."""
    return jax.jit(jax.vmap(train.make_chunk(agent()), in_axes=(0, None)))


@functools.cache
def by_steps(num_updates):
    """The same by a Python loop of steps, and every state on the way."""
    step = jax.jit(jax.vmap(agent().step))
    states, metrics = [start()], []
    for _ in range(num_updates):
        state, report = step(states[-1])
        states.append(state)
        metrics.append({name: np.asarray(value) for name, value in report.items()})
    return states, metrics


def with_learning_rate(states, values):
    hyperparameters = states.learner.hyperparameters.replace(
        learning_rate=jnp.asarray(values, jnp.float32)
    )
    return states._replace(learner=states.learner._replace(hyperparameters=hyperparameters))


def comparable(tree):
    """Leaves as arrays of numbers, keys included."""
    for leaf in jax.tree.leaves(tree):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        yield np.asarray(jax.random.key_data(leaf) if is_key else leaf)


@pytest.mark.alike
def test_a_chunk_is_so_many_steps():
    states, metrics = by_steps(5)
    state, report = chunk()(start(), 5)
    for actual, expected in zip(comparable(state), comparable(states[-1]), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state.learner.updates, 5)
    np.testing.assert_array_equal(report.broken_at, -1)
    assert set(report.metrics) == set(metrics[0])
    for name, actual in report.metrics.items():
        values = np.stack([m[name] for m in metrics])
        episodes = np.stack([m["episodes"] for m in metrics])
        if name == "episodes":
            expected = values.sum(0)
        elif name in ("episode_return", "episode_length"):
            ended = episodes > 0
            assert np.array_equal(ended[:, 0], [False, True, True, True, False])
            np.testing.assert_array_equal(np.isnan(values), ~ended)
            expected = np.nansum(values * episodes, axis=0) / episodes.sum(0)
        elif name in ("weight_max", "approx_kl_max", "first_ratio_deviation"):
            expected = values.max(0)
        else:
            expected = values.mean(0)
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.alike
def test_no_key_is_used_twice():
    states, _ = by_steps(5)
    for keys in ([s.key for s in states], [s.learner.key for s in states]):
        data = np.concatenate([jax.random.key_data(key) for key in keys])
        assert len(np.unique(data, axis=0)) == 6 * NUM_SEEDS


def test_chunks_add_up():
    whole, _ = chunk()(start(), 5)
    half, _ = chunk()(start(), 2)
    both, _ = chunk()(half, 3)
    for actual, expected in zip(comparable(both), comparable(whole), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_chunks_of_all_lengths_are_one_program():
    chunk()(start(), 1)
    before = len(TRACES)
    assert before > 0
    for n in (2, 7, 0, 1):
        state, _ = chunk()(start(), n)
        np.testing.assert_array_equal(state.learner.updates, n)
    assert len(TRACES) == before


def test_training_that_is_called_again_is_the_same_program():
    whole = train.train(agent(), start(), 2)
    again = train.train(agent(), train.train(agent(), start(), 1), 1)
    assert train._compiled_chunk(agent().step)._cache_size() == 1
    for actual, expected in zip(comparable(again), comparable(whole), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_no_update_changes_nothing():
    state, report = chunk()(start(), 0)
    for actual, expected in zip(comparable(state), comparable(start()), strict=True):
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(report.broken_at, -1)
    assert all(
        np.isnan(value).all() for name, value in report.metrics.items() if name != "episodes"
    )


@functools.cache
def fragile():
    """The compiled chunk, and a start from which two seeds break, at steps 7 and 0."""
    agent = rgpo.make(Fragile(), rgpo.Config(**SETTINGS))
    states = jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), NUM_SEEDS))
    clock, _ = states.rollout.env_state
    never = 2**30
    breaks_at = jnp.broadcast_to(jnp.array([never, 7, never, 0])[:, None], clock.shape)
    states = states._replace(rollout=states.rollout._replace(env_state=(clock, breaks_at)))
    return jax.jit(jax.vmap(train.make_chunk(agent), in_axes=(0, None))), states


@pytest.mark.alike
def test_broken_at_is_the_first_update_that_broke_and_the_seed():
    run, states = fragile()
    # A rollout is 3 steps: that of update 2 has steps 6, 7 and 8.
    _, report = run(states, 6)
    np.testing.assert_array_equal(report.broken_at, [-1, 2, -1, 0])
    _, report = run(states, 2)
    np.testing.assert_array_equal(report.broken_at, [-1, -1, -1, 0])


@pytest.mark.alike
def test_a_huge_learning_rate_breaks_its_seed_and_no_other():
    run, states = fragile()
    mixed, report = run(with_learning_rate(states, [1e-2, 1e-2, 1e30, 1e-2]), 4)
    assert report.broken_at[2] >= 0
    np.testing.assert_array_equal(report.broken_at[jnp.array([0, 1, 3])], [-1, 2, 0])
    healthy, _ = run(states, 4)
    for actual, expected in zip(
        *(jax.tree.leaves(s.learner.params) for s in (mixed, healthy)), strict=True
    ):
        assert np.isfinite(expected[0]).all()
        np.testing.assert_array_equal(actual[0], expected[0])


@pytest.mark.alike
def test_where_no_episode_ends_no_return_is_reported():
    run, states = fragile()
    _, report = run(states, 4)
    np.testing.assert_array_equal(report.metrics["episodes"], 0.0)
    assert np.isnan(report.metrics["episode_return"]).all()
    assert np.isnan(report.metrics["episode_length"]).all()
    assert np.isfinite(report.metrics["value_loss"][0])


@pytest.mark.alike
def test_broken_at_counts_updates_from_the_start_of_the_run():
    run, states = fragile()
    states, first = run(states, 2)
    states, second = run(states, 3)
    _, third = run(states, 1)
    np.testing.assert_array_equal(first.broken_at, [-1, -1, -1, 0])
    # Seed 3 was broken before: in each chunk all of its updates are.
    np.testing.assert_array_equal(second.broken_at, [-1, 2, -1, 2])
    np.testing.assert_array_equal(third.broken_at, [-1, 5, -1, 5])
    assert np.isnan(third.metrics["value_loss"][jnp.array([1, 3])]).all()


EPISODES = 400


@functools.cache
def evaluated(deterministic=True, dies=True, limit=9):
    config = rgpo.Config(hidden_sizes=(4,))
    player = make(ShortOrLong(limit, dies), config, gates.rgpo())
    learner = start_of(player)
    evaluate = jax.jit(train.make_evaluation(player, EPISODES, deterministic))
    return [np.asarray(x) for x in evaluate(learner, jax.random.key(0))]


def start_of(player):
    return jax.jit(player.init)(jax.random.key(0)).learner


@pytest.mark.alike
@pytest.mark.parametrize("dies", [True, False])
def test_every_episode_is_whole_and_counts_once(dies):
    returns, lengths = evaluated(dies=dies)
    assert returns.shape == lengths.shape == (EPISODES,)
    assert set(lengths.tolist()) == {1, 9}
    np.testing.assert_array_equal(returns, lengths)  # what follows an end is not paid
    # Were episodes collected as they end, 9 of 10 would be short. 5 sigma of 400 coins is 0.125.
    assert abs(np.mean(lengths == 9) - 0.5) < 0.125


@pytest.mark.alike
@pytest.mark.parametrize("limit", [9, 1000])
def test_the_time_limit_does_not_matter_where_episodes_end_before(limit):
    for actual, expected in zip(evaluated(limit=limit), evaluated(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_an_environment_without_time_limit_is_refused():
    player = make(ShortOrLong(max_episode_steps=None), rgpo.Config(), gates.rgpo())
    with pytest.raises(ValueError, match=r"ShortOrLong.*time limit"):
        train.make_evaluation(player, 4, True)


@pytest.mark.alike
def test_actions_are_the_mode_or_samples():
    player = rgpo.make(Tabular(ACTION), rgpo.Config(hidden_sizes=(4,)))
    learner = start_of(player)

    @jax.jit
    def evaluate(deterministic):  # traced: one program for both
        return train.make_evaluation(player, EPISODES, deterministic)(learner, jax.random.key(0))

    with_mode, with_samples = (evaluate(deterministic)[0] for deterministic in (True, False))
    # The first policy is nearly indifferent between -1 and 1; its mode is one of them.
    best = player.learner.policy(learner, jnp.array([1.0, 0.0])).mode()
    np.testing.assert_array_equal(with_mode, 2.0 * best - 1.0)
    assert set(with_samples.tolist()) == {-1.0, 1.0}
    assert abs(np.mean(with_samples)) < 0.25


TRAIN = """
import jax
from agents import rgpo
from envs import make
from rgpo_jax.train import make_chunk

agent = rgpo.make(make("CartPole-v1"), rgpo.Config(total_steps=20 * 512))
states = jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), 8))
states, report = jax.jit(jax.vmap(make_chunk(agent), in_axes=(0, None)))(states, 20)
print(states.learner.updates.tolist(), report.broken_at.tolist())
print(float(report.metrics["episode_length"].min()))
"""


@pytest.mark.timeout(300)
def test_eight_vmapped_seeds_of_cartpole_train_to_the_end():
    # jax 0.10 deadlocked here on CPUs: all threads idle, for ever. A process of its own, because
    # a deadlocked one cannot be interrupted; its limit is some ten times what it takes.
    finished = subprocess.run(
        [sys.executable, "-c", TRAIN],
        cwd=Path(__file__).parent.parent,
        # With XLA's fusion emitters, as users have it and other tests do not.
        env={**os.environ, "XLA_FLAGS": SAME_IN_A_BATCH},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    updates, length = finished.stdout.splitlines()
    assert updates == f"{[20] * 8} {[-1] * 8}"
    # Random play lasts 20 steps or so; the mean over all updates shows that all seeds learn.
    assert float(length) > 25
