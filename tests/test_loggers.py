"""Loggers beside `metrics.jsonl`: what they are told, read back from their own files."""

import importlib.metadata
import json
import math
import struct

import pytest
from PIL import Image

from experiments import run
from experiments.cli.flags import BadInput
from experiments.plan.reading import read_plan
from experiments.play import episodes
from experiments.record import loggers
from experiments.record.recorder import Recorder

pytestmark = pytest.mark.usefixtures("programs_are_kept")
SETTINGS = {"seed": 5, "num_seeds": 2, "learning_rate": 0.5}
SUMMARY = {"agent": "ppo", "env": "CartPole-v1", "final_return": {"iqm": 7.0}}


@pytest.fixture
def wandb(monkeypatch):
    """The package, told to stay off the network."""
    package = pytest.importorskip("wandb", reason="needs the extra `wandb`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    return package


def records_of(file):
    """The records in a .wandb file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, record = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # a header does not fit into what is left of the block
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def read_back(file):
    """id, settings, rows of history and summary of an offline run."""
    run_id, config, rows, summary = None, {}, [], {}
    for record in records_of(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run_id = record.run.run_id
        updates = record.config.update if kind == "config" else record.run.config.update
        config |= {item.key: json.loads(item.value_json) for item in updates if item.key}
        if kind == "history":
            items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            rows.append({name: json.loads(value) for name, value in items.items()})
        if kind == "summary":
            items = {i.key or i.nested_key[0]: i.value_json for i in record.summary.update}
            summary |= {name: json.loads(value) for name, value in items.items()}
    return run_id, config, rows, summary


def events_of(folder):
    """The events of TensorBoard in a run's folder: records of a length, its checksum, and data."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted((folder / "tensorboard").glob("events*")):
        data, position = file.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            yield Event.FromString(data[position + 12 : position + 12 + length])
            position += 16 + length


def values_of(folder):
    """(tag, step) -> a summary's value."""
    return {(v.tag, event.step): v for event in events_of(folder) for v in event.summary.value}


def record(wandb, folder, steps, rate=None, film=None, **options):
    with Recorder(folder, log_to=("tensorboard", "wandb"), **options) as recorder:
        recorder.write_config(SETTINGS)
        if options.get("resume"):
            recorder.rewind(0, 16)
        for step in steps:
            recorder.log_metrics(
                step, step // 16, {"episode_return": [1.0, 2.0], "eval_return": [8, math.nan]}, rate
            )
        if film is not None:
            recorder.log_film(step, film)
        recorder.write_summary(SUMMARY)
    wandb.teardown()  # as the end of a process does: its service has written all


def test_weights_and_biases_is_told_everything_and_goes_on_as_the_same_run(
    wandb, tmp_path, capfd, monkeypatch
):
    record(wandb, tmp_path / "run", [16, 3_000_000_000])
    assert "wandb" not in "".join(capfd.readouterr())
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    run_id, config, rows, summary = read_back(file)
    assert config["settings"] == SETTINGS
    assert "jax" in config["versions"]
    assert [row["_step"] for row in rows] == [16, 3_000_000_000]
    values = {name: value for name, value in rows[0].items() if not name.startswith("_")}
    assert values == {
        "training/episode_return": 1.5,
        "training/episode_return/seed_5": 1.0,
        "training/episode_return/seed_6": 2.0,
        "evaluation/eval_return": 8,
        "evaluation/eval_return/seed_5": 8,
    }
    assert summary["final_return"] == {"iqm": 7.0}
    assert (tmp_path / "run" / "wandb" / "run_id").read_text() == run_id

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    record(wandb, tmp_path / "run", [32], resume=True)
    files = set((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")) - {file}
    again_id, config, rows, _ = read_back(files.pop())
    assert again_id == run_id
    assert [row["_step"] for row in rows] == [32]
    assert len(config["resumed"]) == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert "wandb" not in "".join(capfd.readouterr())


def test_both_are_told_the_speed_and_shown_the_film(wandb, tmp_path):
    gif = tmp_path / "episode.gif"
    Image.new("RGB", (30, 20)).save(gif)
    record(wandb, tmp_path / "run", [16, 32], rate=2500.0, film=gif)
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    rows = read_back(file)[2]
    assert [row["speed/steps_per_second"] for row in rows] == [2500.0, 2500.0]
    assert rows[1]["policy/_type"] == "video-file" and rows[1]["policy/path"].endswith(".gif")
    values = values_of(tmp_path / "run")
    assert values["speed/steps_per_second", 32].simple_value == 2500.0
    image = values["policy", 32].image
    assert (image.width, image.height) == (30, 20)
    assert image.encoded_image_string == gif.read_bytes()
    assert "steps_per_second" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    page = tmp_path / "episode.html"  # of Brax, which neither can show
    page.write_text("<html>")
    record(wandb, tmp_path / "other", [16], film=page)
    assert not any(tag == "policy" for tag, _ in values_of(tmp_path / "other"))


def test_tensorboard_is_told_the_settings_as_hyper_parameters(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    settings = {**SETTINGS, "hidden_sizes": [8, 8], "gate": None, "normalize": True}
    with Recorder(tmp_path / "run") as recorder:
        recorder.write_config(settings)
        recorder.log_metrics(16, 1, {"eval_return": [1.0, 2.0]})
    values = values_of(tmp_path / "run")

    def plugin(tag):
        return HParamsPluginData.FromString(values[tag, 0].metadata.plugin_data.content)

    told = plugin("_hparams_/session_start_info").session_start_info.hparams
    assert told["learning_rate"].number_value == 0.5
    assert told["hidden_sizes"].string_value == "[8, 8]"
    assert told["gate"].string_value == "None"
    assert told["normalize"].bool_value is True
    (score,) = plugin("_hparams_/experiment").experiment.metric_infos
    assert (score.name.tag, 16) in values


TINY = [
    *("--agent", "ppo", "--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2"),
    *("--num-epochs", "1", "--hidden-sizes", "8", "--total-steps", "32", "--eval-episodes", "1"),
]


def test_a_run_films_its_policy_and_says_how_fast_it_was(tmp_path):
    assert run.main([*TINY, "--log-film", "--out", str(tmp_path / "run")]) == 0
    assert "film: return " in (tmp_path / "run" / "run.log").read_text().splitlines()[-1]
    values = values_of(tmp_path / "run")
    film = values["policy", 32].image.encoded_image_string
    assert film == (tmp_path / "run" / "episode.gif").read_bytes()
    assert film.startswith(b"GIF89a")
    assert values["speed/steps_per_second", 32].simple_value > 0


def test_what_cannot_be_drawn_is_a_warning(tmp_path, monkeypatch):
    def refuse(*_):
        raise BadInput("--run: CartPole-v1 cannot be drawn yet")

    monkeypatch.setattr(episodes, "make_stage", refuse)
    assert run.main([*TINY, "--log-film", "--out", str(tmp_path / "run")]) == 0
    last = (tmp_path / "run" / "run.log").read_text().splitlines()[-1]
    assert last == "warning: --log-film: BadInput: --run: CartPole-v1 cannot be drawn yet"
    assert "interrupted" not in json.loads((tmp_path / "run" / "summary.json").read_text())


def test_a_missing_extra_is_named_before_anything_is_written(tmp_path, monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # what an earlier run left is no package
    with pytest.raises(SystemExit) as refused:
        run.main(["--loggers", "wandb", "--out", "out"])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert "--loggers wandb: needs the extra `wandb`" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nobody_logged_in_is_refused_without_a_prompt(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    try:
        with pytest.raises(BadInput, match="nobody is logged in: run `wandb login`"):
            loggers.require(("wandb",))
    finally:
        wandb.teardown()


@pytest.mark.parametrize(
    ("args", "chosen"),
    [
        ([], ("tensorboard",)),
        (["--loggers", "tensorboard", "wandb"], ("tensorboard", "wandb")),
        (["--loggers"], ()),
    ],
)
def test_loggers_are_chosen_by_a_flag(args, chosen):
    assert read_plan(["--agent", "ppo", *args, "--seed", "1"]).options.loggers == chosen


def test_an_unknown_logger_is_refused():
    with pytest.raises(BadInput, match="--loggers"):
        read_plan(["--loggers", "mlflow"])
