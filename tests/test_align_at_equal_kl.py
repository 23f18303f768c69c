"""Runs of a real model at equal steps and at equal KL: rows, crossings, verdicts, the page."""

import json
import math

import numpy as np
import pytest

from experiments.align import answer_log, at_equal_kl, show
from experiments.align.answer_log import Answered
from experiments.align.at_equal_kl import Reading, crossing, judge, rows_of, verdicts
from experiments.align.intervals import Interval, compare
from experiments.cli.flags import BadInput


def write(folder, method, seed, rewards, kls, **settings):
    """A run as experiments.align leaves it."""
    folder.mkdir(parents=True)
    entries = {"method": method, "seed": seed, "kl_coefficient": 0.05, **settings}
    (folder / "config.json").write_text(json.dumps({"settings": entries}))
    lines = [{"updates": 0, "answers": 0, "sampled_reward": [0.0]}]
    for i, (reward, kl) in enumerate(zip(rewards, kls, strict=True)):
        measured = {"reward": reward, "gold": reward / 2, "kl_ref": kl, "kl_ref_by_k3": kl + 0.5}
        lines.append({"updates": i, "answers": 32 * i} | {k: [x] for k, x in measured.items()})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer_log.append(folder, [Answered(0, "?", "!", 0.0, None, True)])
    return folder


def test_a_value_is_read_where_the_other_first_comes_to_a_level():
    kl, reward = [0.0, 1.0, 0.5, 3.0], [0.0, 2.0, 9.0, 4.0]
    assert crossing(kl, reward, 0.5) == pytest.approx(1.0)
    assert crossing(kl, reward, 1.0) == pytest.approx(2.0)
    assert crossing(kl, reward, 2.0) == pytest.approx(9.0 - 5.0 * 0.6)
    assert crossing(kl, reward, -1.0) == 0.0
    assert math.isnan(crossing(kl, reward, 3.1))
    assert math.isnan(crossing([math.nan, math.nan], [1.0, 2.0], 0.0))


def test_runs_that_differ_in_their_seed_are_a_row(tmp_path):
    folders = [
        write(tmp_path / f"{method}{kl}{seed}", method, seed, [0, 1], [0, 1], **more)
        for method, kl, more in (
            ("grpo", "p", {"kl": "published"}),
            ("grpo", "d", {"kl": "direct"}),
            ("online-dpo", "", {}),
        )
        for seed in (1, 0)
    ]
    rows = rows_of([show.read(folder) for folder in folders])
    assert [row.name for row in rows] == ["grpo kl=direct", "grpo kl=published", "online_dpo"]
    assert [row.method for row in rows] == ["grpo", "grpo", "online_dpo"]
    assert all(list(row.runs) == [0, 1] for row in rows)
    again = write(tmp_path / "again", "online-dpo", 1, [0, 2], [0, 1])
    with pytest.raises(BadInput, match="two of online-dpo, seed 1, are one run"):
        rows_of([show.read(folder) for folder in (*folders, again)])


def found(*values):
    return compare({"": np.array(values)})[0]


def test_verdicts_by_hand():
    assert judge(None, 1, 0.1) == "cannot be told"
    assert judge(found(0.2, 0.21, 0.19), 1, 0.1) == "held"
    assert judge(found(0.02, 0.021, 0.019), 1, 0.1) == "held"  # of another size, and shown
    assert judge(found(-0.2, -0.21, -0.19), 1, 0.1) == "not held"
    assert judge(found(0.01, -0.01, 0.0), 1, 0.1) == "not held"  # no room for so much
    assert judge(found(0.1, -0.1, 0.0), 1, 0.1) == "cannot be told"
    assert judge(found(-0.7, -0.71, -0.69), -1, math.log(0.84)) == "held"
    assert judge(found(0.01, -0.01, 0.0), -1, math.log(0.84)) == "not held"


def rows_in(tmp_path):
    """Three seeds each: ours has 0.2 more reward at the end, and half the KL on the way."""
    folders = []
    for seed in range(3):
        noise = 0.01 * seed
        for method, reward, kl in (("rgpo", 1.2, 2.0), ("ppo", 1.0, 4.0), ("grpo", 1.0, 1.0)):
            rewards = [0.0, 0.5 * reward, reward + noise]
            kls = [0.0, 0.5 * kl, kl * (1 + noise)]
            folders.append(write(tmp_path / f"{method}-{seed}", method, seed, rewards, kls))
    return folders


def test_the_papers_lines_at_equal_steps_and_where_the_other_is_equal(tmp_path):
    rows = {row.name: row for row in rows_of([show.read(f) for f in rows_in(tmp_path)])}
    lines = verdicts(rows["rgpo"], [rows["ppo"], rows["grpo"]], Reading("kl_ref"))
    known = {line.what: line for line in lines}
    assert len(lines) == len(known) == 6
    assert known["reward, ppo, equal steps"].found.interval.mean == pytest.approx(0.2)
    equal = known["reward, ppo, equal KL (2 nats)"]  # where PPO has come half way
    assert equal.found.interval.mean == pytest.approx(0.7, abs=0.01)
    assert known["KL, ppo, equal steps"].found.interval.mean == pytest.approx(math.log(0.5))
    same = known["KL, ppo, equal reward (1)"]
    assert math.exp(same.found.interval.mean) == pytest.approx(0.5 / 1.2, rel=0.02)
    words = {line.what: line.word for line in lines}
    assert words["reward, ppo, equal steps"] == words["KL, ppo, equal steps"] == "held"
    assert words["KL, grpo, equal steps"] == "not held"
    alone = rows["rgpo"]._replace(runs={0: rows["rgpo"].runs[0]})
    of_one_seed = verdicts(alone, [rows["ppo"]], Reading("kl_ref"))
    assert {line.word for line in of_one_seed} == {"cannot be told"}


def test_the_page_has_rows_levels_and_verdicts(tmp_path, capsys):
    folders = rows_in(tmp_path)
    args = ["--runs", *map(str, folders), "--out", str(tmp_path / "out")]
    assert at_equal_kl.main(args) == 0
    assert "3 row(s) of 9 run(s)" in capsys.readouterr().out
    page = (tmp_path / "out" / "README.md").read_text()
    final = Interval.of(np.array([1.2, 1.21, 1.22])).show(2)
    assert f"| rgpo | 3 | 64 | {final} |" in page
    assert "| rgpo | reward, ppo, equal steps | +14.8 % | 0.200 [0.200, 0.200] |" in page
    assert "| rgpo | KL, grpo, equal steps | -53.1 % | 100 [100, 100] % |" in page
    assert "(3) | - | - |" in page  # nobody comes to 10 nats
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert at_equal_kl.main([*args, "--kl", "k3", "--row", "ppo", "--against", "grpo"]) == 0
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| ppo | KL, grpo, equal steps |" in page
    assert "| rgpo | KL" not in page


def test_a_folder_without_answers_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        at_equal_kl.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")])
    assert exit.value.code == 2
    assert "no run of experiments.align" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
