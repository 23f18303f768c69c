"""The paper's claims: gains and spreads with their intervals, verdicts, and rank tests."""

import dataclasses

import numpy as np
import pytest

from experiments.reproduction import claims, ranks, rows
from experiments.reproduction.claims import HELD, NOT_HELD, UNTOLD
from rgpo_jax.statistics import Estimate, holm
from tests import run_folders
from tests.reproduction_folders import ANT, TASKS, WALKER, spiking, write


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return rows.read(write(tmp_path_factory.mktemp("data")) / "mujoco")


def test_a_relative_gain_is_a_ratio_of_interquartile_means():
    ours, theirs = np.array([1.0, 18.0, 20.0, 22.0, 90.0]), np.array([9.0, 10.0, 10.0, 10.0, 11.0])
    gain = claims.relative_gain(ours, theirs)
    assert gain.value == pytest.approx(20.0 / 10.0 - 1)
    assert gain.low < gain.value < gain.high
    assert not claims.relative_gain(ours[:1], theirs).has_interval


def test_there_is_no_share_of_a_return_that_may_be_negative():
    for baseline in ([-60.0, -50.0, -40.0], [-30.0, 10.0, 40.0], [50.0]):
        gain = claims.relative_gain(np.array([-110.0, -100.0, -90.0]), np.array(baseline))
        assert np.isnan(gain).all()
        assert claims.judge_gain(gain, 0.81) == UNTOLD == claims.judge_gain(gain, 0.0)
        assert claims.percent(gain) == ""


def test_the_interval_of_variation_covers_what_it_says():
    rng = np.random.default_rng(0)
    for true in (0.1, 0.27):
        found = [claims.variation(rng.normal(1.0, true, 5)) for _ in range(2000)]
        covered = np.mean([e.low <= true <= e.high for e in found])
        assert 0.93 < covered < 0.97
    assert found[0].low < found[0].value < found[0].high
    assert claims.variation(np.array([1.0, 9.0, 2.0, 8.0, 0.1])).high == np.inf
    assert np.isnan(claims.variation(np.array([1.0]))).all()
    assert np.isnan(claims.variation(np.array([-1.0, 1.0]))).all()


@pytest.mark.parametrize(
    ("low", "high", "papers", "verdict"),
    [
        (0.5, 1.0, 0.81, HELD),
        (0.9, 1.5, 0.81, HELD),  # better than the paper's
        (0.1, 1.0, 0.81, UNTOLD),
        (-0.1, 1.0, 0.81, UNTOLD),
        (0.1, 0.8, 0.81, NOT_HELD),
        (-0.5, -0.1, 0.81, NOT_HELD),
        (np.nan, np.nan, 0.81, UNTOLD),
        (-0.2, 0.2, 0.0, HELD),
        (0.05, 0.15, 0.0, HELD),
        (0.05, 0.5, 0.0, UNTOLD),
        (0.3, 0.5, 0.0, NOT_HELD),
        (-0.5, -0.3, 0.0, NOT_HELD),
    ],
)
def test_a_gain_is_judged_by_its_interval(low, high, papers, verdict):
    assert claims.judge_gain(Estimate((low + high) / 2, low, high), papers) == verdict


def test_a_limit_is_broken_by_one_and_kept_by_all():
    below, above, across = (Estimate(v, v - 0.1, v + 0.1) for v in (0.1, 0.5, 0.3))
    assert claims.judge_at_most([below, below], 0.27) == HELD
    assert claims.judge_at_most([below, above], 0.27) == NOT_HELD
    assert claims.judge_at_most([below, across], 0.27) == UNTOLD
    assert claims.judge_within([across], 0.1, 0.5) == HELD
    assert claims.judge_within([across, above], 0.1, 0.35) == NOT_HELD
    assert claims.judge_within([across], 0.25, 0.5) == UNTOLD


def test_claims_are_judged_task_by_task(collection):
    cells, judged = collection.cells, ["rgpo_k4", "rgpo"]
    of_return = {claim.text: claim for claim in claims.claims_of_return(cells, judged)}
    walker, ant, cheetah, hopper = (of_return[claims.short_name(task)] for task in TASKS)
    assert (walker.paper, cheetah.paper) == ("+81 %", "equal")
    assert walker.findings["rgpo_k4"].verdict == HELD
    assert "+90 % [" in walker.findings["rgpo_k4"].evidence
    assert ant.findings["rgpo_k4"].verdict == NOT_HELD
    assert cheetah.findings["rgpo_k4"].verdict == HELD
    missing = hopper.findings["rgpo_k4"]
    assert (missing.verdict, missing.evidence) == (UNTOLD, "not run yet")
    of_updates = {claim.text: claim.findings for claim in claims.claims_of_updates(cells, judged)}
    spread = of_updates["Coefficient of variation over seeds at most 27 % everywhere"]["rgpo_k4"]
    assert spread.verdict == UNTOLD and "Hopper-v4 not run yet" in spread.evidence
    spikes = of_updates["KL spikes in no update"]["rgpo_k4"]
    rates = " / ".join(["10 [10, 10]"] * 4)
    assert spikes.verdict == NOT_HELD and f"Ant-v4 {rates} %" in spikes.evidence
    assert of_updates["KL spikes in 44 to 84 % of PPO's updates"].keys() == {"ppo"}
    for findings in (*(claim.findings for claim in of_return.values()), *of_updates.values()):
        assert findings.get("rgpo", missing).verdict == UNTOLD


def test_a_gain_is_judged_against_ppo_with_the_same_settings_too(tmp_path):
    for row, agent, final in (
        ("rgpo", "rgpo", 2000),
        ("ppo", "ppo", 1000),
        ("ppo_rgpo_settings", "ppo", 1900),
    ):
        run_folders.write(tmp_path / row / "a", agent, ANT, final=final, spread=10)
    found = claims.claims_of_return(rows.read(tmp_path).cells, ["rgpo_k4", "rgpo"])
    verdicts = {claim.text: claim.findings["rgpo"].verdict for claim in found}
    assert verdicts["Ant-v4"] == HELD
    assert verdicts["Ant-v4, against PPO, RGPO's settings"] == NOT_HELD
    assert found[2].findings.keys() == {"rgpo"}


@pytest.mark.parametrize(
    ("ours", "theirs", "verdicts"),
    [
        (0.0, 0.6, (HELD, HELD)),
        (0.1, 0.6, (NOT_HELD, HELD)),
        (0.0, 0.1, (HELD, NOT_HELD)),
        (0.1, 0.9, (NOT_HELD, NOT_HELD)),
    ],
)
def test_spikes_are_judged_apart(ours, theirs, verdicts, tmp_path):
    for task in claims.PAPERS_GAINS:
        for row, agent, rate, own in (
            ("rgpo_k4", "rgpo", ours, {"sharpness": 4.0}),
            ("ppo", "ppo", theirs, {}),
        ):
            folder = tmp_path / row / task.replace("/", "-")
            run_folders.write(folder, agent, task, metrics=spiking(rate), **own)
    found = claims.claims_of_updates(rows.read(tmp_path).cells, ["rgpo_k4"])
    spikes = [claim.findings for claim in found if claim.text.startswith("KL spikes")]
    assert (spikes[0]["rgpo_k4"].verdict, spikes[1]["ppo"].verdict) == verdicts


def test_spikes_are_claimed_with_their_intervals():
    rates = {0.02: Estimate(0.9, 0.85, 0.95), 0.16: Estimate(0.0, 0.0, 0.01)}
    assert claims.spikes(rates) == "90 / 0"
    assert claims.spikes(rates, interval=True) == "90 [85, 95] / 0 [0, 1]"


def test_a_verdict_that_samples_do_not_share_says_so(tmp_path):
    for row, agent, mode, sampled in (("rgpo_k4", "rgpo", 200, 100), ("ppo", "ppo", 100, 100)):
        own = {"sharpness": 4.0} if row == "rgpo_k4" else {}
        returns = {"eval_return_stochastic": [sampled + 0.1 * i for i in range(5)]}
        folder = tmp_path / row / "a"
        run_folders.write(folder, agent, WALKER, final=mode, spread=0.1, metrics=returns, **own)
    (walker, *_) = claims.claims_of_return(rows.read(tmp_path).cells, ["rgpo_k4"])
    finding = walker.findings["rgpo_k4"]
    assert finding.verdict == HELD
    assert finding.by_samples == NOT_HELD and finding.scope == ", by the mode alone"
    assert finding.evidence.endswith("(sampled +0 % [-0, +0]: not held)")


def test_a_verdict_that_samples_share_goes_without_saying(collection):
    for claim in claims.claims_of_return(collection.cells, ["rgpo_k4"]):
        assert claim.findings["rgpo_k4"].scope == ""


def test_the_rank_test_is_exact():
    ours, theirs = np.arange(5.0), np.arange(5.0) + 10.0
    better, p = ranks.rank_test(ours, theirs)
    assert (better, p) == (0.0, pytest.approx(2 / 252))  # of 252 orders the two extreme ones
    assert ranks.rank_test(theirs, ours)[0] == 1.0


def test_contests_are_corrected_together(collection):
    found = ranks.contests(collection.cells)
    assert [(c.task, c.ours, c.theirs) for c in found] == [
        (task, "RGPO, k = 4", "PPO") for task in ("Ant-v4", "HalfCheetah-v4", "Walker2d-v4")
    ]
    assert all(c.sampled is None or c.sampled.p <= c.sampled.corrected for c in found)
    tests = [t for c in found for t in (c.mode, c.sampled) if t is not None]
    assert [t.corrected for t in tests] == holm([t.p for t in tests])
    by_task = {c.task: c.mode for c in found}
    assert by_task["Walker2d-v4"].better == 1.0 and by_task["Ant-v4"].better == 0.0
    shown = ranks.RankTest(1.0, 0.001, 0.049)
    assert shown.difference == ranks.AHEAD
    assert dataclasses.replace(shown, better=0.1).difference == ranks.BEHIND
    assert dataclasses.replace(shown, corrected=0.05).difference == ranks.UNSHOWN
