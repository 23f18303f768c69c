"""The report: what it reads, what it computes, and what it writes."""

import dataclasses
import io
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.record.headline import CONTROL, Curve, Headline, Unit
from experiments.report import __main__ as program
from experiments.report import episodes, paper, run_files, runs, scores
from experiments.report.page import Report, number, render
from rgpo_jax import statistics
from rgpo_jax.importing import install_hint
from tests import report_folders, run_folders

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return report_folders.sweep(tmp_path_factory.mktemp("sweeps") / "first")


@pytest.fixture(scope="module")
def collection(sweep):
    return runs.collect([str(sweep)])


@pytest.fixture(scope="module")
def report(collection):
    return Report("first", collection, "ppo")


# Runs and variants.


def test_variants_are_named_by_the_settings_that_differ(collection):
    assert collection.envs == ("Acrobot-v1", "CartPole-v1")
    assert collection.variants == ("ppo", "rgpo sharpness=4", "rgpo sharpness=16")
    assert len(collection.cells) == 6
    assert collection.notes == ()


def test_seeds_of_equal_settings_are_pooled(collection):
    cell = collection.cells["CartPole-v1", "rgpo sharpness=4"]
    assert cell.seeds == (0, 1, 2, 3, 4, 5, 6, 7)
    expected = [440, 460, 480, 500, 520, 460, 480, 500]
    np.testing.assert_allclose(cell.final("eval_return"), expected)
    steps, values = cell.curve("eval_return")
    assert values.shape == (6, 8)
    assert steps.tolist() == [0, 2000, 4000, 6000, 8000, 10_000]
    np.testing.assert_allclose(values[-1], expected)


def test_settings_that_differ_between_environments_only_make_no_variant(tmp_path):
    run_folders.write(tmp_path / "a", env="CartPole-v1", learning_rate=1e-3)
    run_folders.write(tmp_path / "b", env="Pendulum-v1", learning_rate=2e-3)
    assert runs.collect([str(tmp_path)]).variants == ("ppo",)


def test_a_run_from_before_a_setting_had_its_default(tmp_path):
    run_folders.write(tmp_path / "old")
    run_folders.write(tmp_path / "default", seed=10, shared_torso=False)
    assert runs.collect([str(tmp_path)]).variants == ("ppo",)
    run_folders.write(tmp_path / "new", seed=20, shared_torso=True)
    assert runs.collect([str(tmp_path)]).variants == (
        *("ppo shared_torso=False", "ppo shared_torso=True"),
    )


def test_a_setting_that_was_renamed_is_one_with_its_older_name(tmp_path):
    run_folders.write(tmp_path / "old", "rgpo", call_back=True)
    run_folders.write(tmp_path / "new", "rgpo", seed=10, pull_back=True)
    assert runs.collect([str(tmp_path)]).variants == ("rgpo",)


def test_how_a_run_is_measured_makes_no_variant(tmp_path):
    run_folders.write(tmp_path / "a", log_every=None, eval_episodes=32)
    run_folders.write(tmp_path / "b", seed=5, log_every=5000, eval_episodes=8)
    (cell,) = runs.collect([str(tmp_path)]).cells.values()
    assert len(cell.seeds) == 10


def test_gate_and_backend_are_told_apart(tmp_path):
    run_folders.write(tmp_path / "a", "trpo", "brax/ant", backend="spring")
    run_folders.write(tmp_path / "b", "trpo", "brax/ant", backend="mjx", gate="rgpo")
    assert set(runs.collect([str(tmp_path)]).cells) == {
        ("brax/ant (spring)", "trpo"),
        ("brax/ant (mjx)", "trpo+rgpo"),
    }


def test_a_seed_that_came_twice_counts_once_and_is_told(tmp_path):
    run_folders.write(tmp_path / "a", num_seeds=3, done=0.4, final=900)
    run_folders.write(tmp_path / "b", num_seeds=2, seed=1)  # finished: its seed 1 and 2 count
    found = runs.collect([str(tmp_path)])
    (cell,) = found.cells.values()
    assert sorted(cell.seeds) == [0, 1, 2]
    assert sorted(cell.final("eval_return")) == pytest.approx([364, 390, 410])
    assert found.notes == ("ppo on CartPole-v1: seeds 1, 2 of a also came from b and count once.",)


def test_a_run_is_not_counted_twice_by_two_paths(sweep):
    found = runs.collect([str(sweep), str(sweep / "CartPole-v1")])
    assert len(found.runs) == 7
    assert found.notes == ()


def test_points_are_those_that_all_runs_logged_as_far_as_they_came(tmp_path):
    run_folders.write(tmp_path / "a", num_seeds=2)
    run_folders.write(tmp_path / "b", num_seeds=2, seed=2, done=0.5)
    (cell,) = runs.collect([str(tmp_path)]).cells.values()
    steps, values = cell.curve("episode_return")
    assert steps.tolist() == list(range(1000, 10_001, 1000))
    assert np.isfinite(values).sum(axis=1).tolist() == [4] * 5 + [2] * 5
    assert scores.curve(cell, "episode_return").seeds.tolist() == [4] * 5 + [2] * 5
    assert cell.status == runs.UNFINISHED
    assert cell.progress == 0.5


def test_a_torn_last_line_is_left_out(tmp_path):
    folder = run_folders.write(tmp_path / "a", done=0.5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 6000, "upd')
    (run,) = runs.collect([str(tmp_path)]).runs
    assert run.env_steps[-1] == 5000


_SETTINGS = {"agent": "ppo", "env": "CartPole-v1", "seed": 0, "num_seeds": 1, "total_steps": 9}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", "{", "config.json: "),
        ("config.json", "[1]", "config.json holds no object"),
        ("config.json", '{"name": "a package"}', "its config.json is not that of a run"),
        *(
            ("config.json", json.dumps(content), "its config.json is not that of a run")
            for content in (
                {"settings": {**_SETTINGS, "total_steps": 0}},
                {"settings": _SETTINGS, "versions": [1]},
            )
        ),
        *(
            ("summary.json", content, "its summary.json is not that of a run")
            for content in ('{"broken": 5}', '{"broken": [3]}', '{"broken": [{}]}')
        ),
        ("metrics.jsonl", "{}\n", "line 1 of its metrics.jsonl is damaged"),
        ("metrics.jsonl", "\xff\n", "line 1 of its metrics.jsonl is damaged"),
        (
            "metrics.jsonl",
            '{"env_steps": 0, "updates": 0, "wall_seconds": 0, "x": [1]}\n',
            "its metrics.jsonl does not hold one value per seed",
        ),
    ],
)
def test_alien_folders_are_passed_over_and_named(tmp_path, name, content, reason):
    run_folders.write(tmp_path / "good")
    (run_folders.write(tmp_path / "bad") / name).write_text(content)
    found = runs.collect([str(tmp_path)])
    assert [run.name for run in found.runs] == ["good"]
    assert len(found.notes) == 1
    assert found.notes[0].startswith(f"bad was passed over: {reason}")


def test_broken_and_interrupted_runs_are_named_and_not_compared(tmp_path):
    broken = {"broken": [{"seed": 3, "update": 7}]}
    run_folders.write(tmp_path / "a", "rgpo", final=900, done=0.4, summary=broken)
    run_folders.write(tmp_path / "b", "a2c", final=900, done=0.2, summary={"interrupted": True})
    run_folders.write(tmp_path / "c", "ppo")
    found = runs.collect([str(tmp_path)])
    assert found.notes == (
        "a broke: parameters became NaN or infinite (seed 3 at update 7).",
        "b was interrupted at 20%.",
    )
    assert not found.is_growing
    rows = scores.score_table(found)
    assert len(rows) == 3
    assert not any(row.is_best for row in rows.values())
    assert scores.improvements(rows, found, "ppo") == []


_ALIGNMENT = Headline(
    quantity="reward",
    axis="reward of an answer",
    steps="answers",
    score=Curve("reward", "reward of the policy", "reward", "evaluation"),
    sampled=None,
    training=Curve("train_reward", "reward of training answers", "reward (training)", "training"),
    unit=Unit("answers", "answer", "answers", "total_answers", "answers_per_second", False),
    manner="",
    digits=3,
    results=("reward",),
)


def test_a_run_of_another_program_is_told_by_its_own_names(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    config = {
        "settings": {"method": "rgpo", "world": "bandit", "seed": 3, "num_seeds": 2},
        "subject": {"agent": "rgpo", "env": "bandit", "total": 4096},
        "headline": _ALIGNMENT.entry(),
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        {"answers": 1024 * i, "updates": i, "wall_seconds": i, "reward": [0.1 * i, 0.2 * i]}
        for i in range(5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"total_answers": 4096, "answers_per_second": 321.0, "final_reward": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    found = runs.collect([str(tmp_path)], strict=True)
    assert found.headline == _ALIGNMENT
    (run,) = found.runs
    assert (run.status, run.progress, run.seeds) == (run_files.FINISHED, 1.0, (3, 4))
    (cell,) = found.cells.values()
    assert (cell.env, cell.variant) == ("bandit", "rgpo")
    report = Report("other", found, None)
    (chart,) = report.curves["reward"].values()
    assert chart.x_label == "answers of one seed"
    assert chart.series[0].x == [0, 1024, 2048, 3072, 4096]
    assert chart.series[0].y == pytest.approx([0.15 * i for i in range(5)])
    page = render(report).decode()
    assert f'"{chart.key}"' in page
    assert '"unit":"answers"' in page
    for text in ("Final reward:", "Reward of <select", ">answers/s</th>", ">321</td>"):
        assert text in page
    assert "sampled actions" not in page.split("<script")[0]


def write_run_of(folder, headline, **columns):
    """A run of two seeds in a world, whose metrics are columns of five lines."""
    folder.mkdir()
    config = {
        "settings": {"method": folder.name, "world": "bandit", "seed": 0, "num_seeds": 2},
        "subject": {"agent": folder.name, "env": "bandit", "total": 4},
        "headline": headline.entry(),
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        {headline.unit.counter: i, "updates": i, "wall_seconds": i}
        | {name: [values[i]] * 2 for name, values in columns.items()}
        for i in range(5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text("{}")


def test_runs_that_train_on_different_things_are_all_shown(tmp_path):
    margin = Curve("margin", "margin of pairs", "margin", "margin")
    of_data = dataclasses.replace(_ALIGNMENT, training=margin)
    rising, falling = [0.1 * i for i in range(5)], [-0.1 * i for i in range(5)]
    write_run_of(tmp_path / "dpo", of_data, reward=rising, margin=falling)
    write_run_of(tmp_path / "rgpo", _ALIGNMENT, reward=rising, train_reward=rising)
    report = Report("both", runs.collect([str(tmp_path)], strict=True), None)
    assert list(report.curves) == ["reward", "margin", "train_reward"]
    labels = {
        metric: [series.label for chart in charts.values() for series in chart.series]
        for metric, charts in report.curves.items()
    }
    assert labels == {"reward": ["dpo", "rgpo"], "margin": ["dpo"], "train_reward": ["rgpo"]}
    page = render(report).decode()
    assert ">margin of pairs</option>" in page
    assert ">reward of training answers</option>" in page


def test_runs_of_another_score_are_left_out_and_named(tmp_path):
    write_run_of(tmp_path / "a", _ALIGNMENT, reward=[0.1] * 5)
    write_run_of(tmp_path / "ppo", CONTROL, eval_return=[9.0] * 5)
    found = runs.collect([str(tmp_path)], strict=True)
    assert [run.name for run in found.runs] == ["a"]
    (note,) = (note for note in found.notes if "Left out" in note)
    assert "reward of the policy by answers: ppo." in note
    assert found.headline == _ALIGNMENT
    assert "Left out" in render(Report("one", found, None)).decode()


def test_control_has_the_units_of_files_written_before_there_were_any():
    entry = CONTROL.entry()
    assert list(entry) == [
        *("quantity", "axis", "steps", "score", "sampled", "training", "largest"),
    ]
    assert Headline.of_run({"headline": json.loads(json.dumps(entry))}) == CONTROL
    assert Headline.of_run({}) == CONTROL
    assert CONTROL.unit.a_second(12_345) == "12k steps/s"
    assert CONTROL.unit.a_second(9_951) == "10k steps/s"
    assert CONTROL.unit.a_second(9_234) == "9,234 steps/s"
    assert CONTROL.unit.a_second(290.7) == "291 steps/s"
    assert _ALIGNMENT.unit.a_second(12_345) == "12,345 answers/s"


# Numbers.


def test_scores_are_marked_best_only_where_intervals_separate(report):
    best = {key for key, row in report.rows.items() if row.is_best}
    # 480 against 300 and 310 with a spread of 20 between seeds; halved on Acrobot.
    assert best == {(env, "rgpo sharpness=4") for env in ("Acrobot-v1", "CartPole-v1")}


def test_overlapping_scores_are_not_marked(tmp_path):
    run_folders.write(tmp_path / "a", "ppo", final=400)
    run_folders.write(tmp_path / "b", "rgpo", final=410)
    rows = scores.score_table(runs.collect([str(tmp_path)]))
    assert not any(row.is_best for row in rows.values())


def test_one_seed_is_never_best(tmp_path):
    run_folders.write(tmp_path / "a", "ppo", final=400)
    run_folders.write(tmp_path / "b", "rgpo", final=9000, num_seeds=1)
    rows = scores.score_table(runs.collect([str(tmp_path)]))
    assert not any(row.is_best for row in rows.values())
    assert math.isnan(rows["CartPole-v1", "rgpo"].deviation)


def test_score_table_in_closed_form(report):
    row = report.rows["CartPole-v1", "ppo"]  # 260, 280, 300, 320, 340
    assert row.iqm.value == pytest.approx(300)
    assert row.deviation == pytest.approx(20 * math.sqrt(2.5))
    assert row.variation == pytest.approx(20 * math.sqrt(2.5) / 300)
    assert row.sampled.value == pytest.approx(290)
    assert row.iqm.low < 300 < row.iqm.high


def test_intervals_of_scores_are_those_of_the_runs_own_summary(report):
    for row in report.rows.values():
        assert (row.iqm.low, row.iqm.high) == statistics.bootstrap_interval(row.scores)


def test_improvement_counts_pairs_of_seeds(report, collection):
    by_variant = {
        item.variant: item for item in scores.improvements(report.rows, collection, "ppo")
    }
    assert by_variant.keys() == {"rgpo sharpness=4", "rgpo sharpness=16"}
    assert by_variant["rgpo sharpness=4"].overall == (1.0, 1.0, 1.0)
    # 270, 290, ... against 260, 280, ...: seed i beats i + 1 of five.
    assert by_variant["rgpo sharpness=16"].by_env["CartPole-v1"].value == pytest.approx(15 / 25)


def test_aggregates_are_normalised_by_the_untrained_and_the_best(report):
    found = report.aggregate
    assert found.references["CartPole-v1"] == pytest.approx((10, 480))
    assert found.references["Acrobot-v1"] == pytest.approx((10, 240))
    assert found.mean["rgpo sharpness=4"].value == pytest.approx(1.0)
    expected = (5 * (150 - 10) / 230 + 5 * (300 - 10) / 470) / 10
    assert found.mean["ppo"].value == pytest.approx(expected)
    assert found.gap["ppo"].value == pytest.approx(1 - expected)
    profile = found.profiles["rgpo sharpness=4"].value
    assert profile[found.thresholds <= 0.8].min() == 1.0
    assert (np.diff(profile) <= 0).all()
    efficiency = found.efficiency["ppo"]
    assert efficiency.value.shape == found.fractions.shape
    assert efficiency.value[-1] == pytest.approx(found.iqm["ppo"].value)


def test_one_environment_has_no_aggregate(sweep):
    found = Report("one", runs.collect([str(sweep / "CartPole-v1")]), "ppo")
    assert found.aggregate is None
    assert found.aggregates == []
    assert found.improvement.rows == ("CartPole-v1",)


def test_a_variant_that_lacks_an_environment_is_left_out_of_aggregates(sweep, tmp_path):
    run_folders.write(tmp_path / "a2c", "a2c")
    found = Report("more", runs.collect([str(sweep), str(tmp_path)]), "ppo")
    assert found.aggregate.left_out == ("a2c",)
    assert b"left out: a2c" in render(found)


def test_kl_spikes_weigh_a_line_by_its_updates(collection):
    # Lines 1 and 2 of ten report half of their two updates; the line before training, none.
    rates = scores.spike_rates(collection.cells["CartPole-v1", "ppo"])
    assert list(rates) == [0.02, 0.04, 0.08, 0.16]
    assert rates[0.04].value == pytest.approx(0.1)


def test_numbers_are_as_exact_as_anyone_needs():
    values = [1234567.8, 481.26, -81.25, 3.14159, -0.0001, float("nan")]
    shown = [number(value) for value in values]
    assert shown[:2] == ["1,234,568", "481.3"]
    assert shown[2] == "\N{MINUS SIGN}81.2"
    assert shown[3:] == ["3.14", "0.00", "\N{EN DASH}"]


# Files and refusals.


def test_page_and_figures_are_written(sweep, tmp_path, capsys, monkeypatch):
    suffixes = (".png", ".pdf")
    monkeypatch.setattr(paper, "draw", lambda group: dict.fromkeys(suffixes, b"drawn"))
    assert program.main([str(sweep), "--out", str(tmp_path / "out")]) == 0
    assert "7 runs, 3 variants, 2 environments" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["figures", "index.html"]
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    stems = {
        *(f"learning_curves-{curve.metric}" for curve in CONTROL.curves),
        *("probability_of_improvement", "aggregate_scores", "performance_profiles"),
        *("sample_efficiency", "diagnostics-Acrobot-v1", "diagnostics-CartPole-v1"),
        *("sweep-rgpo-Acrobot-v1-10000", "sweep-rgpo-CartPole-v1-10000"),
    }
    assert figures == {stem + suffix for stem in stems for suffix in suffixes}


def test_a_figure_shows_each_variant_in_its_colour(report, collection):
    kl, spikes = report.diagnostics["CartPole-v1"][-3], report.diagnostics["CartPole-v1"][-1]
    for chart in (kl, spikes):
        drawn = paper.draw([chart])
        assert drawn[".pdf"].startswith(b"%PDF")
        with Image.open(io.BytesIO(drawn[".png"])) as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        for color, _ in collection.looks:
            wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
            assert (pixels == wanted).all(axis=1).sum() > 100


def test_a_legend_of_long_names_is_not_cut_off(report):
    chart = report.diagnostics["CartPole-v1"][0]
    (first, *_) = chart.series
    names = [f"{first.label} with long settings, number {i}" for i in range(8)]
    series = [dataclasses.replace(first, label=name, style=i) for i, name in enumerate(names)]
    drawn = paper.draw([dataclasses.replace(chart, series=series)] * 2)
    with Image.open(io.BytesIO(drawn[".png"])) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert (pixels[:, [0, -1]] == 255).all() and (pixels[[0, -1]] == 255).all()


def test_report_of_a_single_real_run(tmp_path):
    from experiments import run

    folder = tmp_path / "run"
    tiny = ["--total-steps", "320", "--num-envs", "2", "--num-steps", "8", "--num-seeds", "2"]
    tiny += ["--hidden-sizes", "8", "--eval-episodes", "2", "--num-minibatches", "2"]
    assert run.main(["--agent", "rgpo", *tiny, "--out", str(folder)]) == 0
    assert program.main([str(folder), "--no-figures"]) == 0
    found = Report("run", runs.collect([str(folder)]), None)
    summary = json.loads((folder / "summary.json").read_text())
    row = found.rows["CartPole-v1", "rgpo"]
    assert row.iqm.value == pytest.approx(summary["final_return"]["iqm"])
    assert {chart.key.partition("-")[0] for chart in found.diagnostics["CartPole-v1"]} == {
        *("episode_return", "effective_sample_size", "weight_mean", "weight_max"),
        *("approx_kl", "approx_kl_max", "entropy", "kl_spikes"),
    }
    assert (folder / "report" / "index.html").stat().st_size < 5e6


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "DIR: expected a folder with runs"),
        (["nowhere"], "nowhere: no such folder"),
        (["file"], "file: expected a folder"),
        (["a\0b"], "a\0b: "),
        (["empty"], "empty: no runs; expected folders that experiments.run wrote"),
        (["alien"], "alien: no runs; alien was passed over: its config.json is not that of a run"),
        (["fresh"], "fresh: no run has metrics yet; --watch waits for them"),
        (["good", "--baseline", "pqo"], "--baseline pqo: no such variant; expected one of ppo"),
        (["good", "--out", "file"], "--out file: cannot be written"),
        (["good", "--out", "file/deeper"], "--out file/deeper: cannot be written"),
        (["good", "--watch", "0"], "--watch 0.0: expected a number above 0"),
        (["good", "--watch=soon"], "--watch: "),
        (["good", "--baselin", "ppo"], "--baselin"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    run_folders.write(tmp_path / "good")
    (run_folders.write(tmp_path / "alien") / "config.json").write_text("{}")
    (run_folders.write(tmp_path / "fresh", done=0) / "metrics.jsonl").unlink()
    with pytest.raises(SystemExit) as exit_:
        program.main(args)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_missing_extra_is_named(sweep, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "experiments.report.page")
    with pytest.raises(SystemExit) as exit_:
        program.main([str(sweep)])
    assert exit_.value.code == 2
    assert install_hint("report") in capsys.readouterr().err


def test_flags_are_read_before_anything_heavy_is_loaded():
    code = (
        "import sys; from experiments.report import __main__ as program\n"
        "try: program.main(['nowhere'])\n"
        "except SystemExit: print([m for m in ('jax', 'matplotlib', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("args", "seconds", "paths"),
    [
        (["--watch", "a"], 10.0, ("a",)),
        (["--watch", "3", "a"], 3.0, ("a",)),
        (["a", "b", "--watch"], 10.0, ("a", "b")),
        (["--watch=2.5", "a"], 2.5, ("a",)),
        (["a", "--watch", "--no-figures"], 10.0, ("a",)),
        (["a"], None, ("a",)),
    ],
)
def test_watch_takes_a_number_or_none(args, seconds, paths):
    options = program.read_options(args)
    assert (options.watch, options.paths) == (seconds, paths)


def test_watch_follows_a_run_until_it_is_finished(tmp_path, monkeypatch):
    folder = run_folders.write(tmp_path / "a", done=0.5)
    page = tmp_path / "report" / "index.html"
    seen = []

    def sleep(seconds):
        assert seconds == 0.5
        seen.append(page.read_text())
        if len(seen) == 1:
            shutil.rmtree(folder)
            run_folders.write(folder)
        assert len(seen) < 10

    monkeypatch.setattr(program.time, "sleep", sleep)
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(program.time, "monotonic", lambda: next(clock))
    assert program.main([str(tmp_path), "--watch", "0.5", "--no-figures"]) == 0
    assert "unfinished at 50%" in seen[0]
    assert "unfinished at" not in seen[1]
    assert all('<meta http-equiv="refresh" content="1">' in text for text in seen)
    assert 'http-equiv="refresh"' not in page.read_text()


def test_watch_ends_cleanly_on_interruption(tmp_path):
    run_folders.write(tmp_path / "a", done=0.5)
    page = tmp_path / "report" / "index.html"
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.report", str(tmp_path), "--watch"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "1 run, 1 variant, 1 environment" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "")
    assert 'http-equiv="refresh"' not in page.read_text()


def test_an_episode_is_embedded_or_its_command_is_named(report):
    text = render(report).decode()
    assert text.count("data:image/gif;base64,") == 1
    assert text.count("python -m experiments.play ") == 5


def test_of_many_draws_the_best_has_an_episode(tmp_path, monkeypatch):
    for k in range(9):
        run_folders.write(
            tmp_path / f"{k}", "rgpo", sharpness=float(k), final=400 - 50 * abs(k - 6)
        )
    rendered = []
    monkeypatch.setattr(episodes, "is_playable", lambda run: True)
    monkeypatch.setattr(episodes, "render", lambda run, trust: rendered.append(run.name))
    assert program.main([str(tmp_path), "--no-figures", "--out", str(tmp_path / "page")]) == 0
    assert rendered == ["6"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("episode.gif", "image"), ("episode.mp4", "video"), ("episode.html", "page")],
)
def test_episodes_are_found_by_name(tmp_path, name, kind):
    run_folders.write(tmp_path / "a")
    (run,) = runs.collect([str(tmp_path)]).runs
    assert episodes.find(run) is None
    (run.folder / name).write_bytes(b"<p>content</p>")
    assert episodes.find(run).kind == kind


def test_a_page_escapes_what_folders_are_called(tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    run_folders.write(folder, agent="ppo</script><b>")
    text = render(Report("<i>", runs.collect([str(folder)]), None)).decode()
    assert "<img src=x" not in text
    assert "</script><b>" not in text
    assert "<i>" not in text
