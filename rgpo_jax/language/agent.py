"""A policy, prompts and a reward joined into pure functions to jit and vmap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgpo_jax import descent, keys
from rgpo_jax.gates import Gate
from rgpo_jax.hyperparameters import check_overrides
from rgpo_jax.language import learner as learners
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.config import Common, Config
from rgpo_jax.language.learner import Learner
from rgpo_jax.language.policy import Policy
from rgpo_jax.language.samples import Batch
from rgpo_jax.language.state import LearnerState
from rgpo_jax.metrics import Metrics

Array = jax.Array
Reward = Callable[[Any, Answers], Array]
"""(prompts [n, ...], answers [n, T]) -> rewards [n]; compiled."""


class AgentState(NamedTuple):
    """The whole of a training run: what `step` maps to its successor.

    Attributes:
      learner: parameters, optimiser, hyper-parameters.
      prompt_key: typed key, for the order of prompts; it stays.
      key: typed key, for sampling.
    """

    learner: LearnerState
    prompt_key: Array
    key: Array


class Agent(NamedTuple):
    """Pure functions over `AgentState`; what is not trained, `frozen`, is an argument of each.

    Attributes:
      init: (key, frozen, **hyperparameters) -> AgentState. Keyword arguments override the Config's
        real numbers, the gate's own among them, and may be traced.
      sample: (state, frozen, prompts) -> (state, prompts of the update [P * G, ...], Answers).
      update: (state, frozen, Batch) -> (state, metrics).
      step: (state, frozen, prompts) -> (state, metrics): `sample`, the world's reward, `update`.
        Raises TypeError where the agent was made without a reward: it lives on the host.
      learner: the update alone.
      policy: what answers.
      config: the settings.
    """

    init: Callable[..., AgentState]
    sample: Callable[[AgentState, Any, Any], tuple[AgentState, Any, Answers]]
    update: Callable[[AgentState, Any, Batch], tuple[AgentState, Metrics]]
    step: Callable[[AgentState, Any, Any], tuple[AgentState, Metrics]]
    learner: Learner
    policy: Policy
    config: Any


def prompts_of_update(
    key: Array,
    updates: Array,
    num_prompts: int,
    num_all: int,
    permutation: Callable[[Array, int], Array] = jax.random.permutation,
) -> Array:
    """Which prompts an update has: all come in turn, shuffled anew each time round.

    Args:
      key: typed key; the same for all updates of a run.
      updates: number of updates before, int32 []; the position in the data follows from it.
      num_prompts: P, of an update.
      num_all: of all prompts there are.
      permutation: (key, n) -> the numbers below n in some order.

    Returns:
      Indices [P], int32.
    """
    position = updates * num_prompts + jnp.arange(num_prompts)
    first = position[0] // num_all
    rounds = -(-num_prompts // num_all) + 1  # that an update can touch
    orders = jax.vmap(lambda i: permutation(jax.random.fold_in(key, first + i), num_all))(
        jnp.arange(rounds)
    )
    return orders[position // num_all - first, position % num_all]


def initializer(learner: Learner, config: Common) -> Callable[..., AgentState]:
    """`Agent.init` of a learner."""

    def init(key: Array, frozen: Any, **hyperparameters: Any) -> AgentState:
        learner_key, prompt_key, key = jax.random.split(keys.as_typed(key), 3)
        overrides = check_overrides(config, hyperparameters, type(learner.hyperparameters))
        numbers = learner.hyperparameters.replace(**overrides)
        return AgentState(learner.init(learner_key, frozen, numbers), prompt_key, key)

    return init


def sampling(
    policy: Policy, config: Any
) -> Callable[[AgentState, Any, Any], tuple[AgentState, Any, Answers]]:
    """`Agent.sample`: `group_size` answers to each of the update's `num_prompts` prompts."""

    def sample(state: AgentState, frozen: Any, prompts: Any) -> tuple[AgentState, Any, Answers]:
        chosen = prompts_of_update(
            state.prompt_key,
            state.learner.updates,
            config.num_prompts,
            descent.num_samples(prompts),
        )
        which = jnp.repeat(chosen, config.group_size)
        asked = jax.tree.map(lambda x: x[which], prompts)
        key, sample_key = jax.random.split(state.key)
        answers = policy.sample(
            state.learner.params,
            frozen,
            asked,
            sample_key,
            state.learner.hyperparameters.temperature,
        )
        return state._replace(key=key), asked, answers

    return sample


def stepping(
    sample: Callable[..., tuple[AgentState, Any, Answers]],
    update: Callable[[AgentState, Any, Batch], tuple[AgentState, Metrics]],
    reward: Reward | None,
) -> Callable[[AgentState, Any, Any], tuple[AgentState, Metrics]]:
    """`Agent.step` of the other two; without a reward it raises TypeError."""

    @jax.jit  # traced once, wherever it is used
    def step(state: AgentState, frozen: Any, prompts: Any) -> tuple[AgentState, Metrics]:
        if reward is None:
            raise TypeError("this agent's reward lives on the host: call sample, then update")
        state, asked, answers = sample(state, frozen, prompts)
        return update(state, frozen, Batch(asked, answers, reward(asked, answers)))

    return step


def make(
    policy: Policy,
    config: Config,
    gate: Gate,
    reward: Reward | None = None,
    **parts: Any,
) -> Agent:
    """Joins policy, gate and reward into an agent.

    Args:
      policy: what answers.
      config: settings.
      gate: a gate of `rgpo_jax.gates`, of one ratio or of two, or a function of your own.
      reward: compiled; None: rewards are given on the host, between `sample` and `update`.
      **parts: further arguments of `learner.make`, such as an optimiser.
    """
    learner = learners.make(policy, config, gate, **parts)
    sample = sampling(policy, config)

    def update(state: AgentState, frozen: Any, batch: Batch) -> tuple[AgentState, Metrics]:
        learnt, metrics = learner.update(state.learner, frozen, batch)
        return state._replace(learner=learnt), metrics

    step = stepping(sample, update, reward)
    return Agent(initializer(learner, config), sample, update, step, learner, policy, config)
