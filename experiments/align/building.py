"""Builds the world and the agent of a plan, and the programs that train it."""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agents import language as methods
from experiments.align.plan import Plan
from experiments.training import devices
from experiments.training.building import describe_gate, made_of, members_of
from experiments.training.devices import Layout

if TYPE_CHECKING:
    import numpy as np

    from experiments.align.programs import ExactPrograms
    from rgpo_jax.language.agent import Agent
    from rgpo_jax.language.world import World


# What learns from pairs, and where that settles if it is no maximum of E[R] - beta KL.
OF_PAIRS = (*methods.FROM_DATA, *methods.FROM_OWN_PAIRS)
_SETTLES = {
    "ipo": "where its loss is least, log(pi / ref) = E_ref[P(preferred) - 1/2] / beta + constant",
    "rpo": "where its loss is least, by Newton's method",
}


def use_all_cores(plan: Plan, num_members: int) -> None:
    """Makes devices of the cores, over which members are spread; before JAX is loaded."""
    if plan.is_exact:
        layout = devices.seeds_alone(num_members, devices.num_cores())
        devices.make_devices(layout.num_devices)
    else:  # one model, whose large operations use all cores by themselves
        devices.make_devices(plan.options.fsdp * plan.options.tp)


def make_world(plan: Plan) -> "World":
    """One of the exact worlds."""
    module = importlib.import_module(f"envs.language.{plan.options.world}")
    world: World = module.make(problem=plan.options.problem)
    return world


def make_agent(plan: Plan, world: "World") -> "Agent":
    """The plan's method, made for a world."""
    agent: Agent = methods.load(plan.options.method).make(world, plan.config)
    return agent


def targets_of(
    plans: Sequence[Plan], world: "World", agents: "Sequence[Agent]"
) -> "list[np.ndarray | None]":
    """Where each plan's method settles in its exact world [N, answers]; None where not known.

    Args:
      plans: in the same world.
      world: theirs.
      agents: one for each, whose gate has the plan's numbers.
    """
    import numpy as np

    from rgpo_jax import gates
    from rgpo_jax.language import pair_targets, targets
    from rgpo_jax.language.world import all_log_probs

    assert world.enumeration is not None
    reward = np.asarray(world.enumeration.reward)
    references: dict[float, np.ndarray] = {}  # temperature -> of all answers

    def reference_of(plan: Plan) -> "np.ndarray":
        temperature = plan.config.temperature
        if temperature not in references:
            log_probs = all_log_probs(world, None, world.frozen, temperature)
            references[temperature] = np.exp(np.asarray(log_probs))
        return references[temperature]

    def of_one(plan: Plan, agent: "Agent") -> "np.ndarray | None":
        if plan.method in OF_PAIRS:
            return pair_targets.settled(plan.method, plan.config, reference_of(plan), reward)
        if plan.is_zeroth or not targets.has_sequence_targets(plan.config, world.policy.max_tokens):
            return None
        gate = agent.learner.hyperparameters.gate
        dual = gates.is_dual(gate)
        return targets.stationary_policy(plan.config, gate, dual, reference_of(plan), reward)

    return [of_one(plan, agent) for plan, agent in zip(plans, agents, strict=True)]


def describe_target(plan: Plan, target: "np.ndarray | None") -> str:
    """A line on where the method settles."""
    config = plan.config
    if plan.method in OF_PAIRS:
        if target is None:
            return "no target is known for these settings; reward and KL are exact all the same"
        of_own = "the maximum of E[R] - beta KL(pi || ref), pi = ref exp(R / beta) / Z"
        number = getattr(config, "num_pairs", None)
        here = "" if number is None else f"; with pairs without end, of which there are {number:,}"
        return f"target: {_SETTLES.get(plan.method, of_own)}{here}"
    if plan.is_zeroth:
        return "no interior target: without a KL term the policy goes to the best answers"
    if target is not None and config.kl == "reward":
        return "target: the maximum of E[R] - beta KL(pi || ref), pi = ref exp(R / beta) / Z"
    if target is not None:
        return "target: where the method's own expected gradient is 0, worked out apart"
    if config.kl_coefficient == 0:
        return "no interior target: without a KL term the policy goes to the best answers"
    return "no target is known for these settings; reward and KL are exact all the same"


def make_programs(
    plans: Sequence[Plan],
    world: "World",
    agent: "Agent",
    targets: "Sequence[np.ndarray | None]",
) -> "ExactPrograms":
    """Of plans that differ in seeds and traced numbers alone, over the devices that JAX has.

    Args:
      plans: in an exact world.
      world: theirs.
      agent: of any of them.
      targets: where each settles [N, answers]; None where that is not known.
    """
    import jax
    import numpy as np

    from experiments.align.programs import ExactPrograms

    assert world.enumeration is not None
    members = members_of(plans)
    unknown = np.full(world.enumeration.reward.shape, np.nan)
    by_member = [
        unknown if target is None else target
        for plan, target in zip(plans, targets, strict=True)
        for _ in plan.seeds
    ]
    layout: Layout = devices.seeds_alone(len(members.seeds), jax.local_device_count())
    known_by = made_of(plans[0].options, plans[0].config, layout, members)
    return ExactPrograms(world, agent, layout, members, np.stack(by_member), known_by)


def with_entries(plan: Plan, agent: "Agent", **more: Any) -> Plan:
    """The plan with what config.json says of gate and subject, and more."""
    numbers = agent.learner.hyperparameters
    functions = {name: getattr(numbers, name, None) for name in ("gate", "loss")}
    entries = {
        **{k: describe_gate(x, plan.config) for k, x in functions.items() if x is not None},
        "subject": plan.subject(),
        **more,
    }
    return dataclasses.replace(plan, entries={**plan.entries, **entries})
