"""What pages of docs/ show is run, block after block, in an empty folder."""

import importlib
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from workers import WorkersHere, ask_here

from experiments.sweep import launchers, probing
from rgpo_jax import train

ROOT = Path(__file__).parents[1]
PAGES = ["own", "tutorials/sweep_to_report"]
# Instead of the budgets of the page.
SHORT = ["--num-envs", "2", "--num-steps", "8", "--num-minibatches", "1", "--num-seeds", "1"]
SHORT += ["--total-steps", "32", "--eval-episodes", "1", "--reset-pool-size", "2"]
SHORT += ["--num-epochs", "1", "--hidden-sizes", "8"]
# Figures are those of any run; a process of its own would play each task.
FEW = {"run": SHORT, "sweep": SHORT, "report": ["--no-episodes", "--no-figures"]}
SMALL = {  # files of which a part shows what the whole does
    "sweep.yaml": [("[rgpo, ppo]", "[rgpo]"), ("[0.5, 1.0, 2.0]", "[2.0]")],
}


def blocks(page):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shown_file(code):
    """The name in a first line that is a comment of one, such as `# my_worlds.py`."""
    found = re.match(r"# (\w+\.(?:py|yaml))\n", code)
    return found and found[1]


@pytest.fixture
def workers_here(monkeypatch, programs_are_kept):
    monkeypatch.setattr(launchers, "Local", WorkersHere)
    monkeypatch.setattr(probing, "ask", ask_here)


@pytest.fixture
def evaluations_fit(monkeypatch):
    """An evaluation is traced with what training has made, and plays nothing: others play."""
    make = train.make_evaluation

    def traced(*what):
        def evaluate(*args):
            shapes = jax.eval_shape(make(*what), *args)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        return evaluate

    monkeypatch.setattr(train, "make_evaluation", traced)


def shell(line, capfd):
    """Runs a command here: a process of its own, as in test_command, would load JAX each time."""
    name, *args = shlex.split(line)
    assert name == "rgpo"
    short = [] if "--resume" in args else FEW.get(args[0], [])
    program = importlib.import_module(f"experiments.{args[0]}")
    if not hasattr(program, "main"):  # a package
        program = importlib.import_module(f"experiments.{args[0]}.__main__")
    try:
        status = program.main([*args[1:], *short])
    except SystemExit as left:
        status = left.code
    assert status in (0, None), f"{line}\n{capfd.readouterr()}"


@pytest.mark.usefixtures("workers_here", "evaluations_fit", "curves_are_drawn_once")
@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_shows_runs(page, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {}
    for language, code in blocks(page):
        file = shown_file(code)
        if file:
            for whole, part in SMALL.get(file, ()):
                assert whole in code
                code = code.replace(whole, part)
            (tmp_path / file).write_text(code)
        elif language == "python":
            exec(compile(code, f"docs/{page}.md", "exec"), names)
        else:
            assert language == "sh"
            for line in code.strip().splitlines():
                shell(line, capfd)
