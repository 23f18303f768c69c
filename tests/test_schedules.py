"""Learning rates against optax's own schedules, and the settings that choose them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents import rgpo
from agents.language import dpo
from agents.language import rgpo as language_rgpo
from envs import make
from rgpo_jax import schedules
from rgpo_jax.config import ConfigError
from rgpo_jax.learner import Hyperparameters
from rgpo_jax.tunable import as_tunable

PEAK, END, WARMUP, UPDATES = 3e-3, 2e-4, 5, 40


def config(schedule, warmup=WARMUP, end=END, **settings):
    """Of 40 updates of 8 steps, of which 3 are more than there are."""
    return rgpo.Config(
        num_envs=2,
        num_steps=4,
        total_steps=8 * UPDATES - 3,
        learning_rate=PEAK,
        learning_rate_schedule=schedule,
        end_learning_rate=end,
        warmup_steps=8 * warmup,
        **settings,
    )


def rates(settings, updates):
    """The learning rates of updates by one compiled program."""
    identity = as_tunable(lambda log_ratio, advantage: log_ratio)
    numbers = Hyperparameters.from_config(settings, identity, identity, None)
    one = jax.vmap(lambda t: schedules.learning_rate(settings.schedule, numbers, t))
    return np.asarray(jax.jit(one)(jnp.asarray(updates, jnp.int32)))


@pytest.mark.parametrize("warmup", [0, WARMUP])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_rates_are_those_of_optax(schedule, warmup):
    left = UPDATES - warmup
    end = 0.0 if schedule == "constant" else END
    decay = {
        "linear": optax.linear_schedule(PEAK, END, left),
        "cosine": optax.cosine_decay_schedule(PEAK, left, alpha=END / PEAK),
        "constant": optax.constant_schedule(PEAK),
    }[schedule]
    rise = optax.linear_schedule(PEAK / (warmup + 1), PEAK, warmup)
    whole = optax.join_schedules([rise, decay], [warmup])
    updates = np.arange(UPDATES + 3)
    expected = [float(whole(t)) for t in updates]
    found = rates(config(schedule, warmup, end), updates)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert found[0] > 0  # no update is for nothing
    assert found[warmup] == pytest.approx(PEAK, rel=1e-6)


def test_a_cosine_with_warm_up_is_that_of_optax():
    whole = optax.warmup_cosine_decay_schedule(PEAK / (WARMUP + 1), PEAK, WARMUP, UPDATES, END)
    updates = np.arange(UPDATES)
    expected = [float(whole(t)) for t in updates]
    np.testing.assert_allclose(rates(config("cosine"), updates), expected, rtol=2e-6)


def test_updates_use_the_schedule_and_members_have_their_own_numbers():
    settings = config("cosine", num_minibatches=2, num_epochs=1, hidden_sizes=(4,))
    agent = rgpo.make(make("CartPole-v1"), settings)
    keys = jax.random.split(jax.random.key(0), 2)
    ends = jnp.array([0.0, END])
    states = jax.vmap(lambda key, end: agent.init(key, end_learning_rate=end))(keys, ends)
    states = states._replace(learner=states.learner._replace(updates=jnp.array([2, 30])))
    _, metrics = jax.jit(jax.vmap(agent.step))(states)
    none = dataclasses.replace(settings, end_learning_rate=0.0)
    expected = [rates(none, [2])[0], rates(settings, [30])[0]]
    np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-6)


def test_what_was_said_before_there_were_names_holds():
    assert rgpo.Config().schedule == "linear"
    assert rgpo.Config(anneal_learning_rate=False).schedule == "constant"
    assert rgpo.Config(anneal_learning_rate=False).annealing == 0.0
    assert rgpo.Config(total_steps=5120).annealing == 0.1
    assert dpo.Config(num_updates=50, warmup_updates=10).annealing == 1 / 40
    assert language_rgpo.Config(anneal_learning_rate=False).schedule == "constant"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"anneal_learning_rate": False, "learning_rate_schedule": "cosine"}, "expected True with"),
        ({"anneal_learning_rate": False, "end_learning_rate": 1e-5}, "1e-05: expected 0 with"),
        ({"learning_rate_schedule": "constant", "end_learning_rate": 1e-5}, "expected 0 with"),
        ({"learning_rate_schedule": "step"}, "step"),
        ({"end_learning_rate": -1.0}, "-1.0: expected"),
        ({"total_steps": 512, "warmup_steps": 513}, "513: expected at most total_steps, 512"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        rgpo.Config(**settings)
