"""The loop around programs that are not control's: another unit, and one kind of evaluation."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cli.interrupts import Interrupts
from experiments.record.headline import Curve, Headline, Unit
from experiments.record.recorder import Recorder
from experiments.training.compiling import Compiler
from experiments.training.devices import Layout, spread_over_seeds
from experiments.training.loop import Training
from experiments.training.programs import Programs, spread_progress, wait_until
from experiments.training.subject import Cell
from rgpo_jax import metrics
from rgpo_jax.train import Progress
from tests.probes import records

HEADLINE = Headline(
    quantity="reward",
    axis="reward of an answer",
    steps="answers",
    score=Curve("reward", "reward of the policy", "reward", "evaluation"),
    sampled=None,
    training=Curve("answer_reward", "reward of training answers", "reward (training)", "training"),
    unit=Unit("answers", "answer", "answers", "total_answers", "answers_per_second", False),
    manner="",
    digits=3,
    results=("reward", "distance"),
)


@dataclasses.dataclass(frozen=True)
class Counting:
    """Ten updates of 32 answers each."""

    seeds: tuple[int, ...] = (4, 5)
    headline = HEADLINE
    num_updates = 10
    batch_size = 32
    log_every = None
    eval_every = 64
    checkpoint_every = 0.0
    keep_best = False
    curve_title = "counting in numbers"

    @property
    def entries(self) -> dict[str, Any]:
        return {"subject": {"agent": "counting", "env": "numbers", "total": 320}}

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seeds[0], "num_seeds": len(self.seeds)}

    def heading(self) -> dict[str, Any]:
        return {"method": "counting"}


class States(NamedTuple):
    learner: jax.Array
    key: jax.Array


class CountingPrograms(Programs):
    """Members count from their seed."""

    memory_bytes = 0

    def __init__(self, seeds):
        self.compiler = Compiler()
        self._seeds, self.metric_names = seeds, ["answer_reward"]
        means = metrics.means({"answer_reward": jnp.float32(0)})
        self._empty = spread_progress(Progress.start(means), Layout().mesh(), len(seeds))

    def ready(self, show=lambda line: None):
        counts = spread_over_seeds(Layout().mesh(), np.array(self._seeds, np.float32))
        self.initial_states = States(counts, jnp.zeros_like(counts))

    def advance(self, states, progress, num_updates):
        def take(progress: Progress, count: jax.Array) -> Progress:
            return progress.take(jnp.int32(0), count, metrics.means({"answer_reward": count}))

        for _ in range(num_updates):
            states = states._replace(learner=states.learner + 1)
            progress = jax.vmap(take)(progress, states.learner)
        return states, progress

    def evaluate(self, states, updates, whole):
        counts = np.asarray(states.learner)
        return {"reward": (counts / 8).tolist(), "distance": (10 - counts).tolist()}

    def start_from(self, states, learners, parts):
        return states._replace(learner=states.learner + learners[0])


def train(folder, start=None):
    plan, shown = Counting(), []
    with Interrupts() as interrupts, Recorder(folder, resume=True) as recorder:
        run = Training(
            [Cell(plan, recorder)],
            lambda: CountingPrograms(plan.seeds),
            folder / "checkpoints",
            interrupts,
            lambda *progress: shown.append(progress),
        )
        if start is not None:
            run.start_from(jnp.array([start]))
        run.resume()
        run.run()
    assert shown[-1][0] == 320
    return (folder / "run.log").read_text()


def test_units_words_and_results_are_the_headlines(tmp_path):
    said = train(tmp_path / "run")
    lines = records(tmp_path / "run")
    assert [line["answers"] for line in lines] == list(range(0, 321, 32))
    evaluated = {line["answers"]: line["reward"] for line in lines if "reward" in line}
    assert evaluated == {32 * n: [(4 + n) / 8, (5 + n) / 8] for n in (0, 2, 4, 6, 8, 10)}
    assert [line["answer_reward"] for line in lines[1:]] == [
        [4.0 + n, 5.0 + n] for n in range(1, 11)
    ]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary)[:5] == [
        *("method", "total_answers", "final_reward", "reward", "distance"),
    ]
    assert summary["total_answers"] == 320
    assert summary["final_reward"]["per_seed"] == [14 / 8, 15 / 8]
    assert summary["reward"] == pytest.approx(14.5 / 8)
    assert summary["distance"] == pytest.approx(-4.5)
    assert summary["answers_per_second"] > 0
    assert not any("step" in key or "stochastic" in key for key in summary)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["subject"] == {"agent": "counting", "env": "numbers", "total": 320}
    assert Headline.of_run(config) == HEADLINE
    last = said.splitlines()[-1]
    assert last.startswith("final reward 1.812 [1.750, 1.875], IQM [95 % interval] over 2 seeds; ")
    assert " answers/s; " in last
    assert "          320 answers  evaluation 1.812 " in said
    assert "step" not in said


def test_it_starts_from_others_and_goes_on(tmp_path, monkeypatch):
    evaluate = CountingPrograms.evaluate

    def die(self, states, updates, whole):
        if updates == 4:
            raise KeyboardInterrupt
        return evaluate(self, states, updates, whole)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CountingPrograms, "evaluate", die)
        train(tmp_path / "cut", start=100)
    said = train(tmp_path / "cut")
    assert "going on after 96 answers\n" in said
    assert records(tmp_path / "cut")[-1]["reward"] == [114 / 8, 115 / 8]


@pytest.mark.parametrize("seconds", [0.0, 5e-4, 0.0078, 0.0157, 0.033, 0.3, 2.5, 60.0])
def test_a_wait_ends_soon_after_what_it_waits_for(seconds, monkeypatch):
    now, looks = 0.0, 0

    def sleep(pause):
        nonlocal now
        now += pause

    def is_ready():
        nonlocal looks
        looks += 1
        return now >= seconds

    clock = SimpleNamespace(sleep=sleep, perf_counter=lambda: now)
    monkeypatch.setattr("experiments.training.programs.time", clock)
    wait_until(is_ready)
    assert seconds <= now < seconds + 1e-4 + min(0.02 * seconds, 0.02)
    assert looks < 400 + 60 * seconds  # and it costs little itself
