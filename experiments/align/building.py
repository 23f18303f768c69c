"""Builds the world and the agent of a plan, and the programs that train it."""

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from agents import language as methods
from experiments.align.plan import Plan
from experiments.training import devices
from experiments.training.devices import Layout

if TYPE_CHECKING:
    import numpy as np

    from experiments.align.programs import ExactPrograms
    from experiments.training.programs import Members
    from rgpo_jax.language.agent import Agent
    from rgpo_jax.language.world import World


def use_all_cores(plan: Plan) -> None:
    """Makes devices of the cores, over which seeds are spread; before JAX is loaded."""
    if plan.is_exact:
        layout = devices.seeds_alone(len(plan.seeds), devices.num_cores())
        devices.make_devices(layout.num_devices)
    else:  # one model, whose large operations use all cores by themselves
        devices.make_devices(1)


def make_world(plan: Plan) -> "World":
    """One of the exact worlds."""
    module = importlib.import_module(f"envs.language.{plan.options.world}")
    world: World = module.make(problem=plan.options.problem)
    return world


def make_agent(plan: Plan, world: "World") -> "Agent":
    """The plan's method, made for a world."""
    agent: Agent = methods.load(plan.options.method).make(world, plan.config)
    return agent


def members_of(plan: Plan) -> "Members":
    """Its seeds, with the numbers of its Config."""
    from experiments.training.programs import Members

    # All numbers are arguments, so that other ones find the same program in the cache.
    names = (*plan.config.traced(), "annealing")
    numbers = {name: (getattr(plan.config, name),) * len(plan.seeds) for name in names}
    return Members(tuple(plan.seeds), numbers)


def target_of(plan: Plan, world: "World", agent: "Agent") -> "np.ndarray | None":
    """Where the method settles in an exact world [N, answers]; None where that is not known."""
    import numpy as np

    from rgpo_jax.language import learner, targets
    from rgpo_jax.language.world import all_log_probs

    assert world.enumeration is not None
    if not targets.has_sequence_targets(plan.config, world.policy.max_tokens):
        return None
    gate = agent.learner.hyperparameters.gate
    temperature = plan.config.temperature
    reference = np.exp(np.asarray(all_log_probs(world, None, world.frozen, temperature)))
    reward = np.asarray(world.enumeration.reward)
    return targets.stationary_policy(plan.config, gate, learner.is_dual(gate), reference, reward)


def describe_target(plan: Plan, target: "np.ndarray | None") -> str:
    """A line on where the method settles."""
    config = plan.config
    if target is not None and config.kl == "reward":
        return "target: the maximum of E[R] - beta KL(pi || ref), pi = ref exp(R / beta) / Z"
    if target is not None:
        return "target: where the method's own expected gradient is 0, worked out apart"
    if config.kl_coefficient == 0:
        return "no interior target: without a KL term the policy goes to the best answers"
    return "no target is known for these settings; reward and KL are exact all the same"


def make_programs(
    plan: Plan, world: "World", agent: "Agent", target: "np.ndarray | None"
) -> "ExactPrograms":
    """Of an exact world, over the devices that JAX has."""
    import jax
    import numpy as np

    from experiments.align.programs import ExactPrograms

    assert world.enumeration is not None
    number = len(plan.seeds)
    if target is None:
        target = np.full(world.enumeration.reward.shape, np.nan)
    layout: Layout = devices.seeds_alone(number, jax.local_device_count())
    targets = np.broadcast_to(target, (number, *target.shape))
    return ExactPrograms(world, agent, layout, members_of(plan), targets)


def with_entries(plan: Plan, agent: "Agent", **more: Any) -> Plan:
    """The plan with what config.json says of gate and subject, and more."""
    from experiments.training.building import describe_gate

    entries = {
        "gate": describe_gate(agent.learner.hyperparameters.gate, plan.config),
        "subject": plan.subject(),
        **more,
    }
    return dataclasses.replace(plan, entries={**plan.entries, **entries})
