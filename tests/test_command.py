"""The command `rgpo`, in a folder whose packages have the names of ours."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from experiments import command

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    for name in ("agents", "envs", "experiments", "rgpo_jax"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    shutil.copy(ROOT / "tests" / "data" / "own_worlds.py", folder)
    return folder


def rgpo(folder, *args):
    program = [sys.executable, "-P", "-m", "experiments.command", *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(program, cwd=folder, env=env, capture_output=True, text=True)


def test_it_lists_its_programs_and_refuses_others(folder):
    said = rgpo(folder).stdout
    assert all(f"rgpo {name} " in said for name in command.PROGRAMS)
    refused = rgpo(folder, "rn")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: rgpo rn: did you mean run? expected one of run, sweep")


def test_packages_say_that_they_have_types():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package in ("agents", "envs", "experiments", "rgpo_jax"):
        assert (ROOT / package / "py.typed").exists()
    assert "py.typed" in settings["package-data"]["*"]


def test_every_program_is_there():
    for name in command.PROGRAMS:
        found = (ROOT / "experiments").joinpath(*name.split("."))
        assert (found / "__main__.py").exists() or found.with_suffix(".py").exists()


def test_programs_get_their_flags_and_help(folder):
    assert "gymnasium/CartPole-v1" in rgpo(folder, "run", "--list-envs", "gymnasium").stdout
    assert "--sharpness" in rgpo(folder, "run", "--help").stdout


def test_a_sweep_over_an_environment_of_that_folder(folder):
    small = ["--num-envs", "2", "--num-steps", "8", "--num-minibatches", "1", "--total-steps", "32"]
    small += ["--num-seeds", "1", "--hidden-sizes", "8", "--eval-episodes", "1"]
    given = ["--envs", "own_worlds:Line", "--env-kwargs", "max_episode_steps=5"]
    ended = rgpo(folder, "sweep", "--agents", "ppo", *given, *small, "--out", "s")
    assert ended.returncode == 0, ended.stderr
    assert list((folder / "s").glob("*/summary.json"))
