"""The paper's rows: which runs are theirs, what runs together need in common, and the search."""

import json
import shutil

import pytest

from experiments.cli.flags import BadInput
from experiments.record import colors
from experiments.reproduction import figures, rows, search
from tests import run_folders
from tests.reproduction_folders import CHEETAH, HOPPER, WALKER, candidate


def test_rows_are_folders_and_their_runs_are_pooled(tmp_path):
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


def test_rows_that_a_figure_shows_together_are_told_apart():
    looks = figures.looks()
    for group in rows.GROUPS.values():
        shown = [looks[rows.ALL[key].name] for key in (*group.compared, *group.rows)]
        assert len(set(shown)) == len(shown)
    assert looks["PPO"].color == colors.of_agents(["ppo"])["ppo"]
    assert looks["RGPO, k = 4"].color == colors.of_agents(["rgpo"])["rgpo"]


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


REFERENCES = search.SEARCHES["mujoco"].references


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
