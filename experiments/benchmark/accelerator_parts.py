"""The parts of `accelerator`: each measures one thing and returns what JSON holds.

Of the dict that a part returns, "programs" holds rows of the table, "said" one line for it, and
"error", if there is one, what is wrong with the numbers.
"""

import dataclasses
import functools
import math
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import agents
import envs
from agents import families
from experiments.benchmark import kernels, roofline
from experiments.benchmark.measure import MIB
from experiments.benchmark.roofline import Peaks, Work
from experiments.comparing.timing import Program, in_turn
from experiments.training.collecting import collect
from rgpo_jax import rollout
from rgpo_jax.agent import Agent
from rgpo_jax.config import Config
from rgpo_jax.distributions import Normal
from rgpo_jax.environment import Box

CARTPOLE = "CartPole-v1"
# Float sums differ in their order: 1e-7 at first, which sixteen gradient steps let grow.
TOLERANCES = {"rollout": 1e-4, "update": 1e-4, "act": 1e-5}
_LONGEST = 20
_UPDATES = 100_000  # over which the learning rate falls: more than are ever timed
_CARD = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.current.sm",
    "clocks.current.memory",
    "clocks.max.sm",
    "clocks.max.memory",
    "power.limit",
    "temperature.gpu",
)


@dataclasses.dataclass
class Bench:
    """What parts are measured with.

    Attributes:
      device: on which programs run.
      agent: name of the agent.
      seconds: roughly, of one timing.
      repeats: number of timings.
      peaks: of the device; None until `peaks` has measured them.
    """

    device: Any
    agent: str
    seconds: float
    repeats: int
    peaks: Peaks | None = None


class Candidate(NamedTuple):
    """A program to be timed, and what it is called."""

    name: str
    program: Program
    work: Work


def machine(bench: Bench) -> dict[str, Any]:
    """The device as found; its settings are left alone."""
    memory = bench.device.memory_stats() or {}
    limit = memory.get("bytes_limit")
    cards = read_cards()
    words = [bench.device.device_kind, *(f"driver {card['driver_version']}" for card in cards[:1])]
    if limit:
        words.append(f"{limit / 2**30:.0f} GiB for JAX")
    return {"said": ", ".join(words), "cards": cards, "bytes_limit": limit}


def read_cards() -> list[dict[str, str]]:
    """What nvidia-smi says of each card; nothing where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(_CARD)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (map(str.strip, line.split(",")) for line in said.stdout.splitlines())
    return [dict(zip(_CARD, row, strict=False)) for row in rows]


def peaks(bench: Bench, array_bytes: int, matrix_size: int) -> dict[str, Any]:
    """What the device does at best, and its clocks right after."""
    measured = bench.peaks = roofline.measure_peaks(array_bytes, matrix_size, bench.seconds)
    products = measured.flops_per_second
    said = f"copies {measured.bytes_per_second / 1e9:,.0f} GB/s; products " + ", ".join(
        f"{name} {rate / 1e12:,.2f}" for name, rate in products.items()
    )
    return {"said": f"{said} TFLOP/s", **measured._asdict(), "cards": read_cards()}


def correctness(bench: Bench, names: Sequence[str]) -> dict[str, Any]:
    """Rollout, update and action on the device against the CPU's, at highest precision."""
    cpu = jax.devices("cpu")[0]
    rows: list[dict[str, Any]] = []
    for name in names:
        config = config_of(bench.agent, name, num_envs=32, num_steps=16, network="auto")
        agent = agents.load(bench.agent).make(envs.make(name), config)

        def on(device: Any, function: Callable, *args: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return jax.jit(function)(*jax.device_put(args, device))

        with jax.default_device(cpu):
            state = jax.jit(agent.init)(jax.random.key(0))
            trajectory = on(cpu, functools.partial(_rollout, agent), state)
        for what, function, args in (
            ("rollout", _rollout, (state,)),
            ("update", _update, (state, trajectory)),
            ("act", _act, (state, trajectory)),
        ):
            ours, theirs = (
                jax.device_get(on(device, functools.partial(function, agent), *args))
                for device in (bench.device, cpu)
            )
            absolute, relative = differences(ours, theirs)
            rows.append(
                {
                    "env": name,
                    "what": what,
                    "absolute": absolute,
                    "relative": relative,
                    "tolerance": TOLERANCES[what],
                    "holds": relative <= TOLERANCES[what],
                }
            )
    # NaN is greater than any other difference.
    rows.sort(key=lambda row: (math.isnan(row["relative"]), row["relative"]))
    worst = {row["what"]: row for row in rows}
    said = "from the CPU's differ by at most " + ", ".join(
        f"{row['what']} {row['relative']:.1e} (held to {row['tolerance']:.0e})"
        for row in worst.values()
    )
    result = {"said": said, "differences": rows}
    return result if all(row["holds"] for row in rows) else result | {"error": said}


def _rollout(agent: Agent, state: Any) -> Any:
    return collect(agent, state)[1]


def _update(agent: Agent, state: Any, trajectory: Any) -> Any:
    return agent.learner.update(state.learner, trajectory)[0].params


def _act(agent: Agent, state: Any, trajectory: Any) -> Any:
    policy = agent.learner.policy(state.learner, trajectory.observation)
    # The mode of discrete actions jumps where two are all but equally probable.
    continuous = isinstance(agent.env.action_space, Box)
    return policy, agent.act(state, trajectory.observation) if continuous else None


def differences(ours: Any, theirs: Any) -> tuple[float, float]:
    """The largest |x - y| over two trees of arrays, and the largest |x - y| / max(1, |y|)."""
    absolute = relative = 0.0
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        distance = np.abs(x - y)
        # NaN counts as a difference, and as the largest.
        absolute = float(np.max(distance, initial=absolute))
        relative = float(np.max(distance / np.maximum(1.0, np.abs(y)), initial=relative))
    return absolute, relative


def config_of(agent: str, env: str, num_envs: int, **more: Any) -> Config:
    """The settings of an environment's family, with this number of environments."""
    config = families.defaults(agents.load(agent).Config, env, agent)
    sizes = {"num_envs": num_envs, **more}
    steps = _UPDATES * num_envs * sizes.get("num_steps", config.num_steps)
    return dataclasses.replace(config, total_steps=steps, **sizes)


def over_agents(function: Callable, count: int) -> Callable:
    """Vmapped, but for one agent: a batch of one turns every product into a batched one."""
    return function if count == 1 else jax.vmap(function)


def keys_of(count: int) -> jax.Array:
    """As many keys as agents; a single one without an axis."""
    return jax.random.key(0) if count == 1 else jax.random.split(jax.random.key(0), count)


def training(bench: Bench, env: str, config: Config, count: int = 1, **params: Any) -> Candidate:
    """The training step of some agents side by side."""
    agent = agents.load(bench.agent).make(envs.make(env, **params), config)
    state = jax.jit(over_agents(agent.init, count))(keys_of(count))
    steps = count * config.batch_size
    return Candidate(
        bench.agent, *roofline.compile_loop(over_agents(agent.step, count), state, steps)
    )


def plain_training(config: Config, count: int) -> Candidate:
    """The update of `experiments.plain_ppo` on CartPole, at the same sizes.

    Its initialisation is left out, which takes long for many agents; its log is summed up.
    """
    from experiments import plain_ppo

    names = ("total_steps", "num_envs", "num_steps", "num_epochs", "num_minibatches")
    sizes = {name: getattr(config, name) for name in names}
    plain = plain_ppo.Settings(env=CARTPOLE, **sizes)
    env = plain_ppo.LoggedEnvironment(CARTPOLE)
    network = plain_ppo.ActorCritic(env.action_space.n, discrete=True)

    def step(runner: Any) -> tuple[Any, Any]:
        runner, steps = plain_ppo.collect(env, network, plain, runner)
        return plain_ppo.update(network, plain, runner, steps), steps.info

    init = functools.partial(plain_ppo.initial_runner, env, network, plain)
    runner = jax.jit(over_agents(init, count))(keys_of(count))
    steps = count * plain.batch_size
    return Candidate("plain PPO", *roofline.compile_loop(over_agents(step, count), runner, steps))


def random_rollout(env: str, config: Config, **params: Any) -> Candidate:
    """The rollout alone, with random actions."""
    made: Any = envs.make(env, **params)
    zeros = jnp.zeros(made.action_space.shape)

    def step(state: tuple[Any, Any]) -> tuple[Any, Any]:
        environments, key = state
        key, rollout_key = jax.random.split(key)
        environments, trajectory, _ = rollout.collect(
            made,
            lambda observation: Normal(zeros, zeros),
            environments,
            rollout_key,
            config.num_steps,
            config.reset_pool_size,
        )
        return (environments, key), trajectory

    init = jax.jit(lambda key: (rollout.init(made, config.num_envs, key), key))
    program = roofline.compile_loop(step, init(jax.random.key(0)), config.batch_size)
    return Candidate("random actions", *program)


def timed(bench: Bench, candidates: Sequence[Candidate], **more: Any) -> list[dict[str, Any]]:
    """Times programs in turn; a row each, with `more` in it."""
    programs = [candidate.program for candidate in candidates]
    rounds = list(in_turn(programs, bench.seconds, bench.repeats))
    rows = []
    for i, (name, program, work) in enumerate(candidates):
        seconds = statistics.median(taken[i] for taken in rounds)
        rates = [program.steps / taken[i] for taken in rounds]
        rows.append(
            {
                "program": name,
                **more,
                "steps_per_second": statistics.median(rates),
                "slowest": min(rates),
                "fastest": max(rates),
                "repetition_seconds": seconds,
                "compile_seconds": program.compile_seconds,
                "memory_mib": program.memory_bytes / MIB,
                **shares(bench, work, seconds),
            }
        )
    return rows


def shares(bench: Bench, work: Work, seconds: float) -> dict[str, Any]:
    """A program's work, and the shares that it has of the device's peaks, where these are known."""
    # What all programs so far needed at once: the device does not forget.
    peak = (bench.device.memory_stats() or {}).get("peak_bytes_in_use")
    result: dict[str, Any] = {
        "peak_memory_so_far_mib": None if peak is None else peak / MIB,
        "bytes": work.bytes,
        "matrix_flops": work.flops,
    }
    if bench.peaks is not None:
        products = bench.peaks.flops_per_second["float32 by default"]
        result["share_of_bandwidth"] = work.bytes / seconds / bench.peaks.bytes_per_second
        result["share_of_matmul"] = work.flops / seconds / products
    return result


def cartpole(bench: Bench, count: int) -> dict[str, Any]:
    """CartPole 4 x 128 for some agents, with a plain PPO in turn."""
    config = config_of(bench.agent, CARTPOLE, num_envs=4)
    rows = [training(bench, CARTPOLE, config, count), plain_training(config, count)]
    ours, theirs = result = timed(bench, rows, agents=count, num_envs=config.num_envs)
    ratio = ours["steps_per_second"] / theirs["steps_per_second"]
    return {"programs": result, "said": f"{ratio:.2f} times the plain PPO", "ratio": ratio}


def environments(
    bench: Bench, env: str, num_envs: int, params: Mapping[str, Any]
) -> dict[str, Any]:
    """One agent with many environments; where actions are continuous, with random ones in turn."""
    config = config_of(bench.agent, env, num_envs)
    rows = [training(bench, env, config, **params)]
    if isinstance(envs.make(env, **params).action_space, Box):
        rows.append(random_rollout(env, config, **params))
    return {"programs": timed(bench, rows, env=env, num_envs=num_envs, **params)}


def longest_kernels(bench: Bench, count: int) -> dict[str, Any]:
    """One training step of some agents on CartPole, under the profiler."""
    program = training(bench, CARTPOLE, config_of(bench.agent, CARTPOLE, num_envs=4), count).program
    seconds = min(program.seconds(1) for _ in range(3))
    profile = kernels.profile(lambda: program.seconds(1), _LONGEST)
    busy = profile["kernel_seconds"] / profile["seconds"]
    said = (
        f"{profile['kernels']:,} kernels a step, {busy:.0%} of {1e3 * profile['seconds']:.1f} ms "
        f"({1e3 * seconds:.1f} ms unprofiled); longest: {profile['longest'][0]['name'][:40]}"
    )
    return {"said": said, "unprofiled_seconds": seconds, **profile}
