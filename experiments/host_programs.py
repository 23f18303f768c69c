"""A run's programs where environments live on the host."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from experiments.devices import Layout, over_seeds, seed_keys, spread_over_seeds
from experiments.programs import SEEDS, Members, Programs, memory_of
from rgpo_jax import host
from rgpo_jax.agent import Agent, episode_metrics
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


class HostPrograms(Programs):
    """Collects with the policies of all members, and updates them in one compiled program.

    Members' updates are spread over the local devices as in `over_seeds`; one device acts.
    """

    def __init__(self, agent: Agent, layout: Layout, members: Members, eval_episodes: int):
        mesh, num_members = layout.mesh(), len(members.seeds)
        self._agent, self._seeds = agent, members.seeds
        self._sharding = NamedSharding(mesh, SEEDS)
        self._collector = host.Collector(agent, members.seeds)
        self._evaluator = host.Evaluator(agent, members.seeds, eval_episodes)

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

        keys = seed_keys(mesh, members.seeds)
        program = over_seeds(init, layout, (SEEDS, SEEDS), (SEEDS, SEEDS))
        overrides = spread_over_seeds(mesh, members.overrides())
        self.initial_states, self._eval_keys = jax.jit(program)(keys, overrides)

        one = (self.initial_states.learner, self._collector.shapes)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), one)
        _, shapes = jax.eval_shape(agent.learner.update, *one)
        shapes |= jax.eval_shape(episode_metrics, EpisodeTotals(*np.zeros(3)))
        self.metric_names = sorted(shapes)
        self._start = jax.jit(
            lambda: jax.tree.map(
                lambda x: jnp.broadcast_to(x, (num_members, *x.shape)), Progress.start(shapes)
            ),
            out_shardings=self._sharding,
        )
        self._finish = jax.jit(jax.vmap(Progress.finish))
        self._split = jax.jit(jax.vmap(jax.random.split, out_axes=1))
        program = over_seeds(update, layout, (SEEDS,) * 4, (SEEDS, SEEDS))
        on_mesh = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding),
            (self._collector.shapes, EpisodeTotals(*np.zeros((3, num_members), np.float32))),
        )
        lowered = jax.jit(program).lower(self.initial_states.learner, *on_mesh, self._start())
        self._update = lowered.compile()
        self.memory_bytes = memory_of(self._update)
        self._collector.compile(self.initial_states.learner, keys)
        self._evaluator.compile(self.initial_states.learner, keys)

    def start(self, states: HostState) -> Progress:
        return self._start()

    def advance(
        self, states: HostState, progress: Progress, num_updates: int
    ) -> tuple[HostState, Progress]:
        learner, keys = states
        for _ in range(num_updates):
            keys, rollout_keys = self._split(keys)
            trajectory, totals = self._collector.collect(learner, rollout_keys)
            totals = jax.tree.map(np.float32, totals)
            experience = jax.device_put((trajectory, totals), self._sharding)
            learner, progress = self._update(learner, *experience, progress)
        return HostState(learner, keys), progress

    def restart_episodes(self, updates: int) -> bool:
        self._collector = host.Collector(self._agent, self._seeds, start=updates)
        return True

    def _run_episodes(
        self, states: HostState, keys: jax.Array, deterministic: bool
    ) -> tuple[Any, Any]:
        returns, lengths = self._evaluator.run(states.learner, keys, deterministic)
        return returns.mean(axis=1), lengths.mean(axis=1)
