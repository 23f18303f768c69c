"""Speed of rollout, update and whole step, and what the gate and the order of seeds cost.

Also against another PPO: steps per second, and how long a user waits for results.
Machines drift, so a comparison is a ratio: both programs in turn, A B A B, in one process.
"""

import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import agents
import envs
from experiments import command_line, compiling, devices, peers, settings, start
from experiments.command_line import BadInput
from experiments.timing import Program, in_turn
from rgpo_jax.config import Checked, Config, ConfigError
from rgpo_jax.ranges import AT_LEAST_ONE, Count, Positive

if TYPE_CHECKING:
    from rich.console import Console

    from rgpo_jax.agent import Agent, AgentState
    from rgpo_jax.rollout import Trajectory

PROG = "python -m experiments.benchmark"
MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Measure the speed of an agent, and pair it with another.

    --device gpu or --device cpu measures all about a device instead, in one call; its flags are
    shown by --device gpu --help.
    """

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
    """Timings of each program; the median counts. Pairs of the comparison: three times as many;
    with a peer: as many."""
    peer: Annotated[str | None, tyro.conf.arg(metavar="plain|DIR")] = None
    """Measure this other PPO instead, in turn with the agent: plain, which is
    experiments/plain_ppo.py, in PureJaxRL's manner; or DIR, a checkout of PureJaxRL, Rejax or Brax,
    or such a package where it is installed. Code in DIR is run."""
    start: bool = False
    """Measure whole processes instead, in turn, as a user waits for them: experiments.run with an
    empty and with a filled cache of compiled programs, and experiments.plain_ppo."""
    total_steps: Count = 500_000
    """Environment steps of each seed with --start."""
    out: str | None = None
    """JSON file for the results; None: print only."""


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
    lowered = jax.jit(program).lower(carry, jnp.int32(1))
    compiled = lowered.compile(compiling.options(often=True))  # as `experiments.run` does
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
        num_envs=num_envs,
        num_steps=options.num_steps,
        total_steps=100_000 * batch_size,
        network="auto" if options.peer is None else "mlp",  # a peer has no other
    )
    return config


def compare_with_peer(
    peer: peers.Peer, env: Any, options: Options, num_envs: int, num_seeds: int
) -> list[dict[str, Any]]:
    """The agent's step and the training of a peer, in turn.

    Returns:
      Steps per second of both and their ratios, ours over the peer's, pair by pair: for the peer as
      its users run it, one program on one device; and where our seeds are spread over devices, for
      the peer's spread over as many as well.
    """
    config = settings_of(options.agent, options, num_envs)
    spread = devices.can_spread(envs.is_on_mjx(options.env))
    seed_devices = devices.Layout.choose(config, num_seeds, spread=spread).seed_devices
    layouts = [1] if seed_devices == 1 else [1, seed_devices]
    theirs = [
        peer.program(options.env, config, num_seeds, count, options.seconds) for count in layouts
    ]
    ours = build(options.agent, env, options, num_envs, num_seeds, "step")
    # Ours runs next to each of them.
    programs = [theirs[0], ours, *theirs[1:]]
    rounds = list(in_turn(programs, options.seconds, options.repeats))
    rates = [[program.steps / taken[i] for taken in rounds] for i, program in enumerate(programs)]
    return [
        {
            "num_seeds": num_seeds,
            "num_envs": num_envs,
            "peer_devices": count,
            "steps_per_second": rates[1],
            "peer_steps_per_second": rates[i],
            "ratios": [a / b for a, b in zip(rates[1], rates[i], strict=True)],
            "compile_seconds": ours.compile_seconds,
            "peer_compile_seconds": programs[i].compile_seconds,
        }
        for i, count in zip((0, 2), layouts, strict=False)
    ]


def read(args: Sequence[str]) -> tuple[Options, peers.Peer | None]:
    """Reads and checks flags; loads no JAX.

    Raises:
      BadInput, ConfigError: what the user should type otherwise.
    """
    options = command_line.read(Options, Options(), args, PROG)
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
    peer = None if options.peer is None else peers.find(options.peer)
    if options.start:
        if options.peer not in (None, peers.PLAIN):
            raise BadInput(f"--peer {options.peer}: expected {peers.PLAIN} with --start")
        config = started_settings(options)
        peers.Plain().check(options.env, config, max(options.num_seeds))
    elif peer is not None:
        for num_envs in options.num_envs:
            config = settings_of(options.agent, options, num_envs)
            peer.check(options.env, config, max(options.num_seeds))
    return options, peer


def started_settings(options: Options) -> Config:
    """With which `experiments.run` trains the agent.

    Raises:
      ConfigError: there are fewer steps than an update has.
    """
    config_class = agents.load(options.agent).Config
    config = settings.defaults(config_class, options.env, options.agent)
    return dataclasses.replace(config, total_steps=options.total_steps)


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints tables and writes JSON; returns the exit status."""
    args = sys.argv[1:] if args is None else args
    if any(arg.partition("=")[0] == "--device" for arg in args):
        from experiments import accelerator

        return accelerator.main(args)
    try:
        options, peer = read(args)
    except (BadInput, ConfigError) as error:
        command_line.refuse(error)
    from rich.console import Console

    console = Console(width=100)
    try:
        if options.start:
            content = report_start(options, console)
        else:
            content = report_programs(options, peer, console)
    except BadInput as error:
        command_line.refuse(error)
    if options.out is not None:
        from experiments.results import provenance, to_json, write_atomically

        content = {"options": dataclasses.asdict(options), **content, **provenance()}
        write_atomically(Path(options.out), to_json(content, indent=2))
        console.print(f"written to {options.out}")
    return 0


def report_programs(
    options: Options, peer: peers.Peer | None, console: "Console"
) -> dict[str, Any]:
    """Measures compiled programs in this process; prints tables, and returns what JSON holds.

    Raises:
      BadInput: the environment cannot be made, or the peer does not run.
    """
    print(f"{options.agent} on {options.env}, {options.num_steps} steps a rollout", flush=True)
    largest = settings_of(options.agent, options, max(options.num_envs))
    spread = devices.can_spread(envs.is_on_mjx(options.env))
    devices.use_all_cores(largest, max(options.num_seeds), spread=spread)

    import jax

    # Compiling is measured: what an earlier process compiled must not come from a cache.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        env = envs.make(options.env)
    except ValueError as error:
        raise BadInput(f"--env {options.env}: {error}") from None

    from experiments.results import provenance

    where = provenance()
    console.print(f"{where['device']}; {where['machine']}; jax {where['versions']['jax']}")
    if peer is not None:
        return report_peer(peer, env, options, console)
    return report_parts(env, options, console)


def report_parts(env: Any, options: Options, console: "Console") -> dict[str, Any]:
    """Measures the agent by parts, and what a gate and an order cost."""
    from rich.progress import track
    from rich.table import Table

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
    largest = settings_of(options.agent, options, num_envs)
    spread = devices.can_spread(envs.is_on_mjx(options.env))
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
    return {"cells": rows, "cost_ratio": comparison, "seed_order_ratio": order}


def report_peer(peer: peers.Peer, env: Any, options: Options, console: "Console") -> dict[str, Any]:
    """Measures the agent in turn with a peer.

    Raises:
      BadInput: the peer does not run.
    """
    from rich.progress import track
    from rich.table import Table

    table = Table(
        "seeds",
        "envs",
        "peer on",
        "peer: steps/s",
        "ours",
        "times the peer",
        "peer: compile s",
        "ours",
        title=f"{options.agent} and {peer.title}: median and range of {options.repeats} pairs",
    )
    rows = []
    cells = [(seeds, count) for seeds in options.num_seeds for count in options.num_envs]
    for num_seeds, num_envs in track(cells, "measuring", console=console, transient=True):
        for row in compare_with_peer(peer, env, options, num_envs, num_seeds):
            rows.append(row)
            table.add_row(
                str(num_seeds),
                str(num_envs),
                "1 device" if row["peer_devices"] == 1 else f"{row['peer_devices']} devices",
                f"{statistics.median(row['peer_steps_per_second']) / 1e3:,.0f}k",
                f"{statistics.median(row['steps_per_second']) / 1e3:,.0f}k",
                _spread(row["ratios"]),
                f"{row['peer_compile_seconds']:.1f}",
                f"{row['compile_seconds']:.1f}",
            )
    console.print(table)
    return {"peer": peer.title, "peer_cells": rows}


def report_start(options: Options, console: "Console") -> dict[str, Any]:
    """Measures whole processes in turn.

    Raises:
      BadInput: one of them fails.
    """
    from rich.table import Table

    print(f"{options.agent} on {options.env}, {options.total_steps:,} steps a seed", flush=True)
    config = started_settings(options)
    title = f"seconds and their ratios: median and range of {options.repeats} rounds"
    table = Table("seeds", "process", "first result", "all", "compiling", title=title)
    rows = []
    for num_seeds in options.num_seeds:
        waits = start.measure(options.agent, config, options.env, num_seeds, options.repeats)
        ratios = start.ratios(waits)
        rows.append({"num_seeds": num_seeds, "seconds": start.as_json(waits), "ratios": ratios})
        names = {"cold": "ours, cold", "warm": "ours, warm", "plain": "plain PPO"}
        for name, words in names.items():
            fields = [field.name for field in dataclasses.fields(start.Wait)]
            columns = [
                _spread([getattr(wait, field) for wait in waits[name]], digits=1)
                for field in fields
            ]
            table.add_row(str(num_seeds), words, *columns)
        for name, ratio in ratios.items():
            columns = [_spread(ratio[field]) for field in ("first_result", "total")]
            table.add_row(str(num_seeds), f"plain PPO over {name}", *columns)
    console.print(table)
    return {"start": rows}


def _spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range in words."""
    numbers = (statistics.median(values), min(values), max(values))
    median, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{median} [{low}, {high}]"


if __name__ == "__main__":
    sys.exit(main())
