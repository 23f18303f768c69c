"""The search of settings: what it reads, that it goes on where it was, and what it leaves."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from probes import timeless_records

from experiments import run
from experiments.cli.exits import EXIT_BROKEN
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupted
from experiments.plan.drawn import Drawn
from experiments.plan.reading import read_plan
from experiments.record.run_folder import is_finished
from experiments.report import runs
from experiments.training import building
from experiments.training.compiling import Compiler
from experiments.tune import __main__ as tune
from experiments.tune import space, trials
from experiments.tune.study import DONE, FAILED, PRUNED, Study

pytestmark = pytest.mark.usefixtures("programs_are_kept")
OBTAIN = Compiler.obtain  # which keeps none in memory
TINY = [
    *("--num-seeds", "2", "--total-steps", "320", "--num-envs", "2", "--num-steps", "8"),
    *("--num-minibatches", "2", "--num-epochs", "2", "--hidden-sizes", "8"),
    *("--eval-episodes", "2", "--reset-pool-size", "2", "--loggers"),
]
SEARCH = ["--search", "learning_rate=log_uniform:1e-4,1e-2", "sharpness=uniform:1,16"]
RATE = {"learning_rate": Drawn("log_uniform", (1e-4, 1e-2))}


def search(out, *more):
    return tune.main(["--agent", "rgpo", *SEARCH, *TINY, "--out", str(out), *more])


@pytest.fixture(scope="module")
def finished(programs_are_kept, tmp_path_factory):
    """A search of three trials, one after another, and how often programs were traced for it."""
    out, traced = tmp_path_factory.mktemp("tunes") / "first", []
    make = building.make_programs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "make_programs", lambda *x: traced.append(1) or make(*x))
        assert search(out, "--trials", "3") == 0
    return out, len(traced)


def study_of(out):
    ranges = {**RATE, "sharpness": Drawn("uniform", (1.0, 16.0))}
    return Study(out, ranges, "median", 10, 0)


# What is searched.


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing is searched; expected NAME=log_uniform:LOW,HIGH"),
        (["--search", "learning_rate"], "--search learning_rate: expected NAME=log_uniform"),
        (["--search", "learning_rate=1e-4..1e-2"], "expected NAME=log_uniform:LOW,HIGH"),
        (["--search", "learning_rate=normal:0,1"], "expected {uniform: [low, high]}"),
        (["--search", "learning_rate=uniform:2,1"], "expected {uniform: [low, high]}"),
        (["--search", "learning_rate=log_uniform:0,1"], "expected a low above 0"),
        (
            ["--search", f"learning_rate=uniform:0,{'9' * 5000}"],
            "--search learning_rate=uniform:0,999",
        ),
        (["--search", "learning_rate=uniform:-1,1"], "--learning-rate -1.0: expected a number"),
        (["--search", "num_epochs=uniform:1,3.5"], "--num-epochs 1.0: expected a whole number"),
        (["--search", "sharpnes=uniform:1,2"], "did you mean sharpness"),
        (["--agent", "ppo", "--search", "sharpness=uniform:1,2"], "unknown setting 'sharpness'"),
        (["--search", "seed=choice:1,2"], "unknown setting 'seed'"),
        (["--search", "total_steps=choice:600,700"], "all trials share a budget"),
        (["--search", *["clip_=choice:1"] * 2], "searches clip_ already"),
        ([*SEARCH, "--sharpness", "3"], "--sharpness gives it a value; give one of both"),
        ([*SEARCH, "--seed", "7"], "--seed 7: expected a seed of at least 1000"),
        ([*SEARCH, "--resume"], "--resume: not for a search"),
        ([*SEARCH, "--log-film"], "--log-film: not for a search"),
        ([*SEARCH, "--pruner", "best"], "--pruner"),
        ([*SEARCH, "--trials", "0"], "--trials 0: expected a whole number"),
        ([*SEARCH, "--num-seed", "2"], "did you mean --num-seeds"),
        ([*SEARCH, "--file", "/nope"], "--file /nope: No such file"),
        ([*SEARCH, "--out", "/dev/null/x"], "--out /dev/null/x: cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        tune.main(args)
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_lines_and_a_sweeps_file_say_the_same(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "learning_rate: {log_uniform: [1e-4, 1e-2]}\nhidden_sizes: [[64, 64], [32]]\n"
        "activation: {choice: [relu, tanh]}\ntarget_kl: [0.02, null]\n"
    )
    found = space.read((), str(path), [], tune.PROG)
    assert found.ranges == {
        **RATE,
        "hidden_sizes": Drawn("choice", ([64, 64], [32])),
        "activation": Drawn("choice", ("relu", "tanh")),
        "target_kl": Drawn("choice", (0.02, None)),
    }
    chosen = {"hidden_sizes": [64, 64], "target_kl": None, "learning_rate": 3e-4}
    config = found.plan(chosen, tune.PROG).config
    assert (config.hidden_sizes, config.target_kl, config.learning_rate) == ((64, 64), None, 3e-4)
    lines = ("learning-rate=log_uniform:1e-4,1e-2", "activation=choice:relu,tanh")
    assert space.read(lines, None, [], tune.PROG).ranges == {
        name: found.ranges[name] for name in ("learning_rate", "activation")
    }


def test_what_is_searched_wins_over_a_config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"learning_rate": 0.5, "discount": 0.9}')
    found = space.read((SEARCH[1],), None, ["--config", str(path)], tune.PROG)
    config = found.plan({"learning_rate": 1e-3}, tune.PROG).config
    assert (config.learning_rate, config.discount) == (1e-3, 0.9)


# The study.


def test_a_search_of_a_setting_by_its_older_name_goes_on(tmp_path):
    ranges = space.read(("call_back=choice:true,false",), None, [], tune.PROG).ranges
    assert list(ranges) == ["pull_back"]
    older = {"call_back": ranges["pull_back"]}
    (trial,) = Study(tmp_path, older, "none", 10, 0).ask(1)
    again = Study(tmp_path, ranges, "none", 10, 0)
    assert again.trials()[0].chosen == {"pull_back": trial.chosen["call_back"]}
    again.ask(1)


def test_a_trial_that_falls_behind_is_to_be_stopped(tmp_path):
    study = Study(tmp_path, RATE, "median", 10, 0)
    for score in range(5):  # before these none is
        (trial,) = study.ask(1)
        assert not any(study.report(trial.number, i, 100.0 + score) for i in (1, 2, 3))
        study.tell(trial.number, DONE, 100.0 + score)
    (behind,) = study.ask(1)
    assert [study.report(behind.number, i, 1.0) for i in (1, 2, 3)] == [False, False, True]
    study.tell(behind.number, PRUNED)
    (ahead,) = study.ask(1)
    assert not any(study.report(ahead.number, i, 500.0) for i in (1, 2, 3))
    found = study.trials()
    assert (found[5].state, found[5].score) == (PRUNED, 1.0)
    assert (found[6].state, found[6].score) == (None, 500.0)
    assert study.best().number == 4


def test_a_study_goes_on_as_if_it_had_not_stopped(tmp_path):
    def ask_and_tell(study):
        (trial,) = study.ask(1)
        study.tell(trial.number, DONE, -abs(trial.chosen["learning_rate"] - 1e-3))
        return trial.chosen

    names = ("whole", "stopped")
    whole, stopped = (tmp_path / name for name in names)
    for folder in (whole, stopped):
        folder.mkdir()
    study = Study(whole, RATE, "none", 10, 3)
    expected = [ask_and_tell(study) for _ in range(14)]  # the last four are TPE's own choices
    found = []
    for part in (6, 7, 1):
        study = Study(stopped, RATE, "none", 10, 3)
        found += [ask_and_tell(study) for _ in range(part)]
        with (stopped / "study.jsonl").open("a") as file:
            file.write('{"op_code": 5, "tri')  # as a kill leaves it
        (stopped / "study.jsonl.lock").symlink_to("nothing")
    assert found == expected
    assert len({chosen["learning_rate"] for chosen in found}) == 14
    assert all(1e-4 <= chosen["learning_rate"] <= 1e-2 for chosen in found)


def test_a_study_of_other_ranges_or_behind_a_link_is_refused(tmp_path):
    Study(tmp_path, RATE, "none", 10, 0).ask(1)
    narrow = {"learning_rate": Drawn("log_uniform", (1e-9, 1e-8))}
    with pytest.raises(BadInput, match=r"trial 0 of study\.jsonl is not of this search"):
        Study(tmp_path, narrow, "none", 10, 0)
    other = tmp_path / "other"
    other.mkdir()
    (other / "study.jsonl").symlink_to(tmp_path / "study.jsonl")
    with pytest.raises(BadInput, match="is a link"):
        Study(other, RATE, "none", 10, 0)


# The search.


def test_trials_are_runs_that_share_a_traced_program(finished):
    out, traced = finished
    assert traced == 1
    found = study_of(out).trials()
    assert [trial.state for trial in found] == [DONE] * 3
    collection = runs.collect([str(out)], strict=True)
    by_name = {one.name: one for one in collection.runs}
    for trial in found:
        one = by_name[f"trials/{trial.number}"]
        assert is_finished(one.folder)
        assert {name: one.settings[name] for name in trial.chosen} == trial.chosen
        assert one.seeds == (1000, 1001)
        assert one.summary["final_return"]["iqm"] == pytest.approx(trial.score)


def test_a_trial_is_the_run_that_it_would_be_alone(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(Compiler, "obtain", OBTAIN)
    out, _ = finished
    trial = out / "trials" / "2"  # by a program that was traced for another
    alone = tmp_path / "alone"
    args = ["--config", str(trial / "config.json"), "--out", str(alone)]
    assert run.main(args) == 0
    assert timeless_records(trial) == timeless_records(alone)


def test_the_best_settings_are_a_config_without_seeds(finished, tmp_path):
    out, _ = finished
    best = study_of(out).best()
    content = json.loads((out / "best.json").read_text())
    assert content["tuned"]["trial"] == best.number
    assert content["tuned"]["seeds"] == [1000, 1001]
    plan = read_plan(["--config", str(out / "best.json")])
    assert {name: getattr(plan.config, name) for name in best.chosen} == best.chosen
    assert (plan.config.total_steps, plan.options.seed, plan.options.num_seeds) == (320, 0, 1)
    args = ["--config", str(out / "best.json"), "--out", str(tmp_path / "run"), "--loggers"]
    assert run.main([*args, "--num-seeds", "2"]) == 0
    page = (out / "README.md").read_text()
    assert f"is trial {best.number}" in page
    assert page.count("| finished |") == 3


def test_a_stopped_search_goes_on_with_the_same_trials(finished, tmp_path, monkeypatch, capsys):
    expected, out = study_of(finished[0]).trials(), tmp_path / "stopped"
    train = trials.Trainer.train

    def stop_at_the_second(self, group, *rest):
        if group[0].number == 1:
            raise Interrupted(signal.SIGINT)
        return train(self, group, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(trials.Trainer, "train", stop_at_the_second)
        assert search(out, "--trials", "2") == 130
    assert "stopped; go on with: python -m experiments.tune --agent rgpo" in capsys.readouterr().out
    assert [trial.state for trial in study_of(out).trials()] == [DONE, None]
    assert search(out, "--trials", "3") == 0
    assert "1 done already" in capsys.readouterr().out
    assert study_of(out).trials() == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--pruner", "none"], 'its search was begun with pruner = "median"'),
        (["--num-seeds", "3"], "--num-seeds 3: the search in"),
        (["--search", "sharpness=uniform:1,2"], "its search was begun with search = "),
    ],
)
def test_another_search_in_the_same_folder_is_refused(finished, args, message, capsys):
    with pytest.raises(SystemExit) as refused:
        search(finished[0], *args)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_trials_side_by_side_are_stopped_only_together(tmp_path, monkeypatch):
    behind = []
    monkeypatch.setattr(
        Study, "report", lambda self, number, evaluation, score: behind.append(number) or number > 1
    )
    assert search(tmp_path / "out", "--trials", "4", "--parallel", "2") == 0
    assert [trial.state for trial in study_of(tmp_path / "out").trials()] == [DONE] * 2 + [
        PRUNED
    ] * 2
    # Nine evaluations of the first two before their end; one of the others.
    assert [behind.count(number) for number in range(4)] == [9, 9, 1, 1]
    assert list((tmp_path / "out" / "programs").iterdir()) == []


def test_a_trial_that_breaks_has_failed(tmp_path, capsys):
    out = tmp_path / "out"
    args = ["--search", "learning_rate=choice:1e30", *TINY, "--out", str(out), "--trials", "1"]
    assert tune.main(args) == EXIT_BROKEN
    assert "no trial was finished" in capsys.readouterr().out
    found = Study(out, {"learning_rate": Drawn("choice", (1e30,))}, "median", 10, 0).trials()
    assert [(trial.state, trial.score) for trial in found] == [(FAILED, None)]
    assert not (out / "best.json").exists()


def test_flags_are_read_before_jax_is_loaded():
    code = (
        "import sys; from experiments.tune import __main__ as program\n"
        "try: program.main(['--bogus', '1'])\n"
        "except SystemExit: print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.stdout == "False\n"


def test_what_an_environment_refuses_is_told_before_anything_is_written(tmp_path, capsys):
    out = tmp_path / "tune"
    with pytest.raises(SystemExit) as refused:
        search(out, "--env-kwargs", "lenght=1")
    assert refused.value.code == 2 and not out.exists()
    assert "CartPole-v1 has no parameter 'lenght'" in capsys.readouterr().err
