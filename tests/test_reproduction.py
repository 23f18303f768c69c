"""The reproduction of the paper's table: rows, verdicts, the search, and the page."""

import csv
import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from agents import ppo
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan import families, reading
from experiments.plan import own as users
from experiments.record import colors, run_table
from experiments.report import paper
from experiments.reproduction import __main__ as program
from experiments.reproduction import ablations, claims, figures, page, ranks, rows, search, tables
from experiments.reproduction.claims import HELD, NOT_HELD, UNTOLD
from experiments.sweep import grid
from rgpo_jax import gates
from rgpo_jax.statistics import Estimate, holm
from tests import run_folders

RESULTS = Path(__file__).parents[1] / "results"
WALKER, ANT = "envpool/Walker2d-v4", "envpool/Ant-v4"
CHEETAH, HOPPER = "envpool/HalfCheetah-v4", "envpool/Hopper-v4"
TASKS = (WALKER, ANT, CHEETAH, HOPPER)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """RGPO at k = 4 is far better on Walker2d, worse on Ant and equal on HalfCheetah."""
    top = tmp_path_factory.mktemp("data")
    finals = {
        "rgpo_k4": {WALKER: 1900, ANT: 500, CHEETAH: 1010},
        "ppo": {WALKER: 1000, ANT: 1000, CHEETAH: 1000, HOPPER: 1000},
    }
    for row, by_task in finals.items():
        for task, final in by_task.items():
            folder = top / "mujoco" / row / task.replace("/", "-")
            own = {"sharpness": 4.0} if row == "rgpo_k4" else {}
            agent = row.removesuffix("_k4")
            run_folders.write(folder, agent, task, final=final, spread=10, **own)
    return top


@pytest.fixture(scope="module")
def collection(data):
    return rows.read(data / "mujoco")


def test_rows_are_folders_and_their_runs_are_pooled(data, tmp_path):
    run_folders.write(tmp_path / "ppo" / "a", "ppo", WALKER, seed=0)
    run_folders.write(tmp_path / "ppo" / "b", "ppo", WALKER, seed=5)
    (cell,) = rows.read(tmp_path).cells.values()
    assert cell.variant == "PPO" and cell.seeds == tuple(range(10))


@pytest.mark.parametrize(
    ("row", "agent", "settings", "message"),
    [
        ("ppo", "ppo", {"learning_rate": 2e-3}, r"learning_rate = 0.002: expected 0.001"),
        ("ppo", "ppo", {"env": HOPPER, "clip": 0.3}, r"clip = 0.3: expected 0.2"),
        ("ppo", "sapo", {}, r"agent = sapo: expected ppo"),
        ("rgpo_k4", "rgpo", {"sharpness": 2.0}, r"sharpness = 2.0: expected 4.0"),
        ("trpo", "trpo", {"lines": 20}, r"rows of equal total_steps, found \[10000, 20000\]"),
    ],
)
def test_a_row_of_other_runs_is_refused(row, agent, settings, message, tmp_path):
    run_folders.write(tmp_path / "ppo" / "a", "ppo", WALKER, clip=0.2)
    run_folders.write(tmp_path / row / "z", agent, **({"env": WALKER, "seed": 5} | settings))
    with pytest.raises(BadInput, match=message):
        rows.read(tmp_path)


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


def spiking(rate):
    """A metric of runs whose updates spike at such a rate, however small the threshold."""
    return {f"kl_spike_rate_{t}": rate for t in run_folders.THRESHOLDS}


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


def test_rows_that_a_figure_shows_together_are_told_apart():
    looks = figures.looks()
    for group in rows.GROUPS.values():
        shown = [looks[rows.ALL[key].name] for key in (*group.compared, *group.rows)]
        assert len(set(shown)) == len(shown)
    assert looks["PPO"].color == colors.of_agents(["ppo"])["ppo"]
    assert looks["RGPO, k = 4"].color == colors.of_agents(["rgpo"])["rgpo"]


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


def test_four_differences_of_modes_survive_correction():
    """What README.md and the answer on the page say of MuJoCo."""
    found = ranks.contests(rows.read(RESULTS / "data" / "mujoco").cells)
    assert {(c.task, c.ours): c.mode.difference for c in found if c.mode.corrected < 0.05} == {
        ("Ant-v4", "RGPO, k = 4"): ranks.AHEAD,
        ("Ant-v4", "RGPO, searched k"): ranks.AHEAD,
        ("Hopper-v4", "RGPO, searched k"): ranks.BEHIND,
        ("Walker2d-v4", "RGPO, searched k"): ranks.BEHIND,
    }
    assert {
        (c.task, c.ours): c.sampled.difference for c in found if c.sampled.corrected < 0.05
    } == {
        ("Ant-v4", "RGPO, searched k"): ranks.AHEAD,
        ("Hopper-v4", "RGPO, k = 4"): ranks.BEHIND,
        ("Hopper-v4", "RGPO, searched k"): ranks.BEHIND,
        ("Walker2d-v4", "RGPO, searched k"): ranks.BEHIND,
    }


DAMAGED = {
    "metrics cut off": ("metrics.jsonl", lambda text: text[:-300], "is finished at 10,000 steps"),
    "metrics empty": (
        "metrics.jsonl",
        lambda text: "",
        "it is finished, and its metrics.jsonl is empty",
    ),
    "config cut off": ("config.json", lambda text: text[:-9], "config.json: "),
    "summary cut off": ("summary.json", lambda text: text[:-9], "summary.json: "),
    "seconds": (
        "summary.json",
        lambda text: text.replace("{", '{"run_seconds": "x", '),
        "its summary.json is not that of a run",
    ),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_run_is_refused(name, damage, message, data, tmp_path, capsys):
    top, out = tmp_path / "data", tmp_path / "page"
    shutil.copytree(data, top)
    file = top / "mujoco" / "ppo" / WALKER.replace("/", "-") / name
    file.write_text(damage(file.read_text()))
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(top), "--out", str(out)])
    assert refused.value.code == 2 and not out.exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(file.parent) in error and message in error


def test_agents_differ_in_what_is_theirs_alone(tmp_path):
    run_folders.write(tmp_path / "ppo" / "a", "ppo", WALKER, clip=0.2)
    run_folders.write(
        tmp_path / "awr" / "a", "awr", WALKER, advantage_temperature=1.0, num_epochs=9
    )
    published = {"hidden_sizes": [256, 256], "discount": 0.98}
    run_folders.write(tmp_path / "ppo_zoo" / "a", "ppo", WALKER, **published)
    rows.read(tmp_path)
    run_folders.write(tmp_path / "trpo" / "a", "trpo", WALKER, hidden_sizes=[32, 32])
    with pytest.raises(BadInput, match=r"hidden_sizes = \[32, 32\]: expected \[64, 64\], as in"):
        rows.read(tmp_path)


@pytest.mark.parametrize("folder", ["mujoco", "mujoco/sharpness"])
def test_a_folder_without_runs_is_refused(folder, data, tmp_path, capsys):
    if folder != "mujoco":
        shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / folder).mkdir(parents=True)
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "page")])
    error = capsys.readouterr().err
    assert refused.value.code == 2 and f"{folder}: expected runs" in error


def test_a_reading_that_cannot_be_read_is_refused(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "mujoco" / "reading.md").write_bytes(b"\xff")
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "page")])
    assert refused.value.code == 2 and "reading.md: " in capsys.readouterr().err


REFERENCES = search.SEARCHES["mujoco"].references


def candidate(folder, sweep, agent, task, final, **settings):
    name = f"{task}-{agent}-{settings}".replace("/", "-")
    return run_folders.write(
        folder / sweep / name, agent, task, seed=1000, num_seeds=2, final=final, **settings
    )


def test_the_search_prefers_what_serves_all_tasks(tmp_path):
    def pair(sweep, cheetah, hopper, agent="rgpo", **settings):
        candidate(tmp_path, sweep, agent, CHEETAH, cheetah, **settings)
        return candidate(tmp_path, sweep, agent, HOPPER, hopper, **settings)

    default = {"learning_rate": 3e-4, "num_epochs": 4, "sharpness": 4.0}
    pair("defaults", 1443, 2383, **default)  # PPO's published returns
    pair("k4", 14430, 30, **(default | {"num_epochs": 10}))
    pair("draws", 2 * 1443, 2 * 2383, **(default | {"sharpness": 2.0}))
    pair("draws", -10, 2383, **(default | {"sharpness": 9.0}))
    pair("draws", 1443, 2383, agent="ppo", learning_rate=3e-4, num_epochs=10, clip=0.2)
    cut_off = pair("draws", 9e3, 9e3, **(default | {"sharpness": 8.0}))
    (cut_off / "summary.json").unlink()
    broke = pair("draws", 9e3, 9e3, **(default | {"sharpness": 1.5}))
    summary = {"broken": [{"seed": 1000, "update": 3}]}
    (broke / "summary.json").write_text(json.dumps(summary))
    found = search.candidates(tmp_path, REFERENCES)
    assert found.keys() == {"rgpo_k4", "rgpo", "ppo"}
    assert [c.settings["num_epochs"] for c in found["rgpo_k4"]] == [4, 10]
    assert [c.settings["sharpness"] for c in found["rgpo"]] == [2.0, 4.0, 9.0, 1.5]
    assert [c.is_default for c in found["rgpo"]] == [False, True, False, False]
    assert [c.score for c in found["rgpo"]] == pytest.approx([2.0, 1.0, 0.1, 0.0])
    assert found["ppo"][0].settings == {"learning_rate": 3e-4, "num_epochs": 10, "clip": 0.2}


def test_a_search_that_cannot_be_compared_is_refused(tmp_path):
    same = {"learning_rate": 3e-4, "num_epochs": 4, "clip": 0.2}
    candidate(tmp_path, "draws", "ppo", CHEETAH, 1000, **same)
    for folder, task, changed, message in (
        ("steps", CHEETAH, {"lines": 20}, "expected the seeds and steps"),
        ("task", WALKER, {}, "envpool/Walker2d-v4: expected"),
        ("twice", CHEETAH, {"gae_lambda": 0.9}, "the same candidate as"),
    ):
        shutil.copytree(tmp_path / "draws", tmp_path / folder / "draws")
        candidate(tmp_path / folder, "draws", "ppo", task, 1000, **(same | changed))
        with pytest.raises(BadInput, match=message):
            search.candidates(tmp_path / folder, REFERENCES)


def test_the_page_has_claims_table_and_figures(data, tmp_path, capsys):
    out = tmp_path / "page"
    (data / "mujoco" / "reading.md").write_text("What it means.\n")
    assert program.main(["--data", str(data), "--out", str(out)]) == 0
    page = (out / "README.md").read_text()
    assert "\nWhat it means.\n" in page
    assert "**held**: +90 % [" in page
    assert "| Walker2d-v4 | RGPO, k = 4 | 5 | 1900 [" in page
    assert "| 1.00 [1.00, 1.00] |" in page  # of the improvement over PPO
    for name in re.findall(r"\]\((figures/[^)]+)\)", page):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"\]\(figures/", page)) == 5  # returns, and training on four tasks
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(data), "--out", str(out)])
    assert refused.value.code == 2
    assert "holds README.md" in capsys.readouterr().err


def test_ablations_relatives_and_k_have_tables_of_their_own(data, tmp_path):
    top, out = tmp_path / "data", tmp_path / "page"
    shutil.copytree(data, top)
    (top / "reading.md").write_text("What it means.\n")
    run_folders.write(top / "mujoco" / "sapo" / "a", "sapo", WALKER, final=1200, spread=10)
    for row in ("rgpo_calling_back", "ppo_not_calling_back"):
        gate = f"experiments.reproduction.ablations:{row}"
        folder = top / "mujoco" / row / "a"
        run_folders.write(folder, row.split("_")[0], ANT, gate=gate, final=700, spread=10)
    for k, on in itertools.product((16.0, 2.0), (False, True)):
        folder = top / "mujoco" / "sharpness" / f"{k}-{on}"
        own = {"sharpness": k, "normalize": on}
        run_folders.write(folder, "rgpo", CHEETAH, final=1000 * k + on, spread=10, **own)
    assert program.main(["--data", str(top), "--out", str(out)]) == 0
    page = (out / "README.md").read_text()
    assert page.index("What it means.") < page.index("## Claims")
    table, _, rest = page.partition("### Ablation: the pull-back")
    ablations, _, rest = rest.partition("### Further rows: early stopping")
    beside, _, study = rest.partition("## RGPO's k")
    assert re.findall(r"^\| (\S+) \| ([^|]+) \| 5 \| (\d+)\b", ablations, re.MULTILINE) == [
        ("Ant-v4", "RGPO, k = 4", "500"),
        ("Ant-v4", "PPO", "1000"),
        ("Ant-v4", "RGPO, k = 4, with pull-back", "700"),
        ("Ant-v4", "PPO, without pull-back", "700"),
    ]
    assert "SAPO" not in table + ablations and "| Walker2d-v4 | SAPO | 5 | 1200 [" in beside
    compared = ["RGPO, k = 4", "PPO", "SAPO"]  # on its task alone
    assert re.findall(r"^\| (\S+) \| ([^|]+) \| 5 ", beside, re.MULTILINE) == [
        ("Walker2d-v4", name) for name in compared
    ]
    assert re.findall(r"sharpness=(\d+) normalize=(\w+) \| 5 \| (\d+) ", study) == [
        ("2", "False", "2000"),
        ("2", "True", "2001"),
        ("16", "False", "16000"),
        ("16", "True", "16001"),
    ]
    assert "](figures/mujoco-sharpness.png)" in study
    for name in re.findall(r"\]\((figures/[^)]+)\)", page):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_run_that_goes_on_has_no_score_yet(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    folder = tmp_path / "data" / "mujoco" / "rgpo_k4" / WALKER.replace("/", "-")
    shutil.rmtree(folder)
    run_folders.write(folder, "rgpo", WALKER, done=0.5, sharpness=4.0)
    out = tmp_path / "page"
    assert program.main(["--data", str(tmp_path / "data"), "--out", str(out)]) == 0
    page = (out / "README.md").read_text()
    assert "| Walker2d-v4 | RGPO, k = 4 (unfinished at 50%) | 5 |  |  |  |" in page
    assert "| Walker2d-v4 | +81 % | **cannot be told**: unfinished at 50% |" in page


def test_what_was_not_logged_is_left_empty(tmp_path):
    """Runs of one line, without evaluations, of one seed, broken: a page, and no traceback."""
    top = tmp_path / "data" / "mujoco"
    run_folders.write(top / "ppo" / "a", "ppo", WALKER, num_seeds=1)
    run_folders.write(top / "rgpo_k4" / "a", "rgpo", WALKER, done=0.0, sharpness=4.0)
    names = [*spiking(0.0), "approx_kl", "approx_kl_max", "first_ratio_deviation", "eval_return"]
    folder = run_folders.write(top / "rgpo" / "a", "rgpo", WALKER)
    without = [
        {name: value for name, value in json.loads(line).items() if name not in names}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in without))
    config = json.loads((folder / "config.json").read_text())
    del config["versions"], config["git_commit"]
    (folder / "config.json").write_text(json.dumps(config))
    broken = {"broken": [{"seed": 0, "update": 3}]}
    run_folders.write(top / "rgpo_k4" / "b", "rgpo", ANT, sharpness=4.0, summary=broken)
    run_folders.write(top / "ppo" / "b", "ppo", ANT, num_seeds=1)
    out = tmp_path / "page"
    assert program.main(["--data", str(tmp_path / "data"), "--out", str(out)]) == 0
    page = (out / "README.md").read_text()
    assert "nan [" not in page and "[nan" not in page
    assert "**cannot be told**: broken at 100%" in page
    assert "b broke: parameters became NaN or infinite (seed 0 at update 3)." in page
    assert "**cannot be told**: never evaluated" in page


# Tables of runs.


@pytest.fixture
def raw(data, tmp_path):
    """Run folders of rows, of a search and of a study, one of them in two programs."""
    folder = tmp_path / "raw"
    shutil.copytree(data, folder, ignore=shutil.ignore_patterns("reading.md"))
    mujoco = folder / "mujoco"
    run_folders.write(mujoco / "ppo" / "more", "ppo", WALKER, seed=5, final=1100, spread=10)
    run_folders.write(mujoco / "sharpness" / "k", "rgpo", CHEETAH, sharpness=2.0, normalize=False)
    settings = {"learning_rate": 3e-4, "num_epochs": 4, "clip": 0.2}
    for task in (CHEETAH, HOPPER):
        candidate(mujoco / "search", "draws", "ppo", task, 1000.1, **settings)
    return folder


def collect(raw, data):
    assert program.main(["--collect", str(raw), "--data", str(data)]) == 0


def test_a_table_gives_the_page_of_its_runs_to_the_byte(raw, tmp_path):
    collect(raw, tmp_path / "data")
    pages = []
    for data in (raw, tmp_path / "data"):
        out = tmp_path / "page-of" / data.name
        assert program.main(["--data", str(data), "--out", str(out)]) == 0
        pages.append({f.relative_to(out): f.read_bytes() for f in out.rglob("*") if f.is_file()})
    assert pages[0] == pages[1]
    assert len(pages[0]) == 7  # the page, returns, training on four tasks, and k


def test_a_table_is_thinned_and_its_manifest_names_the_raw_runs(raw, tmp_path):
    collect(raw, tmp_path)
    family = tmp_path / "mujoco"
    with gzip.open(family / run_table.TABLE, "rt") as file:
        lines = {line["run"]: line for line in map(json.loads, file)}
    with (family / run_table.MANIFEST).open() as file:
        manifest = {line["run"]: line for line in csv.DictReader(file)}
    assert list(lines) == list(manifest)
    for name, line in lines.items():
        content = (raw / "mujoco" / name / "metrics.jsonl").read_bytes()
        assert hashlib.sha256(content).hexdigest() == line["sha256"] == manifest[name]["sha256"]
        original = [json.loads(text) for text in content.splitlines()]
        if name.startswith("search/"):
            original = original[-1:]
            assert line["metrics"][0].keys() == {
                *("env_steps", "updates", "wall_seconds"),
                *("eval_return", "eval_return_stochastic"),
            }
        for ours, theirs in zip(line["metrics"], original, strict=True):
            assert ours.items() <= theirs.items() and "weight_max" not in ours
    assert manifest["ppo/more"]["command"] == (
        "python -m experiments.sweep --file results/mujoco/ppo.yaml --agents ppo "
        f"--envs {WALKER} --seed 5 --num-seeds 5"
    )


def test_tables_keep_what_the_figures_draw():
    assert all(map(tables._is_read, figures._SHOWN))


def test_the_same_runs_make_the_same_table(raw, tmp_path, monkeypatch):
    collect(raw, tmp_path / "a")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    for folder in raw.rglob("*"):
        os.utime(folder, (1, 1))
    collect(raw, tmp_path / "b")
    for name in (run_table.TABLE, run_table.MANIFEST):
        a, b = ((tmp_path / top / "mujoco" / name).read_bytes() for top in "ab")
        assert a == b


def test_runs_join_a_table_and_replace_those_of_their_name(raw, tmp_path):
    data, more = tmp_path / "data", tmp_path / "more"
    collect(raw, data)
    before = tables.read(data / "mujoco", "ppo")
    run_folders.write(more / "mujoco" / "ppo" / "more", "ppo", WALKER, seed=5, final=7)
    run_folders.write(more / "mujoco" / "trpo" / "new", "trpo", WALKER, final=8)
    (more / "mujoco" / "trpo" / "waiting").mkdir()
    config = (more / "mujoco" / "trpo" / "new" / "config.json").read_text()
    (more / "mujoco" / "trpo" / "waiting" / "config.json").write_text(config)

    def finals(key):
        found = tables.read(data / "mujoco", key)
        return {run.name: run.metrics["eval_return"][-1].mean() for run in found.runs}

    shutil.copytree(more / "mujoco" / "ppo", data / "mujoco" / "ppo")  # beside the table
    beside = finals("ppo")
    shutil.rmtree(data / "mujoco" / "ppo")
    collect(more, data)
    assert finals("ppo") == beside and beside["more"] == pytest.approx(7)
    assert beside.keys() == {run.name for run in before.runs}
    assert finals("trpo") == {"new": pytest.approx(8)}
    assert tables.read(data / "mujoco", "awr") is None


DAMAGED_TABLES = {
    "cut off": (lambda table: table[:-20], ""),
    "another body": (lambda table: table[:40] + b"?" * 40 + table[80:], "Error -3"),
    "not packed": (lambda table: b"{}", "Not a gzipped file"),
    "not JSON": (lambda table: gzip.compress(b"{}\n{"), "line 1 is damaged"),
    "not a run": (
        lambda table: gzip.compress(gzip.decompress(table).replace(b'"total_steps"', b'"steps"')),
        "its config.json is not that of a run",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED_TABLES.values(), ids=DAMAGED_TABLES)
def test_a_damaged_table_is_refused(damage, message, raw, tmp_path, capsys):
    collect(raw, tmp_path / "data")
    file = tmp_path / "data" / "mujoco" / run_table.TABLE
    file.write_bytes(damage(file.read_bytes()))
    for args in (["--out", str(tmp_path / "page")], ["--collect", str(raw)]):
        if "--collect" in args and message.startswith("its"):
            continue  # is replaced
        with pytest.raises(SystemExit) as refused:
            program.main(["--data", str(tmp_path / "data"), *args])
        assert refused.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(file) in error and message in error


def test_a_damaged_run_is_not_collected(raw, tmp_path, capsys):
    folder = raw / "mujoco" / "ppo" / "more"
    (folder / "metrics.jsonl").write_text("?\n")
    with pytest.raises(SystemExit) as refused:
        program.main(["--collect", str(raw), "--data", str(tmp_path / "data")])
    assert refused.value.code == 2 and not (tmp_path / "data").exists()
    assert f"{folder}: line 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program.main(["--collect", str(tmp_path / "nothing"), "--data", str(tmp_path / "data")])
    assert "--collect" in capsys.readouterr().err


def test_no_data_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(tmp_path / "nothing")])
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "--data" in message and "mujoco" in message


# What is committed.


def committed_lines(family):
    with gzip.open(RESULTS / "data" / family / run_table.TABLE, "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("family", program.FAMILIES)
def test_a_manifest_is_that_of_its_table(family):
    lines = committed_lines(family)
    written = (RESULTS / "data" / family / run_table.MANIFEST).read_bytes()
    assert written == run_table.manifest(lines, functools.partial(tables.command, family))
    for line in lines:
        file = tables.command(family, line).split()[4]
        assert (RESULTS.parent / file).exists(), line["run"]


def test_a_command_makes_the_run_that_it_names():
    """Of one run per folder; a run is older than some settings, and had their defaults."""
    firsts = {}
    for line in committed_lines("mujoco"):
        firsts.setdefault(str(Path(line["run"]).parent), line)
    assert len(firsts) >= 20
    for line in firsts.values():
        ours = flags.with_new_names(line["config"]["settings"])
        args = tables.command("mujoco", line).split()[3:]
        given = dict(zip(args[::2], args[1::2], strict=True))
        file = str(RESULTS.parent / given.pop("--file"))
        agents, envs = [given.pop("--agents")], [given.pop("--envs")]
        words = [word for pair in given.items() for word in pair]
        cells = grid.expand(agents, envs, words, file, "sweep")
        assert any(ours.items() <= settings_of(cell.plan).items() for cell in cells), line["run"]


def settings_of(plan):
    return json.loads(json.dumps(flags.as_settings(plan.options, plan.config)))


def test_settings_of_committed_runs_go_on_loading(tmp_path):
    """Agents, settings and modules may move, and what names them by the old name must be read."""
    seen = {}
    for family in program.FAMILIES:
        for line in committed_lines(family):
            settings = line["config"]["settings"]
            seen.setdefault((settings["agent"], settings["gate"], family), line["config"])
    for (agent, gate, _), config in seen.items():
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        read = reading.read_plan(["--config", str(file), users.TRUST])
        settings = flags.with_new_names(config["settings"])
        assert read.options.agent == agent
        assert settings_of(read) == settings_of(read) | settings
        if gate is not None:
            users.gate(read.options.gate)


def test_the_table_uses_what_the_search_found():
    checked = []
    for family, how in search.SEARCHES.items():
        if not any((RESULTS / "data" / family).glob("*")):
            continue
        found = search.candidates(RESULTS / "data" / family / "search", how.references)
        cells = rows.read(RESULTS / "data" / family).cells
        for row in rows.ROWS:
            file = RESULTS / family / f"{row}.yaml"
            if not file.exists():
                continue
            content = yaml.safe_load(file.read_text())
            chosen = {name: content[name] for name in found[row][0].settings}
            assert chosen == found[row][0].settings, (family, row)
            assert len(found[row]) == search.NUM_CANDIDATES
            assert_run_as_written(cells, row, content)
            checked.append((family, row))
    assert len(checked) >= 3


def assert_run_as_written(cells, row, content):
    """The runs of a row have the settings of its sweep file."""
    for cell in cells.values():
        if cell.variant == rows.ALL[row].name:
            run = {name: cell.runs[0].settings.get(name) for name in content}
            own = ("agents", "envs", "num_seeds")
            assert {n: v for n, v in run.items() if n not in own} == {
                n: v for n, v in content.items() if n not in own
            }


def test_rows_beside_the_table_were_run_as_written():
    cells = rows.read(RESULTS / "data" / "mujoco").cells
    for row in rows.ALL.keys() - rows.ROWS.keys():
        assert_run_as_written(
            cells, row, yaml.safe_load((RESULTS / "mujoco" / f"{row}.yaml").read_text())
        )


def test_ppo_with_cleanrls_settings_is_the_default():
    file = str(RESULTS / "mujoco" / "ppo_cleanrl.yaml")
    for cell in grid.expand(None, [], [], file, "sweep"):
        assert cell.plan.config == families.defaults(ppo.Config, cell.plan.options.env)


def test_brax_has_the_settings_of_mujoco():
    def config(family, row, env):
        file = str(RESULTS / family / f"{row}.yaml")
        return dataclasses.asdict(grid.expand(None, [env], [], file, "sweep")[0].plan.config)

    cells = rows.read(RESULTS / "data" / "brax").cells
    for row in rows.ROWS:
        ours = config("brax", row, "brax/hopper")
        theirs = config("mujoco", row, "envpool/Hopper-v4")
        differ = {name for name in ours if ours[name] != theirs[name]}
        assert differ == {"reset_pool_size"}, row  # of no use to EnvPool
        content = yaml.safe_load((RESULTS / "brax" / f"{row}.yaml").read_text())
        assert_run_as_written(cells, row, content)


def test_the_page_is_that_of_the_data(tmp_path, monkeypatch):
    # One task's curves are drawn; all of them take a minute.
    draw, drawn = paper.draw, []

    def draw_first(charts, **how):
        if not drawn:
            drawn.append(draw(charts, **how))
        return drawn[0]

    monkeypatch.setattr(paper, "draw", draw_first)
    assert program.main(["--data", str(RESULTS / "data"), "--out", str(tmp_path / "page")]) == 0

    def without_intervals(text):  # whose last digit may depend on the libraries
        return re.sub(r"\[[^]]*\]", "[]", text)

    written = (tmp_path / "page" / "README.md").read_text()
    committed = (RESULTS / "README.md").read_text()
    assert without_intervals(written) == without_intervals(committed)
    for name in re.findall(r"\]\((figures/[^)]+)\)", committed):
        assert (RESULTS / name).exists()
    headings = re.findall(r"^#+ (.+)$", committed, re.MULTILINE)
    anchors = {page._anchor(heading) for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", committed)) <= anchors
    assert drawn[0][".png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("ablation", "original"),
    [
        (ablations.rgpo_calling_back, gates.rgpo(ablations.SHARPNESS)),
        (ablations.rgpo_calling_back_bounded, gates.rgpo(ablations.SHARPNESS)),
        (ablations.ppo_not_calling_back, gates.ppo(ablations.CLIP)),
    ],
)
def test_ablations_differ_where_a_ratio_is_called_back_alone(ablation, original):
    log_ratio = np.linspace(-2.0, 2.0, 41)
    for advantage in (-1.0, 1.0):
        ours = gates.weight(ablation)(log_ratio, advantage)
        theirs = gates.weight(original)(log_ratio, advantage)
        back = log_ratio * advantage < 0
        np.testing.assert_allclose(ours[~back], theirs[~back], rtol=1e-6)
        expected = np.exp(log_ratio)
        if ablation is ablations.rgpo_calling_back_bounded:
            expected = np.ones_like(expected)
        if ablation is ablations.ppo_not_calling_back:
            inside = np.abs(expected - 1) < ablations.CLIP
            expected = np.where(inside, expected, 0.0)
        np.testing.assert_allclose(ours[back], expected[back], rtol=1e-6)


def test_ablations_have_the_numbers_of_their_rows():
    for row, setting, value in (
        ("rgpo_k4", "sharpness", ablations.SHARPNESS),
        ("ppo", "clip", ablations.CLIP),
    ):
        assert yaml.safe_load((RESULTS / "mujoco" / f"{row}.yaml").read_text())[setting] == value
