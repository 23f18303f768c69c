"""The report of a sweep: rankings, scores over settings and parameters, budgets, colours."""

import pytest

import agents
import agents.language
from experiments.record import colors
from experiments.report import paper, runs
from experiments.report.page import Report, render
from tests import report_folders, run_folders


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return report_folders.grid(tmp_path_factory.mktemp("grids"))


def test_draws_are_ranked_within_agent_task_and_budget(grid):
    assert [(s.agent, s.budget, s.settings) for s in grid.sweeps] == [
        ("ppo", 10_000, ("learning_rate",)),
        ("rgpo", 10_000, ("learning_rate", "sharpness")),
    ]
    draws = grid.sweeps[1].draws
    assert [draw.rank for draw in draws] == [1, 2, 3, 4, 5, 6]
    assert draws[0].settings == {"learning_rate": 1e-2, "sharpness": 16.0}
    # 360, 260, 220, 160 ...: with a spread of 20 between five seeds none but the first is level.
    assert [draw.is_level for draw in draws] == [True] + [False] * 5
    assert [draw.is_level for draw in grid.sweeps[0].draws] == [True] * 3


def test_a_line_joins_draws_that_differ_in_one_setting_alone(grid):
    over_rate, over_k, heat = grid.swept[1]
    assert [series.label for series in over_rate.series] == ["sharpness = 2", "sharpness = 16"]
    assert all(series.joined for series in (*over_rate.series, *over_k.series))
    assert [series.y for series in over_rate.series] == [[20, 120, 220], [160, 260, 360]]
    assert (over_rate.log_x, over_k.log_x) == (True, True)
    assert over_rate.ticks == (1e-4, 1e-3, 1e-2)
    assert (heat.rows, heat.columns) == (("16", "2"), ("0.0001", "0.001", "0.01"))
    assert [series.y for series in heat.series] == [[160, 260, 360], [20, 120, 220]]
    (alone,) = grid.swept[0][0].series
    assert (alone.label, alone.y) == ("", [300, 310, 320])


def test_random_draws_are_points_without_a_line_or_a_heat_map(tmp_path):
    for i in range(4):
        run_folders.write(tmp_path / f"{i}", "rgpo", learning_rate=1e-3 * (i + 1), sharpness=i)
    charts = Report("draws", runs.collect([str(tmp_path)]), None).swept[0]
    assert [chart.kind for chart in charts] == ["draws", "draws"]
    for chart in charts:
        (points,) = chart.series
        assert not points.joined
        assert len(points.y) == 4
    assert [chart.log_x for chart in charts] == [False, False]
    # Values that are too near to each other are no ticks.
    rates = (1e-3, 1.01e-3, 5e-3)
    for i, rate in enumerate(rates):
        run_folders.write(tmp_path / "near" / f"{i}", "ppo", learning_rate=rate)
    ((near,),) = Report("near", runs.collect([str(tmp_path / "near")]), None).swept
    assert (near.ticks, near.series[0].x) == ((), list(rates))


def test_a_draw_that_is_not_finished_has_no_rank(tmp_path):
    run_folders.write(tmp_path / "a", "rgpo", sharpness=1.0)
    run_folders.write(tmp_path / "b", "rgpo", sharpness=2.0, final=9000, done=0.5)
    (sweep,) = Report("draws", runs.collect([str(tmp_path)]), None).sweeps
    assert [(draw.settings["sharpness"], draw.rank) for draw in sweep.draws] == [
        (1.0, 1),
        (2.0, None),
    ]


@pytest.mark.parametrize("done", [(0.5, 0.5), (1.0, 0.5)])
def test_a_sweep_that_still_runs_has_a_page(tmp_path, done):
    for name, share in zip("ab", done, strict=True):
        sharpness = float(ord(name))
        run_folders.write(tmp_path / name, "rgpo", sharpness=sharpness, done=share)
    report = Report("draws", runs.collect([str(tmp_path)]), None)
    assert report.sweeps[0].numbers == ()  # no two numbers are finished
    assert "rgpo" in render(report).decode()


def test_unequal_budgets_are_told_and_not_compared(tmp_path):
    run_folders.write(tmp_path / "ppo", "ppo", final=300)
    run_folders.write(tmp_path / "rgpo", "rgpo", final=9000, lines=20)
    found = runs.collect([str(tmp_path)])
    (note,) = found.notes
    assert note.startswith(
        "Unequal budgets on CartPole-v1: 10,000 steps of ppo; 20,000 steps of rgpo."
    )
    report = Report("two", found, "ppo")
    assert not any(row.is_best for row in report.rows.values())
    assert report.improvement is None
    text = render(report).decode()
    assert "Nothing finished of ppo&#39;s budget can be compared with it yet." in text
    assert '<span class="badge">20,000 steps</span>' in text


def test_the_page_of_a_sweep_has_its_ranking_and_figures(grid):
    text = render(grid).decode().partition('<script type="application/json"')[0]
    assert text.count('data-chart="over-') == 3
    assert text.count('data-chart="heat_map-') == 1
    assert "1 of 6 have" not in text
    assert "3 of 3 have an interval that reaches the first one" in text
    assert {"sweep-ppo-CartPole-v1-10000", "sweep-rgpo-CartPole-v1-10000"} <= grid.figures().keys()
    drawn = paper.draw(grid.swept[1])
    assert drawn[".png"].startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def lengths(tmp_path_factory):
    return report_folders.lengths(tmp_path_factory.mktemp("lengths"))


def test_scores_over_a_parameter_of_the_environment(lengths):
    ((title, (over_gravity, over_length)),) = sorted(lengths.tasks.items())
    assert title == "CartPole-v1, 10,000 steps"
    assert over_length.title == "CartPole-v1: score against length"
    assert [series.label for series in over_length.series] == ["ppo", "ppo, gravity = 1.6", "rgpo"]
    assert [series.y for series in over_length.series] == [[300, 200, 100], [450], [310, 210, 110]]
    assert [series.joined for series in over_length.series] == [True, False, True]
    assert (over_length.log_x, over_length.ticks) == (True, (0.25, 0.5, 2.0))
    assert [series.label for series in over_gravity.series] == [
        "ppo, length = 0.5",
        "ppo, length = inf",
    ]
    assert lengths.sweeps == []  # tasks are not ranked
    text = render(lengths).decode()
    assert "Parameters of environments" in text
    assert "parameters-CartPole-v1--10-000-steps" in lengths.figures()


def test_a_line_joins_tasks_that_differ_in_one_parameter_alone(tmp_path):
    for i, length in enumerate((1.0, 2.0)):
        for j, others in enumerate((["mode=easy"], ["mode=hard"], ["mode=hard", "wind=true"])):
            params = [f"length={length}", *others]
            run_folders.write(tmp_path / f"{i}{j}", final=100 + 50 * i + 10 * j, env_kwargs=params)
    report = Report("tasks", runs.collect([str(tmp_path)]), None)
    ((chart,),) = report.tasks.values()
    assert {series.label: series.y for series in chart.series} == {
        "ppo, mode = easy": [100, 150],
        "ppo, mode = hard": [110, 160],
        "ppo, mode = hard, wind = True": [120, 170],
    }
    assert chart.series[0].names[0] == "ppo, mode = easy, length = 1.0"


def test_parameters_that_are_no_list_end_no_report(tmp_path):
    run_folders.write(tmp_path / "a", env_kwargs=3)
    (run,) = runs.collect([str(tmp_path)]).runs
    assert (run.env, run.env_params) == ("CartPole-v1", {})


def test_an_agent_has_one_colour_wherever_it_is():
    alone, among = colors.of_agents(["rgpo"]), colors.of_agents(["mine:gate", "ppo", "rgpo"])
    assert alone["rgpo"] == among["rgpo"] != among["ppo"]
    assert len(set(among.values())) == 3
    for names in (agents.NAMES, agents.language.NAMES):
        assert len(set(colors.of_agents(names).values())) == len(names)
    # Variants of an agent are shades of its colour, and told apart.
    looks = colors.of_variants(["rgpo"] * 12)
    assert looks[0] == (alone["rgpo"], "solid")
    assert len(set(looks)) == 12
    assert colors.shade("#000000", 1.0) == "#FFFFFF"
    assert colors.shade("#FF8000", -0.5) == "#804000"
