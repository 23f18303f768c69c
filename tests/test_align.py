"""Alignment in exact worlds as a program: its folder, resume, refusals, and where it ends."""

import numpy as np
import pytest
from killing import killed_at_save
from probes import RUN_FILES, assert_refused, records, summary_of, timeless_records

from agents import language as methods
from experiments.align import __main__ as align
from experiments.align import building
from experiments.align.plan import read_plan
from experiments.cli import flags
from experiments.report import __main__ as report
from experiments.training import loop
from tests import browser

TINY = [
    *("--world", "bandit", "--num-seeds", "2", "--seed", "3", "--num-updates", "12"),
    *("--num-prompts", "3", "--group-size", "4", "--num-minibatches", "2"),
    *("--log-every", "24", "--eval-every", "48"),
]
ONE_STEP = [
    *("--num-seeds", "1", "--num-updates", "2", "--num-epochs", "1", "--num-minibatches", "1"),
    *("--eval-every", "24"),
]
RECORDED = {  # what every method logs of an update
    *("sampled_reward", "kl_ref_k1", "kl_ref_k3", "kl_coefficient", "entropy", "advantage_std"),
    *("answer_length", "answers_ended", "equal_groups", "first_ratio_deviation", "policy_loss"),
    *("approx_kl", "approx_kl_k1", "approx_kl_max", "gate_mean", "gate_closed", "gate_open"),
    *("weight_mean", "weight_max", "effective_sample_size", "grad_norm", "learning_rate"),
}
EVALUATED = {"reward", "kl_ref", "entropy", "target_distance"}


pytestmark = pytest.mark.usefixtures("programs_are_kept", "curves_are_drawn_once")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing cut off."""
    folder = tmp_path_factory.mktemp("runs") / "rgpo"
    assert align.main([*TINY, "--method", "rgpo", "--out", str(folder)]) == 0
    return folder


# What a run leaves.


def test_a_run_writes_its_files_and_no_others(whole):
    assert sorted(path.name for path in whole.iterdir()) == RUN_FILES
    assert (whole / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    log = (whole / "run.log").read_text()
    assert "target: the maximum of E[R] - beta KL(pi || ref)" in log
    assert "final reward" in log


def test_the_summary_has_what_a_run_has_come_to(whole):
    summary, last = summary_of(whole), records(whole)[-1]
    assert (summary["method"], summary["dual"], summary["kl"]) == ("rgpo", "geometric", "reward")
    assert (summary["world"], summary["seed"], summary["num_seeds"]) == ("bandit", 3, 2)
    assert summary["total_answers"] == last["answers"] == 12 * 12
    for name in ("target_distance", "reward", "kl_ref"):
        assert type(summary[name]) is float
        assert summary[name] == pytest.approx(sum(last[name]) / 2)
    assert summary["final_reward"]["per_seed"] == last["reward"]
    assert 0 <= summary["first_ratio_deviation"] < 1e-5
    assert 0 < summary["target_distance"] < 1


def test_metrics_hold_one_value_per_seed(whole):
    lines = timeless_records(whole)
    assert [line["answers"] for line in lines] == list(range(0, 145, 24))
    assert [line["updates"] for line in lines] == list(range(0, 13, 2))
    for line in lines[1:]:
        assert line.keys() >= RECORDED
        assert all(len(line[name]) == 2 for name in line.keys() - {"answers", "updates"})
    assert [line["answers"] for line in lines if line.keys() >= EVALUATED] == [0, 48, 96, 144]
    assert lines[0]["kl_ref"] == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.alike
def test_seeds_side_by_side_are_those_alone(whole, tmp_path):
    for place, seed in enumerate((3, 4)):
        alone = tmp_path / str(seed)
        args = [*TINY, "--seed", str(seed), "--num-seeds", "1", "--out", str(alone)]
        assert align.main(args) == 0
        for ours, other in zip(timeless_records(whole), timeless_records(alone), strict=True):
            assert ours.keys() == other.keys()
            for name in ours.keys() - {"answers", "updates"}:
                if other[name] != [None]:
                    expected = pytest.approx(other[name][0], rel=1e-6, abs=1e-6)
                    assert ours[name][place] == expected, name


@pytest.mark.alike
@pytest.mark.parametrize("world", ["bandit", "tree"])
def test_another_problem_has_other_numbers(world):
    first, same, other = (
        building.make_world(read_plan(["--world", world, "--seed", seed, "--problem", problem]))
        for seed, problem in (("0", "0"), ("1", "0"), ("1", "1"))
    )
    np.testing.assert_array_equal(same.enumeration.reward, first.enumeration.reward)
    assert np.any(np.asarray(other.enumeration.reward) != np.asarray(first.enumeration.reward))


# Going on.


def cut(monkeypatch, folder, saves):
    """Runs until the checkpoint of that number is made, and is gone."""
    with monkeypatch.context() as patch, killed_at_save(saves):
        patch.setattr(loop, "_LONGEST_CHUNK", 0.0)  # an update at a time: each could be the last
        align.main([*TINY, "--checkpoint-every", "0", "--out", str(folder)])


def test_a_killed_run_goes_on_to_the_bit(whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cut"
    cut(monkeypatch, folder, 7)  # in the middle of what a line of metrics tells
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"answers": 999, "torn')
    assert align.main(["--out", str(folder), "--resume"]) == 0
    assert f"going on after {7 * 12} answers" in capsys.readouterr().out
    assert timeless_records(folder) == timeless_records(whole)
    ours, other = summary_of(folder), summary_of(whole)
    for name in ("target_distance", "reward", "kl_ref", "first_ratio_deviation", "final_reward"):
        assert ours[name] == other[name]


def test_a_finished_run_stays_as_it_is(whole, capsys):
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in whole.iterdir()}
    assert align.main(["--out", str(whole), "--resume"]) == 0
    assert f"finished already, in {whole}" in capsys.readouterr().out
    after = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in whole.iterdir()}
    assert after == before


def test_a_run_is_overwritten_where_that_is_asked_for(whole, tmp_path, capsys):
    folder = tmp_path / "again"
    args = [*TINY, "--num-updates", "2", "--out", str(folder)]
    assert align.main(args) == 0
    assert_refused(align.main, args, "--overwrite", capsys)
    assert align.main([*TINY, "--out", str(folder), "--overwrite"]) == 0
    assert timeless_records(folder) == timeless_records(whole)


def test_the_config_of_a_run_repeats_it(whole, tmp_path):
    again = tmp_path / "again"
    assert align.main(["--config", str(whole / "config.json"), "--out", str(again)]) == 0
    assert timeless_records(again) == timeless_records(whole)
    other = tmp_path / "other"
    config = ["--config", str(whole / "config.json"), "--out", str(other)]
    assert align.main([*config, "--num-updates", "2"]) == 0
    assert summary_of(other)["total_answers"] == 24


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num-epochs", "7"], "--num-epochs 7: the run in"),
        (["--method", "rloo"], "--method rloo: the run in"),
        (["--seed", "9"], "--seed 9: the run in"),
    ],
)
def test_other_settings_are_refused(args, message, whole, capsys):
    assert_refused(align.main, ["--out", str(whole), "--resume", *args], message, capsys)


def test_a_run_that_breaks_says_where(tmp_path, capsys):
    folder = tmp_path / "broken"
    args = [*TINY, "--learning-rate", "1e38", "--max-grad-norm", "1e38", "--out", str(folder)]
    assert align.main(args) == 3
    assert (
        "error: parameters, or all gradients of an update, became NaN or infinite: seed 3"
        in capsys.readouterr().out
    )
    assert [entry["seed"] for entry in summary_of(folder)["broken"]] == [3, 4]


# What is refused.


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--method", "grp"], "--method grp: unknown method; did you mean grpo, rpo, dr_grpo?"),
        (["--method", "dr-grp"], "--method dr-grp: unknown method; did you mean dr_grpo"),
        (["--world", "bandits"], "--world bandits: expected one of bandit, tree, tiny, smollm2"),
        (["--mix", "0.3", "--dual", "min"], "--mix 0.3: goes with dual geometric, not min"),
        (["--dual", "both"], "invalid choice 'both' for argument '--dual'"),
        (["--method", "rloo", "--dual", "min"], "Unrecognized options: --dual, min"),
        (
            ["--method", "rloo", "--group-size", "1"],
            "--group-size 1: expected at least 2 with baseline leave_one_out; or --baseline batch",
        ),
        (["--temperature", "0.001"], "--temperature 0.001: expected a number of at least 0.01"),
        (
            ["--num-prompts", "3", "--group-size", "3", "--num-minibatches", "4"],
            "--num-minibatches 4: expected a divisor of num_prompts * group_size = 3 * 3 = 9",
        ),
        (["--microbatch-size", "5"], "--microbatch-size 5: expected a divisor of a minibatch's"),
        (["--model", "x"], "--model x: goes with --world model"),
        (["--world", "model"], "--world model: needs one too: --model PATH|NAME"),
        (
            ["--world", "smollm2", "--num-seeds", "2"],
            "--num-seeds 2: expected 1 with world smollm2",
        ),
        (
            ["--method", "ppo", "--aggregation", "sequence"],
            "--aggregation sequence: expected one of tokens with baseline value",
        ),
        (["--held-out", "1"], "--held-out 1.0: expected a share between 0 and 1"),
        (["--num-update", "3"], "did you mean --num-updates"),
        (["--kl-coefficient", "-1"], "--kl-coefficient -1.0: expected a number of at least 0"),
        (["--num-updates", "90000000"], "--num-updates 90000000: expected fewer than 2^31 answers"),
        (["--resume"], "--resume needs the run's folder too: --out DIR"),
        (["--config", "/nowhere.json"], "--config /nowhere.json: "),
    ],
)
def test_bad_input_is_refused_in_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_refused(align.main, args, message, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_leaves_no_folder(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise flags.BadInput("no such world")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(building, "make_world", refuse)
    assert_refused(align.main, TINY, "no such world", capsys)
    assert list(tmp_path.glob("runs/*")) == []


# Where it ends.


NO_TARGET = "no interior target: without a KL term the policy goes to the best answers"


@pytest.mark.alike
@pytest.mark.parametrize("method", methods.NAMES)
def test_every_row_says_whether_it_has_a_target(method):
    plan = read_plan(["--method", method])
    world = building.make_world(plan)
    (target,) = building.targets_of([plan], world, [building.make_agent(plan, world)])
    without_kl = ("dapo", "gspo", "cispo", "sapo", *methods.FROM_WINS)
    said = building.describe_target(plan, target)
    assert (target is not None) == (method not in (*without_kl, "kto"))
    begins = "no target is known" if method == "kto" else "target: "
    assert said.startswith(NO_TARGET if method in without_kl else begins)


@pytest.mark.alike
@pytest.mark.parametrize("world", ["tree", pytest.param("tiny", marks=pytest.mark.slow)])
def test_the_other_exact_worlds_run(world, tmp_path):
    args = [*TINY, *ONE_STEP, "--world", world, "--out", str(tmp_path / world)]
    assert align.main(args) == 0
    summary = summary_of(tmp_path / world)
    assert summary["first_ratio_deviation"] < 1e-5
    assert 0 < summary["target_distance"] < 1


@pytest.fixture(scope="module")
def rloo(tmp_path_factory):
    """A run with its defaults, but for fewer updates."""
    folder = tmp_path_factory.mktemp("runs") / "rloo"
    args = ["--method", "rloo", "--world", "bandit", "--num-updates", "120"]
    assert align.main([*args, "--out", str(folder)]) == 0
    return folder


@pytest.mark.alike
def test_rloo_reaches_its_target_with_its_defaults_before_their_last_update(rloo):
    assert records(rloo)[0]["target_distance"][0] > 0.1
    assert summary_of(rloo)["target_distance"] < 1e-2
    assert summary_of(rloo)["first_ratio_deviation"] < 1e-5


@pytest.fixture(scope="module")
def page(whole, rloo, tmp_path_factory):
    """A report of two runs."""
    out = tmp_path_factory.mktemp("report")
    args = [str(whole), str(rloo), "--out", str(out), "--no-figures", "--no-episodes"]
    assert report.main(args) == 0
    return out / "index.html"


@pytest.mark.alike
def test_a_report_names_the_runs_by_method_and_world(page):
    text = page.read_text()
    for part in ("rgpo-geometric", "rloo", "bandit", "expected reward"):
        assert part in text


@pytest.mark.alike
def test_a_report_draws_their_curves(page, tmp_path):
    if browser.find() is None:
        pytest.skip("no Chromium or Chrome at hand (Debian: apt-get install chromium)")
    window = browser.Browser(tmp_path / "profile")
    try:
        window.open(page)
        chart = "document.querySelector('.plot[data-drawn=\"reward-bandit\"]')"
        plots = "document.querySelectorAll('#curves .plot')"
        window.evaluate(f"{plots}[0].scrollIntoView({{block: 'center'}})")
        window.until(f"{chart}?.querySelector('.main-svg')")
        lines = ".scatterlayer .js-line[style*='stroke-width: 2px']"
        assert window.evaluate(f"{chart}.querySelectorAll(`{lines}`).length") == 2
        assert window.complaints == []
    finally:
        window.close()
