"""The study of cost reports what it timed; how fast anything is, is not a test."""

import math

import numpy as np
import pytest

import agents
import envs
from experiments.benchmark import measure
from experiments.comparing import timing
from experiments.theory import cost
from experiments.theory.options import Options


def coverage(rank, n):
    """Probability that the median lies between the draws of rank `rank` from either end."""
    return 1 - 2 * sum(math.comb(n, i) for i in range(rank)) / 2**n


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 20, 21, 100])
def test_the_interval_of_the_median_is_the_narrowest_that_covers(n):
    values = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))
    low, high = cost.median_interval(values.tolist())
    rank = int(low)  # the values are their own ranks
    assert high == (n + 1 - rank if rank else math.inf)
    assert coverage(rank, n) >= 0.95 > coverage(rank + 1, n)


def comparison(ratio, pairs=21):
    return cost.Comparison("CartPole-v1", "step", "ppo", np.array([[ratio, 1.0]] * pairs))


@pytest.mark.parametrize(
    ("ratios", "pairs", "verdict"),
    [
        ((1.0, 1.04), 21, True),
        ((1.0, 1.06), 21, False),
        ((0.9, 1.06), 21, False),
        ((1.0, 0.9), 21, None),
        ((1.0, 1.0), 5, None),  # too few pairs for an interval
        ((1.5, 1.5), 5, None),
    ],
)
def test_parity_is_judged_by_intervals(ratios, pairs, verdict):
    assert cost.parity([comparison(ratio, pairs) for ratio in ratios]) is verdict


@pytest.mark.parametrize(("name", "order"), [("ppo", 1), ("rgpo", 1), ("trpo", 2)])
def test_only_trpo_differentiates_twice(name, order):
    agent = agents.load(name).make(envs.make("CartPole-v1"))
    assert cost.differentiation_order(agent) == order


class Clock:
    """Stands for a program that takes so many seconds for one repetition."""

    def __init__(self, name, seconds_each, log):
        self.name, self.seconds_each, self.log = name, seconds_each, log

    def calibrate(self, seconds):
        return round(seconds / self.seconds_each)

    def seconds(self, count):
        self.log.append(self.name)
        return count * self.seconds_each


def test_programs_run_in_turn_and_in_alternating_order():
    log = []
    programs = [Clock(name, t, log) for name, t in (("a", 0.5), ("b", 0.25), ("c", 0.125))]
    rounds = list(timing.in_turn(programs, 1.0, rounds=3))
    assert rounds == [(0.5, 0.25, 0.125)] * 3
    assert "".join(log) == "abc" + "cba" + "abc"


def test_a_ratio_is_rgpos_time_over_the_others(monkeypatch):
    seconds = {"ppo": 0.01, "rgpo": 0.0125, "trpo": 0.05}
    monkeypatch.setattr(measure, "build", lambda name, *_, **__: Clock(name, seconds[name], log=[]))
    shares = []
    study = cost.run(Options(pairs=7), shares.append)
    assert shares == sorted(shares)
    assert len(shares) == 2 * 2 * 7
    assert shares[-1] == 1.0
    table = study.tables[0]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["environment"], row["part"], row["against"]) for row in rows] == [
        (task, part, other)
        for task in ("CartPole-v1", "Pendulum-v1")
        for part in ("update", "step")
        for other in ("PPO", "TRPO")
    ]
    for row in rows:
        expected = {"PPO": 1.25, "TRPO": 0.25}[row["against"]]
        assert row["median ratio"] == pytest.approx(expected)
        assert row["median, 95 % from"] == pytest.approx(expected)
        assert row["RGPO, median (ms)"] == pytest.approx(12.5)
        assert row["pairs"] == 7
    assert study.tables[1].rows == [("PPO", 1), ("RGPO", 1), ("TRPO", 2)]
    assert [claim.holds for claim in study.claims] == [False, True]
    (figure,) = study.figures
    assert len(figure.panels) == 4
    for panel in figure.panels:
        points = [line for line in panel.lines if line.marker]
        assert [len(line.y) for line in points] == [7, 7]


def test_two_pairs_cannot_tell(monkeypatch):
    monkeypatch.setattr(measure, "build", lambda *_, **__: Clock("", 0.01, log=[]))
    study = cost.run(Options(pairs=2), lambda share: None)
    assert [claim.holds for claim in study.claims] == [None, True]
    for row in study.tables[0].rows:
        assert row[-2:] == (0.0, math.inf)


def test_real_programs_are_timed(monkeypatch):
    build, made, asked = measure.build, [], []

    def build_once(name, *args, **settings):
        """The first program for all: which agent's it is changes nothing in how it is timed."""
        asked.append(name)
        if not made:
            made.append(build(name, *args, **settings))
        return made[0]

    monkeypatch.setattr(measure, "build", build_once)
    for name, value in {
        "_TASKS": ("Pendulum-v1",),
        "_PARTS": ("update",),
        "_NUM_ENVS": 2,
        "_NUM_STEPS": 8,
        "_SECONDS": 0.005,
    }.items():
        monkeypatch.setattr(cost, name, value)
    comparisons = cost._measure(Options(pairs=2), lambda share: None)
    assert asked == ["ppo", "rgpo", "trpo"]
    assert [(c.task, c.part, c.other) for c in comparisons] == [
        ("Pendulum-v1", "update", "ppo"),
        ("Pendulum-v1", "update", "trpo"),
    ]
    for found in comparisons:
        assert found.seconds.shape == (2, 2)
        assert (found.seconds > 0).all()
