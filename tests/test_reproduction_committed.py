"""What is committed of the reproduction: data, sweep files and the page belong together."""

import dataclasses
import functools
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from agents import families, ppo
from experiments.cli import flags
from experiments.plan import own as users
from experiments.plan import reading
from experiments.record import run_table
from experiments.report import paper, scores
from experiments.reproduction import __main__ as program
from experiments.reproduction import ablations, page, ranks, rows, search, tables
from experiments.sweep import grid
from rgpo_jax import gates

RESULTS = Path(__file__).parents[1] / "results"


@pytest.fixture(scope="module", autouse=True)
def tables_are_read_once():
    """And not once for each of their rows and for each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_table, "read", functools.cache(run_table.read))
        yield


@functools.cache
def committed_cells(family):
    return rows.read(RESULTS / "data" / family).cells


@functools.cache
def committed_lines(family):
    with gzip.open(RESULTS / "data" / family / run_table.TABLE, "rt") as file:
        return [json.loads(line) for line in file]


def test_four_differences_of_modes_survive_correction():
    """What README.md and the answer on the page say of MuJoCo."""
    found = ranks.contests(committed_cells("mujoco"))
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
        cells = committed_cells(family)
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
    cells = committed_cells("mujoco")
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

    cells = committed_cells("brax")
    for row in rows.ROWS:
        ours = config("brax", row, "brax/hopper")
        theirs = config("mujoco", row, "envpool/Hopper-v4")
        differ = {name for name in ours if ours[name] != theirs[name]}
        assert differ == {"reset_pool_size"}, row  # of no use to EnvPool
        content = yaml.safe_load((RESULTS / "brax" / f"{row}.yaml").read_text())
        assert_run_as_written(cells, row, content)


def test_the_page_is_that_of_the_data(tmp_path, monkeypatch):
    # One task's curves are drawn, through few points; all of them take a minute.
    monkeypatch.setattr(scores, "_MOST_POINTS", 2)
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
