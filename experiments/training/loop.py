"""The host's loop around the compiled programs: train, log, evaluate, keep, repeat."""

import dataclasses
import math
import operator
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from experiments.cli import flags
from experiments.cli.interrupts import Interrupted, Interrupts
from experiments.record.files import require_space
from experiments.record.recorder import Recorder
from experiments.record.run_folder import CHECKPOINTS
from experiments.training import compiling
from experiments.training.devices import Layout
from experiments.training.host_programs import HostPrograms
from experiments.training.programs import CompiledPrograms, Episodes, Members, Programs
from rgpo_jax import processes
from rgpo_jax.agent import Agent
from rgpo_jax.checkpoint import Checkpoints
from rgpo_jax.config import Config
from rgpo_jax.environment import HostEnvironment
from rgpo_jax.learner import LearnerState
from rgpo_jax.statistics import bootstrap_interval, interquartile_mean
from rgpo_jax.train import NEVER

if TYPE_CHECKING:
    from experiments.plan.reading import Plan

_LONGEST_CHUNK = 5.0  # seconds; how long Ctrl-C and a due checkpoint wait
_FILE_OVERHEAD = 2**20  # bytes of a checkpoint beside its arrays
_LARGEST_SHARE = 0.02  # of a run's time that checkpoints may take
_BETWEEN_WORDS = 15.0  # seconds between two lines on what is compiling, where there is no terminal


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

    @property
    def interval(self) -> int:
        """Updates from one to the next, at the least."""
        return max(1, self.updates // self.points)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A part of what is trained side by side, with a folder of its own: one agent's seeds."""

    plan: "Plan"
    recorder: Recorder


@dataclasses.dataclass
class Position:
    """Where training stands, beside the states; lists are over members, or over cells.

    Attributes:
      updates: number of updates so far.
      seconds: that the run has taken.
      training_seconds: of these, in updates.
      checkpoint_seconds: of these, in making checkpoints.
      largest: name -> largest so far, per member, of the metrics that the headline asks for.
      evaluation: the last one: name -> values per member.
      broken: (member, update) for those whose parameters are no longer finite.
      metrics_bytes: size of the metrics, per cell.
    """

    updates: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    largest: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    broken: list[list[int]] = dataclasses.field(default_factory=list)
    metrics_bytes: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def of_checkpoint(cls, kept: dict[str, Any]) -> "Position":
        """What a checkpoint has; earlier versions knew one largest value by name."""
        kept = dict(kept)
        if "first_ratio_deviation" in kept:
            kept["largest"] = {"first_ratio_deviation": kept.pop("first_ratio_deviation")}
        return cls(**kept)


def _qualified_name(function: Any) -> str:
    """module.name of a function, or of the class of a callable object."""
    named = function if hasattr(function, "__name__") else type(function)
    return f"{named.__module__}.{named.__name__.lstrip('_')}"


def _describe_gate(agent: Agent, config: Config) -> dict[str, Any]:
    """Function, numbers and options of the gate that an agent with this config has."""
    gate = agent.learner.hyperparameters.gate
    numbers = {name: getattr(config, name, value) for name, value in gate.numbers.items()}
    return {
        "function": _qualified_name(gate.function),
        "numbers": {k: v if v is None else float(v) for k, v in numbers.items()},
        "options": dict(gate.options),
    }


def describe(scores: Sequence[float], brief: bool = False) -> str:
    """IQM of scores, with its interval unless it is to be brief, to be read by people."""
    finite = [score for score in scores if math.isfinite(score)]
    if not finite:
        return "none yet"
    interval = None if brief else bootstrap_interval(finite, resamples=1000)
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


def members_of(plans: Sequence["Plan"]) -> Members:
    """The members of plans that differ in seeds and in traced numbers alone."""
    members = [(plan.config, seed) for plan in plans for seed in plan.options.seeds]
    # All numbers are arguments, so that other ones find the same program in the cache.
    names = (*plans[0].config.traced(), "annealing")
    return Members(
        tuple(seed for _, seed in members),
        {name: tuple(getattr(config, name) for config, _ in members) for name in names},
    )


def kind_of_programs(agent: Agent) -> type[CompiledPrograms] | type[HostPrograms]:
    """Those for the place where the agent's environment lives."""
    return HostPrograms if isinstance(agent.env, HostEnvironment) else CompiledPrograms


def make_programs(agent: Agent, layout: Layout, plans: Sequence["Plan"]) -> Programs:
    """The programs that train plans side by side, wherever the agent's environment lives."""
    options, config = plans[0].options, plans[0].config
    evaluations = Every.make(options.eval_every, 10, config)
    episodes = Episodes.within(
        options.eval_share,
        options.eval_episodes,
        agent.env.max_episode_steps,
        evaluations.interval * config.batch_size,
    )
    return kind_of_programs(agent)(agent, layout, members_of(plans), episodes)


class Training:
    """Cells that are trained side by side, from the start or from where a checkpoint was made.

    All have the same settings, but for seeds and traced numbers.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        agent: Agent,
        layout: Layout,
        folder: Path,
        interrupts: Interrupts,
        show: Callable[[int, float, str], None] = lambda steps, rate, status: None,
    ):
        """Writes the settings, and compiles.

        Args:
          cells: at least one.
          agent: of all of them; numbers in which they differ are overridden.
          layout: of members and environments on the devices.
          folder: of the checkpoints.
          interrupts: what asks it to end.
          show: is told progress: steps so far (of one member), steps per second of all members, a
            word on returns.
        """
        self._cells, self._folder = cells, folder
        self._interrupts, self._show = interrupts, show
        self._options, self._config = cells[0].plan.options, cells[0].plan.config
        plans = [cell.plan for cell in cells]
        self._members = members_of(plans)
        self._parts: list[slice] = []
        for cell in cells:
            begin = self._parts[-1].stop if self._parts else 0
            self._parts.append(slice(begin, begin + cell.plan.options.num_seeds))
        self._headline = kind_of_programs(agent).headline
        for cell in cells:
            cell.recorder.write_config(
                flags.as_settings(cell.plan.options, cell.plan.config),
                gate=_describe_gate(agent, cell.plan.config),
                headline=dataclasses.asdict(self._headline),
            )
        device = jax.devices()[0]
        self._device = f"{device.platform}: {device.device_kind} x {jax.device_count()}"
        self._say(f"{device.platform} ({device.device_kind}), JAX {jax.__version__}: compiling ...")
        started = self._spoke = time.perf_counter()
        self._checkpoints = Checkpoints(folder)
        self._in_turn = layout.in_turn
        self._kept: int | None = None  # updates of the newest checkpoint
        nothing = {name: [0.0] * self._num_members for name in self._headline.largest}
        self._position = Position(largest=nothing)
        with compiling.no_collections():
            self._programs = make_programs(agent, layout, plans)
        self._programs.compiler.load_meanwhile("tensorboardX", "experiments.record.curve")
        self._programs.ready(self._show_compiling)
        self._states = self._programs.initial_states
        self._progress = self._programs.start()
        jax.block_until_ready((self._states, self._progress))
        self._compile_seconds = time.perf_counter() - started
        spread = f" for {layout.describe()}" if layout != Layout() else ""
        self._say(
            f"compiled in {self._compile_seconds:.1f} s{spread} "
            f"({self._programs.compiler.describe()}, side by side)"
        )

    @property
    def _num_members(self) -> int:
        return len(self._members.seeds)

    @property
    def _env_steps(self) -> int:
        return self._position.updates * self._config.batch_size

    def _say(self, line: str) -> None:
        for cell in self._cells:
            cell.recorder.say(line)

    def _show_compiling(self, line: str) -> None:
        """On a terminal all the time, elsewhere now and then."""
        self._interrupts.check()
        self._cells[0].recorder.show_status(line)
        if time.perf_counter() - self._spoke >= _BETWEEN_WORDS:
            self._spoke = time.perf_counter()
            self._say(line)

    def start_from(self, learners: LearnerState) -> None:
        """Takes parameters and statistics from other learners [N], over and over, in each cell.

        Those of returns too, where both scale rewards: the critic's unit is theirs.
        """
        own = self._states.learner
        number = jax.tree.leaves(learners.params)[0].shape[0]
        which = np.concatenate([np.arange(part.stop - part.start) for part in self._parts]) % number

        def take(theirs: jax.Array, ours: jax.Array) -> jax.Array:
            return jax.device_put(np.asarray(theirs)[which], ours.sharding)

        taken = {
            field: jax.tree.map(take, getattr(learners, field), getattr(own, field))
            for field in ("params", "observation_moments")
        }
        if own.return_scale is not None and learners.return_scale is not None:
            moments = jax.tree.map(take, learners.return_scale.moments, own.return_scale.moments)
            taken["return_scale"] = own.return_scale._replace(moments=moments)
        self._states = self._states._replace(learner=own._replace(**taken))

    def resume(self) -> None:
        """Goes back to the newest checkpoint that is whole, or to the start if there is none.

        Raises:
          CheckpointError: there are checkpoints, but none that can be used.
          BadInput: the metrics are no longer those of the checkpoint.
        """
        restored = self._checkpoints.restore(self._parts_to_keep())
        if restored is None:
            for cell in self._cells:
                if cell.recorder.metrics_bytes():
                    cell.recorder.say("no checkpoint yet: starting at the first step")
                cell.recorder.rewind(0, -1)
            return
        for line in restored.damaged:
            self._say(f"warning: a damaged checkpoint is passed over: {line}")
        parts, self._position = restored.parts, Position.of_checkpoint(restored.position)
        self._kept = restored.updates
        self._states = self._states._replace(learner=parts["learner"], **parts["rest"])
        self._progress = self._programs.from_kept(parts["progress"])
        with processes.together():
            for cell, size in zip(self._cells, self._position.metrics_bytes, strict=True):
                cell.recorder.rewind(size, self._env_steps)
        restarted = self._programs.restart_episodes(self._position.updates)
        if restarted:
            self._forget_running_returns()
        self._say(
            f"going on after {self._env_steps:,} steps"
            + ("; environments on the host cannot be saved: new episodes begin" * restarted)
        )

    def _forget_running_returns(self) -> None:
        """Lets reward scaling know that no episode goes on: nothing leaks into the new ones."""
        learner = self._states.learner
        if learner.return_scale is not None:
            none = jnp.zeros_like(learner.return_scale.running_return)
            scale = learner.return_scale._replace(running_return=none)
            self._states = self._states._replace(learner=learner._replace(return_scale=scale))

    def run(self) -> None:
        """Trains to the end, and writes the results.

        Raises:
          Broken: parameters became NaN or infinite; seeds without such are finished.
          Interrupted: asked to end; what was done so far is kept.
          CheckpointError, OSError: what was done cannot be kept.
        """
        interrupts, config, position = self._interrupts, self._config, self._position
        interrupts.check()
        logs = Every.make(self._options.log_every, 100, config)
        evaluations = Every.make(self._options.eval_every, 10, config)
        self._begun, self._seconds_before = time.perf_counter(), position.seconds
        self._saved, self._save_cost = self._begun, 0.0
        for cell in self._cells:
            cell.recorder.start_clock(position.seconds)
        with interrupts.deferred():
            if not position.updates:
                position.evaluation = self._programs.evaluate(self._states, 0, whole=False)
                undefined = [math.nan] * self._num_members
                names = self._programs.metric_names
                self._log({**dict.fromkeys(names, undefined), **position.evaluation})
            logged, since = position.updates, position.training_seconds
            longest = 1  # updates at a time, until it is known how long one takes
            while position.updates < config.num_updates and not self._all_broken:
                done, begun = position.updates, time.perf_counter()
                stop = min(
                    logs.next(done), evaluations.next(done), config.num_updates, done + longest
                )
                advanced = self._programs.advance(self._states, self._progress, stop - done)
                self._states, self._progress = advanced
                broken_at = processes.fetch(self._progress.broken_at)
                # All must make the same number of updates next: one clock decides.
                seconds = float(processes.agree(time.perf_counter() - begun))
                longest = max(1, int(_LONGEST_CHUNK / seconds * (stop - done)))
                position.updates = stop
                position.training_seconds += seconds
                known = {member for member, _ in position.broken}
                position.broken += [
                    [int(member), int(broken_at[member])]
                    for member in np.flatnonzero(broken_at != NEVER)
                    if member not in known
                ]
                is_last = stop == config.num_updates
                evaluate = (is_last or evaluations.includes(stop)) and not self._all_broken
                if evaluate or logs.includes(stop) or self._all_broken:
                    steps = (stop - logged) * config.batch_size * self._num_members
                    self._report(evaluate, steps / (position.training_seconds - since), is_last)
                    logged, since = stop, position.training_seconds
                if self._all_broken or is_last:
                    break
                asked = processes.largest(interrupts.pending)
                if processes.agree(self._checkpoint_is_due()) or asked:
                    self._save()
                if asked:
                    self._write_summaries(interrupted=True)
                    raise Interrupted(asked)
            if not self._all_broken:
                self._save()
            self._write_summaries()
        if position.broken:
            raise Broken(self._describe_broken(position.broken))

    def _broken_in(self, part: slice) -> list[list[int]]:
        """(member, update) of those in a part whose parameters are no longer finite."""
        return [entry for entry in self._position.broken if part.start <= entry[0] < part.stop]

    @property
    def _all_broken(self) -> bool:
        return len(self._position.broken) == self._num_members

    def _describe_broken(self, broken: list[list[int]]) -> str:
        where = ", ".join(
            f"seed {self._members.seeds[member]} at update {update}" for member, update in broken
        )
        return f"parameters became NaN or infinite: {where} (of {self._config.num_updates})"

    def _report(self, evaluate: bool, rate: float, is_last: bool) -> None:
        """Logs the updates since the last report, which were made at a rate of steps a second."""
        position, headline = self._position, self._headline
        training = headline.training
        report = self._programs.finish(self._progress)
        metrics = {name: values.tolist() for name, values in report.metrics.items()}
        for name in position.largest:
            # NumPy's maximum: NaN wins, and a broken run does not look perfect.
            position.largest[name] = np.maximum(position.largest[name], metrics[name]).tolist()
        if evaluate:
            position.evaluation = self._programs.evaluate(
                self._states, position.updates, whole=is_last
            )
            metrics |= position.evaluation
            score = headline.score
            for cell, part in zip(self._cells, self._parts, strict=True):
                cell.recorder.say(
                    f"{self._env_steps:>13,} steps"
                    f"  {score.short} {describe(metrics[score.metric][part])}"
                    f"  {training.short} {describe(metrics[training.metric][part])}"
                    f"  {rate / 1e3:,.0f}k steps/s"
                )
        self._log(metrics)
        current = describe(metrics[training.metric], brief=True)
        self._show(self._env_steps, rate, f"{headline.quantity} {current}")
        self._progress = self._programs.start()

    def _log(self, metrics: dict[str, list[float]]) -> None:
        for cell, part in zip(self._cells, self._parts, strict=True):
            own = {name: values[part] for name, values in metrics.items()}
            cell.recorder.log_metrics(self._env_steps, self._position.updates, own)

    def _checkpoint_is_due(self) -> bool:
        every = self._options.checkpoint_every
        if every is None:
            return False
        affordable = self._save_cost / _LARGEST_SHARE if every else 0.0
        return time.perf_counter() - self._saved >= max(every, affordable)

    def _parts_to_keep(self) -> dict[str, Any]:
        # The learner apart: who wants the policy alone reads nothing else.
        rest = {name: value for name, value in self._states._asdict().items() if name != "learner"}
        progress = self._programs.to_keep(self._progress)
        return {"learner": self._states.learner, "rest": rest, "progress": progress}

    def _save(self) -> None:
        """Makes a checkpoint; of the last one each cell's folder has its part."""
        begun, position = time.perf_counter(), self._position
        position.seconds = self._run_seconds()
        position.metrics_bytes = [cell.recorder.metrics_bytes() for cell in self._cells]
        parts = self._parts_to_keep()
        sizes = [leaf.nbytes for leaf in jax.tree.leaves(parts)]
        require_space(self._cells[0].recorder.folder, sum(sizes) + _FILE_OVERHEAD)
        if position.updates != self._kept:  # as it is where a run was killed after its last one
            self._checkpoints.save(position.updates, parts, dataclasses.asdict(position))
            self._kept = position.updates
        if position.updates == self._config.num_updates:
            self._share_out(parts["learner"])
        self._saved = time.perf_counter()
        self._save_cost = self._saved - begun
        position.checkpoint_seconds += self._save_cost

    def _share_out(self, learners: LearnerState) -> None:
        """Gives each cell's folder its learners, where the checkpoints are not there."""
        folders = [cell.recorder.folder / CHECKPOINTS for cell in self._cells]
        if folders == [self._folder]:
            return
        # One device: an array that lies on a mesh cannot be cut anywhere.
        learners = jax.device_put(learners, SingleDeviceSharding(jax.devices()[0]))
        for folder, part in zip(folders, self._parts, strict=True):
            checkpoints = Checkpoints(folder)
            if not checkpoints.begun():
                checkpoints.forget_unfinished()
                own = jax.tree.map(operator.itemgetter(part), learners)
                checkpoints.save(self._position.updates, {"learner": own}, {})
                checkpoints.close()

    def _run_seconds(self) -> float:
        """That the run has taken, with what it took before it went on, but without compiling."""
        return self._seconds_before + time.perf_counter() - self._begun

    def _write_summaries(self, interrupted: bool = False) -> None:
        seconds, position = self._run_seconds(), self._position
        headline = self._headline
        scores = position.evaluation[headline.score.metric]
        sampled = position.evaluation.get(headline.sampled.metric)
        rate = self._env_steps * self._num_members / position.training_seconds
        for cell, part in zip(self._cells, self._parts, strict=True):
            options, broken = cell.plan.options, self._broken_in(part)
            summary: dict[str, Any] = {
                "agent": options.agent,
                "gate": options.gate,
                "env": options.env,
                "seed": options.seed,
                "num_seeds": options.num_seeds,
                "total_steps": self._env_steps,
                headline.summary_key(headline.score): aggregate(scores[part]),
                headline.summary_key(headline.sampled): (
                    None if sampled is None else aggregate(sampled[part])
                ),
                "compile_seconds": round(self._compile_seconds, 3),
                "run_seconds": round(seconds, 3),
                "training_seconds": round(position.training_seconds, 3),
                "checkpoint_seconds": round(position.checkpoint_seconds, 3),
                "steps_per_second": rate,
                "trained_side_by_side": self._num_members,
                "in_turn": self._in_turn,
                **{name: float(np.max(x[part])) for name, x in position.largest.items()},
                "device": self._device,
            }
            if interrupted:
                summary["interrupted"] = True
            if broken:
                summary["broken"] = [
                    {"seed": self._members.seeds[member], "update": update}
                    for member, update in broken
                ]
            cell.recorder.write_summary(summary)
            if broken:
                cell.recorder.say(f"error: {self._describe_broken(broken)}; kept what was measured")
            elif not interrupted:
                assert sampled is not None
                cell.recorder.say(
                    f"final {headline.quantity} {describe(scores[part])} "
                    f"(deterministic), {describe(sampled[part])} (stochastic), "
                    f"IQM [95 % interval] over {options.num_seeds} "
                    f"seed{'s' if options.num_seeds > 1 else ''}; {rate / 1e3:,.0f}k steps/s; "
                    f"results in {cell.recorder.folder}"
                )
