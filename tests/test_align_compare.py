"""All alignment methods against the exact frontier."""

import csv
import json

import numpy as np
import pytest

from agents import language as methods
from experiments.align import compare
from experiments.align.plan import read_plan
from experiments.comparing.alignment_rows import ROWS
from experiments.comparing.frontier import Frontier
from experiments.comparing.intervals import Interval
from rgpo_jax.language import targets

SMALL = ("--methods", "rloo", "dapo", "--num-seeds", "2", "--num-updates", "10")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    assert compare.main([*SMALL, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def frontier():
    return compare.frontier_of(read_plan(["--world", "bandit"]))


def test_each_row_has_a_run_and_the_table_says_what_it_came_to(written):
    names = {path.name for path in written.iterdir()}
    assert {"README.md", "table.md", "table.csv", "frontier.png", "rloo", "dapo"} <= names
    rows = list(csv.DictReader((written / "table.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == ["rloo", "dapo"]
    for row in rows:
        summary = json.loads((written / row["row"] / "summary.json").read_text())
        assert summary["total_answers"] == 10 * 512
        for name in ("reward", "kl_ref"):
            assert float(row[name]) == pytest.approx(summary[name], abs=1e-12)
            assert float(row[f"{name}_low"]) < float(row[name]) < float(row[f"{name}_high"])
        assert row["seeds"] == "2"
    rloo, dapo = rows
    distance = json.loads((written / "rloo" / "summary.json").read_text())["target_distance"]
    assert float(rloo["target_distance"]) == pytest.approx(distance, abs=1e-12)
    assert float(rloo["target_distance_largest"]) >= distance
    assert (rloo["target"], dapo["target"]) == ("known", "no interior target")
    assert dapo["target_distance"] == ""
    assert json.loads((written / "dapo" / "summary.json").read_text())["target_distance"] is None
    log = (written / "dapo" / "run.log").read_text()
    assert "no interior target: without a KL term the policy goes to the best answers" in log
    table = (written / "table.md").read_text()
    assert f"| rloo | {float(rloo['reward']):.4f} [" in table
    assert "| dapo | " in table and " no interior target |" in table
    assert "n = 2 seeds" in table and "1 degree of freedom" in table
    page = (written / "README.md").read_text()
    assert table in page and "](frontier.png)" in page and "--num-updates 10" in page
    assert (written / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_call_trains_nothing_again_and_others_are_refused(written, capsys, monkeypatch):
    monkeypatch.setattr(compare.program, "main", lambda args: pytest.fail("trains again"))
    before = (written / "table.csv").read_bytes()
    (written / "table.csv").unlink()
    assert compare.main([*SMALL, "--out", str(written)]) == 0
    assert (written / "table.csv").read_bytes() == before
    assert "2 of 2, dapo: reward" in capsys.readouterr().out
    for args, message in {
        (*SMALL, "--seed", "1"): "was begun with other flags",
        (*SMALL, "--method", "rloo"): "--method: each row has its own",
        (*SMALL, "--sharpness", "3"): "rloo: Unrecognized options: --sharpness",
        ("--methods", "rlo"): "--methods rlo: expected some of reinforce, rloo",
        ("--world", "smollm2"): "smollm2",
    }.items():
        with pytest.raises(SystemExit) as exit_:
            compare.main([*args, "--out", str(written)])
        error = capsys.readouterr().err
        assert exit_.value.code == 2 and error.count("\n") == 1 and message in error


def test_another_folder_is_not_taken(tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(SystemExit):
        compare.main([*SMALL, "--out", str(tmp_path)])
    assert "holds README.md" in capsys.readouterr().err


def test_rows_are_chosen_by_their_name_or_their_methods():
    def rows(*names):
        return compare.Options(methods=names).rows

    gated = [row for row, args in ROWS.items() if args[1] in methods.GATED]
    assert rows() == gated and len(gated) == 16
    assert rows("dpo", "rebel") == ["rebel", "dpo"]
    assert rows("dr-grpo", "grpo") == ["grpo-published", "grpo-direct", "dr_grpo"]
    assert rows("rgpo-two-sided") == ["rgpo-two_sided"]
    assert len(rows("rgpo")) == 5
    for name, args in ROWS.items():
        assert read_plan(args).label == name


def test_the_frontier_is_that_of_gibbs_policies(frontier):
    for beta in (0.1, 1.0, 10.0):
        policy = targets.gibbs(frontier.reference, frontier.reward, beta)
        kl = np.sum(policy * np.log(policy / frontier.reference), axis=-1).mean()
        reward = np.sum(policy * frontier.reward, axis=-1).mean()
        np.testing.assert_allclose(frontier.at(1 / beta), (kl, reward), rtol=1e-9)
        np.testing.assert_allclose(frontier.reward_at(kl), reward, rtol=1e-9)


def test_the_frontier_of_two_arms_in_closed_form():
    q, p = 0.3, np.array([0.3, 0.5, 0.9, 1 - 1e-6])
    line = Frontier(np.array([[q, 1 - q]]), np.array([[1.0, 0.0]]))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(line.reward_at(kl), p, atol=1e-7)
    np.testing.assert_allclose(line.end, (-np.log(q), 1.0))
    assert line.reward_at(5.0) == 1.0
    np.testing.assert_allclose(line.share(kl[1:2], np.array([0.4])), 0.5)
    assert np.isnan(line.share(np.zeros(1), np.array([0.3])))


def test_no_policy_lies_above_the_frontier(frontier):
    rng = np.random.default_rng(0)
    scale = rng.exponential(2.0, size=(4_000, 1, 1))
    logits = np.log(frontier.reference) + scale * rng.normal(size=(4_000, *frontier.reward.shape))
    # Half of them lean to the rewards, and so come near to it.
    logits[::2] = np.log(frontier.reference) + scale[::2] * frontier.reward + 0.1 * logits[::2]
    policy = np.exp(logits - logits.max(axis=-1, keepdims=True))
    policy /= policy.sum(axis=-1, keepdims=True)
    kl = np.sum(policy * np.log(policy / frontier.reference), axis=-1).mean(axis=-1)
    reward = np.sum(policy * frontier.reward, axis=-1).mean(axis=-1)
    below = frontier.reward_at(kl) - reward
    assert below.min() > -1e-9
    assert below.min() < 1e-3


def test_intervals_are_students():
    interval = Interval.of(np.array([1.0, 2.0, 3.0]))
    half = 4.302653 / np.sqrt(3)  # t with 2 degrees of freedom
    np.testing.assert_allclose(interval, (2.0, 2.0 - half, 2.0 + half), rtol=1e-6)
    assert Interval.of(np.array([1.0])).show(2) == "1.00"
