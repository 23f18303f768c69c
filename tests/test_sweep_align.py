"""Sweeps of the alignment program: cells are the runs they would be alone, each with its target."""

import json
import math
import shutil

import pytest
from probes import records, summary_of, timeless_records
from workers import WorkersHere, ask_here

from experiments.align import __main__ as align
from experiments.cli.flags import BadInput
from experiments.record.run_folder import is_finished
from experiments.report import __main__ as report
from experiments.sweep import __main__ as sweep
from experiments.sweep import grid, kinds, launchers, planning, probing, worker

TINY = [
    *("--num-seeds", "2", "--num-updates", "20", "--num-prompts", "4", "--group-size", "4"),
    *("--num-minibatches", "2", "--log-every", "160", "--eval-every", "320"),
]
CELLS = [
    f"bandit-{label}-kl_coefficient={beta}"
    for label in ("rgpo-geometric", "rloo")
    for beta in ("0.2", "1")
]


@pytest.fixture(scope="module", autouse=True)
def workers_are_here(programs_are_kept, curves_are_drawn_once):
    """What a worker reads and writes is the same in a process of its own, as in test_sweep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launchers, "Local", WorkersHere)
        patch.setattr(probing, "ask", ask_here)
        yield


def expand(content, folder, flags=TINY):
    path = folder / "sweep.yaml"
    path.write_text(content)
    return grid.expand((), (), flags, str(path), sweep.PROG, kinds.ALIGN)


def undefined_is_nan(values):
    values = values if isinstance(values, list) else [values]
    return [math.nan if value is None else value for value in values]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two methods with two coefficients each: four cells in two programs."""
    folder = tmp_path_factory.mktemp("sweeps")
    file = folder / "sweep.yaml"
    file.write_text("methods: [rgpo, rloo]\nworlds: [bandit]\nkl_coefficient: [0.2, 1.0]\n")
    out = folder / "out"
    args = ["--program", "align", "--file", str(file), "--out", str(out), *TINY]
    assert sweep.main(args) == 0
    return args, out


def test_cells_that_differ_in_numbers_share_a_program(finished):
    _, out = finished
    assert sorted(path.name for path in out.glob("bandit*")) == CELLS
    log = (out / "sweep.log").read_text()
    assert "2 programs to run" in log
    assert "[2/2] bandit-rloo: 2 cells, 4 seeds" in log
    assert "4 of 4 cells finished" in log
    assert list((out / "programs").iterdir()) == []
    for name in CELLS:
        assert is_finished(out / name)
        assert summary_of(out / name)["trained_side_by_side"] == 4


def test_a_cell_is_the_run_that_it_would_be_alone(finished, tmp_path):
    cell, alone = finished[1] / CELLS[1], tmp_path / "alone"  # the second of its program
    args = ["--method", "rgpo", "--world", "bandit", "--kl-coefficient", "1.0", *TINY]
    assert align.main([*args, "--out", str(alone)]) == 0
    for ours, other in zip(timeless_records(cell), timeless_records(alone), strict=True):
        assert ours.keys() == other.keys()
        for metric, values in ours.items():
            assert undefined_is_nan(values) == pytest.approx(
                undefined_is_nan(other[metric]), rel=1e-6, abs=1e-6, nan_ok=True
            ), metric
    config, of_alone = (json.loads((f / "config.json").read_text()) for f in (cell, alone))
    for entry in ("settings", "gate", "subject", "headline"):
        assert config[entry] == of_alone[entry]
    target = "target: the maximum of E[R] - beta KL(pi || ref)"
    assert target in (cell / "run.log").read_text()


def test_each_cell_has_the_target_of_its_own_coefficient(finished):
    _, out = finished
    first = {name: records(out / name)[0] for name in CELLS}
    # All begin at the reference, which is further from the target where the KL weighs less.
    for weak, strong in (CELLS[:2], CELLS[2:]):
        assert first[weak]["kl_ref"] == pytest.approx([0.0, 0.0], abs=1e-6)
        assert min(first[weak]["target_distance"]) > 2 * max(first[strong]["target_distance"])
    for name in CELLS:
        last = records(out / name)[-1]["target_distance"]
        assert summary_of(out / name)["target_distance"] == pytest.approx(sum(last) / 2)


def test_a_second_call_does_nothing(finished, capsys):
    args, out = finished
    before = {path: path.stat().st_mtime for path in out.glob("bandit*/*")}
    assert sweep.main(args) == 0
    assert "0 programs to run, 4 cells done already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime for path in out.glob("bandit*/*")}


def test_a_report_draws_it(finished, tmp_path, capsys):
    assert report.main([str(finished[1]), "--out", str(tmp_path), "--no-figures"]) == 0
    said = capsys.readouterr().out
    assert "4 runs, 4 variants, 1 environment" in said
    assert "episode" not in said  # there is none to be rendered
    text = (tmp_path / "index.html").read_text()
    for part in ("rgpo-geometric kl_coefficient=0.2", "rloo", "bandit", "expected reward"):
        assert part in text


def test_an_unfinished_cell_is_the_sweeps_to_go_on_with(finished, tmp_path, capsys):
    shutil.copytree(finished[1], tmp_path / "copy")
    cell = tmp_path / "copy" / CELLS[0]
    (cell / "summary.json").unlink()
    with pytest.raises(SystemExit) as refused:
        align.main(["--out", str(cell), "--resume"])
    assert refused.value.code == 2
    assert "belongs to a sweep" in capsys.readouterr().err
    cells = expand("kl_coefficient: [0.2, 1.0]\nmethods: [rgpo, rloo]\n", tmp_path)
    (again,) = planning.plan_programs(cells, tmp_path / "copy", 64)
    assert [one.name for one in again.cells] == CELLS[:1]


def test_a_program_that_was_cut_off_goes_on_as_what_it_is(tmp_path):
    cells = expand("kl_coefficient: [0.2, 1.0, 2.0]\n", tmp_path)
    (program,) = planning.plan_programs(cells, tmp_path, 64)
    spec = tmp_path / "programs" / f"{program.name}.json"
    (spec.with_suffix("") / "checkpoints" / "3").mkdir(parents=True)
    worker.write_spec(spec, tmp_path, cells)
    assert json.loads(spec.read_text())["program"] == "align"
    for cell in cells:
        (tmp_path / cell.name).mkdir()
        (tmp_path / cell.name / "metrics.jsonl").write_text("{}\n")
    (narrowed,) = planning.plan_programs(cells[:2], tmp_path, 64)
    assert narrowed.name == program.name and narrowed.goes_on
    assert [cell.plan for cell in narrowed.cells] == [cell.plan for cell in cells]


def test_a_sweep_that_grows_knows_its_cells_by_their_settings(finished, tmp_path):
    content = "kl_coefficient: [0.2, 1.0]\nlearning_rate: [0.01, 0.02]\n"
    cells = expand(content, tmp_path)
    kept = [cell.name for cell in planning.keep_names(cells, finished[1])]
    new = [cell.name for cell in cells if cell.plan.config.learning_rate == 0.02]
    assert sorted(kept) == sorted([*CELLS[:2], *new])  # 0.01 is the default of this world


def test_a_dry_run_counts_in_answers(tmp_path, capsys):
    args = ["--program", "align", "--dry-run", "--out", str(tmp_path / "out"), *TINY]
    assert sweep.main(args) == 0
    said = capsys.readouterr().out
    assert "answers a seed" in said
    assert "1 programs, about" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--worlds", "smollm2"], "--worlds smollm2: expected bandit, tree or tiny; a world of"),
        (["--worlds", "model"], "holds one model a process"),
        (["--worlds", "bandi"], "--worlds bandi: expected bandit, tree or tiny; did you mean band"),
        (["--methods", "rlo"], "--methods rlo: unknown method; did you mean rloo"),
        (["--methods"], "--methods: expected at least one name"),
        (["--agents", "ppo"], "--agents ppo: expected --program run with it"),
        (["--method", "rloo"], "--method: not for a sweep"),
        (["--total-steps", "9"], "--total-steps"),
        (["--lora-rank", "2"], "--lora-rank 2: goes with --world smollm2 or model"),
    ],
)
def test_bad_flags_are_refused_in_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        sweep.main(["--program", "align", *args])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_what_is_of_the_other_program_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        sweep.main(["--methods", "rloo", "ppo"])
    assert "--methods rloo ppo: expected --program align with it" in capsys.readouterr().err
    path = tmp_path / "sweep.yaml"
    path.write_text("methods: [rloo]\n")
    with pytest.raises(BadInput, match="methods: expected --program align with it"):
        grid.expand((), (), [], str(path), sweep.PROG)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sharpnes: [1]\n", "sharpnes: none of rgpo has it; did you mean sharpness"),
        ("methods: [rloo]\nsharpness: [1]\n", "sharpness: none of rloo has it"),
        ("agents: [rgpo]\n", "agents: expected --program run with it"),
        ("kl_coefficient: [-1]\n", "--kl-coefficient -1.0: expected a number"),
    ],
)
def test_a_bad_file_is_refused(content, message, tmp_path):
    with pytest.raises(BadInput) as refused:
        expand(content, tmp_path)
    assert message in str(refused.value)
