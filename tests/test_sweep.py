"""Sweeps: that a cell is the run it would be alone, and going on."""

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from probes import records, timeless_records
from tiny_sweep import TINY, expand
from workers import WorkersHere

import rgpo_jax
from experiments import run
from experiments.cli.exits import EXIT_BROKEN
from experiments.record.run_folder import is_finished
from experiments.sweep import __main__ as sweep
from experiments.sweep import launchers, planning, probing, running, worker
from experiments.training import loop

pytestmark = pytest.mark.usefixtures("programs_are_kept", "curves_are_drawn_once")
ROOT = Path(__file__).parents[1]


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
    program = planning.Program(plans)
    spec = out / "programs" / f"{program.name}.json"
    worker.write_spec(spec, out, program.cells)
    (spec.with_suffix("") / "checkpoints" / "20").mkdir(parents=True)
    (out / CELLS[2] / "summary.json").unlink()
    assert [p.name for p in planning.plan_programs(plans, out, 64)] == [program.name]
    # Before its end, a closed cell is none of its: somebody else has finished it.
    (spec.with_suffix("") / "checkpoints" / "20").rename(spec.with_suffix("") / "checkpoints/19")
    (rest,) = planning.plan_programs(plans, out, 64)
    assert [cell.name for cell in rest.cells] == CELLS[2:]


def test_where_a_cells_folder_is_gone_its_unfinished_program_starts_again(
    in_this_process, tmp_path
):
    content = "learning_rate: [1e-3, 2e-3]\n"
    (tmp_path / "sweep.yaml").write_text(content)
    args = ["--file", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out"), *TINY]
    (planned,) = planning.plan_programs(expand(content, folder=tmp_path), tmp_path / "out", 64)
    gone, other = (tmp_path / "out" / cell.name for cell in planned.cells)
    spec = tmp_path / "out" / "programs" / f"{planned.name}.json"
    spec.parent.mkdir(parents=True)
    worker.write_spec(spec, tmp_path / "out", planned.cells)

    def die(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "_write_summaries", die)
        worker.main([str(spec)])
    assert list(spec.with_suffix("").glob("checkpoints/20/checksums.json"))
    shutil.rmtree(gone)
    assert sweep.main(args) == 0
    assert [r["env_steps"] for r in records(gone)] == [r["env_steps"] for r in records(other)]
    assert records(gone)[0]["env_steps"] == 0
    assert "starting again: " in (tmp_path / "out" / "sweep.log").read_text()
    assert list(spec.parent.iterdir()) == []


def test_a_sweep_that_grows_knows_its_cells_by_their_settings(finished, tmp_path):
    content = "agents: [rgpo]\nsharpness: [1, 8]\ngae_lambda: [0.9, 0.95]\n"
    cells = expand(content, folder=tmp_path)
    kept = [cell.name for cell in planning.keep_names(cells, finished)]
    # 0.95 is the default, with which the first sweep went; it did not differ there.
    new = [cell.name for cell in cells if cell.plan.config.gae_lambda == 0.9]
    assert sorted(kept) == sorted([*CELLS[1:], *new])
    assert len(planning.plan_programs(planning.keep_names(cells, finished), finished, 64)) == 1


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
    assert running.describe({"iqm": None, "ci95": [None, None]}) == "undefined"
    assert running.describe({"iqm": 1.25, "ci95": [1.0, 2.0]}) == "1.2 [1.0, 2.0]"
    assert running.describe({"iqm": 1.25, "ci95": None}) == "1.2"
    assert running.describe({"iqm": 1.25, "ci95": [1.0, None]}) == "1.2"


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
            status = worker.main(command[command.index("experiments.sweep.worker") + 1 :])
        return subprocess.CompletedProcess(command, status, said.getvalue(), "")

    monkeypatch.setattr(probing, "subprocess", SimpleNamespace(run=in_this_process))
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
