"""Whole episodes of one trained policy, a step at a time, on an environment that can be seen."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

import envs
from envs import pictures
from experiments.cli.flags import BadInput
from experiments.training import compiling
from rgpo_jax.agent import Agent
from rgpo_jax.environment import HostEnvironment, Observation, TimeStep, for_evaluation
from rgpo_jax.learner import LearnerState

Array = jax.Array


class Stage(Protocol):
    """One environment, in which episodes are played one after another."""

    def reset(self, seed: int, key: Array) -> Observation:
        """Starts an episode; returns its first observation."""
        ...

    def step(self, action: Array, key: Array) -> TimeStep:
        """One step, in NumPy arrays; does not restart where it ends the episode."""
        ...

    def picture(self) -> Any:
        """What is to be seen now."""
        ...


class CompiledStage:
    """A compiled environment; `show` makes a picture of its state and observation."""

    def __init__(self, env: Any, show: Callable[[Any, Array], Any]):
        options = compiling.options(compiling.Runs.RARELY)
        self._env_reset = jax.jit(env.reset, compiler_options=options)
        self._env_step = jax.jit(env.step, compiler_options=options)
        self._show = show
        self._state: Any = None
        self._observation: Any = None

    def reset(self, seed: int, key: Array) -> Array:
        self._state, self._observation = self._env_reset(key)
        return self._observation

    def step(self, action: Array, key: Array) -> TimeStep:
        self._state, timestep = self._env_step(key, self._state, action)
        self._observation = timestep.observation
        return jax.device_get(timestep)

    def picture(self) -> Any:
        return self._show(self._state, self._observation)


class HostStage:
    """An environment of the host; each episode has one of its own.

    One whose `draws_itself` is true draws itself, of others the observation is drawn. Raises
    BadInput where it cannot be.
    """

    def __init__(self, env: Any, size: int):
        self._env, self._size = env, size
        self._draws = getattr(env, "draws_itself", False)
        self._pool: Any = None
        self._observation: Any = None

    def reset(self, seed: int, key: Array) -> Observation:
        how = {"pictures": True} if self._draws else {}
        self._pool = self._env.make_pool([seed], **how)
        self._observation = jax.tree.map(lambda x: x[0], self._pool.reset())
        return self._observation

    def step(self, action: Array, key: Array) -> TimeStep:
        self._pool.send(np.asarray(action)[None])
        timestep: TimeStep = jax.tree.map(lambda x: x[0], self._pool.receive())
        self._observation = timestep.final_observation
        return timestep

    def picture(self) -> np.ndarray:
        if not self._draws:
            return pictures.draw_observation(self._observation, self._size)
        try:
            return self._pool.picture()
        except RuntimeError as error:
            hint = "; MuJoCo draws by OpenGL, on Debian: libegl1" if "GL" in str(error) else ""
            raise BadInput(f"{self._env.name} cannot be drawn: {error}{hint}") from None


class Moment(NamedTuple):
    """An episode after one of its steps, or before the first.

    Attributes:
      step: steps that were made.
      episode_return: sum of their rewards, undiscounted.
      action: that led here, in the environment's units; None before the first step.
      reward: that came with it.
      end: why the episode ended here; "" where it goes on.
    """

    step: int
    episode_return: float
    action: np.ndarray | None
    reward: float
    end: str


@functools.lru_cache(maxsize=1)
def _compile(policy: Callable[..., Any], stochastic: bool) -> Callable[..., tuple[Array, Any]]:
    """Compiles an agent's policy, once for all episodes."""

    def act(
        learner: LearnerState, observation: Observation, memory: Any, key: Array
    ) -> tuple[Array, Any]:
        acted = policy(learner, observation, key if stochastic else None, memory)
        return (acted, None) if memory is None else acted

    return jax.jit(act, compiler_options=compiling.options(compiling.Runs.RARELY))


def play(
    agent: Agent,
    learner: LearnerState,
    stage: Stage,
    seed: int,
    *,
    stochastic: bool = False,
    max_steps: int | None = None,
) -> Iterator[Moment]:
    """Plays an episode, whose seed repeats it.

    An environment on the host gets the seed itself. A compiled one is reset by the second of two
    keys split from `jax.random.key(seed)`; the first is split into three for every step: the next
    first, one to act, one to step.

    Args:
      agent: whose policy acts.
      learner: state of one seed.
      stage: where.
      seed: in [0, 2^31).
      stochastic: whether actions are samples of the policy, and not its mode.
      max_steps: after which the episode is cut; None: where it ends by itself.

    Yields:
      The start, and every step.
    """
    act = _compile(agent.act, stochastic)  # type: ignore[arg-type]  # functions have hashes
    key, reset_key = jax.random.split(jax.random.key(seed))
    observation, memory = stage.reset(seed, reset_key), agent.initial_memory()
    moment = Moment(0, 0.0, None, 0.0, "")
    yield moment
    while not moment.end:
        key, action_key, step_key = jax.random.split(key, 3)
        action, memory = act(learner, observation, memory, action_key)
        timestep = stage.step(action, step_key)
        observation = timestep.observation
        step, reward = moment.step + 1, float(timestep.reward)
        end = ""
        if timestep.terminated:
            end = "terminated"
        elif timestep.truncated:
            end = "time limit"
        elif step == max_steps:
            end = "cut short"
        total = moment.episode_return + reward
        moment = Moment(step, total, np.asarray(action), reward, end)
        yield moment


def make_stage(agent: Agent, size: int) -> Stage:
    """A stage with the agent's environment, as its score is told.

    It shows pictures, RGB, uint8 [height, width, 3]: of `size` pixels where they are drawn here, by
    the environment's `picture` or else of its observation. Of Brax it shows where the bodies are.
    """
    env: Any = agent.env
    if isinstance(env, HostEnvironment):
        return HostStage(for_evaluation(env), size)
    if env.name in envs.BRAX:
        return CompiledStage(env, lambda state, _: env.place(state))
    return CompiledStage(env, functools.partial(pictures.of, env, size=size))
