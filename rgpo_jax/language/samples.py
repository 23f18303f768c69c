"""What an update of answers learns from: rewards made advantages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgpo_jax import descent
from rgpo_jax.language import advantages, kl
from rgpo_jax.language.answers import Answers, last_tokens
from rgpo_jax.language.config import Config
from rgpo_jax.language.policy import Policy, Prediction
from rgpo_jax.language.state import LearnerState
from rgpo_jax.metrics import Metrics, maxima, means

Array = jax.Array


class Batch(NamedTuple):
    """What an update learns from: G answers to each of P prompts, a prompt's answers in a row.

    Attributes:
      prompts: arrays [P * G, ...].
      answers: [P * G, T].
      reward: of each answer, as the world or a reward model gave it [P * G].
    """

    prompts: Any
    answers: Answers
    reward: Array


class Sample(NamedTuple):
    """Answers as they are shuffled into minibatches [n, ...].

    Attributes:
      prompts: encoded (`Policy.encode`).
      answers: [n, T].
      counts: which tokens do [n, T].
      log_prob_ref: of the tokens under the reference [n, T].
      advantage: [n, T].
      target: of the value function [n, T]; None without a critic.
      old_value: what it said before the update [n, T]; None without a critic.
    """

    prompts: Any
    answers: Answers
    counts: Array
    log_prob_ref: Array
    advantage: Array
    target: Array | None
    old_value: Array | None


def shape_reward(
    reward: Array, answers: Answers, missing_end: Any = None, overlong_buffer: int = 0
) -> Array:
    """The rewards of whole answers [n], by the rules for those that are too long.

    Args:
      reward: as it was given [n].
      answers: [n, T].
      missing_end: takes the place of the reward where an answer has no end token; None: nothing.
      overlong_buffer: over so many tokens before T a penalty rises from 0 to 1; an answer without
        an end token has all of it.
    """
    if missing_end is not None:
        reward = jnp.where(answers.ended, reward, missing_end)
    if overlong_buffer:
        limit = answers.mask.shape[-1]
        length = jnp.where(answers.ended, jnp.sum(answers.mask, axis=-1), limit)
        reward -= jnp.clip((length - (limit - overlong_buffer)) / overlong_buffer, 0.0, 1.0)
    return reward


def token_rewards(reward: Array, mask: Array, penalty: Array) -> Array:
    """Rewards of tokens [n, T]: minus the penalty of each, and at an answer's last its reward."""
    return jnp.where(last_tokens(mask), reward[:, None], 0.0) - jnp.where(mask, penalty, 0.0)


def in_parts(function: Callable[[Any], Any], tree: Any, size: int | None) -> Any:
    """A function of samples [n, ...], run on at most so many of them at a time; None: on all.

    Parts are of one size: where n is no multiple of it the last sample is run again.
    """
    n = descent.num_samples(tree)
    if size is None or size >= n:
        return function(tree)
    number = -(-n // size)
    size = -(-n // number)
    which = jnp.minimum(jnp.arange(number * size), n - 1)
    padded = tree if number * size == n else jax.tree.map(lambda x: x[which], tree)
    parts = jax.tree.map(lambda x: x.reshape(number, size, *x.shape[1:]), padded)
    results = jax.lax.map(function, parts)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], results)


def predict(
    policy: Policy,
    config: Config,
    state: LearnerState,
    frozen: Any,
    params: Any,
    prompts: Any,
    answers: Answers,
) -> Prediction:
    """What parameters say of answers to encoded prompts, as many at a time as are learnt from."""
    temperature = state.hyperparameters.temperature
    return in_parts(
        lambda part: policy.predict(params, frozen, part[0], part[1], temperature),
        (prompts, answers),
        config.microbatch_size,
    )


def sampler_metrics(log_prob: Array, answers: Answers) -> Metrics:
    """By how much the sampler's log-probabilities of tokens differ from those computed anew."""
    difference = jnp.where(answers.mask, log_prob - answers.log_prob, 0.0)
    metrics = maxima({"sampler_ratio_deviation": jnp.max(jnp.abs(jnp.expm1(difference)))})
    size = jnp.mean(jnp.abs(difference), where=answers.mask)
    return metrics | means({"sampler_log_ratio": size})


def prepare(
    policy: Policy, config: Config, state: LearnerState, frozen: Any, batch: Batch
) -> tuple[Sample, Metrics]:
    """Rewards made advantages, before any gradient step.

    Args:
      policy: what answered.
      config: settings.
      state: with the parameters that answered.
      frozen: what is not trained.
      batch: answers and their rewards.

    Returns:
      Answers to shuffle, and metrics of the batch.
    """
    hyperparameters, answers = state.hyperparameters, batch.answers
    mask, grouped = answers.mask, (config.num_prompts, config.group_size)
    prompts = in_parts(
        lambda part: policy.encode(frozen, *part),
        (batch.prompts, answers),
        config.microbatch_size,
    )
    metrics = means({})
    if policy.recomputes or config.baseline == "value":
        before = predict(policy, config, state, frozen, state.params, prompts, answers)
    if policy.recomputes:
        metrics |= sampler_metrics(before.log_prob, answers)
        answers = answers._replace(log_prob=jnp.where(mask, before.log_prob, 0.0))
    log_prob_ref = in_parts(
        lambda part: policy.reference(frozen, part[0], part[1], hyperparameters.temperature),
        (prompts, answers),
        config.microbatch_size,
    )
    log_ratio_ref = jnp.where(mask, answers.log_prob - log_prob_ref, 0.0)
    reward = shape_reward(
        batch.reward, answers, hyperparameters.missing_end, config.overlong_buffer
    )
    penalty = jnp.zeros_like(log_ratio_ref)
    if config.kl == "reward":
        penalty = state.kl_coefficient * kl.ESTIMATORS[config.kl_estimator](log_ratio_ref)
    rewards = token_rewards(reward, mask, penalty)
    sample = Sample(prompts, answers, mask, log_prob_ref, rewards, None, None)
    if config.baseline == "value":
        value = before.value
        assert value is not None
        advantage, target = advantages.token_advantages(
            rewards, value, mask, hyperparameters.gae_lambda
        )
        if config.scale == "batch":
            advantage = advantages.whiten(advantage, mask)
        sample = sample._replace(advantage=advantage, target=target, old_value=value)
    else:
        total = jnp.sum(rewards, axis=-1).reshape(grouped)
        by_answer = advantages.group_advantages(total, config.baseline, config.scale)
        by_token = jnp.broadcast_to(by_answer.reshape(-1, 1), mask.shape)
        sample = sample._replace(advantage=jnp.where(mask, by_token, 0.0))
    differs = advantages.has_spread(reward.reshape(grouped))
    if config.drop_equal_groups:
        kept = jnp.broadcast_to(differs, grouped).reshape(-1, 1)
        sample = sample._replace(counts=mask & kept)
    length = jnp.sum(mask, axis=-1)
    metrics |= means(
        {
            "sampled_reward": jnp.mean(batch.reward),
            "kl_ref_k1": jnp.mean(jnp.sum(log_ratio_ref, axis=-1)),
            "kl_ref_k3": jnp.mean(jnp.sum(jnp.where(mask, kl.k3(log_ratio_ref), 0), axis=-1)),
            "kl_coefficient": state.kl_coefficient,
            "answer_length": jnp.mean(length),
            "answers_ended": jnp.mean(answers.ended),
            "equal_groups": 1.0 - jnp.mean(differs),
        }
    )
    spread = jnp.std(sample.advantage, where=sample.counts)
    metrics |= means({"advantage_std": spread}, weight=jnp.any(sample.counts))
    return sample, metrics
