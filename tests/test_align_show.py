"""Runs of a real model side by side: tables and figure."""

import json

import pytest
from probes import assert_refused

from experiments.align import answer_log, show, stored
from experiments.align.answer_log import Answered


def write(folder, method, rewards, gold=True):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"settings": {"method": method}}))
    lines = []
    for i, reward in enumerate(rewards):
        values = {"reward": [reward], "kl_ref": [0.1 * i], "kl_ref_by_k3": [0.2 * i]}
        values |= {"length": [7.25], "ended": [0.5]} | ({"gold": [-reward]} if gold else {})
        lines.append(json.dumps({"updates": 2 * i, **values}))
        lines.append(json.dumps({"updates": 2 * i + 1, "sampled_reward": [0.0]}))
        answers = [
            Answered(2 * i, "one", f"a|b*c {i}\n<i>", reward, None, False),
            Answered(2 * i, "two", "yes", 1.0, None, True),
        ]
        answer_log.append(folder, answers)
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_runs_stand_side_by_side(tmp_path, capsys):
    write(tmp_path / "a", "rgpo", [0.0, 0.25, 0.5])
    write(tmp_path / "b", "grpo", [0.0, 1.0], gold=False)
    out = tmp_path / "deep" / "out"
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert show.main(["--runs", *folders, "--out", str(out)]) == 0
    assert "2 run(s) side by side" in capsys.readouterr().out
    rows = (out / "answers.md").read_text().splitlines()
    assert rows[2:7] == [
        "| rgpo | 0 | 0.00 | -0.00 | 0.00 | 0.00 | 7.2 | 0.50 |",
        "| rgpo | 2 | 0.25 | -0.25 | 0.10 | 0.20 | 7.2 | 0.50 |",
        "| rgpo | 4 | 0.50 | -0.50 | 0.20 | 0.40 | 7.2 | 0.50 |",
        "| grpo | 0 | 0.00 |  | 0.00 | 0.00 | 7.2 | 0.50 |",
        "| grpo | 2 | 1.00 |  | 0.10 | 0.20 | 7.2 | 0.50 |",
    ]
    assert rows[-6:] == [
        r"| one | (before) | a\|b\*c 0 \<i\> … (0.00) |",
        r"|  | rgpo | a\|b\*c 2 \<i\> … (0.50) |",
        r"|  | grpo | a\|b\*c 1 \<i\> … (1.00) |",
        "| two | (before) | yes (1.00) |",
        "|  | rgpo | yes (1.00) |",
        "|  | grpo | yes (1.00) |",
    ]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_one_method_are_named_apart(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, "rgpo", [0.0, 0.5])
    runs = [stored.of_folder(tmp_path / name) for name in ("a", "b")]
    assert [run.name for run in show.read_all(runs)] == ["rgpo (a)", "rgpo (b)"]


@pytest.mark.parametrize(
    ("config", "message"),
    [(None, "no run of experiments.align"), ("[]", "no run"), ("{}", "no run")],
)
def test_what_is_no_run_is_refused(config, message, tmp_path, capsys):
    folder = tmp_path / "a"
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(config)
        (folder / "metrics.jsonl").write_text("")
    out = tmp_path / "out"
    args = ["--runs", str(folder), "--out", str(out)]
    assert_refused(show.main, args, f"--runs {folder}: {message}", capsys)
    assert not out.exists()


def test_a_run_without_texts_is_refused(tmp_path, capsys):
    write(tmp_path / "a", "rgpo", [0.0])
    (tmp_path / "a" / "answers.jsonl").unlink()
    args = ["--runs", str(tmp_path / "a"), "--out", str(tmp_path / "out")]
    assert_refused(show.main, args, "no answers; expected a run of a real model", capsys)
