"""What cells and programs a sweep has, by its file, its flags and what is in its folder."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from tiny_sweep import TINY, expand

from experiments.cli.flags import BadInput
from experiments.plan import drawn
from experiments.sweep import __main__ as sweep
from experiments.sweep import grid, planning, worker

LISTS = Path(__file__).parent / "data" / "sweep.yaml"


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


def test_a_program_without_a_checkpoint_is_planned_anew(tmp_path):
    cells = expand("sharpness: [1, 8]\n", folder=tmp_path)
    (program,) = planning.plan_programs(cells, tmp_path, 64)
    spec = tmp_path / "programs" / f"{program.name}.json"
    spec.parent.mkdir()
    worker.write_spec(spec, tmp_path, cells)
    assert len(planning.plan_programs(cells, tmp_path, 2)) == 2  # it was too large for the memory
    (spec.with_suffix("") / "checkpoints" / "3").mkdir(parents=True)
    for cell in cells:
        (tmp_path / cell.name).mkdir()
        (tmp_path / cell.name / "metrics.jsonl").write_text("{}\n")
    assert len(planning.plan_programs(cells, tmp_path, 2)) == 1


def test_a_program_that_was_cut_off_keeps_cells_that_the_sweep_no_longer_has(tmp_path):
    cells = expand("sharpness: [1, 2, 4]\n", folder=tmp_path)
    (program,) = planning.plan_programs(cells, tmp_path, 64)
    spec = tmp_path / "programs" / f"{program.name}.json"
    (spec.with_suffix("") / "checkpoints" / "3").mkdir(parents=True)
    worker.write_spec(spec, tmp_path, cells)
    for cell in cells:
        (tmp_path / cell.name).mkdir()
        (tmp_path / cell.name / "metrics.jsonl").write_text("{}\n")
    (narrowed,) = planning.plan_programs(cells[:2], tmp_path, 64)
    assert narrowed.name == program.name and narrowed.goes_on
    assert [cell.plan for cell in narrowed.cells] == [cell.plan for cell in cells]


@pytest.mark.parametrize("config", ['{"torn', '{"settings": {"seed": 7}}'])
def test_a_cell_that_cannot_go_on_fails_without_the_others(config, tmp_path):
    cells = expand("sharpness: [1, 2, 4]\n", folder=tmp_path)
    (tmp_path / cells[1].name).mkdir()
    (tmp_path / cells[1].name / "config.json").write_text(config)
    planned = planning.plan_programs(cells, tmp_path, 64)
    assert [p.cells for p in planned] == [[cells[0], cells[2]], [cells[1]]]


def test_another_sweep_is_kept_out_of_the_folder(tmp_path, capsys):
    from experiments.record.run_folder import hold

    held = hold(tmp_path / "out")
    with pytest.raises(SystemExit) as refused:
        sweep.main(["--out", str(tmp_path / "out"), *TINY])
    held.close()
    assert refused.value.code == 2
    assert "another process is writing to it" in capsys.readouterr().err
