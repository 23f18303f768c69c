"""A finished run that goes on to more steps is the run that had so many from the start."""

import json
import shutil

import jax
import numpy as np
import pytest
from killing import killed_in
from probes import records, timeless_records

from experiments import run
from experiments.align import __main__ as align
from experiments.record.lengthening import lengthened
from experiments.training import trained
from rgpo_jax.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("programs_are_kept", "curves_are_drawn_once")
TINY = [
    *("--agent", "ppo", "--num-seeds", "2", "--num-envs", "2", "--num-steps", "8"),
    *("--num-minibatches", "2", "--num-epochs", "2", "--hidden-sizes", "8"),
    *("--eval-episodes", "2", "--reset-pool-size", "2", "--log-every", "48", "--eval-every", "96"),
    *("--normalize-observations", "--learning-rate", "1e-3"),
]


def train(folder, *args):
    return run.main([*args, "--out", str(folder)])


def go_on(folder, *args):
    return train(folder, "--resume", "--train-longer", *args)


def arrays(folder):
    """Of the newest checkpoint, what trains on: not the schedule's numbers, which may be others."""
    learners = trained.load(str(folder), "--run").learners._replace(hyperparameters=None)
    keys = learners.key
    leaves = jax.tree.leaves(learners._replace(key=jax.random.key_data(keys)))
    return [np.asarray(leaf) for leaf in leaves]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(schedule, steps) -> the folder of a run of so many."""
    folders = {}

    def make(schedule, steps):
        key = (schedule, steps)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("runs") / f"{schedule}-{steps}"
            flags = ["--learning-rate-schedule", schedule, "--total-steps", str(steps)]
            assert train(folders[key], *TINY, *flags) == 0
        return folders[key]

    return make


def test_with_a_constant_rate_it_is_the_longer_run_to_the_bit(made, tmp_path, capsys):
    whole, folder = made("constant", 480), tmp_path / "run"
    shutil.copytree(made("constant", 240), folder)
    assert go_on(folder, "--total-steps", "480") == 0
    assert "going on after 240 steps" in capsys.readouterr().out
    ours, theirs = timeless_records(folder), timeless_records(whole)
    assert [line["env_steps"] for line in ours] == [line["env_steps"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for name in other:
            # Where it once ended, it was evaluated, and on all episodes.
            if not (other["env_steps"] == 240 and "eval" in name):
                assert one[name] == other[name], (name, other["env_steps"])
    for one, other in zip(arrays(folder), arrays(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    summary = json.loads((folder / "summary.json").read_text())
    expected = json.loads((whole / "summary.json").read_text())
    for name in ("total_steps", "final_return", "final_return_stochastic", "num_seeds"):
        assert summary[name] == expected[name]
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"] == json.loads((whole / "config.json").read_text())["settings"]
    assert config["lengthened"] == [{"setting": "total_steps", "before": 240, "after": 480}]
    # The same command again finds it finished.
    assert go_on(folder, "--total-steps", "480") == 0
    assert "finished already" in capsys.readouterr().out


def test_a_line_goes_on_where_that_of_the_longer_run_would_be(made, tmp_path):
    whole, folder = records(made("linear", 480)), tmp_path / "run"
    shutil.copytree(made("linear", 240), folder)
    assert go_on(folder, "--total-steps", "480") == 0
    rates = {line["env_steps"]: line["learning_rate"] for line in records(folder)}
    assert {steps: rate for steps, rate in rates.items() if steps > 240} == {
        line["env_steps"]: line["learning_rate"] for line in whole if line["env_steps"] > 240
    }
    assert rates[240] < rates[288]  # it was nearly at its end


def test_killed_before_its_first_new_checkpoint_it_goes_on(made, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(made("constant", 240), folder)
    with killed_in(Checkpoints, "restore"):
        go_on(folder, "--total-steps", "480")
    assert not (folder / "summary.json").exists()
    assert trained.load(str(folder), "--run").env_steps == (240, 240)
    assert train(folder, "--resume") == 0
    for one, other in zip(arrays(folder), arrays(made("constant", 480)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--resume", "--total-steps", "480"], "--total-steps 480: the run in "),
        (["--resume", "--total-steps", "480"], "train it for longer by --train-longer"),
        (["--resume", "--train-longer", "--total-steps", "160"], "by --train-longer, with more"),
        (
            ["--train-longer", "--total-steps", "4800"],
            "--train-longer goes with --out DIR --resume",
        ),
        (
            ["--resume", "--train-longer", "--total-steps", "480", "--learning-rate", "1"],
            "--learning-rate 1.0: the run in",
        ),
    ],
)
def test_what_is_not_a_longer_run_is_refused(args, said, made, capsys):
    folder = made("constant", 240)
    before = (folder / "config.json").read_bytes()
    with pytest.raises(SystemExit) as left:
        train(folder, *args)
    assert left.value.code == 2
    assert said in capsys.readouterr().err
    assert (folder / "config.json").read_bytes() == before
    assert (folder / "summary.json").exists()


def test_a_cell_of_a_sweep_is_refused(made, tmp_path, capsys):
    shutil.copytree(made("constant", 240), tmp_path / "cell")
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(SystemExit):
        go_on(tmp_path / "cell", "--total-steps", "480")
    assert "belongs to a sweep" in capsys.readouterr().err


def test_a_language_model_is_trained_for_more_updates(tmp_path):
    main = align.main
    small = ["--method", "rgpo", "--world", "bandit", "--learning-rate-schedule", "constant"]
    small += ["--log-every", "128", "--eval-every", "256", "--num-prompts", "8"]
    for name, updates in (("whole", "8"), ("run", "4")):
        assert main([*small, "--num-updates", updates, "--out", str(tmp_path / name)]) == 0
    longer = ["--resume", "--train-longer", "--num-updates", "8"]
    assert main([*longer, "--out", str(tmp_path / "run")]) == 0
    last, expected = (timeless_records(tmp_path / name)[-1] for name in ("run", "whole"))
    assert last == expected
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["num_updates"] == 8
    assert config["subject"]["total"] == 8 * 64


def test_only_what_grows_is_longer():
    assert lengthened({"total_steps": 5}, {"total_steps": 6}) == ("total_steps", 5, 6)
    assert lengthened({"total_steps": 6}, {"total_steps": 6}) is None
    assert lengthened({"total_steps": 6}, {"total_steps": 5}) is None
    assert lengthened({"total_steps": "5"}, {"total_steps": 6}) is None
