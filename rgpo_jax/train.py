"""Training in chunks of updates, and evaluation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from rgpo_jax.agent import Agent, AgentState
from rgpo_jax.callback import Callback, Moment, asks_to_stop, make_act
from rgpo_jax.environment import HostEnvironment, to_environment_units
from rgpo_jax.learner import LearnerState
from rgpo_jax.metrics import Accumulator, Metrics, accumulate, empty, reduce
from rgpo_jax.networks import respond

Array = jax.Array
NEVER = 2**31 - 1
"""The update at which a run broke that did not break."""


class ChunkReport(NamedTuple):
    """What a chunk of updates reports, one value per seed.

    Attributes:
      metrics: name -> reduced over the chunk's updates; NaN where nothing was defined.
      broken_at: index, from 0, of the first update that left a parameter NaN or infinite, or was
        said to be broken; -1 if none was. int32.
    """

    metrics: dict[str, Array]
    broken_at: Array


_MANY = 10_000_000  # parameters


def _is_finite(params: Any) -> Array:
    leaves = jax.tree.leaves(params)
    if sum(x.size for x in leaves) > _MANY:  # a copy of them all would be dear
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))
    # One vector: an operation or two per layer would be slower, and take longer to compile.
    return jnp.all(jnp.isfinite(ravel_pytree(params)[0]))


class Progress(NamedTuple):
    """A `ChunkReport` in the making: take in update after update, and `finish`.

    Attributes:
      metrics: of the updates so far.
      broken_at: int32; as in the report, but the largest number for "none".
    """

    metrics: Accumulator
    broken_at: Array

    @classmethod
    def start(cls, metrics: Metrics) -> "Progress":
        """Of no update yet; metrics like these will come, of which the shapes alone will do."""
        return cls(empty(metrics), jnp.int32(NEVER))

    def emptied(self) -> "Progress":
        """One of the same metrics, of no update yet."""
        return Progress(self.metrics.emptied(), jnp.int32(NEVER))

    def take(
        self, index: Array, params: Any, metrics: Metrics, broken: Array | None = None
    ) -> "Progress":
        """Takes in the update of this index, which left these parameters.

        It is broken if one of them is NaN or infinite, or for another reason, if so said.
        """
        is_whole = _is_finite(params)
        if broken is not None:
            is_whole &= ~broken
        broken_at = jnp.where(is_whole, self.broken_at, jnp.minimum(self.broken_at, index))
        return Progress(accumulate(self.metrics, metrics), broken_at)

    def finish(self) -> ChunkReport:
        """The report on all that was taken in."""
        xp = self.broken_at.__array_namespace__()
        broken_at = xp.where(self.broken_at == NEVER, -1, self.broken_at)
        return ChunkReport(reduce(self.metrics), broken_at)


class Stepping(Protocol):
    """What trains by steps: an agent, or whatever else has a `step` of a state with a `learner`."""

    @property
    def step(self) -> Callable[..., tuple[Any, Metrics]]:
        """State -> (state, metrics)."""


def make_advance(
    agent: Stepping, is_broken: Callable[[Metrics], Array] | None = None
) -> Callable[[Any, Progress, Any], tuple[Any, Progress]]:
    """Returns (state, progress, number of updates) -> (state, progress), to be vmapped and jitted.

    The number of updates is traced: advances of all lengths are one program, and a long one gives
    what short ones in turn give, to the bit. Metrics are reduced as they come, so memory does not
    grow with the number.

    Args:
      agent: what trains.
      is_broken: metrics of an update -> whether it is broken though its parameters are finite.
    """

    def advance(state: Any, progress: Progress, num_updates: Any) -> tuple[Any, Progress]:
        def body(_: Array, carry: tuple) -> tuple:
            state, progress = carry
            index = state.learner.updates
            state, metrics = agent.step(state)
            broken = None if is_broken is None else is_broken(metrics)
            return state, progress.take(index, state.learner.params, metrics, broken)

        return jax.lax.fori_loop(0, num_updates, body, (state, progress))

    return advance


def start_progress(agent: Stepping, state: Any) -> Progress:
    """Of no update yet, for the metrics of the agent's steps."""
    return Progress.start(jax.eval_shape(agent.step, state)[1])


def make_chunk(agent: Stepping) -> Callable[[Any, Any], tuple[Any, ChunkReport]]:
    """Returns (state, number of updates) -> (state, report): an advance from a fresh start."""
    advance = make_advance(agent)

    def chunk(state: Any, num_updates: Any) -> tuple[Any, ChunkReport]:
        state, progress = advance(state, start_progress(agent, state), num_updates)
        return state, progress.finish()

    return chunk


class _Steps(NamedTuple):
    """A `Stepping` with nothing beside."""

    step: Callable[..., tuple[Any, Metrics]]


@functools.lru_cache(maxsize=2)
def _compiled_chunk(step: Callable[..., Any]) -> Callable[..., Any]:
    """`make_chunk` for seeds side by side: one program, however often training goes on.

    That of the last two agents is kept, and with it what they are made of.
    """
    return jax.jit(jax.vmap(make_chunk(_Steps(step)), in_axes=(0, None)))


def train(
    agent: Agent,
    states: AgentState,
    num_updates: int,
    callback: Callback = lambda moment: None,
    every: int = 1,
) -> AgentState:
    """Trains seeds side by side, and calls back between chunks of updates.

        states = jax.vmap(agent.init)(jax.random.split(key, 8))
        is_far = lambda moment: moment.metrics["approx_kl"].max() > 1.0
        states = train(agent, states, 100, is_far, every=10)

    A callback sees numbers and changes none: chunks of all sizes give the same states, to the bit.
    Called again with the same agent it goes on without compiling anew.

    Args:
      agent: of a compiled environment.
      states: of S seeds [S, ...].
      num_updates: to be made.
      callback: is told a `Moment` after each chunk; True ends training there.
      every: updates of a chunk.

    Returns:
      The states [S, ...] after the last update that was made.
    """
    chunk = _compiled_chunk(agent.step)
    act = make_act(agent)
    for done in range(0, num_updates, every):
        states, report = chunk(states, min(every, num_updates - done))
        updates = int(states.learner.updates[0])
        metrics = {name: np.asarray(values) for name, values in report.metrics.items()}
        acting = functools.partial(act, states.learner)
        steps = updates * agent.config.batch_size
        if asks_to_stop(callback, Moment(updates, steps, metrics, states.learner, acting)):
            break
    return states


def make_evaluation(
    agent: Agent, num_episodes: int, deterministic: bool | Array
) -> Callable[[LearnerState, Array], tuple[Array, Array]]:
    """Returns (learner state, key) -> (returns, lengths) of whole episodes [num_episodes].

    Every episode is run by an environment of its own to its end: none is cut short, and short
    episodes are not counted more often than long ones. Actions are the policy's mode, or samples;
    which may be traced, so that one program does both.

    Raises:
      ValueError: the environment has no time limit, so that an episode may never end.
    """
    env = agent.env
    if isinstance(env, HostEnvironment):
        raise TypeError(f"{env.name} lives on the host: evaluate with rgpo_jax.host.Evaluator")
    if env.max_episode_steps is None:
        raise ValueError(f"{env.name} has no time limit: its episodes may never end")

    def evaluate(state: LearnerState, key: Array) -> tuple[Array, Array]:
        reset_key, key = jax.random.split(key)
        env_state, observation = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))
        policy = functools.partial(agent.learner.policy, state)

        def unfinished(carry: tuple) -> Array:
            *_, running, t = carry
            return jnp.any(running) & (t < env.max_episode_steps)

        def advance(carry: tuple) -> tuple:
            env_state, observation, memory, key, returns, lengths, running, t = carry
            key, action_key, step_key = jax.random.split(key, 3)
            distribution, memory = respond(policy, observation, memory)
            action = jnp.where(deterministic, distribution.mode(), distribution.sample(action_key))
            env_state, timestep = jax.vmap(env.step)(
                jax.random.split(step_key, num_episodes),
                env_state,
                to_environment_units(env.action_space, distribution.squash(action)),
            )
            returns += jnp.where(running, timestep.reward, 0.0)
            lengths += running
            running &= ~timestep.done
            observation = timestep.final_observation
            return env_state, observation, memory, key, returns, lengths, running, t + 1

        carry = (
            env_state,
            observation,
            agent.initial_memory(num_episodes),
            key,
            jnp.zeros(num_episodes),
            jnp.zeros(num_episodes, jnp.int32),
            jnp.ones(num_episodes, bool),
            jnp.int32(0),
        )
        *_, returns, lengths, _, _ = jax.lax.while_loop(unfinished, advance, carry)
        return returns, lengths

    return evaluate
