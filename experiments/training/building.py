"""Builds the agent of a plan, for the devices there are, and the programs that train it."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import agents
from experiments.cli import flags
from experiments.cli.flags import BadInput
from experiments.plan import own
from experiments.plan.options import ControlOptions
from experiments.plan.reading import Plan
from experiments.plan.run_options import RunOptions
from experiments.training import devices
from experiments.training.every import Every
from experiments.training.subject import Planned
from rgpo_jax.config import Config, is_own_network

if TYPE_CHECKING:
    from experiments.training.programs import EpisodePrograms, Episodes, Members
    from rgpo_jax.agent import Agent
    from rgpo_jax.callback import Callback
    from rgpo_jax.environment import AnyEnvironment
    from rgpo_jax.tunable import Tunable


def _flags_of_environment(options: ControlOptions) -> str:
    """What was typed that makes the environment."""
    typed = [
        "--env",
        options.env,
        *(["--backend", options.backend] if options.backend else []),
        *(["--env-kwargs", *options.env_kwargs] if options.env_kwargs else []),
        *(["--randomize", *options.randomize] if options.randomize else []),
    ]
    return " ".join(typed)


@contextlib.contextmanager
def _naming(typed: str) -> Iterator[None]:
    """Turns what environment and agent refuse into what the user should type otherwise."""
    try:
        yield
    except ValueError as error:
        raise BadInput(f"{typed}: {error}") from None


def _naming_agent(options: ControlOptions) -> contextlib.AbstractContextManager[None]:
    return _naming(f"--env {options.env} --agent {options.agent}")


def _make_environment(plan: Plan) -> "AnyEnvironment":
    with _naming(_flags_of_environment(plan.options)):
        return plan.env


def _make_bounded_environment(plan: Plan) -> "AnyEnvironment":
    """One that says what it is, and whose episodes end, so that evaluations do."""
    from rgpo_jax import inspection

    env = _make_environment(plan)
    with _naming(_flags_of_environment(plan.options)):
        inspection.check_spaces(env)
        if env.max_episode_steps is None:
            raise ValueError(
                "its episodes have no limit, and an evaluation needs whole ones: say "
                "--env-kwargs max_episode_steps=STEPS"
            )
    return env


def _own_network(plan: Plan, env: "AnyEnvironment") -> Any:
    """What --network MODULE:NAME makes for an environment; None where the suite's is meant."""
    name = plan.config.network
    if not is_own_network(name):
        return None
    with _naming_agent(plan.options):
        return own.network(name, env.observation_shape, env.action_space, plan.config)


def _assemble(
    plan: Plan, env: "AnyEnvironment", config: Config, network: Any, axis_name: str | None = None
) -> "Agent":
    """Builds gate and agent.

    Args:
      plan: of the run.
      env: its environment.
      config: the plan's; or that, fitted to devices.
      network: a user's own; None: the agent builds one.
      axis_name: see `rgpo_jax.agent.make`.
    """
    options = plan.options
    gate = None
    if options.gate is not None:
        if ":" in options.gate:
            gate = own.gate(options.gate)
        else:
            gate = agents.load(options.gate).gate(config)
    parts = {} if network is None else {"network": network}
    with _naming_agent(options):
        agent = own.agent(options.agent).make(env, config, gate, axis_name=axis_name, **parts)
    own.check(options.agent, agent, config)
    return agent


def callback_of(options: RunOptions) -> "Callback | None":
    """Imports the callback of a run; BadInput where there is none of its name."""
    return None if options.callback is None else own.function(options.callback, "--callback")


def make_agent(plan: Plan) -> "Agent":
    """Builds environment, gate and agent.

    Raises:
      BadInput: they do not fit together.
    """
    env = _make_environment(plan)
    return _assemble(plan, env, plan.config, _own_network(plan, env))


def _places(plan: Plan) -> dict[str, bool]:
    """Whether its environments live on the host, and whether its programs may be spread."""
    options = plan.options
    with _naming(_flags_of_environment(options)):
        on_host, on_mjx = plan.place
    if on_host and options.coordinator is not None:
        raise BadInput(
            f"--coordinator {options.coordinator}: {options.env} lives on the host of one process"
        )
    return {"on_host": on_host, "spread": devices.can_spread(on_mjx)}


def use_all_cores(plan: Plan, num_members: int) -> None:
    """Makes devices of the cores, for so many members of a plan side by side; before JAX is loaded.

    Raises:
      BadInput: they cannot be shared out among the processes that are to train them.
    """
    num_processes = plan.options.num_processes or 1
    devices.use_all_cores(plan.config, num_members, num_processes=num_processes, **_places(plan))


def make_spread_agent(plan: Plan, num_members: int) -> "tuple[Agent, devices.Layout]":
    """Builds the agent for so many members side by side on the devices there are, and its layout.

    Raises:
      BadInput: environment, gate and agent, or members and processes, do not fit together.
    """
    from rgpo_jax import networks

    layout = devices.Layout.choose(plan.config, num_members, **_places(plan))
    env = _make_bounded_environment(plan)
    network = whole = _own_network(plan, env)
    if not isinstance(whole, networks.Network):
        with _naming_agent(plan.options):
            spaces = env.observation_shape, env.action_space
            whole = networks.make(*spaces, plan.config, torso=network)
    config, layout = devices.fit_to_caches(plan.config, whole.num_weights, num_members, layout)
    return _assemble(plan, env, config, network, layout.axis_name), layout


def _qualified_name(function: Any) -> str:
    """module.name of a function, or of the class of a callable object."""
    named = function if hasattr(function, "__name__") else type(function)
    return f"{named.__module__}.{named.__name__.lstrip('_')}"


def describe_gate(gate: "Tunable", config: Any) -> dict[str, Any]:
    """Function, numbers and options of the gate that an agent with this config has."""
    numbers = {name: getattr(config, name, value) for name, value in gate.numbers.items()}
    return {
        "function": _qualified_name(gate.function),
        "numbers": {k: v if v is None else float(v) for k, v in numbers.items()},
        "options": dict(gate.options),
    }


def with_gate(plan: Plan, agent: "Agent") -> Plan:
    """The plan with the gate that the agent has with its config.

    It is for `config.json`; of plans side by side, which share an agent, each has its own.
    """
    description = describe_gate(agent.learner.hyperparameters.gate, plan.config)
    return dataclasses.replace(plan, entries={**plan.entries, "gate": description})


def members_of(plans: Sequence[Planned]) -> "Members":
    """The members of plans that differ in seeds and in traced numbers alone."""
    from experiments.training.programs import Members

    members = [(plan.config, seed) for plan in plans for seed in plan.seeds]
    # All numbers are arguments, so that other ones find the same program in the cache.
    names = (*plans[0].config.traced(), "annealing", "warmup_updates")
    return Members(
        tuple(seed for _, seed in members),
        {name: tuple(getattr(config, name) for config, _ in members) for name in names},
    )


def episodes_of(plan: Plan, agent: "Agent") -> "Episodes":
    """How many episodes an evaluation of a plan's run has."""
    from experiments.training.programs import Episodes

    evaluations = Every.make(plan.eval_every, 10, plan)
    return Episodes.within(
        plan.options.eval_share,
        plan.options.eval_episodes,
        agent.env.max_episode_steps,
        evaluations.interval * plan.batch_size,
    )


# What says which numbers go through the programs, how often they are called, and what is kept. All
# other settings are taken to shape them, those too that a later version brings.
_SHAPES_NO_PROGRAM = (
    *("seed", "num_seeds", "total_steps", "warmup_steps", "init_from"),
    *("num_updates", "warmup_updates"),
    *("log_every", "eval_every", "eval_episodes", "eval_share", "checkpoint_every", "keep_best"),
    *("loggers", "log_film"),
    *("learning_rate_schedule", "anneal_learning_rate"),  # see below
)


def programs_made_of(
    plan: Plan, agent: "Agent", layout: devices.Layout, members: "Members", episodes: "Episodes"
) -> dict[str, Any] | None:
    """What the programs of a plan, and of those beside it, depend on beside code and machine.

    None: they cannot be known by it, as a part of them is a user's own: code, or a file that the
    environment reads.
    """
    values = [value for _, _, value in (one.partition("=") for one in plan.options.env_kwargs)]
    if any(os.sep in value or Path(value).exists() for value in values):
        return None
    env = agent.env
    return made_of(
        plan.options,
        agent.config,
        layout,
        members,
        environment=[
            repr(x) for x in (env.observation_shape, env.action_space, env.max_episode_steps)
        ],
        episodes=episodes._asdict(),
    )


def made_of(
    options: RunOptions, config: Any, layout: devices.Layout, members: "Members", **more: Any
) -> dict[str, Any] | None:
    """What programs with these settings depend on beside code and machine, and more of it.

    None where a setting names a user's own code that is in the programs.
    """
    settings = flags.as_settings(options, config)
    if any(own.is_own(name, value) for name, value in settings.items() if name not in own.ON_HOST):
        return None
    numbers = config.traced()  # arguments of the programs
    return {
        "settings": {
            name: value
            for name, value in settings.items()
            if name not in numbers and name not in _SHAPES_NO_PROGRAM
        },
        "schedule": "linear" if config.schedule == "constant" else config.schedule,
        "members": [len(members.seeds), *sorted(members.hyperparameters)],
        "layout": dataclasses.asdict(layout),
        **more,
    }


def make_programs(
    agent: "Agent", layout: devices.Layout, plans: Sequence[Plan]
) -> "EpisodePrograms":
    """The programs that train plans side by side, wherever the agent's environment lives."""
    from experiments.training.host_programs import HostPrograms
    from experiments.training.programs import CompiledPrograms
    from rgpo_jax.environment import HostEnvironment

    kind = HostPrograms if isinstance(agent.env, HostEnvironment) else CompiledPrograms
    members, episodes = members_of(plans), episodes_of(plans[0], agent)
    made_of = programs_made_of(plans[0], agent, layout, members, episodes)
    return kind(agent, layout, members, episodes, made_of)
