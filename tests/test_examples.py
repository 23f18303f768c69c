"""The examples run as they stand, learn, and are as short as they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from xla_flags import QUICK_TO_RUN

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Name -> the numbers that an example ends its lines with; run from another folder."""

    def run(name):
        found = subprocess.run(
            [sys.executable, str(ROOT / "examples" / f"{name}.py")],
            cwd=tmp_path_factory.mktemp(name),
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "XLA_FLAGS": QUICK_TO_RUN},
        )
        assert found.returncode == 0, found.stderr
        return [
            [
                float(number)
                for number in re.findall(r"-?\d+(?:\.\d+)?", line.partition("return")[2])
            ]
            for line in found.stdout.splitlines()
            if "return" in line
        ]

    return run


def test_the_loop_learns(printed):
    lines = printed("loop")
    assert sorted(lines[-1])[2] > 400  # most of four seeds
    assert all(len(line) == 4 for line in lines)


def test_a_gate_of_ones_own_learns_where_its_width_is_right(printed):
    narrow, middle, wide = printed("own_gate")
    assert min(narrow[:4]) > 300 and max(middle[:4]) > 300
    assert narrow[-1] < middle[-1] < wide[-1]  # KL


def test_an_environment_of_ones_own_is_learnt(printed):
    lines = printed("own_environment")
    assert lines[0][0] < 70 and lines[-1][0] > 90


def test_poles_that_were_drawn_are_held(printed):
    lines = np.array(printed("randomized"))  # median, worst and best seed; two policies, five poles
    fixed, drawn = lines[:5, 0], lines[5:, 0]
    assert drawn[:4].min() > 400  # all that it was trained on
    # Its own pole, and one that is four times as long; four seeds differ from CPU to CPU.
    assert fixed[1] > 200 and fixed[3] < drawn[3] / 2


def test_a_loop_of_ones_own_learns(printed):
    lines = printed("own_loop")
    assert lines[0][0] < 150 and max(line[0] for line in lines) > 250


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
