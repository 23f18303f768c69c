"""Runs of a real model at equal steps and at equal KL: rows, crossings, verdicts, the page."""

import math

import numpy as np
import pytest

from experiments.align import at_equal_kl, show
from experiments.align.at_equal_kl import Reading, judge, read_at, rows_of, verdicts
from experiments.align.stored import of_folder
from experiments.cli.flags import BadInput
from experiments.comparing.intervals import Interval, compare
from tests.align_folders import rows_in, write


def test_a_value_is_read_off_the_rising_curve_that_is_nearest():
    x, y = [0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 1.0, 4.0]
    assert read_at(x, y, 0.5) == pytest.approx(0.75)
    assert read_at(x, y, 1.5) == pytest.approx(1.5)  # of 2 and 1, which do not rise
    assert read_at(x, y, 2.5) == pytest.approx(2.75)
    assert read_at([2.0, 0.0, 1.0], [3.0, 0.0, 1.0], 1.5) == pytest.approx(2.0)  # in any order
    assert read_at([0.0, 1.0, 1.0], [0.0, 1.0, 3.0], 1.0) == pytest.approx(2.0)
    assert math.isnan(read_at(x, y, 3.1))
    assert math.isnan(read_at([0.5, 1.0], [1.0, 2.0], 0.4))
    assert math.isnan(read_at([math.nan], [1.0], 0.0))


def test_noise_of_evaluations_does_not_bring_a_level_nearer():
    """Reward = root of KL; where a noisy path first comes to 1.6, its KL is far below 2.56."""
    rng = np.random.default_rng(0)
    root = np.linspace(0.0, 2.0, 21)
    first, found = [], []
    for _ in range(400):
        reward = root + 0.3 * rng.normal(size=21)
        first.append(root[np.argmax(reward >= 1.6)] ** 2)
        found.append(read_at(reward.tolist(), root.tolist(), 1.6) ** 2)
    assert np.mean(first) < 2.2
    assert np.nanmean(found) == pytest.approx(2.56, abs=0.25)


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
    rows = rows_of([show.read(of_folder(folder)) for folder in folders])
    assert [row.name for row in rows] == ["grpo kl=direct", "grpo kl=published", "online_dpo"]
    assert [row.method for row in rows] == ["grpo", "grpo", "online_dpo"]
    assert all(list(row.runs) == [0, 1] for row in rows)
    again = write(tmp_path / "again", "online-dpo", 1, [0, 2], [0, 1])
    with pytest.raises(BadInput, match="two of online-dpo, seed 1, are one run"):
        rows_of([show.read(of_folder(folder)) for folder in (*folders, again)])


def test_a_run_from_before_a_setting_had_its_default(tmp_path):
    older = write(tmp_path / "older", "ppo", 0, [0, 1], [0, 1])
    new = {"learning_rate_schedule": "auto", "warmup_updates": 0}
    same = write(tmp_path / "same", "ppo", 1, [0, 1], [0, 1], **new)
    other = write(tmp_path / "other", "ppo", 1, [0, 1], [0, 1], **new | {"warmup_updates": 3})
    (row,) = rows_of([at_equal_kl.read(of_folder(folder)) for folder in (older, same)])
    assert (row.name, list(row.runs)) == ("ppo", [0, 1])
    rows = rows_of([at_equal_kl.read(of_folder(folder)) for folder in (older, other)])
    assert [row.name for row in rows] == ["ppo warmup_updates=0", "ppo warmup_updates=3"]


def found(*values):
    return compare({"": np.array(values)})[0]


def test_verdicts_by_hand():
    assert judge(None, 1, 0.1) == "cannot be told"
    assert judge(found(0.2, 0.21, 0.19), 1, 0.1) == "held"
    assert judge(found(0.02, 0.021, 0.019), 1, 0.1) == "ahead, by less than the paper's"
    assert judge(found(-0.2, -0.21, -0.19), 1, 0.1) == "not held"
    assert judge(found(0.01, -0.01, 0.0), 1, 0.1) == "not held"  # no room for so much
    assert judge(found(0.1, -0.1, 0.0), 1, 0.1) == "cannot be told"
    assert judge(found(-0.7, -0.71, -0.69), -1, math.log(0.84)) == "held"
    assert judge(found(0.01, -0.01, 0.0), -1, math.log(0.84)) == "not held"
    assert judge(found(0.2, 0.21, 0.19), 1, None) == "ahead"
    assert judge(found(0.2, 0.21, 0.19), -1, None) == "behind"
    assert judge(found(0.1, -0.1, 0.0), 1, None) == "no difference shown"


def test_rows_are_compared_at_equal_steps_and_where_the_other_is_equal(tmp_path):
    rows = {
        row.name: row
        for row in rows_of([at_equal_kl.read(of_folder(f)) for f in rows_in(tmp_path)])
    }
    others = [rows["ppo"], rows["grpo"]]
    lines = verdicts([rows["rgpo"]], others, Reading("kl_ref"))
    known = {line.what: line for line in lines}
    assert len(lines) == len(known) == 8
    assert all(line.number == 3 for line in lines)  # no seed is left out
    assert known["reward, ppo, equal steps"].found.interval.mean == pytest.approx(0.2)
    equal = known["reward, ppo, equal KL (2 nats)"]  # where PPO has come half way: 0.5 of 1.0
    assert equal.found.interval.mean == pytest.approx(0.7, abs=0.02)
    assert known["KL, ppo, equal steps"].found.interval.mean == pytest.approx(math.log(0.5))
    words = {line.what: line.word for line in lines}
    assert words["reward, ppo, equal steps"] == words["KL, ppo, equal steps"] == "held"
    assert words["KL, grpo, equal steps"] == "not held"
    assert words["reward, grpo, equal steps"] == "ahead"  # of which the paper says nothing
    assert known["reward, grpo, equal steps"].paper is None
    both = verdicts([rows["rgpo"], rows["grpo"]], others, Reading("kl_ref"))
    assert [line.row for line in both] == ["rgpo"] * 8 + ["grpo"] * 4
    assert all(line.paper is None for line in both[8:])  # its figures are RGPO's
    # All tests of a table are corrected together.
    (again,) = (line for line in both[:8] if line.what == equal.what)
    assert again.found.p > equal.found.p > 0
    alone = rows["rgpo"]._replace(runs={0: rows["rgpo"].runs[0]})
    of_one_seed = verdicts([alone], [rows["ppo"]], Reading("kl_ref"))
    assert {line.word for line in of_one_seed} == {"cannot be told"}


def test_the_page_has_rows_levels_and_verdicts(tmp_path, capsys):
    folders = rows_in(tmp_path)
    args = ["--runs", *map(str, folders), "--out", str(tmp_path / "out")]
    assert at_equal_kl.main(args) == 0
    assert "3 row(s) of 9 run(s)" in capsys.readouterr().out
    page = (tmp_path / "out" / "README.md").read_text()
    final = Interval.of(np.array([1.2, 1.21, 1.22])).show(2)
    assert f"| rgpo | 3 | 64 | {final} |" in page
    assert "| rgpo | reward, ppo, equal steps | 3 | +14.8 % | 0.200 [0.200, 0.200] |" in page
    assert "| rgpo | KL, grpo, equal steps | 3 | -53.1 % | 100 [100, 100] % |" in page
    assert "(3) | - | - |" in page  # nobody comes to 3 nats with every evaluation, nor to 10
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert at_equal_kl.main([*args, "--kl", "k3", "--row", "ppo", "--against", "grpo"]) == 0
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| ppo | KL, grpo, equal steps | 3 |  |" in page
    assert "| rgpo | KL" not in page
    assert "| ppo | KL, rgpo" not in page
    two = [folder for folder in map(str, folders) if "ppo" not in folder]
    assert at_equal_kl.main(["--runs", *two, "--out", str(tmp_path / "two")]) == 0
    assert "| rgpo | KL, grpo" in (tmp_path / "two" / "README.md").read_text()


def refused(capsys, *args):
    with pytest.raises(SystemExit) as exit:
        at_equal_kl.main(list(args))
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_compared_is_refused_in_a_line(tmp_path, capsys):
    out = ("--out", str(tmp_path / "out"))
    good = str(write(tmp_path / "good", "rgpo", 0, [0, 1], [0, 1]))
    ppo = str(write(tmp_path / "ppo", "ppo", 0, [0, 1], [0, 1]))
    grpo = str(write(tmp_path / "grpo", "grpo", 0, [0, 1], [0, 1]))
    longer = str(write(tmp_path / "longer", "grpo", 0, [0, 1, 2], [0, 1, 2]))
    other = str(write(tmp_path / "other", "grpo", 0, [0, 1], [0, 1], world="model"))
    open_ = write(tmp_path / "open", "grpo", 0, [0, 1], [0, 1])
    (open_ / "summary.json").unlink()
    seedless = write(tmp_path / "seedless", "grpo", 0, [0, 1], [0, 1])
    (seedless / "config.json").write_text('{"settings": {"method": "grpo"}}')
    unknown = write(tmp_path / "unknown", "qppo", 0, [0, 1], [0, 1])
    assert "no run of experiments.align" in refused(capsys, "--runs", str(tmp_path), *out)
    assert "it has no seed" in refused(capsys, "--runs", good, str(seedless), *out)
    assert "not finished" in refused(capsys, "--runs", good, str(open_), *out)
    assert "unknown method 'qppo'" in refused(capsys, "--runs", good, str(unknown), *out)
    assert "32 and 64 answers" in refused(capsys, "--runs", good, ppo, longer, *out)
    assert "they differ in world" in refused(capsys, "--runs", good, ppo, other, *out)
    line = refused(capsys, "--runs", good, ppo, grpo, "--against", "rlo", *out)
    assert "--against rlo: expected one of these runs' rows: grpo, ppo, rgpo" in line
    assert "--row dpo" in refused(capsys, "--runs", good, ppo, grpo, "--row", "dpo", *out)
    assert not (tmp_path / "out").exists()
