"""The report: what it reads, what it computes, what it writes, and what Chromium draws of it."""

import dataclasses
import io
import itertools
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

import agents
import agents.language
from experiments.record import colors
from experiments.record.headline import CONTROL, Curve, Headline, Unit
from experiments.report import __main__ as program
from experiments.report import episodes, paper, runs, scores
from experiments.report.page import Report, number, render
from rgpo_jax import statistics
from tests import browser, run_folders

ROOT = Path(__file__).parents[1]
GIF = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00!\xf9\x04\x01\n\x00\x01\x00,"
GIF += b"\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02L\x01\x00;"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three variants on two environments, some seeds in a run of their own."""
    top = tmp_path_factory.mktemp("sweeps") / "first"
    for env, scale in (("Acrobot-v1", 0.5), ("CartPole-v1", 1.0)):
        run_folders.write(top / env / "ppo", "ppo", env, final=300 * scale)
        run_folders.write(top / env / "k4", "rgpo", env, final=480 * scale, sharpness=4.0)
        run_folders.write(top / env / "k16", "rgpo", env, final=310 * scale, sharpness=16.0)
    more = top / "CartPole-v1" / "more"
    run_folders.write(more, "rgpo", seed=5, num_seeds=3, final=480, sharpness=4.0)
    (top / "CartPole-v1" / "k4" / "episode.gif").write_bytes(GIF)
    return top


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
    assert (run.status, run.progress, run.seeds) == (runs.FINISHED, 1.0, (3, 4))
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
    assert "pip install -e '.[report]'" in capsys.readouterr().err


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


# Sweeps.


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Two settings of rgpo on a grid of 3 x 2, one of ppo, and a longer run of that."""
    top = tmp_path_factory.mktemp("grids")
    for i, rate in enumerate((1e-4, 1e-3, 1e-2)):
        run_folders.write(top / f"ppo-{i}", "ppo", final=300 + 10 * i, learning_rate=rate)
        for k in (2.0, 16.0):
            name = top / f"rgpo-{i}-{k:g}"
            run_folders.write(name, "rgpo", final=100 * i + 10 * k, learning_rate=rate, sharpness=k)
    run_folders.write(top / "long", "ppo", final=9000, lines=20, learning_rate=1e-2)
    return Report("grid", runs.collect([str(top)]), None)


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
    """Two agents on poles of three lengths, one with the usual pole, and one with two numbers."""
    top = tmp_path_factory.mktemp("lengths")
    for i, length in enumerate(("0.25", "0.5", "2.0")):
        for j, agent in enumerate(("ppo", "rgpo")):
            settings = {"env_kwargs": [f"length={length}"], "final": 300 - 100 * i + 10 * j}
            run_folders.write(top / f"{agent}-{i}", agent, **settings)
    run_folders.write(top / "usual", "ppo", final=400)
    both = ["gravity=1.6", "length=0.5"]
    run_folders.write(top / "moon", "ppo", final=450, env_kwargs=both)
    run_folders.write(top / "moon2", "ppo", final=450, env_kwargs=["gravity=9.8", "length=1e999"])
    return Report("lengths", runs.collect([str(top)]), None)


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


# What is drawn.


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    if browser.find() is None:
        pytest.skip("no Chromium or Chrome at hand (Debian: apt-get install chromium)")
    window = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


@pytest.fixture
def chromium(running):
    running.new_page()
    return running


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_bytes(render(report))
    return file


def plot(key):
    return f"document.querySelector('.plot[data-drawn=\"{key}\"]')"


def show(chromium, selector="#curves"):
    """Scrolls through the charts of a section until each is drawn, as a reader would."""
    section = f"document.querySelectorAll('{selector} .plot')"
    for i in range(chromium.evaluate(f"{section}.length")):
        if chromium.evaluate(f"!{section}[{i}].closest('details:not([open])')"):
            chromium.evaluate(f"{section}[{i}].scrollIntoView({{block: 'center'}})")
            chromium.until(f"{section}[{i}].querySelector('.main-svg')")
    chromium.evaluate(f"document.querySelector('{selector}').scrollIntoView()")


def count(chromium, key, selector):
    return chromium.evaluate(f"{plot(key)}.querySelectorAll(`{selector}`).length")


LINES, BANDS = ".scatterlayer .js-line[style*='stroke-width: 2px']", ".scatterlayer .js-fill"


def test_each_variant_is_a_line_with_a_band(chromium, page):
    chromium.open(page)
    show(chromium)
    for env in ("CartPole-v1", "Acrobot-v1"):
        key = f"eval_return-{env}"
        assert count(chromium, key, LINES) == 3
        assert count(chromium, key, BANDS) == 3
        assert count(chromium, key, ".points path") == 3 * 6
    assert count(chromium, "eval_return-CartPole-v1", ".modebar-btn") == 6
    assert count(chromium, "eval_return-CartPole-v1", "[data-title*=Share]") == 0
    assert chromium.complaints == []
    assert chromium.requests == [page.absolute().as_uri()]


def test_comparisons_and_diagnostics_are_drawn(chromium, page):
    chromium.open(page)
    show(chromium, "#comparison")
    assert count(chromium, "probability_of_improvement", ".points path") == 2 * 3
    assert count(chromium, "probability_of_improvement", ".errorbar .xerror") == 2 * 3
    assert count(chromium, "aggregate_scores", ".points path") == 3 * 3
    for key in ("performance_profiles", "sample_efficiency"):
        assert count(chromium, key, LINES) == count(chromium, key, BANDS) == 3
    show(chromium, "#diagnostics")
    for metric in ("episode_return", "effective_sample_size", "weight_max", "approx_kl"):
        assert count(chromium, f"{metric}-beside-Acrobot-v1", LINES) == 3
    assert count(chromium, "kl_spikes-beside-Acrobot-v1", ".points path") == 3 * 4
    assert chromium.complaints == []


def test_the_end_of_training_is_labelled(chromium, page):
    chromium.open(page)
    show(chromium, "#comparison")
    chart = plot("sample_efficiency")
    last = f"[...{chart}.querySelectorAll('.xtick text')].at(-1)"
    assert chromium.evaluate(f"{last}.textContent") == "100%"
    assert chromium.evaluate(f"{last}.style.display") != "none"  # as where it does not fit


def test_the_legend_hides_and_shows_variants(chromium, page):
    chromium.open(page)
    show(chromium)
    key, button = "eval_return-CartPole-v1", "document.querySelectorAll('.legend button')[1]"
    chromium.evaluate(f"{button}.click()")
    assert chromium.evaluate(f"{button}.getAttribute('aria-pressed')") == "false"
    assert count(chromium, key, LINES) == count(chromium, key, BANDS) == 2
    chromium.open(page)  # as the page does while runs are watched
    show(chromium)
    assert count(chromium, key, LINES) == 2
    chromium.evaluate(f"{button}.click()")
    assert count(chromium, key, LINES) == 3


def test_another_return_is_drawn_in_its_place(chromium, page):
    chromium.open(page)
    show(chromium)
    chromium.evaluate("document.getElementById('metric').value = 'episode_return'")
    chromium.evaluate("document.getElementById('metric').dispatchEvent(new Event('change'))")
    assert count(chromium, "episode_return-CartPole-v1", LINES) == 3
    title = f"{plot('episode_return-CartPole-v1')}.querySelector('.ytitle').textContent"
    assert chromium.evaluate(title) == "return (training)"


def at(chromium, key, x, y):
    """Where in the window a point of a chart lies."""
    return chromium.evaluate(
        f"(() => {{ const p = {plot(key)}, a = p._fullLayout, b = p.getBoundingClientRect();"
        f"return [b.x + a._size.l + a.xaxis.d2p({x}), b.y + a._size.t + a.yaxis.d2p({y})] }})()"
    )


def mouse(chromium, kind, where, **more):
    chromium.send("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], **more)


def test_hovering_shows_value_interval_and_seeds(chromium, page):
    chromium.open(page)
    show(chromium)
    key = "eval_return-CartPole-v1"
    mouse(chromium, "mouseMoved", at(chromium, key, 10_000, 480))
    chromium.until(f"{plot(key)}.querySelector('.hovertext')")
    text = chromium.evaluate(f"{plot(key)}.querySelector('.hovertext').textContent")
    assert "rgpo sharpness=4" in text
    assert "10,000 steps: 480" in text
    assert "95 % [4" in text
    assert "8 seeds" in text


def test_dragging_zooms_and_the_button_resets(chromium, page):
    chromium.open(page)
    show(chromium)
    key = "eval_return-CartPole-v1"
    limits = f"{plot(key)}._fullLayout.xaxis.range.map(Number)"
    whole = chromium.evaluate(limits)
    start, end = at(chromium, key, 2000, 100), at(chromium, key, 6000, 400)
    mouse(chromium, "mousePressed", start, button="left", clickCount=1)
    mouse(chromium, "mouseMoved", end, button="left", buttons=1)
    mouse(chromium, "mouseReleased", end, button="left", clickCount=1)
    chromium.until(f"{limits}[1] < 6500")
    assert chromium.evaluate(limits) == pytest.approx([2000, 6000], abs=60)
    chromium.evaluate("document.querySelectorAll('.legend button')[0].click()")
    assert chromium.evaluate(limits) == pytest.approx([2000, 6000], abs=60)
    chromium.evaluate("document.querySelectorAll('.legend button')[0].click()")
    chromium.evaluate("document.getElementById('reset').click()")
    chromium.until(f"{limits}[1] > 9000")
    assert chromium.evaluate(limits) == pytest.approx(whole)


def test_a_phone_scrolls_tables_and_not_the_page(chromium, page):
    chromium.open(page, width=390, height=844, touch=True)
    chromium.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for selector in ("#curves", "#comparison", "#diagnostics"):
        show(chromium, selector)
    assert chromium.evaluate("innerWidth") == 390
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 390
    wide = "[...document.querySelectorAll('.plot')].filter(p => p.scrollWidth > innerWidth).length"
    assert chromium.evaluate(wide) == 0
    table = "document.querySelector('#settings .scroll')"
    assert chromium.evaluate(f"{table}.scrollWidth > {table}.clientWidth")
    assert chromium.evaluate("document.getElementById('zoom').checked") is False
    assert chromium.complaints == []


def test_dark_mode_reaches_the_charts(chromium, page):
    chromium.open(page, dark=True)
    show(chromium)
    text = f"getComputedStyle({plot('eval_return-CartPole-v1')}.querySelector('.xtitle')).fill"
    paper = "getComputedStyle(document.body).backgroundColor"

    def brightness(expression):
        red, green, blue = chromium.evaluate(expression).partition("(")[2].split(",")[:3]
        return int(red) + int(green) + int(blue.rstrip(")"))

    assert brightness(paper) < 100 < 400 < brightness(text)
    chromium.scheme("light")
    chromium.until(f"{text} === 'rgb(89, 99, 110)'")
    assert brightness(paper) == 3 * 255


def test_the_page_names_its_parts(chromium, page):
    chromium.open(page)
    levels = "[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))"
    found = chromium.evaluate(levels)
    assert found[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(found))
    unnamed = "[...document.querySelectorAll('.plot, img, iframe, .scroll')].filter(e => "
    unnamed += "!(e.ariaLabel || e.alt || e.title || e.getAttribute('aria-labelledby'))).length"
    assert chromium.evaluate(unnamed) == 0
    links = "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))"
    assert chromium.evaluate(links)


def test_a_sweep_is_drawn(chromium, grid, tmp_path):
    file = tmp_path / "index.html"
    file.write_bytes(render(grid))
    chromium.open(file, width=1400)
    show(chromium, "#sweeps")
    ppo, rgpo, heat = (
        chart.key for chart in (grid.swept[0][0], grid.swept[1][0], grid.swept[1][2])
    )
    assert count(chromium, rgpo, ".points path") == count(chromium, rgpo, ".yerror") == 6
    assert count(chromium, rgpo, ".legend .traces") == 2
    assert count(chromium, heat, ".heatmap-label") == 6
    ticks = f"[...{plot(ppo)}.querySelectorAll('.xtick text')].map(t => t.textContent)"
    assert chromium.evaluate(ticks) == ["0.0001", "0.001", "0.01"]
    # A chart that is alone in its row fills it.
    section = "document.querySelector('#sweeps').clientWidth"
    assert chromium.evaluate(f"{plot(ppo)}.clientWidth > 0.95 * {section}")
    assert chromium.complaints == []


def test_parameters_of_environments_are_drawn(chromium, lengths, tmp_path):
    file = tmp_path / "index.html"
    file.write_bytes(render(lengths))
    chromium.open(file, width=1400)
    show(chromium, "#tasks")
    (charts,) = lengths.tasks.values()
    assert count(chromium, charts[1].key, ".points path") == 7
    assert count(chromium, charts[1].key, ".legend .traces") == 3
    assert chromium.complaints == []


def test_numbers_do_not_break_on_a_phone_and_the_legend_scrolls(chromium, grid, tmp_path):
    file = tmp_path / "index.html"
    file.write_bytes(render(grid))
    chromium.open(file, width=390, height=844, touch=True)
    lines = "[...document.querySelectorAll('.whole')].every(e => e.getClientRects().length === 1)"
    assert chromium.evaluate(lines)
    legend = "document.querySelector('.legend')"
    assert chromium.evaluate(f"{legend}.scrollWidth > {legend}.clientWidth")
    assert chromium.evaluate(f"{legend}.clientHeight < 60")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 390
