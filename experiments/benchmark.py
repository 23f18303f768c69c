"""Speed: rollout, update and whole step, by environments and seeds; what a gate and an order cost.

Machines drift, so a comparison is a ratio: both programs in turn, A B A B, in one process.
"""

import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import agents
import envs
from experiments import command_line, devices
from experiments.command_line import BadInput
from rgpo_jax.config import Checked, Config, ConfigError
from rgpo_jax.ranges import AT_LEAST_ONE, Count, Positive

if TYPE_CHECKING:
    from rgpo_jax.agent import Agent, AgentState
    from rgpo_jax.rollout import Trajectory

PROG = "python -m experiments.benchmark"
MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Measure the speed of an agent, and pair it with another."""

    agent: str = "rgpo"
    """The agent to measure."""
    against: str = "ppo"
    """The agent to pair it with, at the smallest number of environments and of seeds."""
    env: str = "CartPole-v1"
    """Environment, with the settings of the agent."""
    num_envs: Annotated[tuple[int, ...], AT_LEAST_ONE] = (4, 64, 1024, 4096)
    """Numbers of environments."""
    num_seeds: Annotated[tuple[int, ...], AT_LEAST_ONE] = (1, 8)
    """Numbers of seeds, in one program. Seeds and environments are spread over devices as
    `experiments.run` spreads them."""
    num_steps: Count = 128
    """Steps of each environment between two updates."""
    seconds: Positive = 1.0
    """Least duration of one timing."""
    repeats: Count = 7
    """Timings of each program; the median counts. Pairs of the comparison: three times as many."""
    out: str | None = None
    """JSON file for the results; None: print only."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program (state, count) -> something, which repeats its work `count` times."""

    run: Callable[[Any, Any], Any]
    state: Any
    steps: int
    compile_seconds: float
    memory_bytes: int

    def seconds(self, count: int) -> float:
        """Wall time of `count` repetitions."""
        import jax

        started = time.perf_counter()
        jax.block_until_ready(self.run(self.state, count))
        return time.perf_counter() - started

    def calibrate(self, seconds: float) -> int:
        """A count whose run takes about so many seconds."""
        self.seconds(1)
        count = 1
        while (elapsed := self.seconds(count)) < seconds / 4:
            count *= 4
        return max(1, round(count * seconds / elapsed))


def collect(
    agent: "Agent", state: "AgentState", axis_name: str | None = None
) -> tuple["AgentState", "Trajectory"]:
    """The rollout of `agent.step` alone: the state after it, with the learner as it was.

    `axis_name`: that of `rgpo_jax.agent.make`.
    """
    import jax

    from rgpo_jax import rollout
    from rgpo_jax.spread import Spread

    key, rollout_key = jax.random.split(state.key)
    rollout_state, trajectory, _ = rollout.collect(
        agent.env,  # type: ignore[arg-type]
        functools.partial(agent.learner.policy, state.learner),
        state.rollout,
        rollout_key,
        agent.config.num_steps,
        agent.config.reset_pool_size,
        Spread(axis_name),
    )
    return state._replace(rollout=rollout_state, key=key), trajectory


def build(
    name: str,
    env: Any,
    options: Options,
    num_envs: int,
    num_seeds: int,
    part: str,
    seeds_in_turn: bool | None = None,
) -> Program:
    """Compiles "rollout", "update" or "step" of an agent, over seeds and devices.

    `seeds_in_turn`: whether seeds that share a device are trained one after another; None: where
    `experiments.run` does so.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from experiments.programs import SEEDS, STATES, memory_of
    from rgpo_jax import networks

    config = settings_of(name, options, num_envs)
    spread = devices.can_spread(envs.is_on_mjx(options.env))
    layout = devices.Layout.choose(config, num_seeds, spread=spread)
    num_weights = networks.make(env.observation_shape, env.action_space, config).num_weights
    config, layout = devices.fit_to_caches(config, num_weights, num_seeds, layout, seeds_in_turn)
    agent = agents.load(name).make(env, config, axis_name=layout.axis_name)
    keys = devices.seed_keys(layout.mesh(), range(num_seeds))
    trajectories = PartitionSpec("seed", None, "env")
    specs = (STATES if part != "update" else (SEEDS, trajectories), SEEDS)

    # Each repetition's output feeds the next, or is summed: nothing can be left out as dead.
    def checksum(tree: Any) -> Any:
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree))

    if part == "rollout":

        def body(_: Any, carry: Any) -> Any:
            state, total = carry
            state, trajectory = collect(agent, state, layout.axis_name)
            return state, total + checksum(trajectory)

        def once(key: Any) -> Any:
            return agent.init(key), jnp.zeros(())
    elif part == "update":

        def body(_: Any, carry: Any) -> Any:
            (learner, trajectory), total = carry
            learner, metrics = agent.learner.update(learner, trajectory)
            return (learner, trajectory), total + checksum(metrics)

        def once(key: Any) -> Any:
            state = agent.init(key)
            trajectory = collect(agent, state, layout.axis_name)[1]
            return (state.learner, trajectory), jnp.zeros(())
    else:

        def body(_: Any, carry: Any) -> Any:
            state, total = carry
            state, metrics = agent.step(state)
            return state, total + checksum(metrics)

        def once(key: Any) -> Any:
            return agent.init(key), jnp.zeros(())

    def repeat(carry: Any, count: Any) -> Any:
        return jax.lax.fori_loop(0, count, body, carry)

    carry = jax.jit(devices.over_seeds(once, layout, (SEEDS,), specs))(keys)
    started = time.perf_counter()
    program = devices.over_seeds(repeat, layout, (specs, PartitionSpec()), specs)
    compiled = jax.jit(program).lower(carry, jnp.int32(1)).compile()
    compile_seconds = time.perf_counter() - started
    return Program(
        lambda carry, count: compiled(carry, jnp.int32(count)),
        carry,
        num_seeds * config.batch_size,
        compile_seconds,
        memory_of(compiled),
    )


def measure(program: Program, options: Options) -> dict[str, float]:
    """Median steps per second with its range, compile time and memory."""
    count = program.calibrate(options.seconds)
    rates = [program.steps * count / program.seconds(count) for _ in range(options.repeats)]
    return {
        "steps_per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "compile_seconds": program.compile_seconds,
        "memory_mib": program.memory_bytes / MIB,
    }


def in_turn(
    programs: Sequence[Program], seconds: float, rounds: int
) -> Iterator[tuple[float, ...]]:
    """Times programs in turn: round by round, the seconds that each takes for one repetition.

    Args:
      programs: neighbours in this order run next to each other in every round.
      seconds: that a timing takes, about.
      rounds: number of them.
    """
    counts = [program.calibrate(seconds) for program in programs]
    for i in range(rounds):
        # The order alternates, so that none always runs on the warmer machine.
        order = range(len(programs)) if i % 2 == 0 else reversed(range(len(programs)))
        taken = {j: programs[j].seconds(counts[j]) / counts[j] for j in order}
        yield tuple(taken[j] for j in range(len(programs)))


def compare(a: Program, b: Program, options: Options) -> dict[str, Any]:
    """Cost of `a` over that of `b`: median and quartiles of the ratio, pair by pair."""
    rounds = in_turn((a, b), options.seconds, 3 * options.repeats)
    ratios = [seconds_a / seconds_b for seconds_a, seconds_b in rounds]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": median, "quartiles": [low, high], "pairs": len(ratios)}


def settings_of(name: str, options: Options, num_envs: int) -> Config:
    """The agent's own settings with as many environments; a2c keeps its own minibatches."""
    batch_size = num_envs * options.num_steps
    config: Config = agents.load(name).Config(
        num_envs=num_envs, num_steps=options.num_steps, total_steps=100_000 * batch_size
    )
    return config


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints tables and writes JSON; returns the exit status."""
    try:
        options = command_line.read(
            Options, Options(), sys.argv[1:] if args is None else args, PROG
        )
        for field in ("agent", "against"):
            try:
                agents.load(getattr(options, field))
            except ValueError as error:
                name = getattr(options, field)
                raise BadInput(f"--{field} {name}: unknown agent; {error}") from None
        try:
            envs.check_name(options.env)
        except ValueError as error:
            raise BadInput(f"--env {options.env}: {error}") from None
        command_line.check_path("out", options.out)
        if options.out is not None and not Path(options.out).absolute().parent.is_dir():
            raise BadInput(f"--out {options.out}: no such folder")
        for field in ("num_envs", "num_seeds"):
            if not getattr(options, field):
                raise BadInput(f"{command_line.flag(field)}: expected at least one number")
        if min(options.num_envs) * options.num_steps % 4:
            raise BadInput(f"--num-steps {options.num_steps}: expected a multiple of 4")
    except (BadInput, ConfigError) as error:
        command_line.refuse(error)
    print(f"{options.agent} on {options.env}, {options.num_steps} steps a rollout", flush=True)
    largest = settings_of(options.agent, options, max(options.num_envs))
    spread = devices.can_spread(envs.is_on_mjx(options.env))
    devices.use_all_cores(largest, max(options.num_seeds), spread=spread)
    try:
        env = envs.make(options.env)
    except ValueError as error:
        command_line.refuse(f"--env {options.env}: {error}")

    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from experiments.results import provenance, to_json, write_atomically

    where = provenance()
    console = Console(width=100)
    console.print(f"{where['device']}; {where['machine']}; jax {where['versions']['jax']}")
    table = Table("seeds", "envs", "part", "steps/s", "range", "compile s", "memory MiB")
    rows = []
    cells = [
        (num_seeds, num_envs, part)
        for num_seeds in options.num_seeds
        for num_envs in options.num_envs
        for part in ("rollout", "update", "step")
    ]
    for num_seeds, num_envs, part in track(cells, "measuring", console=console, transient=True):
        program = build(options.agent, env, options, num_envs, num_seeds, part)
        result = measure(program, options)
        rows.append({"num_seeds": num_seeds, "num_envs": num_envs, "part": part, **result})
        table.add_row(
            str(num_seeds),
            str(num_envs),
            part,
            f"{result['steps_per_second'] / 1e3:,.0f}k",
            f"{result['slowest'] / 1e3:,.0f}k - {result['fastest'] / 1e3:,.0f}k",
            f"{result['compile_seconds']:.1f}",
            f"{result['memory_mib']:.1f}",
        )
    console.print(table)

    comparison = {}
    for part in ("update", "step"):
        measured, reference = (
            build(name, env, options, min(options.num_envs), min(options.num_seeds), part)
            for name in (options.agent, options.against)
        )
        comparison[part] = ratio = compare(measured, reference, options)
        low, high = ratio["quartiles"]
        console.print(
            f"cost of {options.agent} over {options.against}, {part}: "
            f"median {ratio['median']:.3f}, quartiles {low:.3f} to {high:.3f} "
            f"({ratio['pairs']} pairs)"
        )
    order = None
    num_envs, num_seeds = max(options.num_envs), max(options.num_seeds)
    if num_seeds > devices.Layout.choose(largest, num_seeds, spread=spread).seed_devices:
        cell = (options.agent, env, options, num_envs, num_seeds, "step")
        vmapped, in_order = (build(*cell, seeds_in_turn=choice) for choice in (False, True))
        order = compare(vmapped, in_order, options)
        low, high = order["quartiles"]
        console.print(
            f"seeds of a device side by side over one after another, {num_seeds} seeds of "
            f"{num_envs} environments, step: median {order['median']:.3f}, quartiles {low:.3f} to "
            f"{high:.3f} ({order['pairs']} pairs)"
        )
    if options.out is not None:
        content = {
            "options": dataclasses.asdict(options),
            "cells": rows,
            "cost_ratio": comparison,
            "seed_order_ratio": order,
            **where,
        }
        write_atomically(Path(options.out), to_json(content, indent=2))
        console.print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
