"""The host's loop around the compiled program: train a chunk, log, evaluate, repeat."""

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments import command_line
from experiments.devices import Layout, over_seeds, seed_keys
from experiments.host_programs import HostPrograms
from experiments.results import Recorder
from rgpo_jax import train as library
from rgpo_jax.agent import Agent, AgentState
from rgpo_jax.config import Config
from rgpo_jax.environment import HostEnvironment
from rgpo_jax.statistics import bootstrap_interval, interquartile_mean

if TYPE_CHECKING:
    from experiments.run import Plan

_EVALUATION_STREAM = 0xE7A1  # folded into a seed's key: evaluation never shares a key with training


# How a batch of states over seeds lies on the mesh of a `Layout`.
SEEDS = PartitionSpec("seed")
STATES: Any = AgentState(learner=SEEDS, rollout=PartitionSpec("seed", "env"), key=SEEDS)  # type: ignore[arg-type]


class Broken(Exception):
    """Training left the realm of finite numbers."""


@dataclasses.dataclass(frozen=True)
class Every:
    """Evenly spaced updates up to the last: every `updates / points` of them, rounded up."""

    updates: int
    points: int = 1

    @classmethod
    def make(cls, steps: int | None, points: int, config: Config) -> "Every":
        """Every so many environment steps, or that many points over the run where steps is None."""
        if steps is None:
            return cls(config.num_updates, points)
        return cls(max(1, steps // config.batch_size))

    def next(self, done: int) -> int:
        """The first of these updates after `done`."""
        index = done * self.points // self.updates + 1
        return -(-index * self.updates // self.points)

    def includes(self, done: int) -> bool:
        """Whether `done` is one of these updates."""
        return self.next(done - 1) == done


class Programs:
    """The compiled programs of a run: vmapped over seeds, and spread over the local devices."""

    def __init__(self, agent: Agent, layout: Layout, seed: int, num_seeds: int, eval_episodes: int):
        self._mesh = layout.mesh()
        keys = seed_keys(self._mesh, seed, num_seeds)

        def init(key: jax.Array) -> tuple[AgentState, jax.Array]:
            return agent.init(key), jax.random.fold_in(key, _EVALUATION_STREAM)

        spread_init = over_seeds(init, self._mesh, (SEEDS,), (STATES, SEEDS))
        self.initial_states, self._eval_keys = jax.jit(spread_init)(keys)
        spread_chunk = over_seeds(
            library.make_chunk(agent), self._mesh, (STATES, PartitionSpec()), (STATES, SEEDS)
        )
        lowered = jax.jit(spread_chunk, donate_argnums=0).lower(self.initial_states, jnp.int32(1))
        self.metric_names = sorted(lowered.out_info[1].metrics)
        self.chunk = lowered.compile()
        self._evaluate = {
            suffix: self._compile_evaluation(
                library.make_evaluation(agent, eval_episodes, deterministic)
            )
            for suffix, deterministic in (("", True), ("_stochastic", False))
        }

    def _compile_evaluation(self, evaluation: Callable) -> Callable:
        def mean_over_episodes(learner: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            returns, lengths = evaluation(learner, key)
            return jnp.mean(returns), jnp.mean(lengths)

        program = over_seeds(mean_over_episodes, self._mesh, (SEEDS, SEEDS), SEEDS)
        return jax.jit(program).lower(self.initial_states.learner, self._eval_keys).compile()

    def evaluate(self, states: Any, updates: int) -> dict[str, list[float]]:
        """Mean return and length of evaluation episodes, one value per seed."""
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(self._eval_keys, updates)
        result = {}
        for suffix, program in self._evaluate.items():
            returns, lengths = program(states.learner, keys)
            result[f"eval_return{suffix}"] = np.asarray(returns).tolist()
            result[f"eval_length{suffix}"] = np.asarray(lengths).tolist()
        return result


def _qualified_name(function: Any) -> str:
    """module.name of a function, or of the class of a callable object."""
    named = function if hasattr(function, "__name__") else type(function)
    return f"{named.__module__}.{named.__name__.lstrip('_')}"


def describe(scores: list[float]) -> str:
    """IQM of scores with its interval, to be read by people."""
    finite = [score for score in scores if np.isfinite(score)]
    if not finite:
        return "none yet"
    interval = bootstrap_interval(finite, resamples=1000)
    spread = f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
    return f"{interquartile_mean(finite):.1f}{spread}"


def aggregate(scores: list[float]) -> dict[str, Any]:
    """Scores of the seeds, their mean, interquartile mean and its 95 % bootstrap interval."""
    return {
        "per_seed": scores,
        "mean": float(np.mean(scores)),
        "iqm": interquartile_mean(scores),
        "ci95": bootstrap_interval(scores),
    }


def train(plan: "Plan", agent: Agent, layout: Layout, recorder: Recorder, started: float) -> int:
    """Trains to the end and writes the results; returns the exit status 0.

    Raises:
      Broken: a parameter became NaN or infinite. What was measured until then is written.
    """
    options, config = plan.options, plan.config
    device = jax.devices()[0]
    gate = agent.learner.hyperparameters.gate
    recorder.write_config(
        command_line.as_settings(options, config),
        gate={
            "function": _qualified_name(gate.function),
            "numbers": {k: v if v is None else float(v) for k, v in gate.numbers.items()},
            "options": dict(gate.options),
        },
    )
    recorder.say(f"{device.platform} ({device.device_kind}), JAX {jax.__version__}: compiling ...")
    compile_started = time.perf_counter()
    kind = HostPrograms if isinstance(agent.env, HostEnvironment) else Programs
    programs = kind(agent, layout, options.seed, options.num_seeds, options.eval_episodes)
    states = programs.initial_states
    jax.block_until_ready(states)
    compile_seconds = time.perf_counter() - compile_started
    spread = f" for {layout.num_devices} devices" if layout.num_devices > 1 else ""
    recorder.say(f"compiled in {compile_seconds:.1f} s{spread}")

    logs = Every.make(options.log_every, 100, config)
    evaluations = Every.make(options.eval_every, 10, config)
    total_steps = config.num_updates * config.batch_size
    run_started = time.perf_counter()
    training_seconds = 0.0
    first_ratio_deviation = 0.0
    evaluation = programs.evaluate(states, 0)
    undefined = dict.fromkeys(programs.metric_names, [float("nan")] * options.num_seeds)
    recorder.log_metrics(0, 0, {**undefined, **evaluation})
    recorder.start_progress(total_steps)

    def summary(updates: int) -> dict[str, Any]:
        seconds = time.perf_counter() - run_started
        return {
            "agent": options.agent,
            "gate": options.gate,
            "env": options.env,
            "seed": options.seed,
            "num_seeds": options.num_seeds,
            "total_steps": updates * config.batch_size,
            "final_return": aggregate(evaluation["eval_return"]),
            "final_return_stochastic": aggregate(evaluation["eval_return_stochastic"]),
            "compile_seconds": round(compile_seconds, 3),
            "run_seconds": round(seconds, 3),
            "training_seconds": round(training_seconds, 3),
            "steps_per_second": updates * config.batch_size * options.num_seeds / seconds,
            "first_ratio_deviation": first_ratio_deviation,
            "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
            "total_seconds": round(time.perf_counter() - started, 3),
        }

    done = 0
    try:
        while done < config.num_updates:
            stop = min(logs.next(done), evaluations.next(done), config.num_updates)
            chunk_started = time.perf_counter()
            states, report = programs.chunk(states, jnp.int32(stop - done))
            jax.block_until_ready(report)
            seconds = time.perf_counter() - chunk_started
            training_seconds += seconds
            rate = (stop - done) * config.batch_size * options.num_seeds / seconds
            done = stop
            env_steps = done * config.batch_size
            metrics = {k: np.asarray(v).tolist() for k, v in report.metrics.items()}
            # NumPy's maximum: NaN wins, and a broken run does not look perfect.
            first_ratio_deviation = float(
                np.max([first_ratio_deviation, *metrics["first_ratio_deviation"]])
            )
            broken_at = np.asarray(report.broken_at)
            is_last = done == config.num_updates
            if (is_last or evaluations.includes(done)) and (broken_at < 0).all():
                evaluation = programs.evaluate(states, done)
                metrics |= evaluation
                recorder.say(
                    f"{env_steps:>13,} steps  evaluation {describe(evaluation['eval_return'])}"
                    f"  training {describe(metrics['episode_return'])}"
                    f"  {rate / 1e3:,.0f}k steps/s"
                )
            recorder.log_metrics(env_steps, done, metrics)
            recorder.advance_progress(
                env_steps, rate, f"return {describe(metrics['episode_return'])}"
            )
            if (broken_at >= 0).any():
                recorder.stop_progress()
                seeds = [options.seed + int(i) for i in np.flatnonzero(broken_at >= 0)]
                updates = [int(update) for update in broken_at[broken_at >= 0]]
                broken = [{"seed": s, "update": u} for s, u in zip(seeds, updates, strict=True)]
                recorder.write_summary({**summary(done), "broken": broken})
                where = ", ".join(
                    f"seed {entry['seed']} at update {entry['update']}" for entry in broken
                )
                raise Broken(
                    f"parameters became NaN or infinite: {where} (of {config.num_updates}); "
                    f"kept what was measured in {recorder.folder}"
                )
    except KeyboardInterrupt:
        recorder.stop_progress()
        recorder.write_summary({**summary(done), "interrupted": True})
        raise
    recorder.stop_progress()
    result = summary(done)
    recorder.write_summary(result)
    recorder.say(
        f"final return {describe(evaluation['eval_return'])} (deterministic), "
        f"{describe(evaluation['eval_return_stochastic'])} (stochastic), IQM [95 % interval] over "
        f"{options.num_seeds} seed{'s' if options.num_seeds > 1 else ''}; "
        f"{result['steps_per_second'] / 1e3:,.0f}k steps/s; results in {recorder.folder}"
    )
    return 0
