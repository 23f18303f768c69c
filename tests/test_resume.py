"""Checkpoints and resume: a run that was cut off and went on is the run that was not."""

import functools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killing import killed_at_save, killed_in
from probes import timeless_records

from experiments import run
from experiments.cli.exits import EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.plan.options import ControlOptions
from experiments.training import fingerprint, loop, trained
from experiments.training.programs import CompiledPrograms
from rgpo_jax.agent import AgentState
from rgpo_jax.checkpoint import CheckpointError, Checkpoints, UnreadableCheckpoint

pytestmark = pytest.mark.usefixtures("programs_are_kept", "curves_are_drawn_once")
ROOT = Path(__file__).parents[1]
TINY = [
    *("--agent", "ppo", "--env", "CartPole-v1", "--num-seeds", "2", "--seed", "5"),
    *("--total-steps", "192", "--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2"),
    *("--num-epochs", "2", "--hidden-sizes", "8", "--eval-episodes", "2"),
    *("--reset-pool-size", "2", "--log-every", "48", "--eval-every", "48"),
    *("--normalize-observations", "--checkpoint-every", "0"),
]
SELDOM = ("--checkpoint-every", "3600")  # a checkpoint at the end alone, or where it is stopped


@functools.cache
def state(folder):
    """Every array of the newest checkpoint, which is as it is when it is first asked for."""
    loaded = trained.load(str(folder), "--run")
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(loaded.learners)
    ]


def assert_same_run(folder, reference):
    assert timeless_records(folder) == timeless_records(reference)
    for ours, other in zip(state(folder), state(reference), strict=True):
        np.testing.assert_array_equal(ours, other)


def cut(folder, saves, *, before=False, args=TINY):
    """Runs until the checkpoint of that number, and is gone before or after it is made."""
    with killed_at_save(saves, before=before):
        run.main([*args, "--out", str(folder)])


def go_on(folder, *args):
    return run.main([*args, "--out", str(folder), "--resume"])


@pytest.mark.parametrize(("saves", "before"), [(0, True), (2, False), (3, True)])
def test_a_killed_run_goes_on_to_the_bit(saves, before, whole, tmp_path):
    cut(tmp_path / "cut", saves, before=before)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 999, "torn')
    assert go_on(tmp_path / "cut", *SELDOM) == 0
    assert_same_run(tmp_path / "cut", whole)
    resumed = json.loads((tmp_path / "cut" / "config.json").read_text())["resumed"]
    assert [entry["versions"]["jax"] for entry in resumed] == [jax.__version__]


def test_a_run_killed_between_its_last_checkpoint_and_its_summary(whole, tmp_path):
    with killed_in(loop.Training, "_write_summaries"):
        run.main([*TINY, *SELDOM, "--out", str(tmp_path / "cut")])
    assert go_on(tmp_path / "cut") == 0
    assert_same_run(tmp_path / "cut", whole)
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["total_steps"] == 192


def test_a_checkpoint_between_two_lines_of_metrics_changes_neither(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_LONGEST_CHUNK", 0.0)  # an update at a time: 2 of 3 save midway
    cut(tmp_path / "cut", 5)
    (newest, *_) = Checkpoints(tmp_path / "cut" / "checkpoints").saved()
    assert newest % 3
    assert go_on(tmp_path / "cut", *SELDOM) == 0
    assert_same_run(tmp_path / "cut", whole)


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, capsys):
    folder = tmp_path / "cut"
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    (newest, before, *_) = Checkpoints(folder / "checkpoints").saved()
    damaged = folder / "checkpoints" / str(newest)
    largest = max((p for p in damaged.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert go_on(folder) == 0
    said = capsys.readouterr().out
    assert f"warning: a damaged checkpoint is passed over: {damaged}: " in said
    assert f"going on after {before * 16:,} steps" in said
    assert_same_run(folder, whole)  # the one that took the damaged one's place among them
    # Nobody needs to look at it once the run has ended well.
    assert not list((folder / "checkpoints").glob("damaged-*"))


def test_where_all_checkpoints_are_damaged_the_run_stops_and_nothing_is_lost(tmp_path, capsys):
    cut(tmp_path / "cut", 2)
    before = (tmp_path / "cut" / "metrics.jsonl").read_bytes()
    for checksums in (tmp_path / "cut" / "checkpoints").glob("*/checksums.json"):
        checksums.write_text("{}x")
    with pytest.raises(SystemExit) as refused:
        go_on(tmp_path / "cut")
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert "no checkpoint is whole" in error and "here again with --overwrite" in error
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == before


def test_a_first_checkpoint_that_was_cut_off_is_taken_out_of_the_way(tmp_path):
    parts = {"x": jax.numpy.arange(3.0)}
    checkpoints = Checkpoints(tmp_path / "kept")
    checkpoints.save(7, parts, {})
    checkpoints.forget_unfinished()
    assert checkpoints.saved() == [7]
    (tmp_path / "kept" / "7" / "checksums.json").unlink()
    checkpoints.forget_unfinished()
    assert checkpoints.saved() == []
    checkpoints.save(7, parts, {})
    assert checkpoints.begun()
    checkpoints.close()


def test_a_run_killed_in_its_first_checkpoint_begins_anew(whole, tmp_path):
    start = ("--init-from", str(whole))
    args = [*TINY, *SELDOM, *start]
    assert run.main([*args, "--out", str(tmp_path / "reference")]) == 0
    cut(tmp_path / "cut", 1, args=[*TINY, *start])
    (checksums,) = (tmp_path / "cut" / "checkpoints").glob("*/checksums.json")
    checksums.unlink()
    shutil.copytree(tmp_path / "cut", tmp_path / "earlier")
    (only,) = (tmp_path / "earlier" / "checkpoints").iterdir()
    only.rename(f"{only}.orbax-checkpoint-tmp")
    assert go_on(tmp_path / "earlier", *SELDOM) == 0
    assert_same_run(tmp_path / "earlier", tmp_path / "reference")
    assert go_on(tmp_path / "cut", *SELDOM) == 0
    assert_same_run(tmp_path / "cut", tmp_path / "reference")
    # What it starts from counts where a run with checkpoints is replaced, too.
    shutil.copytree(whole, tmp_path / "replaced")
    assert run.main([*args, "--out", str(tmp_path / "replaced"), "--overwrite"]) == 0
    assert_same_run(tmp_path / "replaced", tmp_path / "reference")


def test_a_run_killed_while_it_wrote_its_summary_goes_on(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").write_text("[]")
    assert go_on(tmp_path / "cut") == 0
    assert_same_run(tmp_path / "cut", whole)
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["agent"] == "ppo"


def test_arrays_without_elements_are_kept_too(tmp_path):
    state = {"empty": jnp.zeros((2, 0, 3)), "key": jax.random.key(1), "x": jnp.arange(3.0)}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"state": state}, {})
    restored = checkpoints.restore({"state": state}).parts["state"]
    assert restored["empty"].shape == (2, 0, 3)
    assert restored["empty"].sharding == state["empty"].sharding
    np.testing.assert_array_equal(restored["x"], state["x"])
    assert restored["key"] == state["key"]


def test_a_finished_run_stays_as_it_is(whole, capsys):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    assert go_on(whole) == 0
    assert "finished already" in capsys.readouterr().out
    assert before == {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}


def test_resume_starts_what_was_never_begun(whole, tmp_path):
    assert go_on(tmp_path / "new", *TINY, *SELDOM) == 0
    assert timeless_records(tmp_path / "new") == timeless_records(whole)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--learning-rate", "0.5"], "--learning-rate 0.5: the run in"),
        (["--agent", "rgpo"], "--agent rgpo: the run in"),
        (["--num-seeds", "3"], "--num-seeds 3: the run in"),
        (["--overwrite"], "--resume and overwrite exclude each other"),
    ],
)
def test_other_settings_are_refused(args, message, whole, capsys):
    with pytest.raises(SystemExit) as refused:
        go_on(whole, *args)
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_resume_needs_a_folder(capsys):
    with pytest.raises(SystemExit):
        run.main(["--resume"])
    assert "--out DIR" in capsys.readouterr().err


def test_a_run_that_lost_its_settings_is_not_gone_on_with_by_others(tmp_path, capsys):
    cut(tmp_path / "cut", 1)
    before = (tmp_path / "cut" / "metrics.jsonl").read_bytes()
    (tmp_path / "cut" / "config.json").unlink()
    with pytest.raises(SystemExit) as refused:
        go_on(tmp_path / "cut")
    assert refused.value.code == 2
    assert "has lost its config.json" in capsys.readouterr().err
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == before


def test_metrics_that_were_cut_by_hand_are_refused(tmp_path, capsys):
    cut(tmp_path / "cut", 1)
    (tmp_path / "cut" / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit) as refused:
        go_on(tmp_path / "cut")
    assert refused.value.code == 2
    assert "shorter than at the checkpoint" in capsys.readouterr().err


def test_a_disk_that_is_full_stops_the_run_in_one_line(tmp_path, monkeypatch, capsys, whole):
    save, made = Checkpoints.save, []

    def failing(self, *args):
        if len(made) == 2:
            raise CheckpointError("cannot write a checkpoint to x: No space left on device")
        save(self, *args)
        made.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", failing)
        assert run.main([*TINY, "--out", str(tmp_path / "full")]) == EXIT_NOT_KEPT
    error = capsys.readouterr().out.splitlines()[-1]
    assert "No space left on device" in error
    assert "--resume" in error
    assert go_on(tmp_path / "full", *SELDOM) == 0
    assert_same_run(tmp_path / "full", whole)


def test_a_disk_that_is_nearly_full_stops_the_run_before_libraries_fail(
    tmp_path, monkeypatch, capsys
):
    usage = shutil.disk_usage(tmp_path)
    left = [3 * 2**20, 2**19]  # more than a checkpoint takes, and then less

    def shrinking(path):
        return usage._replace(free=left[min(1, len(list(Path(path).glob("checkpoints/*"))) // 2)])

    monkeypatch.setattr(shutil, "disk_usage", shrinking)
    assert run.main([*TINY, "--out", str(tmp_path / "full")]) == EXIT_NOT_KEPT
    assert "0.5 MiB are left on its disk" in capsys.readouterr().out.splitlines()[-1]
    assert len(Checkpoints(tmp_path / "full" / "checkpoints").saved()) == 2


@pytest.mark.usefixtures("terminal_may_hang_up")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_leaves_in_order(number, whole, tmp_path, monkeypatch, capsys):
    report = loop.Training._report

    def report_and_be_told(self, *args):
        report(self, *args)
        if self._position.updates == 6:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_report", report_and_be_told)
        args = [*TINY, *SELDOM, "--out", str(tmp_path / "told")]
        assert run.main(args) == 128 + number
    said = capsys.readouterr().out
    assert f"--out {tmp_path / 'told'} --resume" in said.splitlines()[-1]
    assert json.loads((tmp_path / "told" / "summary.json").read_text())["interrupted"]
    assert Checkpoints(tmp_path / "told" / "checkpoints").saved() == [6]
    assert go_on(tmp_path / "told") == 0
    assert_same_run(tmp_path / "told", whole)


@pytest.mark.parametrize("update", [0, 6, 12])
def test_a_stop_is_heard_while_it_evaluates_and_nothing_is_lost(
    update, whole, tmp_path, monkeypatch
):
    evaluate = CompiledPrograms.evaluate

    def slow(self, states, updates, whole):
        if updates == update:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return evaluate(self, states, updates, whole)

    folder, began = tmp_path / "told", time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(CompiledPrograms, "evaluate", slow)
        args = [*TINY, *SELDOM, "--out", str(folder)]
        assert run.main(args) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 50
    assert Checkpoints(folder / "checkpoints").saved() == ([update] if update else [])
    assert go_on(folder) == 0
    assert_same_run(folder, whole)


@pytest.mark.parametrize("update", [0, 1, 4])
def test_an_update_that_takes_long_is_given_up_and_nothing_before_it_is_lost(
    update, whole, tmp_path, monkeypatch, capfd
):
    advance = CompiledPrograms.advance
    made = []

    def slow(self, states, progress, num_updates):
        result = advance(self, states, progress, num_updates)  # the memory of states is reused
        if len(made) == update:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        made.append(num_updates)
        return result

    folder, began = tmp_path / "told", time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_LONGEST_CHUNK", 1e-4)  # all updates take longer
        patch.setattr(CompiledPrograms, "advance", slow)
        args = [*TINY, *SELDOM, "--out", str(folder)]
        assert run.main(args) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 50
    assert set(made) <= {1}
    assert "it is given up" in capfd.readouterr().err
    assert Checkpoints(folder / "checkpoints").saved() == ([update] if update else [])
    assert go_on(folder) == 0
    assert_same_run(folder, whole)


def test_a_deferred_stop_says_what_is_being_done(tmp_path, monkeypatch, capfd):
    advance = CompiledPrograms.advance

    def told(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, *args)

    monkeypatch.setattr(CompiledPrograms, "advance", told)
    assert run.main([*TINY, "--out", str(tmp_path / "told")]) == 128 + signal.SIGTERM
    assert "a second signal stops at once" in capfd.readouterr().err


# What a checkpoint was made by.


def edited(whole, folder, name, value):
    """A run that is not finished gets other settings; gives what is said of its checkpoint."""
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    before = config["settings"][name]
    config["settings"][name] = value
    if name == "agent":  # a clip of 0.2 would be read as a sharpness
        config["settings"] |= {"sharpness": config["settings"].pop("clip")}
        config["settings"].pop("dual_clip", None)
        config["settings"].pop("clip_high", None)
    (folder / "config.json").write_text(json.dumps(config))
    return f"it was made with --{name.replace('_', '-')} {before}, and {value} is what"


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 0.5), ("activation", "relu"), ("seed", 6), ("agent", "rgpo")],
)
def test_a_checkpoint_of_other_settings_is_refused_and_the_field_is_named(
    name, value, whole, tmp_path
):
    made = edited(whole, tmp_path / "edited", name, value)
    with pytest.raises(BadInput, match=made):
        trained.load(str(tmp_path / "edited"), "--run")


@pytest.mark.parametrize(("name", "value"), [("learning_rate", 0.5), ("seed", 6)])
def test_nor_is_gone_on_with_one_of_other_settings(name, value, whole, tmp_path, capsys):
    made = edited(whole, tmp_path / "edited", name, value)
    with pytest.raises(SystemExit) as left:
        go_on(tmp_path / "edited")
    assert left.value.code == 2
    assert made in capsys.readouterr().err


def test_another_version_of_jax_is_told(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fingerprint.metadata, "version", lambda name: "9.9.9")
    trained.load(str(whole), "--run")
    assert "was made with jax" in (said := capsys.readouterr().err)
    assert "this is 9.9.9: numbers will differ" in said


def test_who_reads_an_older_checkpoint_is_told_of_both(whole, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    newest, before, *_ = Checkpoints(folder / "checkpoints").saved()
    (folder / "checkpoints" / str(newest) / "checksums.json").write_text("{}")
    assert trained.load(str(folder), "--run").env_steps == (16 * before,) * 2
    said = capsys.readouterr().err
    assert f"that of update {before} is read" in said and f"checkpoints/{newest}" in said


@pytest.mark.parametrize("content", ["", "{}", "[" * 100_000, "null", "\x00", '{"a": 1}'])
def test_checksums_that_are_none_are_damage(content, whole, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    checkpoints = Checkpoints(folder / "checkpoints")
    newest, before, *_ = checkpoints.saved()
    (folder / "checkpoints" / str(newest) / "checksums.json").write_text(content)
    found, damaged = checkpoints._newest_whole()
    assert found == before and len(damaged) == 1


def test_a_damaged_line_of_metrics_ends_no_run(whole, tmp_path, capsys):
    folder = tmp_path / "nul"
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    content = bytearray((folder / "metrics.jsonl").read_bytes())
    content[5] = 0
    (folder / "metrics.jsonl").write_bytes(content)
    assert go_on(folder) == 0
    assert "1 damaged line(s)" in capsys.readouterr().out
    assert (folder / "learning_curve.png").exists()


def test_another_process_is_kept_out(whole, tmp_path, capsys):
    from experiments.record.recorder import Recorder

    with Recorder(tmp_path / "held"):
        for flag in ("--resume", "--overwrite"):
            with pytest.raises(SystemExit) as refused:
                run.main([*TINY, "--out", str(tmp_path / "held"), flag])
            assert refused.value.code == 2
            assert "another process is writing to it" in capsys.readouterr().err


def test_a_run_starts_from_the_parameters_of_another(whole, tmp_path):
    still = ("--learning-rate", "1e-30", "--init-from", str(whole))  # a step changes no parameter
    assert run.main([*TINY, *SELDOM, *still, "--out", str(tmp_path / "next")]) == 0
    kept, ours = (trained.load(str(f), "--run").learners for f in (whole, tmp_path / "next"))
    jax.tree.map(np.testing.assert_array_equal, ours.params, kept.params)
    seen = [np.asarray(x.observation_moments.num_values) for x in (ours, kept)]
    np.testing.assert_array_equal(seen[0], 2 * seen[1])


def test_more_seeds_take_the_parameters_of_fewer_over_and_over(whole):
    agent = trained.load(str(whole), "--run").agent
    options = ControlOptions(init_from=str(whole), agent="ppo")
    start = trained.load_start(options, agent)
    own = jax.tree.map(
        lambda x: jax.device_put(np.zeros((5, *x.shape[1:]), x.dtype)),
        {name: getattr(start, name) for name in ("params", "observation_moments")},
    )
    states = AgentState(start._replace(**own), rollout=None, key=None)
    # Two cells, of three seeds and of two: each begins with the first that there is.
    parts = [slice(0, 3), slice(3, 5)]
    taken = CompiledPrograms.start_from(None, states, start, parts).learner
    which = np.array([0, 1, 0, 0, 1])
    for name in own:
        expected = jax.tree.map(lambda x: np.asarray(x)[which], getattr(start, name))
        jax.tree.map(np.testing.assert_array_equal, getattr(taken, name), expected)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--init-from", "/nowhere"], "--init-from /nowhere: expected the folder of a run"),
        (["--hidden-sizes", "4"], "its networks have other shapes"),
        (["--env", "Acrobot-v1"], "its networks have other shapes"),
        (["--no-normalize-observations"], "its observations have other shapes"),
        (["--activation", "relu"], "--activation relu: the parameters of --init-from"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(args, message, whole, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        run.main([*TINY, "--init-from", str(whole), "--out", str(tmp_path / "x"), *args])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_array_that_an_earlier_version_did_not_save_is_as_it_is_now(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"learner": {"a": jnp.ones(3)}}, {})
    checkpoints.close()
    now = {"a": jnp.zeros(3), "b": jnp.full(2, 7.0)}
    restored = Checkpoints(tmp_path).restore({"learner": now})
    np.testing.assert_array_equal(restored.parts["learner"]["a"], jnp.ones(3))
    np.testing.assert_array_equal(restored.parts["learner"]["b"], now["b"])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), now
    )
    with pytest.raises(UnreadableCheckpoint, match="cannot be restored"):
        Checkpoints(tmp_path).restore({"learner": shapes})


def test_a_checkpoint_is_of_a_setting_by_its_older_name():
    kept = fingerprint.entry([{"call_back": True}])
    assert fingerprint.difference(kept, [{"pull_back": True}]) is None
    assert "--pull-back True" in fingerprint.difference(kept, [{"pull_back": False}])
