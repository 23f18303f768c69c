"""The reproduction of the paper's table: rows, verdicts, the search, and the page."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments.command_line import BadInput
from experiments.reproduction import __main__ as program
from experiments.reproduction import claims, rows, search
from experiments.reproduction.claims import HELD, NOT_HELD, UNTOLD
from rgpo_jax.statistics import Estimate
from tests import run_folders

RESULTS = Path(__file__).parents[1] / "results"
WALKER, ANT = "envpool/Walker2d-v4", "envpool/Ant-v4"
CHEETAH, HOPPER = "envpool/HalfCheetah-v4", "envpool/Hopper-v4"


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
            run_folders.write(folder, row.removesuffix("_k4"), task, final=final, spread=10)
    return top


@pytest.fixture(scope="module")
def collection(data):
    return rows.read(data / "mujoco")


def test_rows_are_folders_and_their_runs_are_pooled(data, tmp_path):
    run_folders.write(tmp_path / "ppo" / "a", "ppo", WALKER, seed=0)
    run_folders.write(tmp_path / "ppo" / "b", "ppo", WALKER, seed=5)
    (cell,) = rows.read(tmp_path).cells.values()
    assert cell.variant == "PPO" and cell.seeds == tuple(range(10))
    run_folders.write(tmp_path / "ppo" / "c", "ppo", WALKER, seed=10, learning_rate=2e-3)
    with pytest.raises(BadInput, match="expected one setting on envpool/Walker2d-v4"):
        rows.read(tmp_path)


def test_a_relative_gain_is_a_ratio_of_interquartile_means():
    ours, theirs = np.array([1.0, 18.0, 20.0, 22.0, 90.0]), np.array([9.0, 10.0, 10.0, 10.0, 11.0])
    gain = claims.relative_gain(ours, theirs)
    assert gain.value == pytest.approx(20.0 / 10.0 - 1)
    assert gain.low < gain.value < gain.high
    one = claims.relative_gain(ours[:1], theirs)
    assert not one.has_interval


def test_variation_has_an_interval_around_what_the_reports_print():
    values = np.array([80.0, 100.0, 120.0, 90.0, 110.0])
    found = claims.variation(values)
    assert found.value == pytest.approx(np.std(values, ddof=1) / 100.0)
    assert 0 <= found.low < found.value < found.high


@pytest.mark.parametrize(
    ("low", "high", "papers", "verdict"),
    [
        (0.5, 1.0, 0.81, HELD),
        (0.9, 1.5, 0.81, HELD),  # better than the paper's
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
    found = {claim.text: claim.findings for claim in claims.claims(collection, ["rgpo_k4", "rgpo"])}
    assert found["Walker2d-v4: return +81 % against PPO"]["rgpo_k4"].verdict == HELD
    assert "+90 % [" in found["Walker2d-v4: return +81 % against PPO"]["rgpo_k4"].evidence
    assert found["Ant-v4: return +47 % against PPO"]["rgpo_k4"].verdict == NOT_HELD
    assert found["HalfCheetah-v4: return equal to PPO's"]["rgpo_k4"].verdict == HELD
    missing = found["Hopper-v4: return equal to PPO's"]["rgpo_k4"]
    assert (missing.verdict, missing.evidence) == (UNTOLD, "not run yet")
    spread = found["Coefficient of variation over seeds at most 27 % everywhere"]["rgpo_k4"]
    assert spread.verdict == UNTOLD and "not run yet: Hopper-v4" in spread.evidence
    spikes = found["KL spikes in no update, and in 44 to 84 % of PPO's"]["rgpo_k4"]
    assert spikes.verdict == NOT_HELD and "10 / 10 / 10 / 10 % (PPO 10" in spikes.evidence
    assert all(findings["rgpo"].verdict == UNTOLD for findings in found.values())


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
    found = search.candidates(tmp_path)
    assert found.keys() == {"rgpo_k4", "rgpo", "ppo"}
    assert [c.settings["num_epochs"] for c in found["rgpo_k4"]] == [4, 10]
    assert [c.settings["sharpness"] for c in found["rgpo"]] == [2.0, 4.0, 9.0]
    assert [c.is_default for c in found["rgpo"]] == [False, True, False]
    assert [c.score for c in found["rgpo"]] == pytest.approx([2.0, 1.0, 0.1])
    assert found["ppo"][0].settings == {"learning_rate": 3e-4, "num_epochs": 10, "clip": 0.2}


def test_the_page_has_claims_table_and_figures(data, tmp_path, capsys):
    out = tmp_path / "page"
    assert program.main(["--data", str(data), "--out", str(out)]) == 0
    page = (out / "README.md").read_text()
    assert "**held**: +90 % [" in page
    assert "| Walker2d-v4 | RGPO, k = 4 | 5 | 1900 [" in page
    assert "| 1.00 [1.00, 1.00] |" in page  # of the improvement over PPO
    for name in re.findall(r"\]\((figures/[^)]+)\)", page):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"\]\(figures/", page)) == 5  # the gains, and training on four tasks
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(data), "--out", str(out)])
    assert refused.value.code == 2
    assert "holds README.md" in capsys.readouterr().err


def test_a_run_that_goes_on_has_no_score_yet(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    folder = tmp_path / "data" / "mujoco" / "rgpo_k4" / WALKER.replace("/", "-")
    shutil.rmtree(folder)
    run_folders.write(folder, "rgpo", WALKER, done=0.5)
    out = tmp_path / "page"
    assert program.main(["--data", str(tmp_path / "data"), "--out", str(out)]) == 0
    page = (out / "README.md").read_text()
    assert "| Walker2d-v4 | RGPO, k = 4 (unfinished at 50%) | 5 |  |  |  |" in page
    assert "Walker2d-v4: return +81 % against PPO | **cannot be told**: not run yet" in page


def test_no_data_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        program.main(["--data", str(tmp_path / "nothing")])
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "--data" in message and "mujoco" in message


# What is committed.


def test_the_table_uses_what_the_search_found():
    found = search.candidates(RESULTS / "data" / "mujoco" / "search")
    checked = 0
    for row in rows.ROWS:
        file = RESULTS / "mujoco" / f"{row}.yaml"
        if not file.exists():
            continue
        content = yaml.safe_load(file.read_text())
        chosen = {name: content[name] for name in found[row][0].settings}
        assert chosen == found[row][0].settings, row
        assert len(found[row]) == 8
        checked += 1
    assert checked


def test_the_page_is_that_of_the_data(tmp_path):
    assert program.main(["--data", str(RESULTS / "data"), "--out", str(tmp_path / "page")]) == 0

    def without_intervals(text):  # whose last digit may depend on the libraries
        return re.sub(r"\[[^]]*\]", "[]", text)

    written = (tmp_path / "page" / "README.md").read_text()
    committed = (RESULTS / "README.md").read_text()
    assert without_intervals(written) == without_intervals(committed)
    for name in re.findall(r"\]\((figures/[^)]+)\)", committed):
        assert (RESULTS / name).exists()
