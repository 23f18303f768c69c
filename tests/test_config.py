"""What a Config accepts, how it refuses, and that reading one does not wait for JAX."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from setting_probes import WORDS, literal, ranged, switches

import agents
from rgpo_jax.config import Config, ConfigError

NAN, INF = math.nan, math.inf
CONFIGS = {name: agents.load(name).Config for name in agents.NAMES}

RANGED = {f"{name}-{s.field}": s for name, config in CONFIGS.items() for s in ranged(config)}
LITERAL = {
    f"{name}-{field}": (config, field, options)
    for name, config in CONFIGS.items()
    for field, options in literal(config)
}
each_ranged = pytest.mark.parametrize("setting", RANGED.values(), ids=RANGED.keys())
each_literal = pytest.mark.parametrize(
    ("config", "field", "options"), LITERAL.values(), ids=LITERAL.keys()
)
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


SINGLE = {"num_envs": 1, "num_steps": 1, "num_minibatches": 1}


def refusal(config, field, value, **others):
    """The message of the ConfigError that a value of a field raises."""
    with pytest.raises(ConfigError) as caught:
        config(**{field: value}, **others)
    assert caught.value.field == field
    assert str(caught.value) == f"{field} {caught.value.message}"
    return caught.value.message


@each_config
def test_every_field_is_ranged_literal_or_a_switch(config):
    # So that the tests below leave no field out, and no field goes unchecked.
    checked = {s.field for s in ranged(config)} | {field for field, _ in literal(config)}
    names = {"network"}  # of the suite's, or MODULE:NAME (tests/test_own_networks.py)
    fields = {field.name for field in dataclasses.fields(config)}
    assert checked | set(switches(config)) | names == fields


@each_ranged
def test_out_of_range_is_refused(setting):
    for value in (*WORDS[setting.accepted][0], NAN, INF, -INF, "0.5"):
        message = refusal(setting.config, setting.field, (value,) if setting.many else value)
        assert message == f"{value}: expected {setting.accepted}"


@each_ranged
def test_none_is_refused_but_where_it_has_a_meaning(setting):
    if setting.optional:
        assert getattr(setting.config(**{setting.field: None}), setting.field) is None
    else:
        assert setting.accepted in refusal(setting.config, setting.field, None)


def test_numbers_of_other_libraries_and_lists_are_pythons():
    given = Config(
        discount=1,
        learning_rate=np.float32(0.25),
        target_kl=jnp.float32(0.5),
        num_envs=np.int64(8),
        hidden_sizes=[np.int64(32), 16],
        warmup_steps=jnp.int32(128),
    )
    plain = Config(
        discount=1.0,
        learning_rate=0.25,
        target_kl=0.5,
        num_envs=8,
        hidden_sizes=(32, 16),
        warmup_steps=128,
    )
    assert given == plain
    assert hash(given) == hash(plain)
    assert given.traced() == plain.traced()
    assert json.dumps(dataclasses.asdict(given)) == json.dumps(dataclasses.asdict(plain))
    assert refusal(Config, "num_envs", np.float32(8)).startswith("8.0: expected a whole number")
    assert refusal(Config, "discount", jnp.ones(2)).endswith("expected a number from 0 to 1")
    assert "optimizer=" in refusal(Config, "learning_rate", lambda step: 1e-3)
    with pytest.raises(ConfigError, match=r"learning_rate .*expected a number above 0"):
        jax.jit(lambda rate: Config(learning_rate=rate) and rate)(1e-3)


def test_the_advantage_of_a_single_step_is_not_normalised():
    message = refusal(Config, "normalize_advantages", True, **SINGLE)
    assert message.startswith("True: expected False")
    assert Config(normalize_advantages=False, **SINGLE).batch_size == 1
    over = {"normalize_advantages_over": "minibatch"}
    message = refusal(Config, "normalize_advantages", True, num_steps=1, num_minibatches=4, **over)
    assert "a minibatch is one step" in message
    message = refusal(Config, *next(iter(over.items())), normalize_advantages=False)
    assert message == "minibatch: expected rollout without normalize_advantages"


@each_ranged
def test_in_range_is_accepted(setting):
    losses = ("target_kl", "kl_coefficient", "value_clip")
    if setting.field in losses and setting.config is agents.load("trpo").Config:
        assert "expected None" in refusal(setting.config, setting.field, 0.01)
        return
    more = {"num_epochs": 2} if setting.field == "target_kl" else {}  # there is none to skip in one
    for value in WORDS[setting.accepted][1]:
        given = (value,) if setting.many else value
        if setting.field == "total_steps":
            given = 10_000 * value  # fewer than one update's is refused for another reason
        config = setting.config(**{setting.field: given}, **more)
        assert getattr(config, setting.field) == given


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total_steps", 10_000.5),
        ("num_envs", 4.5),
        ("num_epochs", 1.5),
        ("num_epochs", True),
        ("reset_pool_size", 0.5),
        ("hidden_sizes", (64.5,)),
        ("channels", (16.5,)),
    ],
)
def test_a_fraction_is_no_whole_number(field, value):
    assert "expected a whole number" in refusal(Config, field, value)


def test_a_number_is_no_tuple_and_a_tuple_no_number():
    assert "expected a tuple" in refusal(Config, "hidden_sizes", 64)
    assert "expected a number" in refusal(Config, "discount", (0.9, 0.8))


def test_a_word_is_no_switch():
    assert "expected True or False" in refusal(Config, "normalize_advantages", "no")


@pytest.mark.parametrize("field", ["hidden_sizes", "channels"])
def test_one_bad_size_among_good_ones_is_refused(field):
    assert refusal(Config, field, (64, 0)) == "64 0: expected a whole number of at least 1"


@each_literal
def test_unknown_name_is_refused_with_the_known_ones(config, field, options):
    assert refusal(config, field, "nope") == f"'nope': expected one of {', '.join(options)}"


@each_literal
def test_known_names_are_accepted(config, field, options):
    if field == "normalize_advantages_over" and config is agents.load("trpo").Config:
        assert refusal(config, field, "minibatch").endswith("expected rollout with TRPO")
        return
    assert [getattr(config(**{field: option}), field) for option in options] == list(options)


@each_config
def test_minibatches_must_divide_the_batch(config):
    with pytest.raises(ConfigError) as caught:
        config(num_envs=3, num_steps=5, num_minibatches=4)
    assert caught.value.field == "num_minibatches"
    assert caught.value.message == "4: expected a divisor of num_envs * num_steps = 3 * 5 = 15"
    assert config(num_envs=3, num_steps=5, num_minibatches=15).batch_size == 15


@each_config
def test_total_steps_must_reach_one_update(config):
    with pytest.raises(ConfigError) as caught:
        config(num_envs=2, num_steps=8, num_minibatches=1, total_steps=15)
    assert caught.value.field == "total_steps"
    assert caught.value.message.startswith("15: expected at least one update")
    assert caught.value.message.endswith("2 * 8 = 16")
    assert config(num_envs=2, num_steps=8, num_minibatches=1, total_steps=16).num_updates == 1


@pytest.mark.parametrize(
    ("total_steps", "num_updates"),
    [(16, 1), (17, 2), (31, 2), (32, 2), (33, 3), (1_000_000, 62500)],
)
def test_num_updates_rounds_up(total_steps, num_updates):
    config = Config(num_envs=2, num_steps=8, total_steps=total_steps)
    assert config.num_updates == num_updates


def test_num_updates_is_exact_beyond_float_precision():
    config = Config(num_envs=2**10, num_steps=2**16, total_steps=2**56 + 1)
    assert config.num_updates == 2**30 + 1


@pytest.mark.parametrize(
    "settings", [{"num_envs": 10**30}, {"num_envs": 1, "num_steps": 4, "total_steps": 10**12}]
)
def test_what_int32_cannot_count_is_refused(settings):
    with pytest.raises(ConfigError, match=r"2\^31"):
        Config(**settings)


@pytest.mark.parametrize("high", [0.5, 1.0])
def test_cispo_needs_high_above_low(high):
    message = refusal(agents.load("cispo").Config, "high", high, low=1.0)
    assert message == f"{high}: expected a number above low = 1.0"


def test_replace_checks_again():
    with pytest.raises(ConfigError, match="num_envs 0"):
        dataclasses.replace(Config(), num_envs=0)


def test_config_error_is_a_value_error():
    with pytest.raises(ValueError, match=r"^discount 1\.5: expected a number from 0 to 1$"):
        Config(discount=1.5)


@each_config
def test_config_is_frozen_and_hashable(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().num_envs = 8
    assert hash(config()) == hash(config())
    assert config() == config() != config(num_epochs=7)


@each_config
def test_config_takes_keywords_only(config):
    with pytest.raises(TypeError, match="positional"):
        config(1000)


@each_config
def test_unknown_setting_is_a_type_error(config):
    with pytest.raises(TypeError, match="num_env"):
        config(num_env=4)


# Prints after which step which of the slow packages were loaded.
LAZY = """
import importlib, json, sys
def loaded(): return sorted({"jax", "flax", "optax", "numpy"} & set(sys.modules))
steps = {}
import rgpo_jax; steps["rgpo_jax"] = loaded()
import rgpo_jax.config; steps["config"] = loaded()
import agents; steps["agents"] = loaded()
for name in agents.NAMES:
    module = agents.load(name); steps[name] = loaded()
    module.Config(); steps[name + ".Config()"] = loaded()
rgpo_jax.gates; steps["gates"] = loaded()
print(json.dumps(steps))
"""


def test_reading_configs_does_not_load_jax():
    root = pathlib.Path(__file__).parent.parent
    process = subprocess.run(
        [sys.executable, "-c", LAZY], cwd=root, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    steps = json.loads(process.stdout)
    assert "jax" in steps.pop("gates")  # the first use of JAX is seen where there is one
    assert len(steps) == 3 + 2 * len(agents.NAMES)
    assert {step: packages for step, packages in steps.items() if packages} == {}
