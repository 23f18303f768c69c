"""Environments whose values and best actions are known: each can be failed in one way only."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from rgpo_jax.environment import Box, Discrete, TimeStep

Array = jax.Array


def check_share(share: float) -> None:
    """Progress that is told must be a share of the work."""
    assert 0.0 <= share <= 1.0


DISCOUNT_FACTOR = 0.9
LIMIT = 4


class Tables(NamedTuple):
    """A world of S states and A actions, deterministic but for the start.

    Attributes:
      next_state: int32 [S, A].
      reward: [S, A].
      terminal: bool [S, A].
      start: probability that an episode starts in state 1, and not in state 0.
    """

    next_state: Array
    reward: Array
    terminal: Array
    start: Array


class Tabular:
    """Two states, seen one-hot, and two actions.

    The tables may be traced, so that one compiled program trains on many probes side by side.
    """

    name = "Tabular"
    observation_shape = (2,)
    action_space = Discrete(2)
    max_episode_steps: int | None = LIMIT

    def __init__(self, tables: Tables):
        self.tables = tables

    def reset(self, key: Array) -> tuple[Any, Array]:
        position = jax.random.bernoulli(key, self.tables.start).astype(jnp.int32)
        return (position, jnp.int32(0)), jax.nn.one_hot(position, 2)

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        position, time = state
        terminated = self.tables.terminal[position, action]
        reward = self.tables.reward[position, action]
        position, time = self.tables.next_state[position, action], time + 1
        observation = jax.nn.one_hot(position, 2)
        truncated = (time >= LIMIT) & ~terminated
        return (position, time), TimeStep(observation, reward, terminated, truncated, observation)


def _tables(reward: Any, terminal: Any, next_state: Any = 0, start: Any = 0.0) -> Tables:
    return Tables(
        jnp.broadcast_to(jnp.asarray(next_state, jnp.int32), (2, 2)),
        jnp.broadcast_to(jnp.asarray(reward, jnp.float32), (2, 2)),
        jnp.broadcast_to(jnp.asarray(terminal, bool), (2, 2)),
        jnp.asarray(start, jnp.float32),
    )


# Fails where the critic does not learn at all.
VALUE = _tables(reward=1.0, terminal=True)
# Fails where observations do not reach the critic, or belong to other steps than the rewards.
OBSERVATION = _tables(reward=[[-1.0, -1.0], [1.0, 1.0]], terminal=True, start=0.5)
# Fails where the discount or the next value is wrong: V = gamma, then 1.
DISCOUNT = _tables(
    reward=[[0.0, 0.0], [1.0, 1.0]], terminal=[[False, False], [True, True]], next_state=1
)
# Fails where the policy gradient has the wrong sign, or actions and advantages do not match.
ACTION = _tables(reward=[[-1.0, 1.0], [-1.0, 1.0]], terminal=True)
# Fails where observations do not reach the actor.
OBSERVATION_ACTION = _tables(reward=[[1.0, -1.0], [-1.0, 1.0]], terminal=True, start=0.5)
# Fails where a time limit is treated as death: V = 1 / (1 - gamma), and not the reward to go.
ENDLESS = _tables(reward=1.0, terminal=False)

TABLES = {
    "value": VALUE,
    "observation": OBSERVATION,
    "discount": DISCOUNT,
    "action": ACTION,
    "observation_action": OBSERVATION_ACTION,
    "endless": ENDLESS,
}
# Exact values of the states that are met, whatever the policy; None where they depend on it.
VALUES: dict[str, tuple[float | None, float | None]] = {
    "value": (1.0, None),
    "observation": (-1.0, 1.0),
    "discount": (DISCOUNT_FACTOR, 1.0),
    "action": (None, None),
    "observation_action": (None, None),
    "endless": (1.0 / (1.0 - DISCOUNT_FACTOR), None),
}
# The best action in the states that are met; None where all are equal.
ACTIONS: dict[str, tuple[int | None, int | None]] = {
    "value": (None, None),
    "observation": (None, None),
    "discount": (None, None),
    "action": (1, None),
    "observation_action": (0, 1),
    "endless": (None, None),
}


class Target:
    """One step; the reward is minus the squared distance of the action from 3, in [0, 4].

    The best policy has mean 0.5 in the policy's own units, [-1, 1].
    """

    name = "Target"
    observation_shape = (1,)
    action_space = Box((1,), (0.0,), (4.0,))
    max_episode_steps: int | None = 1

    def reset(self, key: Array) -> tuple[Any, Array]:
        return jnp.int32(0), jnp.ones(1)

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        reward = -jnp.square(action[0] - 3.0)
        observation = jnp.ones(1)
        return state, TimeStep(observation, reward, jnp.bool_(True), jnp.bool_(False), observation)


class Targets:
    """One step; three actions, each with bounds and a target of its own.

    The reward is minus the sum of the squared distances, in half-widths of the bounds. An action
    beyond its bounds makes it NaN.
    """

    name = "Targets"
    observation_shape = (1,)
    action_space = Box((3,), (-2.0, 0.0, -0.3), (2.0, 5.0, 0.1))
    target = (-1.0, 3.5, 0.0)
    max_episode_steps: int | None = 1

    @classmethod
    def reward(cls, action: Array) -> Array:
        low, high = jnp.array(cls.action_space.low), jnp.array(cls.action_space.high)
        distance = (action - jnp.array(cls.target)) / (0.5 * (high - low))
        inside = jnp.all((low <= action) & (action <= high))
        return jnp.where(inside, -jnp.sum(jnp.square(distance)), jnp.nan)

    def reset(self, key: Array) -> tuple[Any, Array]:
        return jnp.int32(0), jnp.ones(1)

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        yes, no, observation = jnp.bool_(True), jnp.bool_(False), jnp.ones(1)
        return state, TimeStep(observation, self.reward(action), yes, no, observation)


class ShortOrLong:
    """Episodes of 1 or of 9 steps, as likely; each step pays 1, also beyond the end.

    The action is ignored; the episode is truncated, or terminated where `dies`.
    """

    name = "ShortOrLong"
    observation_shape = (1,)
    action_space = Discrete(2)

    def __init__(self, max_episode_steps: int | None = 9, dies: bool = True):
        self.max_episode_steps = max_episode_steps
        self.dies = dies

    def reset(self, key: Array) -> tuple[Any, Array]:
        return jnp.where(jax.random.bernoulli(key), 9, 1), jnp.zeros(1)

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        left = state - 1
        done = left == 0
        observation = jnp.zeros(1)
        return left, TimeStep(
            observation, jnp.float32(1.0), done & self.dies, done & (not self.dies), observation
        )


class Fragile:
    """One endless episode whose rewards are NaN from some step on: `state` is (step, that step)."""

    name = "Fragile"
    observation_shape = (1,)
    action_space = Discrete(2)
    max_episode_steps: int | None = None

    def reset(self, key: Array) -> tuple[Any, Array]:
        return (jnp.int32(0), jnp.int32(2**30)), jnp.ones(1)

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        clock, breaks_at = state
        observation, no = jnp.ones(1), jnp.bool_(False)
        reward = jnp.where(clock >= breaks_at, jnp.nan, action.astype(jnp.float32))
        return (clock + 1, breaks_at), TimeStep(observation, reward, no, no, observation)


class Recall:
    """The first observation is 1 or -1, as likely, and all others are 0.

    An episode has three steps; at the last of them action 1 pays what the first observation was,
    and action 0 its opposite. It is terminated where it `dies`, else truncated.
    """

    name = "Recall"
    observation_shape = (1,)
    action_space = Discrete(2)
    max_episode_steps: int | None = 3

    def __init__(self, dies: bool = True):
        self.dies = dies

    def reset(self, key: Array) -> tuple[Any, Array]:
        code = jax.random.rademacher(key, (1,), jnp.float32)
        return (jnp.int32(0), code), code

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        clock, code = state[0] + 1, state[1]
        done = clock == 3
        reward = jnp.where(done, code[0] * (2 * action - 1), 0.0)
        observation = jnp.zeros(1)
        timestep = TimeStep(
            observation, reward, done & self.dies, done & (not self.dies), observation
        )
        return (clock, code), timestep


def records(folder: Path) -> list[dict[str, Any]]:
    """A run's lines of metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless_records(folder: Path) -> list[dict[str, Any]]:
    """A run's lines of metrics without what the clock says, which alone may differ."""
    times = ("wall_seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in times} for line in records(folder)]


def summary_of(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    return json.loads((folder / "summary.json").read_text())


def assert_same_numbers(folder: Path, reference: Path, seeds: slice = slice(None)) -> None:
    """Holds a run's metrics against those of a reference's seeds, as docs/running.md promises."""

    def numbers(values: list[float | None]) -> list[float]:
        return [math.nan if value is None else value for value in values]

    for ours, other in zip(records(folder), records(reference), strict=True):
        assert ours.keys() == other.keys()
        assert ours["env_steps"] == other["env_steps"]
        for name in ours.keys() - {"env_steps", "updates", "wall_seconds"}:
            expected = numbers(other[name][seeds])
            assert numbers(ours[name]) == pytest.approx(
                expected, rel=1e-3, abs=1e-5, nan_ok=True
            ), name


def assert_refused(
    main: Callable[[Sequence[str]], int], args: list[str], message: str, capsys: Any
) -> None:
    """Holds a program to refusing these arguments in one line that says so, with exit status 2."""
    with pytest.raises(SystemExit) as refused:
        main(args)
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


# What a run leaves in its folder, if nothing else is asked for.
RUN_FILES = [
    ".lock",
    "checkpoints",
    "config.json",
    "learning_curve.png",
    "metrics.jsonl",
    "run.log",
    "summary.json",
    "tensorboard",
]
