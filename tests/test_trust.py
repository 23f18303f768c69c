"""What comes from elsewhere: nothing in a folder is run unasked, whatever it says."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from killing import killed_in
from probes import assert_refused

from experiments import run
from experiments.align import __main__ as align
from experiments.plan import own, reading
from experiments.play import __main__ as play
from experiments.report import __main__ as report
from experiments.report import episodes, runs
from experiments.report.episodes import Episode
from experiments.sweep import __main__ as sweep
from experiments.training import building

pytestmark = pytest.mark.usefixtures("programs_are_kept", "curves_are_drawn_once")
TINY = [
    *("--agent", "rgpo", "--env", "CartPole-v1", "--seed", "5", "--total-steps", "64"),
    *("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "1"),
    *("--hidden-sizes", "8", "--eval-episodes", "2", "--reset-pool-size", "2"),
]
MODULE = """
from pathlib import Path

Path({mark!r}).write_text("it ran")


def gate(log_ratio, advantage):
    return log_ratio


def reward(prompts, answers):
    return [0.0] * len(answers)
"""


@pytest.fixture
def sent(whole, tmp_path, monkeypatch):
    """A folder that somebody sent: a run whose settings name a module that lies beside it."""
    mark = tmp_path / "mark"
    (tmp_path / "sent_module.py").write_text(MODULE.format(mark=str(mark)))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "sent")
    rename(tmp_path / "sent", gate="sent_module:gate")
    yield tmp_path / "sent", mark
    sys.modules.pop("sent_module", None)


def rename(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    config["settings"] |= settings
    if "gate" in settings:
        del config["settings"]["sharpness"]
    (folder / "config.json").write_text(json.dumps(config))


WHAT = "its gate is sent_module:gate: code that is not of the suite, in a module sent_module"


@pytest.mark.parametrize(
    ("main", "args"),
    [
        (play.main, ["--run", "sent"]),
        (run.main, ["--config", "sent/config.json", "--out", "new"]),
        (run.main, ["--out", "sent", "--resume"]),
        (run.main, [*TINY, "--init-from", "sent", "--out", "new"]),
    ],
)
def test_code_that_a_folder_names_is_not_run(main, args, sent, capsys):
    folder, mark = sent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert_refused(main, args, WHAT, capsys)
    assert not mark.exists() and "sent_module" not in sys.modules
    assert not Path("new").exists()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_line_says_how_to_allow_it(sent, capsys):
    allow = "if you trust it, say --trust-code"
    assert_refused(play.main, ["--run", "sent"], f"{allow}\n", capsys)
    allow += ", or --gate sent_module:gate"
    assert_refused(run.main, ["--config", "sent/config.json"], allow, capsys)


def test_trust_may_be_spelt_with_an_underscore(sent):
    for flag in ("--trust-code", "--trust_code"):
        plan = reading.read_plan(["--config", "sent/config.json", flag])
        assert plan.options.gate == "sent_module:gate"


def test_code_that_the_user_allows_is_run(sent):
    _, mark = sent
    assert run.main(["--config", "sent/config.json", "--out", "new", "--trust-code"]) == 0
    assert mark.read_text() == "it ran"
    config = json.loads(Path("new/config.json").read_text())
    assert "trust_code" not in config["settings"]


@pytest.mark.parametrize(
    ("gate", "function", "runs"),
    [
        ("sent_module:gate", "sent_module.gate", True),  # who types it, allows it
        ("rgpo", "rgpo_jax.gates.rgpo", False),
    ],
)
def test_a_gate_on_the_command_line_takes_its_place(gate, function, runs, sent):
    _, mark = sent
    with killed_in(building, "make_programs"):  # all that is read is read by then
        run.main(["--config", "sent/config.json", "--out", "new", "--gate", gate])
    assert json.loads(Path("new/config.json").read_text())["gate"]["function"] == function
    assert mark.exists() == runs


@pytest.mark.parametrize(
    ("setting", "value", "is_code"),
    [
        ("gate", "ppo", False),
        ("gate", None, False),
        ("gate", "a:b", True),
        ("gate", "experiments.reproduction.ablations:rgpo_calling_back", False),
        ("gate", "experiments.reproduction:ablations", True),
        ("agent", "dr-grpo-of-mine", True),
        ("agent", "rgpo", False),
        ("agent", "my_agent", True),
        ("env", "gymnasium/my_module:Line-v0", True),
        ("env", "gymnasium/Ant-v5", False),
        ("reward", "vader", False),
        ("gold", "a:b", True),
        ("out", "a:b", False),
    ],
)
def test_what_is_code_of_ones_own(setting, value, is_code):
    assert own.is_own(setting, value) == is_code


def test_a_config_cannot_say_that_it_is_trusted(sent, capsys):
    folder, mark = sent
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["trust_code"] = True
    (folder / "config.json").write_text(json.dumps(config))
    for args in (
        ["--config", "sent/config.json"],
        ["--config", "sent/config.json", "--gate", "rgpo"],
    ):
        with pytest.raises(SystemExit) as left:
            run.main(args)
        assert left.value.code == 2
    assert not mark.exists()


def test_a_reward_that_a_folder_names_is_not_run(tmp_path, monkeypatch, capsys):
    mark = tmp_path / "mark"
    (tmp_path / "sent_module.py").write_text(MODULE.format(mark=str(mark)))
    monkeypatch.chdir(tmp_path)
    settings = {"world": "smollm2", "method": "rgpo", "reward": "sent_module:reward"}
    message = "its reward is sent_module:reward: code that is not of the suite"
    for reward in ("sent_module:reward", ["sent_module:reward"]):  # flags are made of both
        Path("config.json").write_text(json.dumps({"settings": settings | {"reward": reward}}))
        assert_refused(align.main, ["--config", "config.json"], message, capsys)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("gate: sent_module:gate\n", "its gate is sent_module:gate"),
        ("gate: [null, sent_module:gate]\n", "its gate is sent_module:gate"),
        ("agents: [rgpo, sent_module]\n", "its agent is sent_module"),
    ],
)
def test_a_sweep_file_runs_no_code_unasked(content, what, sent, capsys):
    _, mark = sent
    Path("sweep.yaml").write_text(content)
    message = f"--file sweep.yaml: {what}: code that is not of the suite"
    assert_refused(sweep.main, ["--file", "sweep.yaml", "--dry-run"], message, capsys)
    assert not mark.exists()


def test_a_sweep_does_not_run_code_of_cells_that_it_finds(sent, capsys):
    folder, mark = sent
    args = ["--out", "all", "--agents", "ppo", "--num-seeds", "1"]
    spec = Path("all/programs/found.json")
    spec.parent.mkdir(parents=True)
    settings = json.loads((folder / "config.json").read_text())["settings"]
    ours = settings | {"agent": "ppo", "gate": None}
    cells = [
        {"folder": str(Path("all/CartPole-v1-ppo").absolute()), "settings": ours},
        {"folder": str(Path("all/found").absolute()), "settings": settings},
    ]
    spec.write_text(json.dumps({"cells": cells}))
    for name in ("CartPole-v1-ppo", "found"):
        (Path("all") / name).mkdir()
        (Path("all") / name / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit) as left:
        sweep.main([*args, "--dry-run"])
    assert left.value.code == 2
    assert WHAT in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.slow  # a process that loads all that plays
def test_a_report_goes_on_without_the_episode(sent, capsys, monkeypatch):
    folder, mark = sent
    assert report.main([str(folder), "--no-figures"]) == 0
    said = capsys.readouterr().out
    assert "no episode of" in said and WHAT in said and "--trust-code" in said
    assert (folder / "report" / "index.html").exists() and not mark.exists()


def test_a_report_hands_the_word_on(sent, monkeypatch):
    called = []

    def told(command, **kwargs):
        called.append(command)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(episodes.subprocess, "run", told)
    (found,) = runs.collect([str(sent[0])]).runs
    assert episodes.render(found) is None and own.TRUST not in called[0]
    assert episodes.render(found, trust_code=True) is None and called[1][-1] == own.TRUST


# Files of a folder that lead out of it, or never end.


def test_a_link_brings_no_other_file_into_the_page(whole, tmp_path):
    folder = tmp_path / "linked"
    shutil.copytree(whole, folder)
    secret = tmp_path / "secret"
    secret.write_bytes(b"GIF89a secret")
    (folder / "episode.gif").symlink_to(secret)
    (found,) = runs.collect([str(folder)]).runs
    assert episodes.find(found) is None
    (folder / "episode.gif").unlink()
    (folder / "episode.gif").write_bytes(b"GIF89a own")
    assert isinstance(episodes.find(found), Episode)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "run.log", "summary.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_resume_writes_to_no_file_elsewhere_and_waits_for_none(name, kind, whole, tmp_path, capsys):
    folder, elsewhere = tmp_path / "odd", tmp_path / "elsewhere"
    shutil.copytree(whole, folder)
    if name != "summary.json":
        (folder / "summary.json").unlink()
    (folder / name).rename(elsewhere)
    before = elsewhere.read_bytes()
    if kind == "link":
        (folder / name).symlink_to(elsewhere)
    else:
        os.mkfifo(folder / name)
    args = ["--resume", "--out", str(folder)]
    if name == "summary.json":  # made anew
        assert run.main(args) == 0
        assert (folder / name).read_bytes()
    else:
        with pytest.raises(SystemExit) as refused:
            run.main(args)
        assert refused.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_files_that_are_none_are_passed_over(name, kind, whole, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(whole, folder)
    (folder / name).replace(tmp_path / "elsewhere")
    if kind == "link":
        (folder / name).symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(folder / name)
    collection = runs.collect([str(folder)])
    assert not collection.runs
    assert any(name in note and "odd" in note for note in collection.notes)
