"""The registry, and that an agent's Config and its gate say the same."""

import dataclasses
import importlib
import inspect
import pathlib
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
from setting_probes import NUMBERS, OPTIONS

import agents
from agents.__main__ import rewritten
from rgpo_jax import gates
from rgpo_jax.config import Config, ConfigError

BASE = {field.name: field.default for field in dataclasses.fields(Config)}
NAN, INF = float("nan"), float("inf")
README = pathlib.Path(__file__).parents[1] / "README.md"
each_agent = pytest.mark.parametrize("name", agents.NAMES)
each_gate_agent = pytest.mark.parametrize("name", agents.GATE_AGENTS)


def own_fields(name):
    """Fields that an agent's Config adds to the base, with their defaults, in order."""
    fields = dataclasses.fields(agents.load(name).Config)
    return {field.name: field.default for field in fields if field.name not in BASE}


@each_agent
def test_agent_loads(name):
    module = agents.load(name)
    assert module.__name__ == f"agents.{name}"
    assert issubclass(module.Config, Config)
    assert inspect.signature(module.make).parameters["config"].default == module.Config()
    assert gates.check(module.gate(module.Config()))


def test_an_agent_is_a_gate_or_a_file():
    files = {path.stem for path in pathlib.Path(agents.__file__).parent.glob("*.py")}
    assert files - {"__init__", "__main__", "families", "gated"} == set(agents.OTHER_AGENTS)
    assert len(set(agents.NAMES)) == len(agents.NAMES)


def test_there_is_an_agent_and_a_formula_for_every_row():
    assert tuple(gates.CONSTRUCTORS) == agents.GATE_AGENTS


def test_the_readme_has_the_table_of_gates():
    # If not: python -m agents README.md
    assert rewritten(README.read_text()) == README.read_text()
    assert all(f"| `{name}` |" in README.read_text() for name in agents.NAMES)


@each_gate_agent
def test_an_agent_without_a_file_is_imported_as_one_with_a_file(name):
    module = agents.load(name)
    assert getattr(agents, name) is module is importlib.import_module(f"agents.{name}")
    assert module.__doc__
    for part in (module.Config, module.Config(num_envs=8), module.gate):
        assert pickle.loads(pickle.dumps(part)) == part


def test_every_form_of_import_works_alone():
    for source in (
        "import agents.cispo; agents.cispo.Config()",
        "from agents.rgpo import Config; assert repr(Config(sharpness=2.0)).startswith('Config(')",
        "from agents import sapo, trpo; sapo.Config(), trpo.Config()",
    ):
        subprocess.run([sys.executable, "-c", source], cwd=README.parent, check=True, timeout=300)


def test_hyphens_may_stand_for_underscores():
    assert agents.load("truncated-importance") is agents.load("truncated_importance")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("rgp0", "rgpo"),
        ("PPO2", None),
        ("trop", "trpo"),
        ("importanse", "importance"),
        ("truncated-importence", "truncated_importance"),
    ],
)
def test_wrong_name_gives_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=r"known are .*\brgpo\b.*\bawr\b") as caught:
        agents.load(wrong)
    hint = f"did you mean {nearest}" if nearest else "known are"
    assert str(caught.value).startswith(hint)


@pytest.mark.parametrize("name", ["gated", "__init__", "", "rgpo.make", "os"])
def test_what_is_no_agent_is_not_imported(name):
    with pytest.raises(ValueError, match="known are"):
        agents.load(name)


def test_load_among_some_refuses_the_others():
    with pytest.raises(ValueError, match="known are rgpo, ppo") as caught:
        agents.load("trpo", among=agents.GATE_AGENTS)
    assert "awr" not in str(caught.value)


@each_gate_agent
def test_own_fields_are_the_gates_parameters_and_defaults(name):
    parameters = inspect.signature(gates.CONSTRUCTORS[name]).parameters.values()
    assert list(own_fields(name).items()) == [(p.name, p.default) for p in parameters]


@each_gate_agent
def test_default_config_gives_the_default_gate(name):
    module = agents.load(name)
    actual, expected = module.gate(module.Config()), gates.CONSTRUCTORS[name]()
    assert actual.function is expected.function
    assert actual.numbers == expected.numbers
    assert actual.options == expected.options


def other_values(name):
    """One value per setting that is legal and no default, and differs between those of one gate."""
    first = {"a number between 0 and 1, both excluded": 0.3, "a number above 1": 3.0}
    numbers = {n.field: first.get(n.accepted, 0.5) for n in NUMBERS[name]}
    values = {field: first + 0.25 * i for i, (field, first) in enumerate(numbers.items())}
    return values | {option: choices[-1] for option, choices in OPTIONS[name].items()}


@each_gate_agent
def test_config_reaches_the_gate(name):
    module, values = agents.load(name), other_values(name)
    assert set(values) == set(own_fields(name))
    assert not set(values.items()) & set(own_fields(name).items())
    assert module.gate(module.Config(**values)) == gates.make(name, **values)


@each_gate_agent
def test_config_and_gate_refuse_the_same_values(name):
    module, constructor = agents.load(name), gates.CONSTRUCTORS[name]
    numbers = (-INF, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, INF, NAN)
    for field in own_fields(name):
        for value in (*OPTIONS[name].get(field, numbers), "cubic", None):
            assert refuses(module.Config, ConfigError, {field: value}) == refuses(
                constructor, ValueError, {field: value}
            ), (field, value)


def refuses(function, error, settings):
    try:
        function(**settings)
    except error:
        return True
    return False


@each_gate_agent
def test_gate_agents_share_all_other_defaults(name):
    config = agents.load(name).Config()
    assert {field: getattr(config, field) for field in BASE} == BASE


@pytest.mark.parametrize(
    ("name", "gate"),
    [("a2c", gates.reinforce()), ("awr", gates.reinforce()), ("trpo", gates.importance())],
)
def test_other_agents_have_the_gate_of_their_weight(name, gate):
    module = agents.load(name)
    assert module.gate(module.Config()) == gate


def test_what_cannot_make_an_agent_is_refused_where_it_is_made():
    env = SimpleNamespace(name="none")
    with pytest.raises(ValueError, match=r"of agents.ppo has no sharpness, .* one of agents.rgpo"):
        agents.rgpo.make(env, agents.ppo.Config())
    with pytest.raises(ValueError, match=r"of agents.ppo has no max_kl, .* one of agents.trpo"):
        agents.load("trpo").make(env, agents.ppo.Config(), gate=gates.rgpo())
    with pytest.raises(ValueError, match="a gate of two ratios, which is for language models"):
        gates.checked(gates.dual_min())


def test_a2c_looks_at_a_batch_once():
    # That is what makes its ratio 1, and its gate irrelevant but for w(1).
    config = agents.load("a2c").Config()
    assert (config.num_epochs, config.num_minibatches) == (1, 1)
