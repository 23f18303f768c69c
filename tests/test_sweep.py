"""Sweeps: how they are planned, that a cell is the run it would be alone, and going on."""

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from probes import records, timeless_records
from workers import WorkersHere

import rgpo_jax
from experiments import run
from experiments.cli.exits import EXIT_BROKEN, EXIT_NOT_KEPT
from experiments.cli.flags import BadInput
from experiments.plan import drawn
from experiments.record.run_folder import is_finished
from experiments.sweep import __main__ as sweep
from experiments.sweep import grid, launchers
from experiments.training import loop
from rgpo_jax.importing import install_hint

pytestmark = pytest.mark.usefixtures("programs_are_kept", "curves_are_drawn_once")
ROOT = Path(__file__).parents[1]
LOCAL = launchers.Local
TINY = [
    *("--num-seeds", "2", "--total-steps", "320", "--num-envs", "2", "--num-steps", "8"),
    *("--num-minibatches", "2", "--num-epochs", "2", "--hidden-sizes", "8"),
    *("--eval-episodes", "2", "--reset-pool-size", "2"),
]


LISTS = Path(__file__).parent / "data" / "sweep.yaml"


def expand(content, flags=TINY, folder=None, **more):
    path = folder / "sweep.yaml"
    path.write_text(content)
    return grid.expand((), (), flags, str(path), sweep.PROG, **more)


def test_a_file_is_every_combination_of_its_lists(tmp_path):
    content = "agents: [rgpo, ppo]\nsharpness: [1, 2, 4]\nlearning_rate: [1e-3, 2e-3]\n"
    cells = expand(content, folder=tmp_path)
    chosen = [
        (
            c.plan.options.agent,
            getattr(c.plan.config, "sharpness", None),
            c.plan.config.learning_rate,
        )
        for c in cells
    ]
    expected = [("rgpo", k, a) for k, a in itertools.product((1.0, 2.0, 4.0), (1e-3, 2e-3))]
    expected += [("ppo", None, a) for a in (1e-3, 2e-3)]  # PPO has no sharpness: not three times
    assert chosen == expected
    assert [cell.name for cell in cells[:2]] == [
        "CartPole-v1-rgpo-learning_rate=0.001-sharpness=1",
        "CartPole-v1-rgpo-learning_rate=0.002-sharpness=1",
    ]


def test_flags_choose_among_the_agents_of_a_file_whose_draws_stay(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "agents: [rgpo, trpo]\ndraws: 3\n"
        "max_kl: {uniform: [0.01, 0.1]}\nlearning_rate: {log_uniform: [1e-4, 1e-2]}\n"
    )
    both = grid.expand((), (), TINY, str(path), sweep.PROG)
    chosen = grid.expand(("rgpo",), (), TINY, str(path), sweep.PROG)
    assert [c.plan for c in chosen] == [c.plan for c in both if c.plan.options.agent == "rgpo"]


def test_what_is_drawn_lies_in_its_range_and_is_drawn_again(tmp_path):
    content = (
        "draws: 8\nlearning_rate: {log_uniform: [1e-4, 1e-2]}\nclip: {uniform: [0.1, 0.3]}\n"
        "activation: {choice: [relu, tanh]}\nagents: [ppo]\n"
    )
    configs = [cell.plan.config for cell in expand(content, folder=tmp_path)]
    assert configs == [cell.plan.config for cell in expand(content, folder=tmp_path)]
    assert configs != [c.plan.config for c in expand(content + "draw_seed: 1\n", folder=tmp_path)]
    assert len(configs) == 8
    assert all(1e-4 <= c.learning_rate <= 1e-2 and 0.1 <= c.clip <= 0.3 for c in configs)
    assert {c.activation for c in configs} == {"relu", "tanh"}


def test_of_a_log_uniform_number_the_logarithm_is_uniform():
    rates = drawn.read("learning_rate", {"log_uniform": [1e-4, 1e-2]}, "a test")
    random = np.random.default_rng(0)
    places = [np.log10(rates.draw(random)) for _ in range(2000)]
    # A quarter of the draws lie in each quarter, within four standard errors.
    counts, _ = np.histogram(places, bins=4, range=(-4, -2))
    np.testing.assert_allclose(counts, 500, atol=4 * np.sqrt(2000 * 0.25 * 0.75))


def test_a_list_setting_is_one_value_unless_it_holds_lists(tmp_path):
    flags = ["--total-steps", "1000"]
    (one,) = expand("hidden_sizes: [32, 16]\n", flags, tmp_path)
    assert one.plan.config.hidden_sizes == (32, 16)
    (none,) = expand("loggers: []\n", flags, tmp_path)
    assert none.plan.options.loggers == ()
    two = expand("hidden_sizes: [[32, 16], [8]]\n", flags, tmp_path)
    assert [cell.plan.config.hidden_sizes for cell in two] == [(32, 16), (8,)]


def test_cells_that_differ_in_what_a_name_does_not_show_have_folders_of_their_own(tmp_path):
    content = "learning_rate: [0.00012345678, 0.00012345679]\ninit_from: [runs/a, runs-a]\n"
    cells = expand(content, folder=tmp_path)
    assert len({cell.name for cell in cells}) == len(cells) == 4
    assert [c.name for c in cells] == [c.name for c in expand(content, folder=tmp_path)]


def test_only_traced_numbers_and_seeds_share_a_program(tmp_path):
    content = "agents: [rgpo, ppo]\nsharpness: [1, 2]\nnum_steps: [8, 16]\nseed: [0, 10]\n"
    cells = expand(content, ["--num-seeds", "2", "--total-steps", "320"], tmp_path)
    groups = grid.programs(cells, max_members=64)
    assert sorted(len(group) for group in groups) == [2, 2, 4, 4]
    for group in groups:
        assert len({(c.plan.options.agent, c.plan.config.num_steps) for c in group}) == 1
    assert [len(group) for group in grid.programs(cells, max_members=4)] == [2] * 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sharpnes: [1]\n", "sharpnes: none of rgpo has it; did you mean sharpness"),
        ("agents: [ppo]\nsharpness: [1]\n", "sharpness: none of ppo has it"),
        ("agents: [pop]\n", "unknown agent"),
        ("agents: 3\n", "agents = 3: expected a list of names"),
        ("envs: [CartPol]\n", "did you mean CartPole-v1"),
        ("learning_rate: [-1]\n", "--learning-rate -1.0: expected a number above 0"),
        ("learning_rate: []\n", "expected at least one value"),
        ("learning_rate: {normal: [0, 1]}\n", "expected {uniform: [low, high]}"),
        ("learning_rate: {uniform: [2, 1]}\n", "expected {uniform: [low, high]}"),
        ("learning_rate: {log_uniform: [0, 1]}\n", "expected a low above 0"),
        ("learning_rate: {uniform: [0, .inf]}\n", "expected {uniform: [low, high]}"),
        (f"learning_rate: {{uniform: [0, 1{'0' * 400}]}}\n", "expected {uniform: [low, high]}"),
        ("learning_rate: {choice: []}\n", "expected {uniform"),
        ("learning_rate: {uniform: '12'}\n", "expected {uniform"),
        (f"learning_rate: {{uniform: [0, 0x{'f' * 5000}]}}\n", "learning_rate: expected {uniform"),
        ("draws: 5\n", "nothing is drawn"),
        ("draws: 0\nlearning_rate: {uniform: [1, 2]}\n", "draws = 0: expected a whole number"),
        ("out: x\n", "out: none of rgpo has it"),
        ("[1, 2]\n", "expected a mapping"),
        ("a: [\n", "not YAML"),
        ("\x00", "not YAML"),
        ("num_envs: {a: {b: 1}}\n", "expected {uniform"),
        ("num_envs: [[1, 2]]\n", "expected a list of plain values"),
        ("3: 4\n", "expected a mapping"),
    ],
)
def test_a_bad_file_is_refused(content, message, tmp_path):
    with pytest.raises(BadInput) as refused:
        expand(content, [], tmp_path)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--agents", "rgp0"], "unknown agent"),
        (["--num-seed", "3"], "did you mean --num-seeds"),
        (["--agent", "ppo"], "--agent: not for a sweep"),
        (["--resume"], "--resume: not for a sweep"),
        (["--num-seeds", "2", "--overwrite"], "--overwrite: not for a sweep"),
        (["--file", str(LISTS), "--sharpness", "3"], "--sharpness: "),
        (["--file", "/"], "--file /: Is a directory"),
        (["--file", "/nope"], "--file /nope: No such file"),
        (
            ["--max-members", "1", "--num-seeds", "2"],
            "--max-members 1: CartPole-v1-rgpo has 2 seeds",
        ),
        (["--agents", "--envs", "CartPole-v1"], "--agents: expected at least one name"),
        (["--jobs", "0"], "--jobs 0: expected a whole number"),
        (["--address", "auto"], "--address auto: expected --launcher ray"),
        (["--program-gpus", "1"], "--program-gpus 1: expected --launcher ray"),
        (["--launcher", "ray", "--jobs", "2"], "--jobs 2: expected --launcher local"),
        (["--out", ""], "--out '': expected a folder"),
        (["--out", "/dev/null/x"], "--out /dev/null/x: cannot be written"),
        (["--launcher", "slurm"], "slurm"),
    ],
)
def test_bad_flags_are_refused_in_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        sweep.main(args)
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launchers, "Local", WorkersHere)
        yield


@pytest.fixture(scope="module")
def finished(in_this_process, tmp_path_factory):
    """Two agents, one with two sharpnesses: three cells in two programs."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "sweep.yaml").write_text("agents: [rgpo, ppo]\nsharpness: [1, 8]\n")
    out = folder / "first"
    assert sweep.main(["--file", str(folder / "sweep.yaml"), "--out", str(out), *TINY]) == 0
    return out


RGPO = "sharpness: [1, 8]\n"
CELLS = ["CartPole-v1-ppo", "CartPole-v1-rgpo-sharpness=1", "CartPole-v1-rgpo-sharpness=8"]


def test_every_cell_has_the_folder_of_a_run(finished):
    assert sorted(p.name for p in finished.glob("CartPole*")) == CELLS
    assert sorted(json.loads((finished / "sweep.json").read_text())["cells"]) == CELLS
    for name in CELLS:
        assert is_finished(finished / name)
        assert (finished / name / "learning_curve.png").exists()
        assert list((finished / name / "checkpoints").glob("20/checksums.json"))
        about = rgpo_jax.load(finished / name, seed=1).about
        assert (about.seeds, about.updates) == ((0, 1), 20)
    assert list((finished / "programs").iterdir()) == []
    assert "3 of 3 cells finished" in (finished / "sweep.log").read_text()


def test_a_cell_is_the_run_that_it_would_be_alone(finished, tmp_path):
    args = [*TINY, "--agent", "rgpo", "--sharpness", "8", "--out", str(tmp_path / "alone")]
    assert run.main(args) == 0
    alone, cell = tmp_path / "alone", finished / CELLS[2]
    for ours, other in zip(timeless_records(cell), timeless_records(alone), strict=True):
        assert ours.keys() == other.keys()
        for name in ("entropy", "approx_kl", "gate_mean", "eval_return"):
            if name in ours:
                for a, b in zip(ours[name], other[name], strict=True):
                    assert a == pytest.approx(b, rel=1e-3, abs=1e-6) if b is not None else a is None
    # The other sharpness is another run.
    assert records(finished / CELLS[1])[-1]["gate_mean"] != records(cell)[-1]["gate_mean"]
    gate = json.loads((cell / "config.json").read_text())["gate"]
    assert gate["numbers"]["sharpness"] == 8.0


def test_a_cell_can_be_gone_on_with_by_itself(finished, capsys):
    assert run.main(["--out", str(finished / CELLS[0]), "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out


def test_finished_cells_are_skipped_and_new_ones_added(finished, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    kept = [(out / name / "metrics.jsonl").stat().st_mtime for name in CELLS]
    (tmp_path / "sweep.yaml").write_text("seed: [0, 10]\n")
    args = ["--agents", "ppo", "--file", str(tmp_path / "sweep.yaml"), "--out", str(out)]
    assert sweep.main([*args, *TINY]) == 0
    said = capsys.readouterr().out
    assert "1 cells done already" in said
    assert is_finished(out / "CartPole-v1-ppo-seed=10")
    assert [(out / name / "metrics.jsonl").stat().st_mtime for name in CELLS] == kept


def test_a_program_killed_while_it_closed_its_cells_goes_on(finished, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    plans = [cell for cell in expand(RGPO, folder=tmp_path) if cell.name in CELLS]
    program = sweep.Program(plans)
    spec = out / "programs" / f"{program.name}.json"
    sweep.worker.write_spec(spec, out, program.cells)
    (spec.with_suffix("") / "checkpoints" / "20").mkdir(parents=True)
    (out / CELLS[2] / "summary.json").unlink()
    assert [p.name for p in sweep.plan_programs(plans, out, 64)] == [program.name]
    # Before its end, a closed cell is none of its: somebody else has finished it.
    (spec.with_suffix("") / "checkpoints" / "20").rename(spec.with_suffix("") / "checkpoints/19")
    (rest,) = sweep.plan_programs(plans, out, 64)
    assert [cell.name for cell in rest.cells] == CELLS[2:]


def test_a_program_without_a_checkpoint_is_planned_anew(tmp_path):
    cells = expand(RGPO, folder=tmp_path)
    (program,) = sweep.plan_programs(cells, tmp_path, 64)
    spec = tmp_path / "programs" / f"{program.name}.json"
    spec.parent.mkdir()
    sweep.worker.write_spec(spec, tmp_path, cells)
    assert len(sweep.plan_programs(cells, tmp_path, 2)) == 2  # it was too large for the memory
    (spec.with_suffix("") / "checkpoints" / "3").mkdir(parents=True)
    for cell in cells:
        (tmp_path / cell.name).mkdir()
        (tmp_path / cell.name / "metrics.jsonl").write_text("{}\n")
    assert len(sweep.plan_programs(cells, tmp_path, 2)) == 1


def test_a_program_that_was_cut_off_keeps_cells_that_the_sweep_no_longer_has(tmp_path):
    cells = expand("sharpness: [1, 2, 4]\n", folder=tmp_path)
    (program,) = sweep.plan_programs(cells, tmp_path, 64)
    spec = tmp_path / "programs" / f"{program.name}.json"
    (spec.with_suffix("") / "checkpoints" / "3").mkdir(parents=True)
    sweep.worker.write_spec(spec, tmp_path, cells)
    for cell in cells:
        (tmp_path / cell.name).mkdir()
        (tmp_path / cell.name / "metrics.jsonl").write_text("{}\n")
    (narrowed,) = sweep.plan_programs(cells[:2], tmp_path, 64)
    assert narrowed.name == program.name and narrowed.goes_on
    assert [cell.plan for cell in narrowed.cells] == [cell.plan for cell in cells]


def test_where_a_cells_folder_is_gone_its_unfinished_program_starts_again(
    in_this_process, tmp_path
):
    content = "learning_rate: [1e-3, 2e-3]\n"
    (tmp_path / "sweep.yaml").write_text(content)
    args = ["--file", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out"), *TINY]
    (planned,) = sweep.plan_programs(expand(content, folder=tmp_path), tmp_path / "out", 64)
    gone, other = (tmp_path / "out" / cell.name for cell in planned.cells)
    spec = tmp_path / "out" / "programs" / f"{planned.name}.json"
    spec.parent.mkdir(parents=True)
    sweep.worker.write_spec(spec, tmp_path / "out", planned.cells)

    def die(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "_write_summaries", die)
        sweep.worker.main([str(spec)])
    assert list(spec.with_suffix("").glob("checkpoints/20/checksums.json"))
    shutil.rmtree(gone)
    assert sweep.main(args) == 0
    assert [r["env_steps"] for r in records(gone)] == [r["env_steps"] for r in records(other)]
    assert records(gone)[0]["env_steps"] == 0
    assert "starting again: " in (tmp_path / "out" / "sweep.log").read_text()
    assert list(spec.parent.iterdir()) == []


@pytest.mark.parametrize("config", ['{"torn', '{"settings": {"seed": 7}}'])
def test_a_cell_that_cannot_go_on_fails_without_the_others(config, tmp_path):
    cells = expand("sharpness: [1, 2, 4]\n", folder=tmp_path)
    (tmp_path / cells[1].name).mkdir()
    (tmp_path / cells[1].name / "config.json").write_text(config)
    planned = sweep.plan_programs(cells, tmp_path, 64)
    assert [p.cells for p in planned] == [[cells[0], cells[2]], [cells[1]]]


def test_a_sweep_that_grows_knows_its_cells_by_their_settings(finished, tmp_path):
    content = "agents: [rgpo]\nsharpness: [1, 8]\ngae_lambda: [0.9, 0.95]\n"
    cells = expand(content, folder=tmp_path)
    kept = [cell.name for cell in sweep.keep_names(cells, finished)]
    # 0.95 is the default, with which the first sweep went; it did not differ there.
    new = [cell.name for cell in cells if cell.plan.config.gae_lambda == 0.9]
    assert sorted(kept) == sorted([*CELLS[1:], *new])
    assert len(sweep.plan_programs(sweep.keep_names(cells, finished), finished, 64)) == 1


def test_an_unfinished_cell_is_the_sweeps_to_go_on_with(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "copy")
    cell = tmp_path / "copy" / CELLS[0]
    (cell / "summary.json").unlink()
    before = (cell / "metrics.jsonl").read_bytes()
    with pytest.raises(SystemExit) as refused:
        run.main(["--out", str(cell), "--resume"])
    assert refused.value.code == 2
    assert "belongs to a sweep" in capsys.readouterr().err
    assert (cell / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("flag", [("--learning-rate", "0.5"), ("--num-seeds", "3")])
def test_other_settings_in_the_same_folder_are_refused(flag, ended, finished, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    if not ended:
        (out / CELLS[0] / "summary.json").unlink()
    before = {path: path.read_bytes() for path in sorted(out.glob("**/*.json*"))}
    with pytest.raises(SystemExit) as refused:
        sweep.main(["--agents", "ppo", "--out", str(out), *TINY, *flag])
    assert refused.value.code == 2
    assert f"{' '.join(flag)}: the run in {out / CELLS[0]} was" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in sorted(out.glob("**/*.json*"))}


def test_a_score_that_is_not_finite_is_said():
    assert sweep._describe({"iqm": None, "ci95": [None, None]}) == "undefined"
    assert sweep._describe({"iqm": 1.25, "ci95": [1.0, 2.0]}) == "1.2 [1.0, 2.0]"
    assert sweep._describe({"iqm": 1.25, "ci95": None}) == "1.2"
    assert sweep._describe({"iqm": 1.25, "ci95": [1.0, None]}) == "1.2"


def test_each_cell_starts_from_the_same_parameters(finished, tmp_path):
    (tmp_path / "sweep.yaml").write_text("learning_rate: [1e-4, 3e-3]\n")
    args = ["--file", str(tmp_path / "sweep.yaml"), *TINY, "--total-steps", "64"]
    start = ["--init-from", str(finished / CELLS[1]), "--out", str(tmp_path / "out")]
    assert sweep.main([*args, *start]) == 0
    first, other = (records(folder)[0] for folder in (tmp_path / "out").glob("CartPole*"))
    assert first["eval_return_stochastic"] == other["eval_return_stochastic"]
    assert first["eval_return"] == other["eval_return"]


def test_a_broken_cell_does_not_stop_the_others(in_this_process, tmp_path, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text("learning_rate: [1e38, 1e-3]\n")
    out = tmp_path / "out"
    assert sweep.main(["--file", str(path), "--out", str(out), *TINY]) == EXIT_BROKEN
    broken, good = (
        out / "CartPole-v1-rgpo-learning_rate=1e+38",
        out / "CartPole-v1-rgpo-learning_rate=0.001",
    )
    assert is_finished(good)
    assert json.loads((broken / "summary.json").read_text())["broken"]
    assert (
        "1 of 2 cells finished; failed: CartPole-v1-rgpo-learning_rate=1e+38"
        in capsys.readouterr().out
    )


def test_a_dry_run_measures_and_writes_nothing(tmp_path, capsys, monkeypatch):
    def in_this_process(command, **_):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            status = sweep.worker.main(command[command.index("experiments.sweep.worker") + 1 :])
        return subprocess.CompletedProcess(command, status, said.getvalue(), "")

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(run=in_this_process))
    (tmp_path / "sweep.yaml").write_text(RGPO)
    args = ["--file", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]
    assert sweep.main(["--dry-run", *args, *TINY]) == 0
    said = capsys.readouterr().out
    assert "1 programs, about" in said and "cannot be run" not in said
    assert re.search(r"\d MiB", said)
    assert not (tmp_path / "out").exists()


LONG = [*TINY, "--total-steps", "16000", "--log-every", "160", "--checkpoint-every", "0.1"]

LONGER = ["--total-steps", "160000", "--log-every", "1600"]  # so that one is lost on the way


def start(out, *args):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", "--out", str(out), *LONG, *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoints(out, process, programs, deadline=240):
    end = time.monotonic() + deadline
    while len(set(out.glob("programs/*/checkpoints"))) < programs or not all(
        list(folder.glob("*/checksums.json")) for folder in out.glob("programs/*/checkpoints")
    ):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_sweep_that_was_told_to_stop_goes_on(in_this_process, tmp_path):
    out = tmp_path / "out"
    args = ("--agents", "rgpo", "ppo")
    process = start(out, *args)
    wait_for_checkpoints(out, process, 1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "go on with: python -m experiments.sweep --out" in said
    (begun,) = [p for p in out.glob("CartPole*") if (p / "metrics.jsonl").exists()]
    lines = len((begun / "metrics.jsonl").read_text().splitlines())
    assert sweep.main(["--out", str(out), *LONG, *args]) == 0
    assert "going on after" in (begun / "run.log").read_text()
    assert [r["env_steps"] for r in records(begun)] == list(range(0, 16001, 160))
    assert lines < 101
    assert is_finished(out / "CartPole-v1-ppo")


def test_a_sweep_that_cannot_write_ends_what_runs_and_says_so_in_one_line(
    tmp_path, monkeypatch, capsys
):
    class Endless:
        stopped = False

        def has_room(self):
            return True

        def start(self, spec):
            shutil.rmtree(tmp_path / "out")

        def stop(self):
            self.stopped = True

        def ended(self):
            raise FileNotFoundError(2, "No such file or directory", "out")

    launcher = Endless()
    monkeypatch.setattr(sweep.launchers, "make", lambda *_: launcher)
    assert sweep.main(["--out", str(tmp_path / "out"), *TINY]) == EXIT_NOT_KEPT
    assert launcher.stopped
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No such file or directory" in error


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers outlive the sweep")
@pytest.mark.parametrize("wait", [0, 5])  # before the worker knows its parent, and after
def test_a_killed_sweep_takes_its_workers_along(wait, tmp_path):
    spec = tmp_path / "x.json"
    os.mkfifo(spec)  # the worker waits for its content
    code = (
        "import sys, time; from pathlib import Path\n"
        "from experiments.sweep.launchers import Local\n"
        "local, spec = Local(1), Path(sys.argv[1]); local.start(spec)\n"
        "print(local._running[spec][0].pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(spec)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker, end = Path(f"/proc/{int(process.stdout.readline())}/stat"), time.monotonic() + 60
    time.sleep(wait)
    assert worker.exists()
    process.kill()
    process.communicate()
    while worker.exists() and worker.read_text().split()[2] != "Z":  # ended, but for its parent
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone pins processes")
@pytest.mark.parametrize(
    ("cores", "jobs", "shares"),
    [
        ({0, 1, 2, 5}, 2, [[0, 1], [2, 5]]),
        ({0, 1, 2, 3, 4}, 2, [[0, 1], [2, 3]]),  # equal: a layout must not depend on the share
        ({0, 1}, 1, [[]]),  # alone, a program has all
        ({0, 1}, 3, [[], [], []]),  # too few to share out
    ],
)
def test_programs_at_a_time_share_the_cores_out(cores, jobs, shares, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores)
    assert launchers.share_cores(jobs) == shares


def test_a_program_gets_the_cores_of_one_that_ended(tmp_path, monkeypatch):
    said = "import sys, time; print(*sys.argv[3:], flush=True); time.sleep(float(sys.argv[1]))"
    monkeypatch.setattr(
        launchers, "command", lambda spec, *flags: [sys.executable, "-c", said, spec.stem, *flags]
    )
    monkeypatch.setattr(launchers, "share_cores", lambda jobs: [[0, 1], [2, 3]])
    local = LOCAL(2)
    short, *long = (tmp_path / f"{seconds}.json" for seconds in (0, 100, 101))
    local.start(short)
    local.start(long[0])
    assert not local.has_room()
    while not (over := local.ended()):
        time.sleep(0.01)
    assert over == [(short, 0)]
    assert local.has_room()
    local.start(long[1])
    for spec, cores in ((short, "0,1"), (long[0], "2,3"), (long[1], "0,1")):
        log, end = spec.with_suffix("") / launchers.LOG, time.monotonic() + 60
        while not log.read_text().endswith("\n"):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert log.read_text() == f"--cores={cores}\n"
    local.stop()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone pins processes")
def test_a_worker_keeps_to_its_cores(tmp_path):
    core = max(os.sched_getaffinity(0))
    code = (
        "import os, sys; from experiments.sweep import worker\n"
        "try: worker.main([sys.argv[1], f'--cores={sys.argv[2]},9999'])\n"
        "finally: print(*os.sched_getaffinity(0))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "none.json"), str(core)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.split() == [str(core)]


def test_another_sweep_is_kept_out_of_the_folder(tmp_path, capsys):
    from experiments.record.run_folder import hold

    held = hold(tmp_path / "out")
    with pytest.raises(SystemExit) as refused:
        sweep.main(["--out", str(tmp_path / "out"), *TINY])
    held.close()
    assert refused.value.code == 2
    assert "another process is writing to it" in capsys.readouterr().err


def test_without_ray_one_line_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as refused:
        sweep.main(["--launcher", "ray", "--out", str(tmp_path / "out"), *TINY])
    assert refused.value.code == 2
    assert install_hint("ray") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_ray_cluster_loses_a_node_and_no_step(tmp_path):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    out = tmp_path / "out"
    process = start(
        out, *LONGER, "--agents", "rgpo", "ppo", "--launcher", "ray", "--address", cluster.address
    )
    try:
        wait_for_checkpoints(out, process, 2)
        cluster.remove_node(nodes[0], allow_graceful=False)
        said, _ = process.communicate(timeout=600)
    finally:
        process.kill()
        cluster.shutdown()
    assert process.returncode == 0, said
    logs = [(out / f"CartPole-v1-{agent}" / "run.log").read_text() for agent in ("rgpo", "ppo")]
    assert any("going on after" in log for log in logs)
    for agent in ("rgpo", "ppo"):
        steps = [record["env_steps"] for record in records(out / f"CartPole-v1-{agent}")]
        assert steps == list(range(0, 160001, 1600))
