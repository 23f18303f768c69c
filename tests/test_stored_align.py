"""Programs of alignment are found on disk, and never those of other settings, models or data."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from storing import assert_same_programs, wait_until_kept, with_other_numbers
from text_places import LAST, PROMPTS, SMALL, write_place

from agents import language as methods
from envs.language import bandit
from experiments.align import building, text_building
from experiments.align.plan import read_plan
from experiments.training.building import made_of, members_of
from experiments.training.compiling import Compiler
from experiments.training.devices import Layout
from rgpo_jax.language.world import expectations

pytestmark = pytest.mark.usefixtures("stored")
# Numbers that only some settings accept.
UNREAD = ("kl_horizon", "length_constant", "end_learning_rate")
TINY = ["--num-updates", "4", "--num-prompts", "3", "--group-size", "4", "--num-seeds", "2"]


def plan_of(*flags):
    return read_plan([*TINY, *flags])


def known_by(plan):
    return json.dumps(made_of(plan.options, plan.config, Layout(), members_of([plan])))


@pytest.mark.alike
@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", "7", "--num-updates", "9", "--learning-rate", "1e-4", "--sharpness", "2"],
        ["--kl-coefficient", "0.3", "--temperature", "0.7", "--warmup-updates", "2"],
        ["--log-every", "16", "--checkpoint-every", "0", "--keep-best"],
    ],
)
def test_numbers_and_lengths_are_not_what_programs_are_made_of(flags):
    assert known_by(plan_of(*flags)) == known_by(plan_of())


@pytest.mark.alike
@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "grpo"],
        ["--dual", "min"],
        ["--world", "tree"],
        ["--problem", "1"],
        ["--group-size", "8"],
        ["--num-seeds", "3"],
        ["--kl-target", "0.1"],
        ["--learning-rate-schedule", "cosine"],
        ["--kl", "direct"],
    ],
)
def test_all_else_is(flags):
    assert known_by(plan_of(*flags)) != known_by(plan_of())


@pytest.mark.alike
@pytest.mark.parametrize(
    "flags",
    [
        *([name] for name in methods.NAMES),
        ["rgpo", "--kl-target", "0.1"],
        ["zpg", "--learning-rate-schedule", "linear"],
        # What is none by default.
        [
            *("rgpo", "--target-kl", "0.1", "--entropy-coefficient", "0.1", "--mix", "0.3"),
            *("--old-kl-coefficient", "0.1", "--missing-end", "0.5"),
        ],
        ["online_dpo", "--missing-end", "0.5"],
        [
            *("grpo", "--kl", "published", "--kl-estimator", "k3", "--target-kl", "0.1"),
            *("--missing-end", "0.5"),
        ],
    ],
    ids=" ".join,
)
def test_no_number_is_part_of_a_program(flags):
    """What is found by its settings would else be of other numbers, and nobody would notice."""
    plan = read_plan(["--method", *flags])
    changed = dataclasses.replace(plan, config=with_other_numbers(plan.config, UNREAD))
    assert known_by(changed) == known_by(plan)
    world = bandit.make()

    def traced(plan):
        agent = building.make_agent(plan, world)
        overrides = members_of([plan]).overrides()
        one = {name: jax.ShapeDtypeStruct((), values.dtype) for name, values in overrides.items()}

        def evaluate(state):
            temperature = state.learner.hyperparameters.temperature
            target = jnp.zeros_like(world.enumeration.reward)
            return expectations(world, state.learner.params, world.frozen, target, temperature)

        init, state = jax.make_jaxpr(agent.init, return_shape=True)(
            jax.random.key(0), world.frozen, **one
        )
        step = jax.make_jaxpr(agent.step)(state, world.frozen, world.prompts)
        return [init, step, jax.make_jaxpr(evaluate)(state)]

    assert_same_programs(traced(plan), traced(changed))


@pytest.mark.alike
def test_an_exact_world_is_found_and_gives_the_same():
    one_step = ["--num-epochs", "1", "--num-minibatches", "1"]
    plan = plan_of(*one_step)
    world = building.make_world(plan)

    def trained(plan):
        agent = building.make_agent(plan, world)
        programs = building.make_programs(
            [plan], world, agent, building.targets_of([plan], world, [agent])
        )
        programs.ready()
        states, progress = programs.advance(programs.initial_states, programs.start(), 2)
        return programs, programs.finish(progress).metrics, programs.evaluate(states, 2, True)

    made, metrics, evaluated = trained(plan)
    wait_until_kept()
    found, same_metrics, same = trained(plan)
    assert (made.compiler.was_found, found.compiler.was_found) == (False, True)
    assert (found.metric_names, found.memory_bytes) == (made.metric_names, made.memory_bytes)
    assert evaluated == same
    assert metrics.keys() == same_metrics.keys()
    assert all(np.array_equal(metrics[name], same_metrics[name]) for name in metrics)
    # Other numbers find the same programs, and are the ones that it learns with.
    other, _, evaluated_otherwise = trained(plan_of(*one_step, "--learning-rate", "0.5"))
    assert other.compiler.was_found
    assert evaluated_otherwise["reward"] != evaluated["reward"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where a tiny model is, and texts to train it on."""
    monkeypatch.chdir(write_place(tmp_path))
    return tmp_path


def prepared(place, *flags):
    part = [] if "--train" in flags else LAST
    plan = read_plan([*SMALL, *part, "--max-tokens", "2", *flags])
    return text_building.prepare(plan, place / "out")


def test_a_model_is_found_with_other_prompts_and_numbers_of_the_same_shapes(place):
    first = prepared(place)
    made = first.make_programs()
    made.ready()
    wait_until_kept()
    (place / "prompts.txt").write_text("\n\n".join(reversed(PROMPTS)) + "\n")
    found = prepared(place, "--learning-rate", "0.1", "--seed", "4").make_programs()
    assert (made.compiler.was_found, found.compiler.was_found) == (False, True)
    found.ready()
    assert (found.metric_names, found.memory_bytes) == (made.metric_names, made.memory_bytes)
    assert found.initial_states.learner.hyperparameters.learning_rate == np.float32(0.1)
    after, _ = found.advance(found.initial_states, found.start(), 1)
    assert after.learner.updates == 1


@pytest.mark.alike
@pytest.mark.parametrize("flags", [["--train", "lora", "--method", "ppo"], ["--train", "full"]])
def test_no_number_is_part_of_a_models_programs(flags, place, monkeypatch):
    programs = []
    monkeypatch.setattr(
        Compiler,
        "obtain",
        lambda self, made_of, lowered: (
            programs.append([one.lowered.as_text() for one in lowered]) or [None] * 4
        ),
    )
    one = prepared(place, *flags)
    config = with_other_numbers(one.plan.config, UNREAD)
    plan = dataclasses.replace(one.plan, config=config)
    agent = building.make_agent(plan, one.text.world)
    one.make_programs()
    dataclasses.replace(one, plan=plan, agent=agent).make_programs()
    assert len(programs[0]) == 4
    assert programs[0] == programs[1]


def test_one_of_another_shape_or_other_ends_is_not(place, monkeypatch):
    """What a program is known by, of which nothing is traced."""
    known = []
    monkeypatch.setattr(
        Compiler, "obtain", lambda self, made_of, lowered: known.append(made_of) or [None] * 4
    )
    same, first = prepared(place), prepared(place)
    first.make_programs(), same.make_programs()
    model = first.text.model
    for other in (
        first.text._replace(model=model._replace(end_ids=(5,))),
        first.text._replace(model=model._replace(pad_id=6)),
        first.text._replace(training=dataclasses.replace(first.text.training, num_last_layers=2)),
        first.text._replace(
            held_out_prompts=jax.tree.map(lambda x: x[1:], first.text.held_out_prompts)
        ),
    ):
        dataclasses.replace(first, text=other).make_programs()
    prepared(place, "--gold", "my_rewards:length").make_programs()
    one, again, *others = map(json.dumps, known)
    assert one == again
    assert len({one, *others}) == 1 + len(others)
