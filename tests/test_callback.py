"""Callbacks between updates: what they are told, that they change nothing, how they end runs."""

import json
import signal
import sys

import jax
import numpy as np
import pytest
from probes import OBSERVATION_ACTION, Tabular, assert_refused, records, timeless_records

from agents import rgpo
from experiments import run
from experiments.align import __main__ as align
from experiments.play import __main__ as play
from experiments.sweep import __main__ as sweep
from experiments.training import trained
from rgpo_jax import callback, train

TINY = [
    *("--agent", "ppo", "--num-seeds", "2", "--seed", "3", "--num-envs", "2", "--num-steps", "8"),
    *("--num-minibatches", "2", "--num-epochs", "2", "--hidden-sizes", "8"),
    *("--eval-episodes", "2", "--reset-pool-size", "2", "--log-every", "48", "--eval-every", "96"),
    *("--total-steps", "288", "--checkpoint-every", "3600"),
]
MODULE = """
import os, signal
import numpy as np

MOMENTS = []


def look(moment):
    observation = np.zeros((2, 5, 4), np.float32)
    actions = moment.act(observation)
    some = moment.act(observation, __import__("jax").random.key(moment.updates))
    assert actions.shape == some.shape == (2, 5)
    params = __import__("jax").tree.map(np.array, moment.learner.params)
    MOMENTS.append((moment.updates, moment.steps, dict(moment.metrics), params, actions))
    for values in moment.metrics.values():
        values[:] = 0  # its own copies


def stop(moment):
    return np.bool_(moment.steps == 144)


def fail(moment):
    if moment.steps == 144:
        return 1 / 0


def answer(moment):
    return moment.steps


def told(moment):
    if moment.steps == 144:
        os.kill(os.getpid(), signal.SIGTERM)
        __import__("time").sleep(60)


NOTHING = 3
"""


pytestmark = pytest.mark.usefixtures("programs_are_kept", "curves_are_drawn_once")


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("own_module")
    sys.modules.pop("own_module", None)


def same(folder, whole):
    assert timeless_records(folder) == timeless_records(whole)
    ours, theirs = (trained.load(str(f), "--run").learners.params for f in (folder, whole))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_it_is_told_each_line_and_changes_no_number(module, tmp_path, whole):
    assert run.main([*TINY, "--callback", "own_module:look", "--out", "run"]) == 0
    same(tmp_path / "run", whole)
    lines = records(whole)[1:]
    assert [m[:2] for m in module.MOMENTS] == [(x["updates"], x["env_steps"]) for x in lines]
    params = trained.load("run", "--run").learners.params
    jax.tree.map(np.testing.assert_array_equal, module.MOMENTS[-1][3], params)
    agent, loaded = trained.load("run", "--run")[1:3]
    act = callback.make_act(agent)
    np.testing.assert_array_equal(module.MOMENTS[-1][4], act(loaded, np.zeros((2, 5, 4))))


def test_metrics_are_those_of_the_line(module, whole, monkeypatch):
    kept = []

    def keep(moment):
        kept.append({name: values.tolist() for name, values in moment.metrics.items()})

    monkeypatch.setattr(module, "look", keep)
    assert run.main([*TINY, "--callback", "own_module:look", "--out", "run"]) == 0
    for moment, line in zip(kept, records(whole)[1:], strict=True):
        defined = {name: values for name, values in moment.items() if not np.isnan(values).any()}
        assert defined.items() <= line.items()
        assert moment.keys() == line.keys() - {"env_steps", "updates", "wall_seconds"}


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("stop", 0, "stopped by the callback; go on with: python -m experiments.run --out run"),
        ("fail", 3, "error: --callback own_module:fail: ZeroDivisionError: division by zero ("),
        ("told", 128 + signal.SIGTERM, "stopped; go on with"),
    ],
)
def test_a_run_that_it_ends_is_saved_and_goes_on(name, status, said, module, tmp_path, whole):
    flags = [*TINY, "--callback", f"own_module:{name}", "--out", "run"]
    assert run.main(flags) == status
    last = (tmp_path / "run" / "run.log").read_text().splitlines()[-1]
    assert last.startswith(said) and last.endswith("--resume --trust-code")
    if name == "fail":
        line = MODULE.splitlines().index("        return 1 / 0") + 1
        assert f"own_module.py, line {line}); go on with" in last
    assert records(tmp_path / "run")[-1]["env_steps"] == 144
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["interrupted"]
    assert run.main(["--out", "run", "--resume", "--callback", "None"]) == 0
    same(tmp_path / "run", whole)


def test_an_answer_that_is_none_is_told(module, tmp_path):
    assert run.main([*TINY, "--callback", "own_module:answer", "--out", "run"]) == 3
    said = (tmp_path / "run" / "run.log").read_text()
    assert "TypeError: a callback returned int, not True, False or None" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:look", "--callback no_such_module:look: no module named"),
        ("own_module:no_such", "--callback own_module:no_such: AttributeError"),
        ("own_module:NOTHING", "expected a function, got int"),
    ],
)
def test_what_is_no_callback_is_refused(name, said, module, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        run.main([*TINY, "--callback", name, "--out", "run"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_one_that_a_folder_names_is_not_run_unasked(module, tmp_path, capsys):
    mark = "own_module:stop"
    assert run.main([*TINY, "--callback", mark, "--out", "run"]) == 0
    sys.modules.pop("own_module")
    what = f"its callback is {mark}: code that is not of the suite"
    capsys.readouterr()
    assert_refused(run.main, ["--out", "run", "--resume"], what, capsys)
    assert_refused(run.main, ["--config", "run/config.json", "--out", "new"], what, capsys)
    assert play.main(["--run", "run", "--max-steps", "2", "--size", "120"]) == 0  # needs none
    assert "own_module" not in sys.modules
    assert run.main(["--out", "run", "--resume", "--trust-code"]) == 0  # 144 steps are behind it
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["total_steps"] == 288


def test_a_sweep_and_several_processes_refuse_it(module, tmp_path, capsys):
    flags = ["--callback", "own_module:look"]
    assert_refused(sweep.main, [*flags, "--out", "sweep"], "--callback: not for a sweep", capsys)
    flags += ["--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "0"]
    assert_refused(run.main, [*flags, "--out", "run"], "goes with one process", capsys)


def test_a_language_model_calls_back_too(module, tmp_path, monkeypatch):
    def look(moment):
        assert moment.act is None
        assert np.asarray(moment.learner.updates).tolist() == [moment.updates]
        return "kl_ref" in moment.metrics and moment.metrics["kl_ref"].shape == (1,)

    monkeypatch.setattr(module, "look", look)
    flags = ["--method", "rgpo", "--world", "bandit", "--num-updates", "8", "--num-prompts", "8"]
    flags += ["--callback", "own_module:look", "--eval-every", "128", "--out", "run"]
    assert align.main(flags) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["total_answers"] == 128


def test_library_code_is_called_back_and_may_stop():
    config = rgpo.Config(
        num_envs=2, num_steps=4, num_minibatches=1, num_epochs=1, hidden_sizes=(4,)
    )
    agent = rgpo.make(Tabular(OBSERVATION_ACTION), config)
    states = jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), 3))
    moments = []

    def look(moment):
        moments.append((moment.updates, moment.steps))
        assert moment.metrics["entropy"].shape == (3,)
        assert moment.act(np.zeros((3, 2)), jax.random.key(0)).shape == (3,)
        return moment.updates >= 4

    stopped = train.train(agent, states, 7, look, every=2)
    assert moments == [(2, 16), (4, 32)]
    plain = train.train(agent, states, 4)
    jax.tree.map(np.testing.assert_array_equal, stopped.learner.params, plain.learner.params)
    assert train.train(agent, states, 7, every=3).learner.updates.tolist() == [7] * 3
