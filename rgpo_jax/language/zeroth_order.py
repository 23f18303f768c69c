r"""Policy gradients without rewards or their model: from who wins, between two policies.

Answers of the policy at theta + mu v are compared with answers of the policy at theta by M judges,
who prefer one with the probability sigmoid(R - R'). With p the share of wins, cut off to
[delta, 1 - delta], and d parameters,

    g = (d / mu) mean(logit p) v

estimates the gradient of the expected reward, as E[v v^T] = I / d (ZPG: v uniform on the unit
sphere; ZBCPG: random signs on K random coordinates, over sqrt K; arXiv 2409.17401). The logit of a
mean is not the mean of logits: with few judges the estimate is biased, the more towards 0 the
larger delta is (of three judges a small difference counts 1.36, 0.78, 0.30 times with delta 0.05,
0.2, 0.4), unless the shares of several pairs are pooled first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rgpo_jax import descent, schedules, shuffle
from rgpo_jax.hyperparameters import TracedNumbers
from rgpo_jax.language import learner as learners
from rgpo_jax.language.agent import (
    Agent,
    AgentState,
    Reward,
    initializer,
    prompts_of_update,
    stepping,
)
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.learner import Learner
from rgpo_jax.language.policy import Policy
from rgpo_jax.language.samples import Batch
from rgpo_jax.language.state import LearnerState
from rgpo_jax.language.zeroth_config import ZerothConfig
from rgpo_jax.metrics import Metrics, means

Array = jax.Array
Direction = Callable[[Array, int], Array]
"""(key, number of parameters) -> a direction [d], of length 1."""

_DIRECTION_STREAM = 0xD12


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Numbers(TracedNumbers):
    """The traced numbers of an update, as `ZerothConfig` explains them; scalars, or batched."""

    learning_rate: Any
    max_grad_norm: Any
    temperature: Any
    annealing: Any
    smoothing: Any
    trim: Any
    end_learning_rate: Any = 0.0  # it and what follows are missing from checkpoints of earlier ones
    warmup_updates: Any = 0.0


def on_sphere(key: Array, number: int) -> Array:
    """A direction that is uniform on the unit sphere [d]."""
    normal = jax.random.normal(key, (number,))
    return normal / jnp.linalg.norm(normal)


def on_coordinates(num_coordinates: int) -> Direction:
    """Random signs on so many random coordinates, and 0 on the others; all, if there are fewer."""

    def direction(key: Array, number: int) -> Array:
        which_key, sign_key = jax.random.split(key)
        size = min(num_coordinates, number)
        which = shuffle.permutation(which_key, number)[:size]
        signs = jax.random.rademacher(sign_key, (size,), jnp.float32)
        return jnp.zeros(number).at[which].set(signs / jnp.sqrt(size))

    return direction


def share_of_wins(key: Array, gap: Array, num_judges: int | None) -> Array:
    """Shares of judges that prefer the first answers [...].

    Args:
      key: typed key.
      gap: reward of the first answer minus that of the second [...].
      num_judges: M; None: infinitely many.
    """
    probability = jax.nn.sigmoid(gap)
    if num_judges is None:
        return probability
    return jax.random.binomial(key, num_judges, probability) / num_judges


def advantage_of(wins: Array, feedback: str, trim: Any) -> Array:
    """By how much the first policy is better, in units of reward [...].

    Args:
      wins: shares of wins of N pairs [..., N].
      feedback: see `ZerothConfig`.
      trim: see `ZerothConfig`.
    """
    if feedback == "sign":
        return jnp.sign(jnp.mean(wins, axis=-1) - 0.5)
    if feedback == "pooled":
        wins = jnp.mean(wins, axis=-1, keepdims=True)
    clipped = jnp.clip(wins, trim, 1.0 - trim)
    return jnp.mean(jnp.log(clipped) - jnp.log1p(-clipped), axis=-1)


def estimate(directions: Array, advantage: Array, smoothing: Any, central: bool = False) -> Array:
    """The gradient [d] from D directions [D, d] and how much better each is [D]."""
    number = directions.shape[-1]
    distance = 2 * smoothing if central else smoothing
    return number / distance * jnp.mean(advantage[:, None] * directions, axis=0)


def sgd(numbers: Any, step_size: Any) -> optax.GradientTransformation:
    """Plain steps along clipped gradients, as in the paper."""
    return optax.chain(
        optax.clip_by_global_norm(numbers.max_grad_norm), optax.scale_by_learning_rate(step_size)
    )


def _answers_of_both(
    policy: Policy,
    config: ZerothConfig,
    state: LearnerState,
    frozen: Any,
    asked: Any,
    directions: Array,
    keys: Array,
) -> Answers:
    """Answers [n, 2] of the policies at either end of a step along a direction.

    Args:
      policy: what answers.
      config: settings.
      state: the learner's.
      frozen: what is not trained.
      asked: prompts [n, ...], an equal share for each direction.
      directions: [D, d].
      keys: [D, 2], of the two policies.
    """
    flat, unravel = ravel_pytree(state.params)
    numbers, count = state.hyperparameters, len(directions)

    def answer(vector: Array, asked: Any, key: Array) -> Answers:
        return policy.sample(unravel(vector), frozen, asked, key, numbers.temperature)

    def compare(part: tuple) -> Answers:
        v, asked, first_key, second_key = part
        if config.common_random_numbers:
            second_key = first_key
        step = numbers.smoothing * v
        first = answer(flat + step, asked, first_key)
        second = answer(flat - step if config.central else flat, asked, second_key)
        return jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1), first, second)

    by_direction = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), asked)
    answers = jax.lax.map(compare, (directions, by_direction, keys[:, 0], keys[:, 1]))
    return jax.tree.map(lambda x: x.reshape(config.batch_size, *x.shape[3:]), answers)


def _learn(
    config: ZerothConfig,
    optimizer: Callable[[Any, Any], optax.GradientTransformation],
    state: LearnerState,
    directions: Array,
    gap: Array,
    key: Array,
) -> tuple[LearnerState, Metrics]:
    """A step along the gradient that judges estimate; none where it is not finite.

    Args:
      config: settings.
      optimizer: see `make`.
      state: the learner's.
      directions: [D, d].
      gap: by how much the reward of each first answer is larger [D, N].
      key: of the judges.
    """
    numbers = state.hyperparameters
    wins = share_of_wins(key, gap, config.num_judges)
    advantage = advantage_of(wins, config.feedback, numbers.trim)
    _, unravel = ravel_pytree(state.params)
    gradient = estimate(directions, advantage, numbers.smoothing, config.central)
    step_size = schedules.learning_rate(config.schedule, numbers, state.updates)
    change, optimizer_state = optimizer(numbers, step_size).update(
        unravel(-gradient), state.optimizer_state, state.params
    )
    finite = jnp.all(jnp.isfinite(gradient))
    before = (state.params, state.optimizer_state)
    after = (optax.apply_updates(state.params, change), optimizer_state)
    params, optimizer_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), after, before
    )
    metrics = means(
        {
            "win_rate": jnp.mean(wins),
            "directional_gain": jnp.mean(jnp.abs(advantage)),
            "grad_norm": jnp.linalg.norm(gradient),
            "nonfinite_step_rate": 1.0 - finite.astype(jnp.float32),
            "learning_rate": step_size,
        }
    )
    state = state._replace(
        params=params, optimizer_state=optimizer_state, updates=state.updates + 1
    )
    return state, metrics


def make(
    policy: Policy,
    config: ZerothConfig,
    direction: Direction,
    reward: Reward | None = None,
    optimizer: Callable[[Any, Any], optax.GradientTransformation] = sgd,
) -> Agent:
    """Builds the agent; its judges are drawn by the differences of a reward that it never sees.

    Args:
      policy: what answers.
      config: settings.
      direction: in which policies are tried.
      reward: compiled; None: rewards are given on the host, between `sample` and `update`.
      optimizer: (numbers, step size) -> optax's transformation.
    """
    defaults = Numbers.from_settings(config)
    count = config.num_directions

    def directions_of(state: AgentState) -> Array:
        """Those of this update [D, d]: `sample` and `update` make the same ones."""
        number = sum(x.size for x in jax.tree.leaves(state.learner.params))
        key = jax.random.fold_in(state.prompt_key, _DIRECTION_STREAM)
        key = jax.random.fold_in(key, state.learner.updates)
        return jnp.stack([direction(k, number) for k in jax.random.split(key, count)])

    def sample(state: AgentState, frozen: Any, prompts: Any) -> tuple[AgentState, Any, Answers]:
        chosen = prompts_of_update(
            state.prompt_key,
            state.learner.updates,
            config.num_prompts,
            descent.num_samples(prompts),
        )
        asked = jax.tree.map(lambda x: x[chosen], prompts)
        key, *keys = jax.random.split(state.key, 1 + 2 * count)
        answers = _answers_of_both(
            policy,
            config,
            state.learner,
            frozen,
            asked,
            directions_of(state),
            jnp.stack(keys).reshape(count, 2),
        )
        asked = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), asked)
        return state._replace(key=key), asked, answers

    def update(state: AgentState, frozen: Any, batch: Batch) -> tuple[AgentState, Metrics]:
        by_pair = batch.reward.reshape(count, -1, 2)
        key, judge_key = jax.random.split(state.key)
        gap = by_pair[..., 0] - by_pair[..., 1]
        directions = directions_of(state)
        learnt, metrics = _learn(config, optimizer, state.learner, directions, gap, judge_key)
        metrics |= means(
            {
                "sampled_reward": jnp.mean(batch.reward),
                "answer_length": jnp.mean(jnp.sum(batch.answers.mask, axis=-1)),
                "answers_ended": jnp.mean(batch.answers.ended),
            }
        )
        return state._replace(learner=learnt, key=key), metrics

    step = stepping(sample, update, reward)

    def refuse(*_: Any) -> Any:
        raise TypeError("this learner learns from directions: call Agent.update")

    init = learners.initializer(policy, optimizer, False, defaults)
    learner = Learner(init, refuse, defaults)
    return Agent(initializer(learner, config), sample, update, step, learner, policy, config)
