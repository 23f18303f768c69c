"""A run: what it leaves, whose folder it takes, and what is told where it breaks. Runs are tiny."""

import datetime
import json
import os

import jax
import jax.numpy as jnp
import pytest
from probes import RUN_FILES, records, timeless_records

from experiments import run
from experiments.cli.flags import BadInput
from experiments.plan.reading import read_plan
from experiments.record import run_folder
from experiments.record.files import to_json, write_atomically
from experiments.record.recorder import NullRecorder, Recorder
from experiments.record.run_folder import choose_folder
from experiments.training import trained

pytestmark = pytest.mark.usefixtures("programs_are_kept")
TINY = [
    *("--env", "CartPole-v1", "--num-seeds", "2", "--seed", "5", "--total-steps", "320"),
    *("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "2"),
    *("--hidden-sizes", "8", "--eval-episodes", "2", "--reset-pool-size", "2"),
]
RECORDED = {  # returns, and what every gated agent logs of its update
    "episode_return",
    "episode_length",
    "episodes",
    "first_ratio_deviation",
    "approx_kl",
    "approx_kl_k1",
    "approx_kl_max",
    "gate_mean",
    "gate_closed",
    "gate_open",
    "weight_mean",
    "weight_max",
    "effective_sample_size",
    "entropy",
    "explained_variance",
    "grad_norm",
    "kl_spike_rate_0.02",
    "kl_spike_rate_0.04",
    "kl_spike_rate_0.08",
    "kl_spike_rate_0.16",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ppo"
    assert run.main([*TINY, "--agent", "ppo", "--out", str(folder)]) == 0
    return folder


def test_a_run_writes_its_files_and_no_others(finished):
    assert sorted(path.name for path in finished.iterdir()) == sorted([*RUN_FILES, "policy.npz"])
    assert list((finished / "tensorboard").glob("events*"))
    assert (finished / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_hold_one_value_per_seed(finished):
    lines = records(finished)
    assert [record["env_steps"] for record in lines] == list(range(0, 321, 16))
    for record in lines[1:]:
        assert record.keys() >= RECORDED | {"clip_fraction", "wall_seconds"}
        for name in RECORDED:
            assert len(record[name]) == 2
    assert all(value < 1e-5 for record in lines[1:] for value in record["first_ratio_deviation"])


def test_a_return_is_null_where_no_episode_ended(finished):
    for record in records(finished)[1:]:
        for episodes, value in zip(record["episodes"], record["episode_return"], strict=True):
            assert (value is None) == (episodes == 0)
    assert any(None in record["episode_return"] for record in records(finished))


def test_summary_agrees_with_the_metrics(finished):
    summary = json.loads((finished / "summary.json").read_text())
    last = records(finished)[-1]
    assert summary["agent"] == "ppo"
    assert summary["env"] == "CartPole-v1"
    assert summary["num_seeds"] == 2
    assert summary["total_steps"] == last["env_steps"] == 320
    assert summary["final_return"]["per_seed"] == last["eval_return"]
    assert summary["final_return"]["mean"] == pytest.approx(sum(last["eval_return"]) / 2)
    low, high = summary["final_return"]["ci95"]
    assert low <= summary["final_return"]["iqm"] <= high
    assert summary["first_ratio_deviation"] < 1e-5
    assert summary["compile_seconds"] > 0
    seconds = 640 / summary["steps_per_second"]  # the summary has them to the millisecond
    assert summary["training_seconds"] == pytest.approx(seconds, abs=0.00051)
    assert summary["training_seconds"] < summary["run_seconds"]  # which evaluations are part of
    assert summary["device"]


def test_what_the_terminal_shows_is_kept(finished):
    log = (finished / "run.log").read_text()
    assert "compiled in" in log
    assert "final return" in log


def test_the_config_of_a_run_repeats_it(finished, tmp_path):
    again = tmp_path / "again"
    assert run.main(["--config", str(finished / "config.json"), "--out", str(again)]) == 0
    assert timeless_records(again) == timeless_records(finished)


def test_flags_override_the_config_file(finished):
    read = read_plan(["--config", str(finished / "config.json"), "--clip", "0.3"])
    assert read.config.clip == 0.3
    assert read.config.num_envs == 2
    assert read.options.seed == 5


def test_a_run_is_never_overwritten_unasked(finished):
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(SystemExit) as refused:
        run.main([*TINY, "--out", str(finished)])
    assert refused.value.code == 2
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_overwrite_replaces_a_run_and_leaves_other_files(tmp_path):
    folder = tmp_path / "out"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard" / "events.old").write_text("old")
    (folder / "summary.json").write_text("old")
    (folder / "notes.txt").write_text("mine")
    with Recorder(folder, overwrite=True):
        pass
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "summary.json").exists()
    assert not (folder / "tensorboard").exists()


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(run_folder.datetime, "datetime", Clock)
    folders = [choose_folder(None, "a/b") for _ in range(3)]
    assert [folder.name for folder in folders] == [
        f"a-b-20260101-000000{number}" for number in ("", "-1", "-2")
    ]


def test_a_refused_run_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run.main(["--init-from", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_two_runs_cannot_take_the_same_folder(tmp_path):
    with Recorder(tmp_path / "out"), pytest.raises(BadInput):
        Recorder(tmp_path / "out")


def test_a_run_that_breaks_says_where_and_keeps_what_it_has(tmp_path, capsys):
    folder = tmp_path / "broken"
    assert run.main([*TINY, "--agent", "ppo", "--learning-rate", "1e38", "--out", str(folder)]) == 3
    said = capsys.readouterr().out
    assert "seed 5 at update 0" in said
    assert "seed 6 at update 0" in said
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["broken"] == [{"seed": 5, "update": 0}, {"seed": 6, "update": 0}]
    assert len(records(folder)) >= 2


def test_no_line_counts_compiling(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert 0 <= records(finished)[0]["wall_seconds"] < records(finished)[-1]["wall_seconds"]
    assert records(finished)[-1]["wall_seconds"] <= summary["run_seconds"]


@pytest.mark.alike
def test_where_one_seed_breaks_the_others_are_finished(tmp_path, monkeypatch, capsys):
    args = [*TINY, "--agent", "ppo", "--out", str(tmp_path / "start")]
    assert run.main(args) == 0
    load = trained.load_start

    def broken(options, agent):
        learners = load(options, agent)
        params = jax.tree.map(lambda x: x.at[0].set(jnp.nan), learners.params)
        return learners._replace(params=params)

    monkeypatch.setattr(trained, "load_start", broken)
    folder = tmp_path / "broken"
    args = [*TINY, "--agent", "ppo", "--init-from", str(tmp_path / "start"), "--out", str(folder)]
    assert run.main(args) == 3
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["broken"] == [{"seed": 5, "update": 0}]
    assert records(folder)[-1]["env_steps"] == records(tmp_path / "start")[-1]["env_steps"]
    assert isinstance(summary["final_return"]["per_seed"][1], float)
    assert "seed 5 at update 0" in capsys.readouterr().out


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path):
    public = {name for name in vars(Recorder) if not name.startswith("_")}
    assert public <= vars(NullRecorder).keys()


def test_another_agent_takes_what_it_knows_of_a_config(finished):
    read = read_plan(["--config", str(finished / "config.json"), "--agent", "rgpo"])
    assert read.config.num_envs == 2
    assert read.config.sharpness == 4.0


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    if os.geteuid() == 0:
        folder = "/proc/none/run"  # root may write everywhere else
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        folder = str(tmp_path / "locked" / "run")
    with pytest.raises(SystemExit) as refused:
        run.main([*TINY, "--out", folder])
    assert refused.value.code == 2


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_holds_null_for_nan_and_large_counts():
    content = to_json({"a": float("nan"), "b": [float("inf"), 1.5], "steps": 2**40})
    assert json.loads(content) == {"a": None, "b": [None, 1.5], "steps": 2**40}


@pytest.mark.parametrize(("updates", "points"), [(977, 100), (7, 10), (1, 10), (100, 10)])
def test_points_are_evenly_spread_and_end_at_the_last_update(updates, points):
    from experiments.training.every import Every

    every = Every(updates, points)
    stops, done = [], 0
    while done < updates:
        done = every.next(done)
        stops.append(done)
    assert stops[-1] == updates
    assert len(stops) == min(updates, points)
    gaps = [b - a for a, b in zip([0, *stops], stops, strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert [i for i in range(1, updates + 1) if every.includes(i)] == stops
