"""A user's environment and gate are judged where they come in, in a line that names the field."""

import sys
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from agents import ppo
from experiments import run
from rgpo_jax import gates
from rgpo_jax.environment import Box, Discrete, MultiDiscrete, TimeStep
from rgpo_jax.inspection import (
    check_environment,
    check_first_step,
    check_observations,
    find_nonfinite,
    is_known,
)


class Line:
    """Go right on a line."""

    name = "Line"
    observation_shape = (2,)
    action_space = Discrete(2)
    max_episode_steps = 5
    reward_shape, reward_type, done_type = (), jnp.float32, bool
    seen = (2,)

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(self.seen, jnp.float32)

    def step(self, key, state, action):
        state = self.after(state)
        observation = jnp.full(self.observation_shape, state, jnp.float32)
        done = jnp.asarray(state >= 3, self.done_type)
        reward = jnp.ones(self.reward_shape, self.reward_type)
        return state, TimeStep(observation, reward, done, jnp.zeros((), bool), observation)

    def after(self, state):
        return state + 1


def changed(**fields):
    return type("Line", (Line,), fields)()


def test_a_sound_environment_passes_and_trains():
    config = ppo.Config(num_envs=2, num_steps=4, num_minibatches=1, hidden_sizes=(4,))
    agent = ppo.make(Line(), config)
    state = jax.jit(agent.init)(jax.random.key(0))
    _, metrics = jax.jit(agent.step)(state)
    assert np.isfinite(metrics["policy_loss"])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"action_space": Discrete(0)}, r"action_space.n is 0: expected a whole number"),
        ({"action_space": Discrete(-2)}, r"action_space.n is -2"),
        ({"action_space": Discrete(2.0)}, r"action_space.n is 2.0"),
        ({"action_space": Discrete(True)}, r"action_space.n is True"),
        ({"action_space": Discrete(2, 0.5)}, r"action_space.start is 0.5: expected a whole number"),
        ({"action_space": MultiDiscrete((2, 0))}, r"action_space.nvec is \(2, 0\): expected whole"),
        ({"action_space": MultiDiscrete((2, 3), (0,))}, r"action_space.start is of shape \(1,\)"),
        ({"action_space": MultiDiscrete((2,), shape=(2,))}, "action_space.nvec is of shape"),
        ({"action_space": MultiDiscrete((2,), (0.5,))}, r"action_space.start is \(0.5,\)"),
        ({"action_space": MultiDiscrete(())}, r"action_space.shape is \(0,\)"),
        ({"action_space": (Discrete(2), Discrete(2))}, "action_space is a tuple: expected"),
        ({"action_space": Box((0,), (), ())}, r"action_space.shape is \(0,\)"),
        ({"action_space": Box((2,), (0.0, 1.0), (1.0, 0.0))}, "action_space.low is 1 in element 1"),
        ({"action_space": Box((1,), (NAN,), (1.0,))}, "action_space.low is NaN"),
        ({"action_space": Box((1,), (0.0,), (NAN,))}, "action_space.high is NaN"),
        ({"action_space": Box((2,), (0.0,), (1.0, 1.0))}, r"action_space.low is of shape \(1,\)"),
        ({"observation_shape": [2]}, r"observation_shape is \[2\]"),
        ({"observation_shape": {}}, r"observation_shape is \{\}: expected a dict of names"),
        ({"observation_shape": {"a": [2]}}, r"observation_shape\['a'\] is \[2\]"),
        (
            {"observation_shape": {"a": (2,)}},
            "the observation of reset is a .*: expected a dict of a",
        ),
        ({"observation_shape": (0,)}, r"observation_shape is \(0,\)"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"max_episode_steps": 2.5}, "max_episode_steps is 2.5"),
        ({"reward_shape": (1,)}, r"reward is of shape \(1,\): expected \(\)"),
        ({"reward_type": jnp.int32}, "reward is int32: expected a float"),
        ({"done_type": jnp.float32}, "terminated is float32: expected bool"),
        ({"done_type": jnp.int32}, "terminated is int32: expected bool"),
        ({"seen": (3,)}, r"the observation of reset is of shape \(3,\): expected \(2,\)"),
        ({"after": lambda self, state: state + 0.5}, r"the state after step is float32"),
        ({"after": lambda self, state: state + jnp.ones(2, jnp.int32)}, "environment Line: "),
        ({"reset": lambda self: 0}, r"reset\(key\) failed"),
        ({"step": lambda self, *args: (jnp.int32(0), 1.0)}, "the second result of step is a "),
    ],
)
def test_what_is_none_is_refused_by_name_and_field(fields, message):
    with pytest.raises(ValueError, match=message) as refused:
        ppo.make(changed(**fields), ppo.Config())
    assert str(refused.value).startswith("environment Line: ")


def test_bounds_may_be_open_and_equal():
    check_environment(changed(action_space=Box((2,), (-INF, 1.0), (INF, 1.0))))


class Poor(Line):
    """Numbers that are none, from some step on; nothing of it shows in shapes."""

    rewards, start = (1.0, 1.0, 1.0), 0.0

    def reset(self, key):
        return jnp.int32(0), jnp.full((2,), self.start)

    def step(self, key, state, action):
        state, timestep = super().step(key, state, action)
        return state, timestep._replace(reward=jnp.array(self.rewards)[state - 1])


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, None),
        ({"start": NAN}, "environment Line: the observation of reset is NaN or infinite"),
        ({"rewards": (1.0, INF, NAN)}, "environment Line: reward of step 2 is NaN or infinite"),
    ],
)
def test_numbers_that_are_none_are_found(fields, found):
    env = type("Poor", (Poor,), fields)()
    check_environment(env)
    assert find_nonfinite(env, jax.random.key(0), num_envs=2, num_steps=8) == found


def test_a_run_that_its_environment_broke_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(envs, "make", lambda name: type("Poor", (Poor,), {"rewards": (NAN,) * 3})())
    args = ["--agent", "ppo", "--num-envs", "2", "--num-steps", "8", "--num-minibatches", "1"]
    args += ["--total-steps", "64", "--hidden-sizes", "4", "--eval-episodes", "2"]
    assert run.main([*args, "--out", str(tmp_path / "x")]) == 3
    said = capsys.readouterr().out
    assert "error: environment Line: reward of step 1 is NaN or infinite" in said
    assert "at update 0" in said


def test_an_object_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="environment SimpleNamespace: name is missing"):
        ppo.make(types.SimpleNamespace(), ppo.Config())


class Hosted:
    """Of the host protocol."""

    name = "Hosted"
    observation_shape = (2,)
    observation_dtype = np.float32
    action_space = Discrete(2)
    max_episode_steps = None

    def make_pool(self, seeds):
        raise NotImplementedError


class HostedParts(Hosted):
    """An observation of two arrays."""

    observation_shape: ClassVar = {"eye": (3, 3, 1), "arm": (2,)}
    observation_dtype: ClassVar = {"eye": np.uint8, "arm": np.float32}


def parts(**others):
    return {"eye": np.zeros((3, 3, 3, 1), np.uint8), "arm": np.zeros((3, 2), np.float32)} | others


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (parts(eye=np.zeros((3, 3, 3, 1))), r"observation\['eye'\] is float64: expected uint8"),
        (parts(arm=np.zeros((3, 5), np.float32)), r"observation\['arm'\] is of shape \(5,\)"),
        (parts(leg=np.zeros(3)), r"of parts \['arm', 'eye', 'leg'\]: expected a dict of arm, eye"),
        (parts(arm=np.full((3, 2), NAN, np.float32)), "observation of its first step is NaN"),
    ],
)
def test_every_part_of_an_observation_is_looked_at(observation, message):
    check_environment(HostedParts())
    check_observations(HostedParts(), parts())
    whole = first(observation=parts(), final_observation=parts())
    check_first_step(HostedParts(), whole)
    with pytest.raises(ValueError, match=f"environment Hosted: .*{message}"):
        check_first_step(HostedParts(), whole._replace(observation=observation))


def first(**fields):
    observation, flags = np.zeros((3, 2), np.float32), np.zeros(3, bool)
    step = TimeStep(observation, np.zeros(3, np.float32), flags, flags, observation)
    return step._replace(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward": np.zeros((3, 1), np.float32)}, r"reward is of shape \(1,\)"),
        ({"reward": np.zeros(3, int)}, "reward is int64"),
        ({"reward": np.full(3, NAN, np.float32)}, "reward of its first step is NaN"),
        ({"terminated": np.zeros(3)}, "terminated is float64"),
        ({"observation": np.zeros((3, 2))}, "observation is float64: expected float32"),
        ({"observation": np.full((3, 2), INF, np.float32)}, "observation of its first step"),
        ({"final_observation": np.zeros((3, 4), np.float32)}, r"final_observation is of shape"),
    ],
)
def test_the_first_step_of_a_pool_is_looked_at(fields, message):
    check_environment(Hosted())
    check_first_step(Hosted(), first())
    check_observations(Hosted(), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=f"environment Hosted: {message}"):
        check_first_step(Hosted(), first(**fields))
    with pytest.raises(ValueError, match=r"the observation of reset is of shape \(4,\)"):
        check_observations(Hosted(), np.zeros((3, 4)))


def test_what_is_the_suites_own_is_told_by_its_file(monkeypatch, tmp_path):
    # Others have packages called envs, too.
    theirs = types.ModuleType("envs.mine")
    theirs.__file__ = str(tmp_path / "envs" / "mine.py")
    monkeypatch.setitem(sys.modules, "envs.mine", theirs)
    monkeypatch.setattr(Line, "__module__", "envs.mine")
    assert not is_known(Line())
    assert is_known(envs.make("CartPole-v1"))
    wrapped = types.SimpleNamespace(wraps=envs.make("CartPole-v1"))
    assert is_known(wrapped)


# Gates, at the library's door and at the programs'.


def scalar(log_ratio, advantage):
    return jnp.sum(log_ratio)


def undefined_at_1(log_ratio, advantage):
    return jnp.sign(log_ratio) * jnp.sqrt(jnp.abs(log_ratio))


@pytest.mark.parametrize(
    ("gate", "message"),
    [(scalar, "not elementwise"), (undefined_at_1, "value or weight is not finite")],
)
def test_what_is_no_gate_is_refused_at_both_doors(gate, message):
    with pytest.raises(ValueError, match=message):
        gates.check(gate)
    with pytest.raises(ValueError, match=message):
        ppo.make(Line(), ppo.Config(), gate)


def test_gates_of_the_suite_are_not_looked_at_again(monkeypatch):
    monkeypatch.setattr(gates, "check", lambda gate: pytest.fail("it was checked"))
    ppo.make(Line(), ppo.Config())
