"""Runs with a gate or an agent of one's own: they train, and what is none is refused."""

import json
import sys

import jax
import pytest
from killing import killed_in

from experiments import run
from experiments.cli.flags import BadInput
from experiments.plan.reading import read_plan
from experiments.sweep import grid
from experiments.training import building
from experiments.training.building import make_agent

pytestmark = pytest.mark.usefixtures("programs_are_kept")
TINY = [
    *("--env", "CartPole-v1", "--num-seeds", "2", "--seed", "5", "--total-steps", "64"),
    *("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "2"),
    *("--hidden-sizes", "8", "--eval-episodes", "2", "--reset-pool-size", "2"),
]


@pytest.mark.alike
def test_a_gate_of_your_own_trains(tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text(
        "import jax.numpy as jnp\n\n\n"
        "def my_gate(log_ratio, advantage):\n"
        "    return jnp.tanh(log_ratio)\n"
    )
    monkeypatch.chdir(tmp_path)
    args = [*TINY, "--gate", "my_module:my_gate", "--out", "out"]
    assert run.main(args) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["gate"]["function"] == "my_module.my_gate"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise SystemExit(0)", "SystemExit"),
        ("def gate(l, a):\n    return 0.0 * l", "would never learn"),
        ("def gate(l, a):\n    return l > 0", "expected a float"),
        ("def gate(l):\n    return l", "not a gate"),
    ],
)
def test_a_module_without_a_gate_is_refused(source, message, tmp_path, monkeypatch, capsys):
    name = f"gate_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        run.main(["--gate", f"{name}:gate", "--out", "out"])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_callable_object_is_a_gate_too(tmp_path, monkeypatch):
    (tmp_path / "partial_module.py").write_text(
        "import functools\n\n\n"
        "def scaled(log_ratio, advantage, k):\n    return k * log_ratio\n\n\n"
        "gate = functools.partial(scaled, k=2.0)\n"
    )
    monkeypatch.chdir(tmp_path)
    args = [*TINY, "--gate", "partial_module:gate"]
    with killed_in(building, "make_programs"):  # what is written down of it is written by then
        run.main([*args, "--out", "out"])
    agent = make_agent(read_plan(args))
    state = jax.eval_shape(agent.init, jax.random.key(0))
    assert "entropy" in jax.eval_shape(agent.step, state)[1]


OWN_AGENT = """
import dataclasses

import jax.numpy as jnp
import rgpo_jax
from agents.gated import maker
from rgpo_jax.ranges import Positive
from rgpo_jax.tunable import Tunable


def tanh(log_ratio, advantage, steepness):
    return jnp.tanh(steepness * log_ratio)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(rgpo_jax.config.Config):
    num_epochs: int = 2
    steepness: Positive = 3.0
    \"\"\"How steep.\"\"\"


def gate(config):
    return Tunable(tanh, {"steepness": config.steepness})


make = maker(Config, gate)


class Agent:
    Config, make = Config, staticmethod(make)
"""


@pytest.mark.parametrize("name", ["own_agent", "own_agent:Agent"])
def test_an_agent_of_your_own_trains_and_goes_on(name, tmp_path, monkeypatch):
    (tmp_path / "own_agent.py").write_text(OWN_AGENT)
    monkeypatch.chdir(tmp_path)
    args = [*TINY, "--agent", name, "--steepness", "2", "--out", "out"]
    if name == "own_agent":
        assert run.main(args) == 0
    else:  # from here on it is the same
        with killed_in(building, "make_programs"):
            run.main(args)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["settings"]["agent"] == name
    assert config["gate"]["numbers"] == {"steepness": 2.0}
    resumed = read_plan(["--resume", "--out", "out", "--trust-code"])
    assert (resumed.config.steepness, resumed.config.num_epochs) == (2.0, 2)
    (cell,) = grid.expand([name], None, ["--steepness", "4"], None, "sweep")
    assert cell.plan.config.steepness == 4.0
    with pytest.raises(BadInput, match="no hyper-parameter 'steepness'"):
        make_agent(read_plan(["--agent", name, "--gate", "spo"]))


@pytest.mark.parametrize(
    ("agent", "source", "message"),
    [
        ("own", "raise SystemExit(0)", "--agent own: SystemExit"),
        ("own", "Config = dict", "--agent own: no agent; expected a Config"),
        ("own:Agent", "Config = dict", "--agent own:Agent: AttributeError"),
        ("own", "from rgpo_jax.config import Config", "expected a Config"),
        ("other", "", "--agent other: unknown agent; did you mean smooth"),
        ("other:Agent", "", "--agent other:Agent: no module named 'other'"),
        (".", "", "--agent .: unknown agent"),
    ],
)
def test_what_is_no_agent_is_refused(agent, source, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    with pytest.raises(SystemExit) as refused:
        run.main(["--agent", agent, "--out", "out"])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
