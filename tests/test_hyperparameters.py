"""Numbers and functions of an update: what is traced, what is replaced, and what agents share."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import OBSERVATION_ACTION, Tabular
from update_cases import Case, case

import agents
from rgpo_jax import gates

NAMES = ("rgpo", "ppo", "reinforce")


@functools.cache
def built(name):
    """An agent, and the shapes of its state with the gate's numbers."""
    agent = agents.load(name).make(Tabular(OBSERVATION_ACTION))
    return agent, jax.eval_shape(agent.init, jax.random.key(0))


def with_gate(state, gate):
    hyperparameters = state.learner.hyperparameters.replace(gate=gate)
    return state._replace(learner=state.learner._replace(hyperparameters=hyperparameters))


def program(agent, state):
    """The step as text, without addresses in memory."""
    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(agent.step)(state)))


@pytest.mark.parametrize("gate_of", NAMES)
def test_rgpo_ppo_and_reinforce_are_one_program_given_one_gate(gate_of):
    gate = built(gate_of)[1].learner.hyperparameters.gate
    programs = {program(agent, with_gate(state, gate)) for agent, state in map(built, NAMES)}
    assert programs == {program(*built(gate_of))}


def test_rgpo_ppo_and_reinforce_are_different_programs_by_themselves():
    assert len({program(*built(name)) for name in NAMES}) == len(NAMES)


def test_the_hyperparameters_of_rgpo_ppo_and_reinforce_differ_in_the_gate_alone():
    defaults = [built(name)[0].learner.hyperparameters for name in NAMES]
    assert len({h.gate.function for h in defaults}) == len(NAMES)
    first, *others = [h.replace(gate=None) for h in defaults]
    for other in others:
        assert jax.tree.structure(other) == jax.tree.structure(first)
        assert jax.tree.leaves(other) == jax.tree.leaves(first)


def test_replace_sets_numbers_of_the_update_and_of_the_gate():
    before = Case(gates.rgpo(4.0)).learner.hyperparameters
    after = before.replace(discount=0.5, sharpness=2.0)
    assert (after.discount, after.gate.numbers) == (0.5, {"sharpness": 2.0})
    assert (before.discount, before.gate.numbers) == (np.float32(0.99), {"sharpness": 4.0})
    types = [(x.dtype, x.weak_type) for x in jax.tree.leaves(after)]  # else it is another program
    assert set(types) == {(jnp.dtype("float32"), False)}
    assert after.replace(discount=before.discount, sharpness=before.gate.numbers["sharpness"])


def test_replace_reaches_every_function_of_the_update():
    transformed = case("awr").learner.hyperparameters.replace(advantage_cap=7.0)
    assert transformed.advantage_transform.numbers["advantage_cap"] == 7.0
    stepped = case("trpo").learner.hyperparameters.replace(max_kl=0.5)
    assert stepped.policy_step.numbers["max_kl"] == 0.5


def test_replace_names_what_there_is():
    hyperparameters = case("trpo").learner.hyperparameters
    with pytest.raises(TypeError, match=r"'sharpness'.*learning_rate.*max_kl"):
        hyperparameters.replace(sharpness=2.0)
    with pytest.raises(TypeError, match=r"'lerning_rate'.*learning_rate"):
        hyperparameters.replace(lerning_rate=1.0)


def test_defaults_come_from_the_config_as_float32():
    hyperparameters = case("ppo").learner.hyperparameters
    config = case("ppo").config
    for name in (
        "learning_rate",
        "discount",
        "gae_lambda",
        "reward_scale",
        "entropy_coefficient",
        "value_coefficient",
        "max_grad_norm",
    ):
        value = getattr(hyperparameters, name)
        assert value.dtype == jnp.float32
        assert value == np.float32(getattr(config, name)), name
    assert hyperparameters.target_kl is None
    assert hyperparameters.gate.numbers["clip"] == np.float32(0.2)
