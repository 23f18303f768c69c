"""Collecting and evaluating where environments live on the host: several seeds, one pool.

The policy is compiled and vmapped over seeds. The environments of all seeds step together, as two
shares: while one steps in the pool's threads, the policy acts for the other.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from rgpo_jax import acting, inspection
from rgpo_jax.acting import Acted
from rgpo_jax.agent import Agent
from rgpo_jax.environment import (
    HostEnvironment,
    Observation,
    Pool,
    TimeStep,
    for_evaluation,
    zeros,
)
from rgpo_jax.learner import LearnerState
from rgpo_jax.rollout import EpisodeTotals, Trajectory

Array = jax.Array
_MOST_OVER_LIMIT = 2  # some count a reset as a step, or lives as episodes
_TRAINING, _EVALUATION = range(2)  # streams of environment seeds
_NUM_SHARES = 2


def environment_seeds(seed: int, stream: int, num_envs: int, start: int = 0) -> np.ndarray:
    """Seeds in [0, 2^31) for environments; those of other seeds, streams or starts differ."""
    entropy = (seed, stream) if start == 0 else (seed, stream, start)
    return np.random.SeedSequence(entropy).generate_state(num_envs) >> 1


def _require_host(agent: Agent) -> HostEnvironment:
    if not isinstance(agent.env, HostEnvironment):
        raise TypeError(f"{agent.env.name} does not live on the host: use agent.step")
    return agent.env


def _make_act(agent: Agent, deterministic: bool) -> Callable[..., Acted]:
    """Returns the compiled policy of S seeds.

    It maps (learner states [S], observations [S, n, ...], keys [S], time, share) to what was done,
    [S, n, ...].
    """
    space = agent.env.action_space

    def act(
        state: LearnerState, observation: Observation, key: Array, time: Array, share: Array
    ) -> Acted:
        distribution = agent.learner.policy(state, observation)
        if deterministic:
            action = distribution.mode()
        else:
            key = jax.random.fold_in(jax.random.fold_in(key, share), time)
            action = distribution.sample(key)
        return acting.act(distribution, action, space)

    return jax.jit(jax.vmap(act, in_axes=(0, 0, 0, None, None)))


def _acting_device() -> SingleDeviceSharding:
    # Not the bare device: arrays put there keep the type of the mesh on which they lay before.
    return SingleDeviceSharding(jax.local_devices()[0])


def _to_act_by(state: LearnerState, key: Array) -> tuple[LearnerState, Array]:
    """What acting needs, on one device; every step would pay for more."""
    return jax.device_put((state._replace(optimizer_state=()), key), _acting_device())


class ActingProgram(NamedTuple):
    """Which program acts.

    Attributes:
      deterministic: whether actions are the policy's mode, or samples.
      num_observations: of each seed, on which it acts at once.
    """

    deterministic: bool
    num_observations: int


class ActingPrograms:
    """The policies of S seeds, compiled when they first act, or ahead."""

    def __init__(self, agent: Agent):
        self._env = _require_host(agent)
        self._jitted = {mode: _make_act(agent, deterministic=mode) for mode in (True, False)}
        self._compiled: dict[ActingProgram, Callable[..., Acted]] = {}

    def lower(self, program: ActingProgram, state: LearnerState, key: Array) -> Any:
        """Lowers a program, to be compiled and given to `use`.

        Args:
          program: which.
          state: shapes of the learner states of S seeds.
          key: shape of their keys [S].
        """

        def on_device(x: Any) -> Any:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_acting_device())

        def batch(x: Any) -> Any:
            shape = (*key.shape, program.num_observations, *x.shape)
            return jax.ShapeDtypeStruct(shape, x.dtype)

        env, number = self._env, jax.ShapeDtypeStruct((), np.int32)
        learner, key = jax.tree.map(on_device, (state._replace(optimizer_state=()), key))
        one = jax.eval_shape(lambda: zeros(env.observation_shape, env.observation_dtype))
        observation = jax.tree.map(batch, one)
        jitted: Any = self._jitted[program.deterministic]
        return jitted.lower(learner, observation, key, number, number)

    def use(self, program: ActingProgram, compiled: Callable[..., Acted]) -> None:
        """Acts with a program that was compiled, from now on."""
        self._compiled[program] = compiled

    def choose(self, program: ActingProgram) -> Callable[..., Acted]:
        """(learner states [S], observations [S, n, ...], keys [S], time, share) -> `Acted`."""
        return self._compiled.get(program, self._jitted[program.deterministic])


class _Share:
    """The same `columns` of every seed's environments, in a pool.

    Attributes:
      columns: which of a seed's environments they are.
      observation: to act on next [S, n, *observation_shape].
      action: as the policy drew it for the step under way [S, n] or [S, n, d].
      log_prob: of that action [S, n].
      nonfinite: which number of a step was the first that was NaN or infinite, in words.
    """

    def __init__(
        self, env: HostEnvironment, index: int, pool: Pool, num_seeds: int, columns: slice
    ):
        self.columns = columns
        self._env = env
        self._index = np.int32(index)
        self._steps = 0  # so far
        self.nonfinite: str | None = None
        self._pool = pool
        self._num_seeds = num_seeds
        self.observation: Any = None
        self.action: Any = None
        self.log_prob: Any = None
        self.reset()

    def _by_seed(self, batch: Any) -> Any:
        return batch.reshape(self._num_seeds, -1, *batch.shape[1:])

    def _declared(self, observation: Any) -> Any:
        """An observation in the types that the environment has, whatever a reset gave."""
        dtype = self._env.observation_dtype
        if isinstance(dtype, Mapping):
            return {name: np.asarray(observation[name], dtype[name]) for name in dtype}
        return np.asarray(observation, dtype)

    def _see(self, observation: Any) -> None:
        """Keeps an observation: the pool may write the next one over it."""
        self.observation = jax.tree.map(np.array, observation)

    @contextlib.contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Says of an exception within that it is the environment's."""
        try:
            yield
        except Exception as error:  # it may be anything
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            name = self._env.name
            raise inspection.EnvironmentFailed(f"environment {name}: {what}: {said}") from error

    def reset(self) -> None:
        with self._naming("reset"):
            observation = self._pool.reset()
        inspection.check_observations(self._env, observation)
        self._see(jax.tree.map(self._by_seed, self._declared(observation)))

    def program(self, deterministic: bool) -> ActingProgram:
        """That which acts for it."""
        return ActingProgram(deterministic, self.columns.stop - self.columns.start)

    def begin_step(
        self,
        acting: ActingPrograms,
        deterministic: bool,
        state: LearnerState,
        key: Array,
        time: int,
    ) -> None:
        """Acts on the observation, and begins the step."""
        act = acting.choose(self.program(deterministic))
        acted = act(state, self.observation, key, np.int32(time), self._index)
        self.action, self.log_prob = np.asarray(acted.action), np.asarray(acted.log_prob)
        units = np.asarray(acted.env_action)
        # Of a seed that broke: physics stalls, or complains in a file, over actions that are NaN.
        self._pool.send(np.nan_to_num(units).reshape(-1, *units.shape[2:]))

    def finish_step(self) -> TimeStep:
        """Waits for the step; fields are [S, n, ...]."""
        with self._naming(f"step {self._steps + 1}"):
            received = self._pool.receive()
        if not self._steps:
            inspection.check_first_step(self._env, received)
        self._steps += 1
        if self.nonfinite is None:
            self.nonfinite = inspection.first_nonfinite(self._env, received, self._steps)
        received = received._replace(
            observation=self._declared(received.observation),
            final_observation=self._declared(received.final_observation),
        )
        timestep = jax.tree.map(self._by_seed, received)
        self._see(timestep.observation)
        return timestep


def _make_shares(
    env: HostEnvironment, seeds: Sequence[int], stream: int, num_envs: int, start: int = 0
) -> list[_Share]:
    # By environments and not by seeds: a seed's numbers do not depend on what else is trained.
    by_seed = np.stack([environment_seeds(seed, stream, num_envs, start) for seed in seeds])
    borders = np.linspace(0, num_envs, min(num_envs, _NUM_SHARES) + 1, dtype=int)
    columns = [slice(int(a), int(b)) for a, b in itertools.pairwise(borders)]
    return [
        _Share(env, i, env.make_pool(by_seed[:, part].ravel().tolist()), len(seeds), part)
        for i, part in enumerate(columns)
    ]


def _trajectory_shapes(agent: Agent, env: HostEnvironment, batch: tuple[int, ...]) -> Trajectory:
    learner = agent.learner

    def draw(key: Array) -> tuple[Observation, Array]:
        state = learner.init(key)
        observation = zeros(env.observation_shape, env.observation_dtype)
        return observation, learner.policy(state, observation).sample(key)

    def array(dtype: Any, shape: tuple[int, ...] = ()) -> Any:
        return jax.ShapeDtypeStruct((*batch, *shape), np.dtype(dtype))

    drawn = jax.eval_shape(draw, jax.random.key(0))
    observation, action = jax.tree.map(lambda x: array(x.dtype, x.shape), drawn)
    return Trajectory(
        observation=observation,
        action=action,
        log_prob=array(np.float32),
        reward=array(np.float32),
        terminated=array(bool),
        truncated=array(bool),
        final_observation=observation,
    )


class Collector:
    """Collects the rollouts of S seeds, side by side, for `jax.vmap(agent.learner.update)`.

    Attributes:
      shapes: a trajectory of `jax.ShapeDtypeStruct`: what `collect` returns, [S, T, B, ...].
      programs: that act.
    """

    def __init__(
        self,
        agent: Agent,
        seeds: Sequence[int],
        start: int = 0,
        acting: ActingPrograms | None = None,
    ):
        """Makes the environments, and starts an episode in each.

        Args:
          agent: whose environment lives on the host.
          seeds: of the environments, one non-negative number for each trained seed.
          start: another number gives other episodes: for training that goes on after a break,
            such as its number of updates, since these environments cannot be saved.
          acting: programs of as many seeds, which others may share; None: its own.

        Raises:
          TypeError: the environment does not live on the host.
        """
        env = _require_host(agent)
        num_envs, self._num_steps = agent.config.num_envs, agent.config.num_steps
        self.shapes = _trajectory_shapes(agent, env, (len(seeds), self._num_steps, num_envs))
        self._acting = acting or ActingPrograms(agent)
        self._shares = _make_shares(env, seeds, _TRAINING, num_envs, start)
        self.programs = {share.program(deterministic=False) for share in self._shares}
        self._num_seeds = len(seeds)
        self._episode_return = np.zeros((len(seeds), num_envs))
        self._episode_length = np.zeros((len(seeds), num_envs), np.int32)

    @property
    def nonfinite(self) -> str | None:
        """Which number that environments gave was the first that was not finite, in words."""
        return next((share.nonfinite for share in self._shares if share.nonfinite), None)

    def collect(self, state: LearnerState, key: Array) -> tuple[Trajectory, EpisodeTotals]:
        """Steps every environment `num_steps` times with the policies' samples.

        Args:
          state: learner states of S seeds, batched by vmap.
          key: typed keys [S], each used for one rollout.

        Returns:
          A trajectory [S, T, B, ...] in new NumPy arrays, and totals over the episodes that ended
          [S]. Episodes go on from one rollout to the next.
        """
        state, key = _to_act_by(state, key)
        trajectory = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), self.shapes)
        totals = EpisodeTotals(*np.zeros((3, self._num_seeds)))
        for share in self._shares:
            share.begin_step(self._acting, False, state, key, 0)
        for t in range(self._num_steps):
            for share in self._shares:
                acted_on, action, log_prob = share.observation, share.action, share.log_prob
                timestep = share.finish_step()
                row = Trajectory(
                    acted_on,
                    action,
                    log_prob,
                    timestep.reward,
                    timestep.terminated,
                    timestep.truncated,
                    timestep.final_observation,
                )
                arrays = jax.tree.leaves(trajectory), jax.tree.leaves(row)  # no memory here
                for rows, values in zip(*arrays, strict=True):
                    rows[:, t, share.columns] = values
                # Not before: a pool may write its next step over this one. Nor later: it shall not
                # wait for our own bookkeeping.
                if t + 1 < self._num_steps:
                    share.begin_step(self._acting, False, state, key, t + 1)
                self._count(trajectory, t, share.columns, totals)
        return trajectory, totals

    def _count(self, trajectory: Trajectory, t: int, columns: slice, totals: EpisodeTotals) -> None:
        """Adds a step to the running episodes, and those that ended to the totals, in place."""
        reward, terminated, truncated = (
            rows[:, t, columns]
            for rows in (trajectory.reward, trajectory.terminated, trajectory.truncated)
        )
        returns, lengths = self._episode_return[:, columns], self._episode_length[:, columns]
        returns += reward
        lengths += 1
        done = terminated | truncated
        if done.any():
            totals.episodes[:] += done.sum(axis=1)
            totals.returns[:] += np.where(done, returns, 0.0).sum(axis=1)
            totals.lengths[:] += np.where(done, lengths, 0).sum(axis=1)
            returns[done] = 0.0
            lengths[done] = 0


class Evaluator:
    """Runs whole episodes of the policies of S seeds, on environments of its own.

    Where the environment has a `for_evaluation`, they are of that.

    Attributes:
      programs: that act.
    """

    def __init__(
        self,
        agent: Agent,
        seeds: Sequence[int],
        num_episodes: int,
        acting: ActingPrograms | None = None,
    ):
        """Makes `num_episodes` environments for each seed.

        Args:
          agent: whose environment lives on the host.
          seeds: of the environments, one for each trained seed.
          num_episodes: of each.
          acting: programs of as many seeds, which others may share; None: its own.

        Raises:
          TypeError: the environment does not live on the host.
          ValueError: the environment has no time limit, so that an episode may never end.
        """
        env = _require_host(agent)
        env = for_evaluation(env)
        if env.max_episode_steps is None:
            raise ValueError(f"{env.name} has no time limit: its episodes may never end")
        self._name, self._limit = env.name, env.max_episode_steps
        self._shares = _make_shares(env, seeds, _EVALUATION, num_episodes)
        self._shape = (len(seeds), num_episodes)
        self._acting = acting or ActingPrograms(agent)
        modes = itertools.product(self._shares, (True, False))
        self.programs = {share.program(mode) for share, mode in modes}

    def run(
        self, state: LearnerState, key: Array, deterministic: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (returns, lengths) [S, num_episodes], one whole episode of each environment.

        None is cut short, and short episodes are not counted more often than long ones. Actions
        are the policy's mode, or samples by the keys [S].

        Raises:
          EnvironmentFailed: an episode goes on far beyond the limit that the environment states.
        """
        state, key = _to_act_by(state, key)
        returns, lengths = np.zeros(self._shape), np.zeros(self._shape, np.int32)
        running = np.ones(self._shape, bool)
        for share in self._shares:
            share.begin_step(self._acting, deterministic, state, key, 0)
        unfinished, t = self._shares, 0
        while unfinished:
            t += 1
            if t > _MOST_OVER_LIMIT * self._limit:
                raise inspection.EnvironmentFailed(
                    f"environment {self._name}: episodes go on after {t - 1} steps: expected an "
                    f"end after max_episode_steps = {self._limit} at the latest"
                )
            still = []
            for share in unfinished:
                timestep = share.finish_step()
                mask = running[:, share.columns]
                returns[:, share.columns] += np.where(mask, timestep.reward, 0.0)
                lengths[:, share.columns] += mask
                mask &= ~timestep.done
                if mask.any():
                    share.begin_step(self._acting, deterministic, state, key, t)
                    still.append(share)
            unfinished = still
        for share in self._shares:
            share.reset()  # for the next run
        return returns, lengths
