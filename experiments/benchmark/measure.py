"""What the benchmark times: programs of an agent's parts, and of a peer, in turn."""

import dataclasses
import statistics
import time
from typing import Annotated, Any

import tyro

import agents
import envs
from experiments.benchmark import peers
from experiments.comparing.timing import Program, in_turn
from experiments.training import compiling, devices
from experiments.training.collecting import collect
from rgpo_jax.config import Checked, Config
from rgpo_jax.ranges import AT_LEAST_ONE, Count, Positive

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
    empty and with a filled cache of compiled programs, and on gymnax's tasks
    experiments.plain_ppo."""
    total_steps: Count = 500_000
    """Environment steps of each seed with --start."""
    out: str | None = None
    """JSON file for the results; None: print only."""


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

    from experiments.training.programs import SEEDS, STATES, memory_of
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
    compiled = lowered.compile(compiling.options(compiling.Runs.OFTEN))  # as `experiments.run` does
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
