"""The compiled programs of exact worlds: members side by side, judged by sums over all answers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.training.compiling import Compiler, Lowered, Runs
from experiments.training.devices import Layout, over_seeds, spread_over_seeds
from experiments.training.programs import (
    SEEDS,
    Members,
    Programs,
    init_arguments,
    spread_progress,
    trace_init,
)
from rgpo_jax import processes
from rgpo_jax import train as library
from rgpo_jax.language.agent import Agent, AgentState
from rgpo_jax.language.learner import is_broken
from rgpo_jax.language.world import World, expectations
from rgpo_jax.train import Progress

_SHARED = PartitionSpec()


class _Stepping(NamedTuple):
    step: Callable[..., Any]


class ExactPrograms(Programs):
    """Answers, rewards and updates in one program; evaluations are exact."""

    def __init__(
        self,
        world: World,
        agent: Agent,
        layout: Layout,
        members: Members,
        target: np.ndarray,
        made_of: Mapping[str, Any] | None = None,
    ):
        """Begins to compile.

        Args:
          world: one with an enumeration.
          agent: made for it.
          layout: of members on devices.
          members: M of them.
          target: where each member's method settles [M, N, answers]; NaN where that is not known.
          made_of: what the programs are known by, see `Compiler.obtain`.
        """
        self.compiler = Compiler()
        self.spread = layout.describe() if layout != Layout() else ""
        self._world, self._agent, self._layout = world, agent, layout
        self._shared = world.frozen, world.prompts
        self._num_members = len(members.seeds)
        self._init_arguments = init_arguments(layout, members)
        self._target = spread_over_seeds(layout.mesh(), np.asarray(target, np.float32))
        self._init, self._advance, self._evaluate = self.compiler.obtain(made_of, self._lowered())

    def _lowered(self) -> Iterator[Lowered]:
        """Traces its programs, one after the other."""
        world, agent, layout, mesh = self._world, self._agent, self._layout, self._layout.mesh()
        devices = tuple(mesh.devices.flat)

        def init(key: jax.Array, overrides: dict) -> AgentState:
            return agent.init(key, world.frozen, **overrides)

        traced, states = trace_init(init, layout, self._init_arguments, SEEDS)
        # First: it compiles while the others are traced.
        yield Lowered("initial states", traced.lower(), Runs.ONCE, devices)

        metrics = jax.eval_shape(
            over_seeds(
                lambda state, shared: agent.step(state, *shared)[1],
                layout,
                (SEEDS, _SHARED),
                SEEDS,
            ),
            states,
            self._shared,
        )
        progress = spread_progress(Progress.start(metrics), mesh, self._num_members)

        def advance(state: AgentState, progress: Progress, number: Any, shared: Any) -> Any:
            stepping = _Stepping(lambda state: agent.step(state, *shared))
            return library.make_advance(stepping, is_broken)(state, progress, number)

        specs = (SEEDS, SEEDS, _SHARED, _SHARED)
        program = over_seeds(advance, layout, specs, (SEEDS, SEEDS))
        lowered = jax.jit(program, donate_argnums=0).lower(
            states, progress, jnp.int32(1), self._shared
        )
        yield Lowered("training", lowered, Runs.OFTEN, devices)

        def evaluate(state: AgentState, target: jax.Array, shared: Any) -> Any:
            learner = state.learner
            temperature = learner.hyperparameters.temperature
            return expectations(world, learner.params, shared[0], target, temperature)

        program = over_seeds(evaluate, layout, (SEEDS, SEEDS, _SHARED), SEEDS)
        lowered = jax.jit(program).lower(states, self._target, self._shared)
        yield Lowered("evaluation", lowered, Runs.RARELY, devices)

    def ready(self, show: Callable[[str], None] = lambda line: None) -> None:
        self.compiler.wait(show)
        self.initial_states = self._init.result()(*self._init_arguments)
        self._describe(self._advance.result(), self._layout.mesh(), self._num_members)

    def advance(self, states: Any, progress: Progress, num_updates: int) -> tuple[Any, Progress]:
        return self._advance.result()(states, progress, jnp.int32(num_updates), self._shared)

    def evaluate(self, states: Any, updates: int, whole: bool) -> dict[str, list[float]]:
        """Expected reward, KL, entropy, and distance to the target, without sampling."""
        exact = processes.fetch(self._evaluate.result()(states, self._target, self._shared))
        return {name: values.tolist() for name, values in exact._asdict().items()}
