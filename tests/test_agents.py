"""The registry, and that an agent's Config and its gate say the same."""

import dataclasses
import inspect
import pathlib

import pytest

import agents
from rgpo_jax import gates
from rgpo_jax.config import Config, ConfigError

BASE = {field.name: field.default for field in dataclasses.fields(Config)}
NAN, INF = float("nan"), float("inf")
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


def test_every_file_is_in_the_registry():
    files = {path.stem for path in pathlib.Path(agents.__file__).parent.glob("*.py")}
    assert files - {"__init__", "gated"} == set(agents.NAMES)
    assert len(set(agents.NAMES)) == len(agents.NAMES)


def test_there_is_an_agent_for_every_gate():
    assert set(agents.GATE_AGENTS) == set(gates.CONSTRUCTORS)


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


# One value per field that is legal and no default, and differs between fields of one gate.
OTHER_VALUES = {
    "rgpo": {"sharpness": 2.5, "form": "log", "normalize": True, "call_back": True},
    "ppo": {"clip": 0.3, "clip_high": 0.4, "dual_clip": 3.0},
    "reinforce": {},
    "importance": {},
    "truncated_importance": {"cap": 2.0},
    "cispo": {"low": 0.8, "high": 1.28},
    "sapo": {"temperature_positive": 2.0, "temperature_negative": 3.0},
    "p3o": {"temperature": 1.5},
    "spo": {"clip": 0.3},
    "rollback": {"clip": 0.3, "slope": 0.1},
    "topr": {},
    "smooth": {"kind": "arctan", "sharpness": 12.0},
}


@each_gate_agent
def test_config_reaches_the_gate(name):
    module, values = agents.load(name), OTHER_VALUES[name]
    assert set(values) == set(own_fields(name))
    assert module.gate(module.Config(**values)) == gates.make(name, **values)


@each_gate_agent
def test_config_and_gate_refuse_the_same_values(name):
    module, constructor = agents.load(name), gates.CONSTRUCTORS[name]
    for field, default in own_fields(name).items():
        if isinstance(default, bool):
            continue
        words = ("linear", "log", "erf", "arctan", "softsign", "cubic")
        numbers = (-INF, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, INF, NAN)
        for value in words if isinstance(default, str) else numbers:
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


def test_a2c_looks_at_a_batch_once():
    # That is what makes its ratio 1, and its gate irrelevant but for w(1).
    config = agents.load("a2c").Config()
    assert (config.num_epochs, config.num_minibatches) == (1, 1)
