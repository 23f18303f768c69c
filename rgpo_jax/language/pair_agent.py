"""Agents that learn from pairs of answers: those of a data set, or the policy's own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rgpo_jax import descent, shuffle
from rgpo_jax.language import kl, pair_learner, samples
from rgpo_jax.language.agent import (
    Agent,
    AgentState,
    Reward,
    initializer,
    prompts_of_update,
    sampling,
    stepping,
)
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.pair_config import DataConfig, OwnPairsConfig
from rgpo_jax.language.pairs import Pairs, Read
from rgpo_jax.language.policy import Policy
from rgpo_jax.language.samples import Batch
from rgpo_jax.metrics import Metrics, means
from rgpo_jax.tunable import Tunable

Array = jax.Array
Source = Callable[[AgentState, Any, Any, Array], Pairs]
"""(state, frozen, data, which [n]) -> the pairs of these numbers."""

_DATA_STREAM = 0xDA7A  # folded into a run's key: the data share no key with anything else


def from_array(state: AgentState, frozen: Any, data: Pairs, which: Array) -> Pairs:
    """A source: pairs that lie in memory."""
    del state, frozen
    return jax.tree.map(lambda x: x[which], data)


def label(
    prompts: Any,
    first: Answers,
    second: Answers,
    gap: Array,
    key: Array | None,
    read: tuple[Read, Read] | None = None,
) -> Pairs:
    """Pairs by the model of Bradley and Terry: the first is preferred with sigmoid(gap).

    Args:
      prompts: [n, ...].
      first: answers [n, T].
      second: other answers to the same prompts [n, T].
      gap: reward of the first minus that of the second [n].
      key: typed key, to draw who is preferred; None: the labels are the probabilities.
      read: what was read of the first and of the second answers.
    """
    probability = jax.nn.sigmoid(gap)
    counts = jnp.ones(gap.shape, bool)
    if key is None:
        return Pairs(prompts, first, second, probability, gap, counts, read)
    wins = jax.random.uniform(key, gap.shape) < probability
    return ordered(prompts, first, second, gap, wins, counts, read)


def ordered(
    prompts: Any,
    first: Answers,
    second: Answers,
    gap: Array,
    wins: Array,
    counts: Array,
    read: tuple[Read, Read] | None = None,
) -> Pairs:
    """Pairs whose chosen answer is the first where that `wins`, and else the second [n].

    `read` is what was read of the first and of the second answers.
    """

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(wins.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    def both(first: Any, second: Any) -> tuple[Any, Any]:
        return jax.tree.map(choose, first, second), jax.tree.map(choose, second, first)

    gap = jnp.where(wins, gap, -gap)
    known = None if read is None else both(*read)
    return Pairs(prompts, *both(first, second), jnp.ones(gap.shape), gap, counts, known)


def made_of_reference(policy: Policy, reward: Reward, labels: str) -> Source:
    """A source: pairs that are made, each of its number alone, of two answers of the reference.

    Args:
      policy: what answers.
      reward: of answers, whose differences are those of Bradley and Terry's model.
      labels: see `DataConfig.labels`.
    """

    def source(state: AgentState, frozen: Any, data: Any, which: Array) -> Pairs:
        data_key = jax.random.fold_in(state.prompt_key, _DATA_STREAM)
        temperature = state.learner.hyperparameters.temperature
        prompts = jax.tree.map(lambda x: x[which % descent.num_samples(data)], data)
        reference = policy.init(data_key, frozen, False)

        def answer(prompt: Any, key: Array) -> Answers:
            twice = jax.tree.map(lambda x: jnp.stack([x, x]), prompt)
            return policy.sample(reference, frozen, twice, key, temperature)

        keys = jax.vmap(lambda i: jax.random.fold_in(data_key, i))(which)
        sample_keys, label_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        first, second = (
            jax.tree.map(lambda x, i=i: x[:, i], jax.vmap(answer)(prompts, sample_keys))
            for i in range(2)
        )
        gap = reward(prompts, first) - reward(prompts, second)
        if labels == "exact":
            return label(prompts, first, second, gap, None)
        draws = jax.vmap(jax.random.uniform)(label_keys)
        wins = draws < jax.nn.sigmoid(gap)
        return ordered(prompts, first, second, gap, wins, jnp.ones(gap.shape, bool))

    return source


def from_data(
    policy: Policy, config: DataConfig, loss: Tunable, source: Source, **parts: Any
) -> Agent:
    """An agent that learns from a data set, and samples nothing.

    Its `step` and `update` take the data set in the place of prompts and of a batch.

    Args:
      policy: what answers.
      config: settings.
      loss: of `contrasts`.
      source: of pairs.
      **parts: further arguments of `pair_learner.make`.
    """
    learner = pair_learner.make(policy, config, loss, **parts)

    def pairs_of(state: AgentState, frozen: Any, data: Any) -> Pairs:
        updates, number = state.learner.updates, config.num_pairs
        if source is from_array:
            there = descent.num_samples(data)
            number = min(number or there, there)
        if number is None:  # without end
            which = updates * config.num_prompts + jnp.arange(config.num_prompts)
        else:
            # Of many pairs, a sort at every update would take most of its time.
            order = shuffle.permutation
            which = prompts_of_update(state.prompt_key, updates, config.num_prompts, number, order)
        return source(state, frozen, data, which)

    def update(state: AgentState, frozen: Any, data: Any) -> tuple[AgentState, Metrics]:
        pairs = pairs_of(state, frozen, data)
        learnt, metrics = learner.update(state.learner, frozen, pairs)
        return state._replace(learner=learnt), metrics

    def refuse(*_: Any) -> Any:
        raise TypeError("this agent learns from a data set: it samples no answers")

    return Agent(
        initializer(learner, config), refuse, update, jax.jit(update), learner, policy, config
    )


def from_own(
    policy: Policy,
    config: OwnPairsConfig,
    loss: Tunable,
    reward: Reward | None = None,
    labels: str | None = None,
    kl_in_reward: bool = False,
    **parts: Any,
) -> Agent:
    """An agent that learns from pairs of its own answers.

    Args:
      policy: what answers.
      config: settings.
      loss: of `contrasts`.
      reward: compiled; None: rewards are given on the host, between `sample` and `update`.
      labels: who is preferred: "reward", the larger one, where a tie does not count; "sampled", as
        Bradley and Terry's model draws; None: the loss reads the rewards themselves.
      kl_in_reward: reduce rewards by the KL of the policy that sampled to the reference.
      **parts: further arguments of `pair_learner.make`.
    """
    learner = pair_learner.make(policy, config, loss, own=True, **parts)
    group = config.group_size

    sample = sampling(policy, config)

    def which_pairs(reward: Array) -> tuple[Array, Array]:
        """Numbers of the first and of the second answers [pairs], by rewards [P * G]."""
        number = reward.shape[0]
        if config.pairing == "neighbours":
            return jnp.arange(0, number, 2), jnp.arange(1, number, 2)
        start = jnp.arange(0, number, group)
        by_prompt = reward.reshape(-1, group)
        # Where all are equal these are two answers all the same.
        worst = group - 1 - jnp.argmin(by_prompt[:, ::-1], axis=-1)
        return start + jnp.argmax(by_prompt, axis=-1), start + worst

    def update(state: AgentState, frozen: Any, batch: Batch) -> tuple[AgentState, Metrics]:
        numbers = state.learner.hyperparameters
        answers, encoded, reference, of_sampler = _read(policy, config, state, frozen, batch)
        log_ratio_ref = jnp.where(answers.mask, answers.log_prob - reference, 0.0)
        known = Read(encoded, jnp.sum(jnp.where(answers.mask, reference, 0.0), axis=-1))
        shaped = samples.shape_reward(batch.reward, answers, numbers.missing_end)
        totals = jnp.sum(log_ratio_ref, axis=-1)
        if kl_in_reward:
            shaped = shaped - state.learner.kl_coefficient * totals
        i, j = which_pairs(shaped)
        first, second, asked, *read = (
            jax.tree.map(lambda x, at=at: x[at], tree)
            for tree, at in ((answers, i), (answers, j), (batch.prompts, i), (known, i), (known, j))
        )
        gap = shaped[i] - shaped[j]
        key, label_key = jax.random.split(state.key)
        equal = jnp.zeros(gap.shape, bool)
        if labels == "sampled":
            pairs = label(asked, first, second, gap, label_key, (read[0], read[1]))
        else:
            equal = (gap == 0) if labels == "reward" else equal
            wins = gap >= 0
            pairs = ordered(asked, first, second, gap, wins, ~equal, (read[0], read[1]))
        learnt, metrics = learner.update(state.learner, frozen, pairs)
        metrics |= of_sampler
        length = jnp.sum(answers.mask, axis=-1)
        k3 = jnp.sum(jnp.where(answers.mask, kl.k3(log_ratio_ref), 0.0), axis=-1)
        metrics |= means(
            {
                "sampled_reward": jnp.mean(batch.reward),
                "kl_ref_k1": jnp.mean(totals),
                "kl_ref_k3": jnp.mean(k3),
                "answer_length": jnp.mean(length),
                "answers_ended": jnp.mean(answers.ended),
                "tied_pairs": jnp.mean(equal),
            }
        )
        return state._replace(learner=learnt, key=key), metrics

    step = stepping(sample, update, reward)
    return Agent(initializer(learner, config), sample, update, step, learner, policy, config)


def _read(
    policy: Policy, config: Any, state: AgentState, frozen: Any, batch: Batch
) -> tuple[Answers, Any, Array, Metrics]:
    """What policy and reference say of answers that were sampled, before any gradient step.

    Returns:
      The answers, their log-probabilities computed anew where the policy asks for it; their encoded
      prompts; log pi_ref of each token [n, T]; and by how much the sampler's differ.
    """
    answers, temperature = batch.answers, state.learner.hyperparameters.temperature

    def of_part(part: tuple) -> tuple[Any, Array, Array]:
        encoded = policy.encode(frozen, part[0], part[1])
        reference = policy.reference(frozen, encoded, part[1], temperature)
        if not policy.recomputes:
            return encoded, part[1].log_prob, reference
        params = state.learner.params
        log_prob = policy.predict(params, frozen, encoded, part[1], temperature).log_prob
        return encoded, log_prob, reference

    size = None if config.microbatch_size is None else 2 * config.microbatch_size
    encoded, log_prob, reference = samples.in_parts(of_part, (batch.prompts, answers), size)
    metrics = means({})
    if policy.recomputes:
        metrics = samples.sampler_metrics(log_prob, answers)
        answers = answers._replace(log_prob=jnp.where(answers.mask, log_prob, 0.0))
    return answers, encoded, reference, metrics
