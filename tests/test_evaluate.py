"""Policies of a run over episodes of their own: which, how many, and in which environment."""

import json

import jax
import numpy as np
import pytest

from experiments import evaluate, run
from experiments.cli.exits import EXIT_BROKEN
from experiments.training import trained
from rgpo_jax import train
from rgpo_jax.inspection import EnvironmentFailed

SMALL = [
    *("--agent", "ppo", "--num-seeds", "2", "--seed", "3", "--num-envs", "2", "--num-steps", "8"),
    *("--num-minibatches", "2", "--num-epochs", "1", "--hidden-sizes", "8", "--eval-episodes", "2"),
    *("--reset-pool-size", "2", "--total-steps", "64", "--env-kwargs", "max_steps_in_episode=20"),
]
# The run that all but the last of these tests evaluate.
TINY = [*SMALL, "--network", "gru", "--randomize", "length=0.4..0.6", "force_mag=5..20"]


def evaluated(folder, path, *flags):
    args = ["--run", str(folder), "--episodes", "5", "--out", str(path), "--overwrite", *flags]
    assert evaluate.main(args) == 0
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def episodes(whole, tmp_path_factory):
    """What is found of the run's policies without another flag."""
    return evaluated(whole, tmp_path_factory.mktemp("found") / "episodes.json")


def test_each_episode_is_that_of_the_policy_whatever_runs_side_by_side(
    whole, episodes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate, "_AT_A_TIME", 2)
    found = evaluated(whole, tmp_path / "all.json", "--episode-seed", "1")
    assert (found["episode_seed"], episodes["episode_seed"]) == (1, 0)
    assert found["returns"] != episodes["returns"]
    loaded = trained.load(str(whole), "--run")
    two = jax.vmap(train.make_evaluation(loaded.agent, 2, True), in_axes=(0, None))
    key = jax.random.fold_in(jax.random.key(1), evaluate._STREAM)
    returns = []
    for _ in range(3):
        key, own = jax.random.split(key)
        returns.append(jax.jit(two)(loaded.learners, own)[0])
    np.testing.assert_array_equal(found["returns"], np.concatenate(returns, axis=1)[:, :5])
    assert found["returns"] == found["lengths"]  # a step pays 1
    assert np.shape(found["returns"]) == (2, 5)
    assert found["return"]["per_seed"] == np.mean(found["returns"], axis=1).tolist()
    assert (found["seeds"], found["env_steps"], found["manner"]) == (
        [3, 4],
        [64, 64],
        "deterministic",
    )
    said = capsys.readouterr().out
    assert "newest deterministic policy after 64 steps, 5 episodes of each seed" in said
    assert f"seed 3: return {np.mean(found['returns'][0]):.1f} (" in said
    assert "of the means of 2 seeds" in said


def test_actions_may_be_sampled(whole, episodes, tmp_path):
    sampled = evaluated(whole, tmp_path / "episodes.json", "--stochastic")
    assert sampled["returns"] != episodes["returns"]
    assert sampled["manner"] == "stochastic"


def test_the_environment_may_differ_in_parameters(whole, tmp_path):
    limit = "max_steps_in_episode"
    found = evaluated(whole, tmp_path / "short.json", "--env-kwargs", f"{limit}=4", "length=0.7")
    assert np.max(found["lengths"]) == 4
    assert found["env_kwargs"] == ["length=0.7", f"{limit}=4"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--env-kwargs", "lenght=1"],
            "--env CartPole-v1 --env-kwargs lenght=1 max_steps_in_episode=20 --randomize ",
        ),
        (["--env-kwargs", "length"], "--env-kwargs length: expected key=value"),
        (["--episodes", "0"], "--episodes 0: expected a whole number of at least 1"),
        (["--which", "best"], "--which best: the run in"),
        (["--out", "scores.csv"], "--out scores.csv: expected a name that ends in .json"),
        (["--episode-seed", str(2**31)], "--episode-seed 2147483648: expected less than 2^30"),
    ],
)
def test_bad_input_is_one_line(whole, flags, message, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--run", str(whole), *flags])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"error: {message}")


def test_a_file_is_not_replaced_unasked(whole, tmp_path, capsys):
    path = tmp_path / "kept.json"
    path.write_text("mine")
    with pytest.raises(SystemExit):
        evaluate.main(["--run", str(whole), "--out", str(path)])
    assert "is there already" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_an_environment_that_fails_is_one_line(whole, monkeypatch, capsys):
    def fails(*_):
        raise EnvironmentFailed("environment mine: step 3: IndexError: boom")
        yield

    monkeypatch.setattr(evaluate, "_compiled", fails)
    assert evaluate.main(["--run", str(whole)]) == EXIT_BROKEN
    assert capsys.readouterr().err == "error: environment mine: step 3: IndexError: boom\n"


def test_what_a_run_drew_is_drawn_unless_it_is_typed(whole, episodes, tmp_path):
    assert episodes["randomize"] == ["force_mag=5..20", "length=0.4..0.6"]
    typed = evaluated(whole, tmp_path / "typed.json", "--env-kwargs", "length=0.5")
    assert typed["randomize"] == ["force_mag=5..20"]
    assert "length=0.5" in typed["env_kwargs"]


def test_a_language_model_plays_no_episodes(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"method": "rloo"}}))
    with pytest.raises(SystemExit):
        evaluate.main(["--run", str(tmp_path)])
    assert "a run of experiments.align; its model answers by" in capsys.readouterr().err


def test_environments_on_the_host_are_evaluated_too(tmp_path):
    host = [*SMALL, "--env", "gymnasium/CartPole-v1", "--out", str(tmp_path / "run")]
    host[host.index("max_steps_in_episode=20")] = "max_episode_steps=20"
    assert run.main(host) == 0
    path = tmp_path / "episodes.json"
    one, again = evaluated(tmp_path / "run", path), evaluated(tmp_path / "run", path)
    assert one == again
    assert np.shape(one["returns"]) == (2, 5)
    assert np.max(one["lengths"]) <= 20
    assert one["returns"] != evaluated(tmp_path / "run", path, "--episode-seed", "1")["returns"]
