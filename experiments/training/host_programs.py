"""A run's programs where environments live on the host."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from experiments.training.compiling import Lowered, Runs
from experiments.training.devices import Layout, over_seeds
from experiments.training.programs import (
    SEEDS,
    EpisodePrograms,
    Episodes,
    Members,
    on_mesh,
    spread_progress,
    trace_init,
)
from rgpo_jax import host
from rgpo_jax.agent import Agent, episode_metrics
from rgpo_jax.environment import HostEnvironment
from rgpo_jax.learner import LearnerState
from rgpo_jax.rollout import EpisodeTotals, Trajectory
from rgpo_jax.train import Progress


class HostState(NamedTuple):
    """What of `agent.AgentState` is not in a pool, over seeds [S].

    Attributes:
      learner: parameters, optimiser, hyper-parameters.
      key: typed key, for rollouts.
    """

    learner: LearnerState
    key: jax.Array


class HostPrograms(EpisodePrograms):
    """Collects with the policies of all members, and updates them in one compiled program.

    Members' updates are spread over the local devices as in `over_seeds`; one device acts.
    """

    def __init__(
        self,
        agent: Agent,
        layout: Layout,
        members: Members,
        episodes: Episodes,
        made_of: Mapping[str, Any] | None = None,
    ):
        super().__init__(agent, layout, members, episodes)
        self._sharding = NamedSharding(layout.mesh(), SEEDS)
        self._acting = host.ActingPrograms(agent)
        self._collector = host.Collector(agent, members.seeds, acting=self._acting)
        assert isinstance(agent.env, HostEnvironment)
        self._observation_dtype = agent.env.observation_dtype
        # Fewer episodes where all are not affordable.
        self._evaluators = {
            number: host.Evaluator(agent, members.seeds, number, self._acting)
            for number in set(episodes)
        }
        self._fold_in = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(0, None)))
        self._split = jax.jit(jax.vmap(jax.random.split, out_axes=1))
        acting = self._collector.programs.union(*(e.programs for e in self._evaluators.values()))
        self._init, self._update, *compilations = self.compiler.obtain(
            made_of, self._lowered(sorted(acting))
        )
        self._compilations = dict(zip(sorted(acting), compilations, strict=True))

    def _lowered(self, acting: Sequence[host.ActingProgram]) -> Iterator[Lowered]:
        """Traces its programs, those that act last."""
        agent, layout, mesh = self._agent, self._layout, self._layout.mesh()
        num_members = len(self._seeds)

        def init(key: jax.Array, overrides: dict) -> tuple[HostState, jax.Array]:
            learner_key, evaluation_key, key = jax.random.split(key, 3)
            hyperparameters = agent.learner.hyperparameters.replace(**overrides)
            learner = agent.learner.init(learner_key, hyperparameters)
            return HostState(learner, key), evaluation_key

        def update(
            state: LearnerState, trajectory: Trajectory, totals: EpisodeTotals, progress: Progress
        ) -> tuple[LearnerState, Progress]:
            new, metrics = agent.learner.update(state, trajectory)
            metrics |= episode_metrics(totals)
            return new, progress.take(state.updates, new.params, metrics)

        traced, (states, keys) = trace_init(init, layout, self._init_arguments, (SEEDS, SEEDS))
        devices = tuple(mesh.devices.flat)
        yield Lowered("initial states", traced.lower(), Runs.ONCE, devices)

        one = (states.learner, self._collector.shapes)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), one)
        _, shapes = jax.eval_shape(agent.learner.update, *one)
        shapes |= jax.eval_shape(episode_metrics, EpisodeTotals(*np.zeros(3)))
        program = over_seeds(update, layout, (SEEDS,) * 4, (SEEDS, SEEDS))
        experience = on_mesh(
            mesh,
            (self._collector.shapes, EpisodeTotals(*np.zeros((3, num_members), np.float32))),
            SEEDS,
        )
        progress = spread_progress(Progress.start(shapes), mesh, num_members)
        lowered = jax.jit(program).lower(states.learner, *experience, progress)
        yield Lowered("training", lowered, Runs.OFTEN, devices)

        for one_acting in acting:
            yield Lowered("acting", self._acting.lower(one_acting, states.learner, keys))

    def ready(self, show: Callable[[str], None] = lambda line: None) -> None:
        self.initial_states, self._eval_keys = self._init.result()(*self._init_arguments)
        # What is small is compiled by using it, while the rest is still under way.
        self._split(self._eval_keys), self._fold_in(self._eval_keys, np.int32(0))
        self.compiler.wait(show)
        for program, compilation in self._compilations.items():
            self._acting.use(program, compilation.result())
        self._describe(self._update.result(), self._layout.mesh(), len(self._seeds))

    def find_cause(self) -> str | None:
        return self._collector.nonfinite

    def advance(
        self, states: HostState, progress: Progress, num_updates: int
    ) -> tuple[HostState, Progress]:
        learner, keys = states
        update = self._update.result()
        for _ in range(num_updates):
            keys, rollout_keys = self._split(keys)
            trajectory, totals = self._collector.collect(learner, rollout_keys)
            totals = jax.tree.map(np.float32, totals)
            experience = jax.device_put((trajectory, totals), self._sharding)
            learner, progress = update(learner, *experience, progress)
        return HostState(learner, keys), progress

    def restart_episodes(self, states: HostState, updates: int) -> HostState:
        self._collector = host.Collector(self._agent, self._seeds, updates, self._acting)
        scale = states.learner.return_scale
        if scale is None:
            return states
        # No episode goes on: nothing of one leaks into the scale of the new ones.
        scale = scale._replace(running_return=jnp.zeros_like(scale.running_return))
        return states._replace(learner=states.learner._replace(return_scale=scale))

    def _run_episodes(
        self, states: HostState, updates: int, deterministic: bool, whole: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        keys = self._fold_in(self._eval_keys, np.int32(updates))
        evaluator = self._evaluators[self._num_episodes(whole)]
        returns, lengths = evaluator.run(states.learner, keys, deterministic)
        return returns.mean(axis=1), lengths.mean(axis=1)
