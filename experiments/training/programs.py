"""A run's compiled programs: members side by side, spread over devices."""

import abc
import copy
import dataclasses
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from experiments.record.headline import CONTROL
from experiments.training.compiling import Compiler, Lowered, Runs
from experiments.training.devices import Layout, over_seeds, seed_keys, spread_over_seeds
from rgpo_jax import policy, processes
from rgpo_jax import train as library
from rgpo_jax.acting import PolicyState
from rgpo_jax.agent import Agent, AgentState
from rgpo_jax.callback import make_act
from rgpo_jax.inspection import find_nonfinite
from rgpo_jax.learner import LearnerState
from rgpo_jax.train import ChunkReport, Progress

EVALUATION_STREAM = 0xE7A1  # folded into a seed's key: evaluation never shares a key with training

# How a batch of states over seeds lies on the mesh of a `Layout`.
SEEDS = PartitionSpec("seed")
STATES: Any = AgentState(learner=SEEDS, rollout=PartitionSpec("seed", "env"), key=SEEDS)  # type: ignore[arg-type]

# Between looks at a program that runs: seconds; and a share of the wait so far, since a chunk of
# updates may take as little as 5 ms.
_SHORTEST_PAUSE, _PAUSE, _LONGEST_PAUSE = 1e-4, 0.02, 0.02


def memory_of(compiled: Any) -> int:
    """Bytes that a compiled program needs: arguments, results and what is in between."""
    memory = compiled.memory_analysis()
    if memory is None:  # the backend does not tell
        return 0
    return int(
        memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    )


def wait(tree: Any) -> None:
    """Waits until arrays are computed. Signals are heard meanwhile: to them JAX's wait is deaf."""
    leaves: list[Any] = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    wait_until(lambda: all(leaf.is_ready() for leaf in leaves))


def wait_until(is_ready: Callable[[], bool]) -> None:
    """Looks again and again, at the latest a fiftieth of the wait or 20 ms after it is ready."""
    begun = time.perf_counter()
    while not is_ready():
        waited = time.perf_counter() - begun
        time.sleep(min(max(_SHORTEST_PAUSE, _PAUSE * waited), _LONGEST_PAUSE))


def on_mesh(mesh: Mesh, shapes: Any, specs: Any) -> Any:
    """Shapes of arrays that lie on a mesh as specs say; a spec may stand for a whole branch."""

    def place(spec: PartitionSpec, branch: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), branch
        )

    return jax.tree.map(place, specs, shapes, is_leaf=lambda x: isinstance(x, PartitionSpec))


def _place(values: np.ndarray, sharding: Sharding) -> jax.Array:
    """An array that all processes have, spread over devices."""
    return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)


def spread_progress(progress: Progress, mesh: Mesh, num_members: int) -> Progress:
    """A copy for each member: arrays [M, ...] on a mesh."""
    sharding = NamedSharding(mesh, SEEDS)
    return jax.tree.map(
        lambda x: _place(np.broadcast_to(np.asarray(x), (num_members, *x.shape)), sharding),
        progress,
    )


class Episodes(NamedTuple):
    """How many episodes an evaluation runs per member.

    Attributes:
      at_the_end: of the run, and wherever all are asked for.
      while_training: fewer, so that evaluation stays a small share of a run; a divisor of them.
    """

    at_the_end: int
    while_training: int

    @classmethod
    def within(cls, share: float, wanted: int, limit: int | None, interval: int) -> "Episodes":
        """The largest divisor of the number whose steps are a share of those that are trained on.

        At least one episode, whatever its share.

        Args:
          share: evaluation steps per training step.
          wanted: episodes at the end.
          limit: steps of the longest episode; None: unknown.
          interval: steps that are trained on between two evaluations.
        """
        if limit is None:
            return cls(wanted, wanted)
        fit = share * interval / limit * (1 + 1e-9)  # 0.29 of 100 are 29
        most = max(1, int(min(wanted, fit)))
        return cls(wanted, next(n for n in range(most, 0, -1) if wanted % n == 0))


class Members(NamedTuple):
    """What is trained side by side in one program: M pairs of a seed and hyper-parameters.

    Attributes:
      seeds: M of them.
      hyperparameters: name -> M numbers that take the place of the Config's.
    """

    seeds: tuple[int, ...]
    hyperparameters: Mapping[str, tuple[float, ...]] = {}

    def overrides(self) -> dict[str, np.ndarray]:
        """The hyper-parameters as float32 arrays [M]."""
        return {name: np.array(x, np.float32) for name, x in self.hyperparameters.items()}


def init_arguments(layout: Layout, members: Members) -> tuple[jax.Array, Any]:
    """Keys and hyper-parameters of members, on the mesh of a layout."""
    mesh = layout.mesh()
    return seed_keys(mesh, members.seeds), spread_over_seeds(mesh, members.overrides())


def trace_init(
    init: Callable[[jax.Array, dict], Any], layout: Layout, arguments: tuple, specs: Any
) -> tuple[Any, Any]:
    """Traces what gives members their first states.

    It runs once: one member after another compiles sooner, and gives the same numbers.

    Args:
      init: (key, hyper-parameters) -> states of one member.
      layout: of members on the devices.
      arguments: as `init_arguments` gives them.
      specs: how the states lie on the mesh.

    Returns:
      The traced program, and the shapes of the states on the mesh.
    """
    one_by_one = dataclasses.replace(layout, in_turn=True)
    traced = jax.jit(over_seeds(init, one_by_one, (SEEDS, SEEDS), specs)).trace(*arguments)
    return traced, on_mesh(layout.mesh(), traced.out_info, specs)


class Programs(abc.ABC):
    """What the host's loop calls; values are over members [M].

    They begin to compile when they are made, in threads; `ready` waits for them, and comes before
    all else.

    Attributes:
      compiler: what compiles them.
      spread: how members lie on devices, in words; empty where they do on one.
      in_turn: whether members that share a device are trained one after another.
      remark: what else a line of progress says of the last updates; empty: nothing.
      evaluated: on what the last evaluation was made, where it was not on all that was asked for.
      initial_states: where training starts: a NamedTuple with a `learner`; once they are ready.
      metric_names: what a chunk reports.
      memory_bytes: of the largest program, per device: arguments, results and what is in between;
        once they are ready.
    """

    compiler: Compiler
    spread: str = ""
    in_turn: bool = False
    remark: str = ""
    evaluated: str = ""
    initial_states: Any
    metric_names: list[str]
    memory_bytes: int
    _empty: Progress

    @abc.abstractmethod
    def ready(self, show: Callable[[str], None] = lambda line: None) -> None:
        """Waits for the programs; `show` is told what compiles, and for how long."""

    def _describe(self, training: Any, mesh: Mesh, num_members: int) -> None:
        """Takes over what the compiled training program of members on a mesh needs and reports."""
        progress: Progress = training.out_info[1]
        self.memory_bytes = memory_of(training)
        self.metric_names = list(progress.metrics.names)
        self._empty = spread_progress(progress.emptied(), mesh, num_members)

    def start(self) -> Progress:
        """A report in the making, on no update yet."""
        return self._empty

    @abc.abstractmethod
    def advance(self, states: Any, progress: Progress, num_updates: int) -> tuple[Any, Progress]:
        """Runs so many rollouts, each with its update. The states' memory may be reused."""

    @abc.abstractmethod
    def evaluate(self, states: Any, updates: int, whole: bool) -> dict[str, list[float]]:
        """Name -> one value per member, of policies after so many updates.

        The headline's score is among them each time, and all that it names where the evaluation is
        `whole`, as at the end, and before the first update.
        """

    def actor(self, states: Any) -> Callable[..., Any] | None:
        """How members act now, as `callback.Moment` explains; None where they do not."""
        return None

    def start_from(self, states: Any, learners: Any, parts: Sequence[slice]) -> Any:
        """States that start from what other learners [N] have learnt.

        Args:
          states: where training would start.
          learners: the `learner` of such states.
          parts: where the members of each cell lie; it takes the learners over and over.
        """
        raise NotImplementedError

    def restart_episodes(self, states: Any, updates: int) -> Any:
        """Begins episodes anew after so many updates, if the states do not hold environments.

        Returns:
          The states that go on with the new ones; None where the states hold all.
        """
        return None

    def pack_policies(
        self, learners: Any, parts: Sequence[slice], updates: int
    ) -> list[bytes] | None:
        """What can be taken away of learners after so many updates: for each cell, whose members
        lie in these parts, the content of its `policy.npz`. None: there is no such file.

        All processes call it together.
        """
        return None

    def find_cause(self) -> str | None:
        """What may have broken the parameters, in words; None where nothing was found."""
        return None

    def place(self, values: np.ndarray) -> jax.Array:
        """Values [M] on devices, as members lie there."""
        return _place(values, self._empty.broken_at.sharding)

    def finish(self, progress: Progress) -> ChunkReport:
        """The report on all updates since its start, in NumPy arrays [M]."""
        return processes.fetch(progress).finish()

    def to_keep(self, progress: Progress) -> Any:
        """A report in the making as checkpoints hold it: NumPy arrays [M], two for each metric."""
        metrics, broken_at = processes.fetch(progress)
        columns = zip(metrics.names, metrics.values.T, metrics.counts.T, strict=True)
        return {name: {"count": n, "value": x} for name, x, n in columns}, broken_at

    def from_kept(self, kept: Any) -> Progress:
        """A report in the making of what `to_keep` gave."""
        columns, broken_at = kept
        empty = self._empty.metrics

        def stack(of: str, like: jax.Array) -> jax.Array:
            values = np.stack([columns[name][of] for name in empty.names], axis=1)
            return _place(values, like.sharding)

        values, counts = stack("value", empty.values), stack("count", empty.counts)
        metrics = dataclasses.replace(empty, values=values, counts=counts)
        return Progress(metrics, _place(np.asarray(broken_at), self._empty.broken_at.sharding))


class EpisodePrograms(Programs):
    """Programs of an agent in environments, wherever those live; evaluations are episodes."""

    _observation_dtype: Any

    def __init__(self, agent: Agent, layout: Layout, members: Members, episodes: Episodes):
        self._act = make_act(agent)
        self._episodes = episodes
        self.compiler = Compiler()
        self.spread = layout.describe() if layout != Layout() else ""
        self.in_turn = layout.in_turn
        self._agent, self._layout, self._seeds = agent, layout, members.seeds
        self._init_arguments = init_arguments(layout, members)

    def actor(self, states: Any) -> Callable[..., Any]:
        here = SingleDeviceSharding(jax.devices()[0])  # where observations are

        def act(observation: Any, key: Any = None, memory: Any = None) -> Any:
            learners = jax.device_put(states.learner._replace(optimizer_state=None), here)
            return self._act(learners, observation, key, memory)

        return act

    def _num_episodes(self, whole: bool) -> int:
        return self._episodes.at_the_end if whole else self._episodes.while_training

    @abc.abstractmethod
    def _run_episodes(
        self, states: Any, updates: int, deterministic: bool, whole: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns and lengths of evaluation episodes, means per member."""

    def evaluate(self, states: Any, updates: int, whole: bool) -> dict[str, list[float]]:
        """Score, length and number of evaluation episodes, means after so many updates.

        Those of the policy's mode; before the first update, and where it is a whole evaluation with
        all episodes, those of samples too.
        """
        curves = {"": CONTROL.score}
        if CONTROL.sampled is not None and (whole or not updates):
            curves["_stochastic"] = CONTROL.sampled
        result = {}
        for suffix, curve in curves.items():
            returns, lengths = self._run_episodes(states, updates, suffix == "", whole)
            result[curve.metric] = returns.tolist()
            result[f"eval_length{suffix}"] = lengths.tolist()
        number = self._num_episodes(whole)
        is_less = number < self._episodes.at_the_end
        self.evaluated = f"{number} episode{'s' * (number > 1)} a seed" if is_less else ""
        result["eval_episodes"] = [float(number)] * len(self._seeds)
        return result

    def pack_policies(
        self, learners: LearnerState, parts: Sequence[slice], updates: int
    ) -> list[bytes]:
        actors = PolicyState({"actor": learners.params["actor"]}, learners.observation_moments)
        actors = processes.fetch(actors)

        def packed(part: slice) -> bytes:
            seeds = self._seeds[part]
            about = policy.describe(self._agent, seeds, updates, self._observation_dtype)
            return policy.pack(about, jax.tree.map(operator.itemgetter(part), actors))

        return [packed(part) for part in parts]

    def start_from(self, states: Any, learners: LearnerState, parts: Sequence[slice]) -> Any:
        """Takes parameters and statistics.

        Those of returns too, where both scale rewards: the critic's unit is theirs.
        """
        own = states.learner
        number = jax.tree.leaves(learners.params)[0].shape[0]
        which = np.concatenate([np.arange(part.stop - part.start) for part in parts]) % number

        def take(theirs: jax.Array, ours: jax.Array) -> jax.Array:
            return jax.device_put(np.asarray(theirs)[which], ours.sharding)

        taken = {
            field: jax.tree.map(take, getattr(learners, field), getattr(own, field))
            for field in ("params", "observation_moments")
        }
        if own.return_scale is not None and learners.return_scale is not None:
            moments = jax.tree.map(take, learners.return_scale.moments, own.return_scale.moments)
            taken["return_scale"] = own.return_scale._replace(moments=moments)
        return states._replace(learner=own._replace(**taken))


class CompiledPrograms(EpisodePrograms):
    """Everything is compiled, the environments too."""

    def __init__(
        self,
        agent: Agent,
        layout: Layout,
        members: Members,
        episodes: Episodes,
        made_of: Mapping[str, Any] | None = None,
    ):
        super().__init__(agent, layout, members, episodes)
        self._init, self._advance, self._evaluate = self.compiler.obtain(
            made_of, self._lowered(episodes.while_training)
        )

    def _lowered(self, num_episodes: int) -> Iterator[Lowered]:
        """Traces its programs, one after the other."""
        agent, layout, mesh = self._agent, self._layout, self._layout.mesh()

        def init(key: jax.Array, overrides: dict) -> tuple[AgentState, jax.Array]:
            return agent.init(key, **overrides), jax.random.fold_in(key, EVALUATION_STREAM)

        traced, (states, eval_keys) = trace_init(
            init, layout, self._init_arguments, (STATES, SEEDS)
        )
        devices = tuple(mesh.devices.flat)
        # First: it compiles while the others are traced.
        yield Lowered("initial states", traced.lower(), Runs.ONCE, devices)

        step = over_seeds(lambda state: agent.step(state)[1], layout, (STATES,), SEEDS)
        metrics = jax.eval_shape(step, states)
        program = over_seeds(
            library.make_advance(agent),
            layout,
            (STATES, SEEDS, PartitionSpec()),
            (STATES, SEEDS),
        )
        progress = spread_progress(Progress.start(metrics), mesh, len(self._seeds))
        lowered = jax.jit(program, donate_argnums=0).lower(states, progress, jnp.int32(1))
        yield Lowered("training", lowered, Runs.OFTEN, devices)

        # Whether actions are the mode is traced: a physics step takes half a minute to compile.
        def evaluate(
            learner: Any, key: jax.Array, updates: Any, batch: Any, deterministic: Any
        ) -> tuple[jax.Array, jax.Array]:
            key = jax.random.fold_in(key, updates)
            key = jax.lax.select(batch == 0, key, jax.random.fold_in(key, batch))
            run = library.make_evaluation(agent, num_episodes, deterministic)
            returns, lengths = run(learner, key)
            return jnp.mean(returns), jnp.mean(lengths)

        specs = (SEEDS, SEEDS, *(PartitionSpec(),) * 3)
        lowered = jax.jit(over_seeds(evaluate, layout, specs, SEEDS)).lower(
            states.learner, eval_keys, jnp.int32(0), jnp.int32(0), jnp.bool_(True)
        )
        yield Lowered("evaluation", lowered, Runs.RARELY, devices)

    def ready(self, show: Callable[[str], None] = lambda line: None) -> None:
        self.compiler.wait(show)
        self.initial_states, self._eval_keys = self._init.result()(*self._init_arguments)
        observation = self.initial_states.rollout.observation
        self._observation_dtype = jax.tree.map(lambda x: x.dtype, observation)
        self._describe(self._advance.result(), self._layout.mesh(), len(self._seeds))

    def of(self, members: Members) -> "CompiledPrograms":
        """The same programs for as many others: nothing is traced or compiled anew."""
        other = copy.copy(self)
        other._init_arguments = init_arguments(self._layout, members)
        other._seeds = members.seeds
        return other

    def advance(
        self, states: AgentState, progress: Progress, num_updates: int
    ) -> tuple[AgentState, Progress]:
        return self._advance.result()(states, progress, jnp.int32(num_updates))

    def find_cause(self) -> str | None:
        env: Any = self._agent.env
        return find_nonfinite(env, jax.random.key(0))

    def _run_episodes(
        self, states: AgentState, updates: int, deterministic: bool, whole: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        means = [
            self._evaluate.result()(
                states.learner,
                self._eval_keys,
                jnp.int32(updates),
                jnp.int32(batch),
                jnp.bool_(deterministic),
            )
            for batch in range(self._num_episodes(whole) // self._episodes.while_training)
        ]
        wait(means)
        returns, lengths = (np.mean(x, axis=0) for x in zip(*processes.fetch(means), strict=True))
        return returns, lengths
