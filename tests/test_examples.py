"""The examples run, learn in fewer steps too, and are as short as they say."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from xla_flags import QUICK_TO_COMPILE

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Tests compile without optimisation, which examples ask for by themselves.
QUICK = ('{"xla_backend_optimization_level": 1}', "None")


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """Name and what is put in the place of what -> the numbers that lines end with after "return".

    An example is run from another folder, in this process.
    """
    monkeypatch.chdir(tmp_path)

    def run(name, *replaced):
        code = (ROOT / "examples" / f"{name}.py").read_text()
        for shown, other in replaced:
            assert shown in code
            code = code.replace(shown, other)
        Path("example.py").write_text(code)
        runpy.run_path("example.py", run_name="__main__")
        return [
            [
                float(number)
                for number in re.findall(r"-?\d+(?:\.\d+)?", line.partition("return")[2])
            ]
            for line in capsys.readouterr().out.splitlines()
            if "return" in line
        ]

    return run


def test_the_loop_learns(printed):
    short = ("NUM_SEEDS, NUM_EVALUATIONS = 4, 8", "NUM_SEEDS, NUM_EVALUATIONS = 2, 2")
    lines = printed("loop", QUICK, short, ("total_steps=80_000", "total_steps=16_384"))
    assert len(lines) == 2 and all(len(line) == 2 for line in lines)
    assert min(lines[-1]) > 150  # random policies have 20 or so


def test_a_gate_of_ones_own_learns_where_its_width_is_right(printed):
    steps = ("total_steps=40_000", "total_steps=16_384")
    episodes = ("num_episodes=16", "num_episodes=2")
    seeds = ("jax.random.key(0), 4)", "jax.random.key(0), 2)")
    narrow, middle, wide = printed("own_gate", QUICK, steps, episodes, seeds)
    # Random policies have 20 or so.
    assert min(narrow[:2]) > 100 and min(middle[:2]) > 100
    assert narrow[-1] < middle[-1] < wide[-1]  # KL


def test_an_environment_of_ones_own_is_learnt(printed):
    first, last = printed("own_environment", ("total_steps=100_000", "total_steps=21_000"))
    assert first[0] < 70 and last[0] > 90


def test_domain_randomisation_runs(printed):
    """Of the two policies that of drawn poles; what it leads to, the slow test below holds."""
    drawn = ("""        "length 0.5": make("CartPole-v1"),\n""", "")
    small = [drawn, ("SEEDS = 4", "SEEDS = 2"), ("0.25, 0.5, 1.0, 2.0, 4.0", "2.0,")]
    short = [("total_steps=300_000", "total_steps=4096"), ("num_episodes=32", "num_episodes=1")]
    (line,) = printed("randomized", *small, *short)
    median, worst, best = line
    assert 0 < worst <= median <= best


@pytest.mark.slow
def test_poles_that_were_drawn_are_held(printed):
    lines = np.array(printed("randomized"))  # median, worst and best seed; two policies, five poles
    fixed, drawn = lines[:5, 0], lines[5:, 0]
    assert drawn[:4].min() > 400  # all that it was trained on
    # Its own pole, and one that is four times as long; four seeds differ from CPU to CPU.
    assert fixed[1] > 200 and fixed[3] < drawn[3] / 2


def test_a_loop_of_ones_own_learns(printed):
    lines = printed("own_loop", ("51_200", "10_240"), ("number % 20 == 0", "number % 6 == 1"))
    # Of about 25 episodes that end in the first rollout, three at most do in a later one.
    assert lines[0][0] < 50 and max(line[0] for line in lines) > 150


@pytest.mark.slow
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_it_runs_as_it_stands(file, tmp_path):
    variables = {k: v for k, v in os.environ.items() if (k, v) != ("XLA_FLAGS", QUICK_TO_COMPILE)}
    done = subprocess.run(
        [sys.executable, str(file)], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "return" in done.stdout


def test_the_loop_is_one_page():
    code = [
        line
        for line in (ROOT / "examples" / "loop.py").read_text().splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]
    assert len(code) <= 62  # sixty, and its title


def test_the_readme_shows_every_example():
    readme = (ROOT / "README.md").read_text()
    for file in EXAMPLES:
        assert f"examples/{file.name}" in readme
