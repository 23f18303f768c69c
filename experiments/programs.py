"""A run's compiled programs: members side by side, spread over devices."""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.devices import Layout, over_seeds, seed_keys, spread_over_seeds
from rgpo_jax import processes
from rgpo_jax import train as library
from rgpo_jax.agent import Agent, AgentState
from rgpo_jax.train import ChunkReport, Progress

_EVALUATION_STREAM = 0xE7A1  # folded into a seed's key: evaluation never shares a key with training

# How a batch of states over seeds lies on the mesh of a `Layout`.
SEEDS = PartitionSpec("seed")
STATES: Any = AgentState(learner=SEEDS, rollout=PartitionSpec("seed", "env"), key=SEEDS)  # type: ignore[arg-type]


def memory_of(compiled: Any) -> int:
    """Bytes that a compiled program needs: arguments, results and what is in between."""
    memory = compiled.memory_analysis()
    if memory is None:  # the backend does not tell
        return 0
    return int(
        memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    )


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


class Programs(abc.ABC):
    """What the host's loop calls; values are over members [M].

    Attributes:
      initial_states: where training starts: a NamedTuple with a `learner`.
      metric_names: what a chunk reports.
      memory_bytes: of the largest program, per device: arguments, results and what is in between.
    """

    initial_states: Any
    metric_names: list[str]
    memory_bytes: int
    _eval_keys: jax.Array
    _finish: Callable[[Progress], ChunkReport]

    @abc.abstractmethod
    def start(self, states: Any) -> Progress:
        """A report in the making, on no update yet."""

    @abc.abstractmethod
    def advance(self, states: Any, progress: Progress, num_updates: int) -> tuple[Any, Progress]:
        """Runs so many rollouts, each with its update. The arguments may be reused as memory."""

    def restart_episodes(self, updates: int) -> bool:
        """Begins episodes anew after so many updates, if the states do not hold environments."""
        return False

    @abc.abstractmethod
    def _run_episodes(self, states: Any, keys: jax.Array, deterministic: bool) -> tuple[Any, Any]:
        """Returns and lengths of evaluation episodes, means per member."""

    def finish(self, progress: Progress) -> ChunkReport:
        """The report on all updates since its start."""
        return self._finish(progress)

    def evaluate(self, states: Any, updates: int) -> dict[str, list[float]]:
        """Mean return and length of evaluation episodes, by the policy's mode and by samples."""
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(self._eval_keys, updates)
        result = {}
        for suffix, deterministic in (("", True), ("_stochastic", False)):
            returns, lengths = self._run_episodes(states, keys, deterministic)
            returns, lengths = processes.fetch((returns, lengths))
            result[f"eval_return{suffix}"] = returns.tolist()
            result[f"eval_length{suffix}"] = lengths.tolist()
        return result


class CompiledPrograms(Programs):
    """Everything is compiled, the environments too."""

    def __init__(self, agent: Agent, layout: Layout, members: Members, eval_episodes: int):
        mesh = layout.mesh()
        overrides = spread_over_seeds(mesh, members.overrides())

        def init(key: jax.Array, overrides: dict) -> tuple[AgentState, jax.Array]:
            return agent.init(key, **overrides), jax.random.fold_in(key, _EVALUATION_STREAM)

        spread_init = over_seeds(init, layout, (SEEDS, SEEDS), (STATES, SEEDS))
        keys = seed_keys(mesh, members.seeds)
        self.initial_states, self._eval_keys = jax.jit(spread_init)(keys, overrides)

        start = over_seeds(
            functools.partial(library.start_progress, agent), layout, (STATES,), SEEDS
        )
        self._start = jax.jit(start).lower(self.initial_states).compile()
        progress = self.start(self.initial_states)
        self.metric_names = sorted(progress.metrics)
        program = over_seeds(
            library.make_advance(agent),
            layout,
            (STATES, SEEDS, PartitionSpec()),
            (STATES, SEEDS),
        )
        lowered = jax.jit(program, donate_argnums=(0, 1)).lower(
            self.initial_states, progress, jnp.int32(1)
        )
        self._advance = lowered.compile()
        self.memory_bytes = memory_of(self._advance)
        finish = over_seeds(Progress.finish, layout, (SEEDS,), SEEDS)
        self._finish = jax.jit(finish).lower(progress).compile()

        # Whether actions are the mode is traced: a physics step takes half a minute to compile.
        def evaluate(
            learner: Any, key: jax.Array, deterministic: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            run = library.make_evaluation(agent, eval_episodes, deterministic)
            returns, lengths = run(learner, key)
            return jnp.mean(returns), jnp.mean(lengths)

        program = over_seeds(evaluate, layout, (SEEDS, SEEDS, PartitionSpec()), SEEDS)
        lowered = jax.jit(program).lower(
            self.initial_states.learner, self._eval_keys, jnp.bool_(True)
        )
        self._evaluate = lowered.compile()

    def start(self, states: AgentState) -> Progress:
        return self._start(states)

    def advance(
        self, states: AgentState, progress: Progress, num_updates: int
    ) -> tuple[AgentState, Progress]:
        return self._advance(states, progress, jnp.int32(num_updates))

    def _run_episodes(
        self, states: AgentState, keys: jax.Array, deterministic: bool
    ) -> tuple[Any, Any]:
        return self._evaluate(states.learner, keys, jnp.bool_(deterministic))
