"""A run's programs where environments live on the host: what `training.Programs` is elsewhere."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments.devices import Layout, over_seeds, seed_keys
from rgpo_jax import host
from rgpo_jax.agent import Agent, episode_metrics
from rgpo_jax.rollout import EpisodeTotals, Trajectory
from rgpo_jax.train import ChunkReport, Progress
from rgpo_jax.update import LearnerState

_SEEDS = PartitionSpec("seed")


class HostState(NamedTuple):
    """What of `agent.AgentState` is not in a pool, over seeds [S].

    Attributes:
      learner: parameters, optimiser, hyper-parameters.
      key: typed key, for rollouts.
    """

    learner: LearnerState
    key: jax.Array


class HostPrograms:
    """Collects with the policies of all seeds, and updates them in one compiled program.

    Updates are vmapped over seeds and spread over the local devices; one device acts.
    """

    def __init__(self, agent: Agent, layout: Layout, seed: int, num_seeds: int, eval_episodes: int):
        seeds = range(seed, seed + num_seeds)
        mesh = layout.mesh()
        self._sharding = NamedSharding(mesh, _SEEDS)
        self._collector = host.Collector(agent, seeds)
        self._evaluator = host.Evaluator(agent, seeds, eval_episodes)

        def init(key: jax.Array) -> tuple[HostState, jax.Array]:
            learner_key, evaluation_key, key = jax.random.split(key, 3)
            learner = agent.learner.init(learner_key, agent.learner.hyperparameters)
            return HostState(learner, key), evaluation_key

        def update(
            state: LearnerState, trajectory: Trajectory, totals: EpisodeTotals, progress: Progress
        ) -> tuple[LearnerState, Progress]:
            new, metrics = agent.learner.update(state, trajectory)
            metrics |= episode_metrics(totals)
            return new, progress.take(state.updates, new.params, metrics)

        keys = seed_keys(mesh, seed, num_seeds)
        program = over_seeds(init, mesh, (_SEEDS,), (_SEEDS, _SEEDS))
        self.initial_states, self._eval_keys = jax.jit(program)(keys)

        one = (self.initial_states.learner, self._collector.shapes)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), one)
        _, shapes = jax.eval_shape(agent.learner.update, *one)
        shapes |= jax.eval_shape(episode_metrics, EpisodeTotals(*np.zeros(3)))
        self.metric_names = sorted(shapes)
        self._start = jax.jit(
            lambda: jax.tree.map(
                lambda x: jnp.broadcast_to(x, (num_seeds, *x.shape)), Progress.start(shapes)
            ),
            out_shardings=self._sharding,
        )
        self._finish = jax.jit(jax.vmap(Progress.finish))
        self._split = jax.jit(jax.vmap(jax.random.split, out_axes=1))
        program = over_seeds(update, mesh, (_SEEDS,) * 4, (_SEEDS, _SEEDS))
        on_mesh = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding),
            (self._collector.shapes, EpisodeTotals(*np.zeros((3, num_seeds), np.float32))),
        )
        lowered = jax.jit(program).lower(self.initial_states.learner, *on_mesh, self._start())
        self._update = lowered.compile()
        self._collector.compile(self.initial_states.learner, keys)
        self._evaluator.compile(self.initial_states.learner, keys)

    def chunk(self, states: HostState, num_updates: Any) -> tuple[HostState, ChunkReport]:
        """Runs so many rollouts, each with its update."""
        learner, keys = states
        progress = self._start()
        for _ in range(int(num_updates)):
            keys, rollout_keys = self._split(keys)
            trajectory, totals = self._collector.collect(learner, rollout_keys)
            totals = jax.tree.map(np.float32, totals)
            experience = jax.device_put((trajectory, totals), self._sharding)
            learner, progress = self._update(learner, *experience, progress)
        return HostState(learner, keys), self._finish(progress)

    def evaluate(self, states: HostState, updates: int) -> dict[str, list[float]]:
        """Mean return and length of evaluation episodes, one value per seed."""
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(self._eval_keys, updates)
        result = {}
        for suffix, deterministic in (("", True), ("_stochastic", False)):
            returns, lengths = self._evaluator.run(states.learner, keys, deterministic)
            result[f"eval_return{suffix}"] = returns.mean(axis=1).tolist()
            result[f"eval_length{suffix}"] = lengths.mean(axis=1).tolist()
        return result
