"""The update step of answers: advantages, then the same descent over minibatches as control's."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rgpo_jax import descent, diagnostics
from rgpo_jax.gates import DUAL_CONSTRUCTORS, Gate
from rgpo_jax.hyperparameters import TracedNumbers
from rgpo_jax.language import advantages, kl, objective
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.config import Config
from rgpo_jax.language.policy import Policy, Prediction
from rgpo_jax.metrics import Metrics, means
from rgpo_jax.penalties import clipped_value_excess
from rgpo_jax.tunable import Tunable, as_tunable

Array = jax.Array

_LARGEST_CHANGE = 0.2  # of the adaptive coefficient, as a share of n / horizon (Ziegler et al.)
_DUAL_FORMULAS = {constructor().function for constructor in DUAL_CONSTRUCTORS.values()}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyperparameters(TracedNumbers):
    """The traced numbers of an update, as `Config` explains them; scalars, or batched by vmap.

    Those of a critic are None where there is none.
    """

    learning_rate: Any
    max_grad_norm: Any
    target_kl: Any
    entropy_coefficient: Any
    temperature: Any
    kl_coefficient: Any
    kl_target: Any
    kl_horizon: Any
    length_constant: Any
    missing_end: Any
    annealing: Any
    gate: Tunable
    value_coefficient: Any = None
    value_clip: Any = None
    gae_lambda: Any = None


class LearnerState(NamedTuple):
    """What an update changes, and what it needs to go on.

    Attributes:
      params: {"actor": ..., "critic": ...}; what is trained.
      optimizer_state: of the optimiser.
      key: typed key, for shuffling.
      updates: number of updates so far, int32 [].
      kl_coefficient: beta now; it moves where it adapts.
      hyperparameters: traced numbers; replaced freely between updates.
    """

    params: Any
    optimizer_state: Any
    key: Array
    updates: Array
    kl_coefficient: Array
    hyperparameters: Hyperparameters


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


class Learner(NamedTuple):
    """The update alone, without prompts or rewards: an (init, update) pair.

    Attributes:
      init: (key, frozen, hyperparameters) -> LearnerState.
      update: (LearnerState, frozen, Batch) -> (LearnerState, metrics).
      hyperparameters: the defaults.
    """

    init: Callable[[Array, Any, Hyperparameters], LearnerState]
    update: Callable[[LearnerState, Any, Batch], tuple[LearnerState, Metrics]]
    hyperparameters: Hyperparameters


class _Sample(NamedTuple):
    """What is shuffled into minibatches: answers, their first axis that of them all."""

    prompts: Any  # encoded
    answers: Answers
    counts: Array  # which tokens do [n, T]
    log_prob_ref: Array
    advantage: Array
    target: Array | None
    old_value: Array | None


def adam(hyperparameters: Hyperparameters, step_size: Any) -> optax.GradientTransformation:
    """Adam with clipped gradients, with the epsilon that is usual for language models."""
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.max_grad_norm),
        optax.scale_by_adam(eps=1e-8),
        optax.scale_by_learning_rate(step_size),
    )


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
    last = mask & ~jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    return jnp.where(last, reward[:, None], 0.0) - jnp.where(mask, penalty, 0.0)


def is_dual(gate: Tunable) -> bool:
    """Whether a gate is one of two ratios."""
    return gate.function in _DUAL_FORMULAS


def _in_parts(function: Callable[[Any], Any], tree: Any, size: int | None) -> Any:
    """A function of samples [n, ...], run on so many of them at a time; None: on all."""
    n = descent.num_samples(tree)
    if size is None or size >= n or n % size:
        return function(tree)
    parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)
    return jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), jax.lax.map(function, parts))


def make(
    policy: Policy,
    config: Config,
    gate: Gate,
    optimizer: Callable[[Hyperparameters, Any], optax.GradientTransformation] = adam,
    is_dual_gate: bool | None = None,
) -> Learner:
    """Builds the update step of answers.

    An update turns the rewards of a batch into advantages (`Config.baseline`, `scale`), then takes
    `num_epochs` passes over the answers in `num_minibatches` shuffled parts, each a step of the
    optimiser on the gated objective, aggregated as `Config.aggregation` says, with the KL to the
    reference where `Config.kl` says.

    Args:
      policy: what answers.
      config: settings.
      gate: function (log_ratio, advantage) -> g, or a dual gate, (log_ratio, advantage,
        log_ratio_ref) -> g.
      optimizer: (hyper-parameters, step size) -> optax's transformation.
      is_dual_gate: whether the gate is of two ratios; None: whether it is one of `gates`'.
    """
    gate = as_tunable(gate)
    dual = is_dual(gate) if is_dual_gate is None else is_dual_gate
    has_critic = config.baseline == "value"
    # Where answers may differ in weight: else a mean over minibatches of equal size is exact.
    weighs = config.aggregation == "token_mean" or config.drop_equal_groups
    defaults = Hyperparameters.from_settings(config, gate=gate)

    def init(key: Array, frozen: Any, hyperparameters: Hyperparameters) -> LearnerState:
        params_key, key = jax.random.split(key)
        params = policy.init(params_key, frozen, has_critic)
        return LearnerState(
            params,
            descent.init(optimizer(hyperparameters, 0.0), params, flatten=False),
            key,
            jnp.int32(0),
            jnp.asarray(hyperparameters.kl_coefficient, jnp.float32),
            hyperparameters,
        )

    def predict(state: LearnerState, frozen: Any, params: Any, sample: _Sample) -> Prediction:
        temperature = state.hyperparameters.temperature
        return _in_parts(
            lambda part: policy.predict(params, frozen, part[0], part[1], temperature),
            (sample.prompts, sample.answers),
            config.microbatch_size,
        )

    def prepare(state: LearnerState, frozen: Any, batch: Batch) -> tuple[_Sample, Metrics]:
        hyperparameters, answers = state.hyperparameters, batch.answers
        mask, grouped = answers.mask, (config.num_prompts, config.group_size)
        prompts = _in_parts(
            lambda part: policy.encode(frozen, *part),
            (batch.prompts, answers),
            config.microbatch_size,
        )
        log_prob_ref = _in_parts(
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
        sample = _Sample(prompts, answers, mask, log_prob_ref, rewards, None, None)
        if has_critic:
            value = predict(state, frozen, state.params, sample).value
            assert value is not None
            advantage, target = advantages.token_advantages(
                rewards, value, mask, hyperparameters.gae_lambda
            )
            if config.scale == "batch":
                advantage = advantages.whiten(advantage, mask)
            sample = sample._replace(advantage=advantage, target=target, old_value=value)
        else:
            total = jnp.sum(rewards, axis=-1).reshape(grouped)
            assert config.baseline != "value"
            by_answer = advantages.group_advantages(total, config.baseline, config.scale)
            by_token = jnp.broadcast_to(by_answer.reshape(-1, 1), mask.shape)
            sample = sample._replace(advantage=jnp.where(mask, by_token, 0.0))
        differs = advantages.has_spread(reward.reshape(grouped))
        if config.drop_equal_groups:
            kept = jnp.broadcast_to(differs, grouped).reshape(-1, 1)
            sample = sample._replace(counts=mask & kept)
        length = jnp.sum(mask, axis=-1)
        metrics = means(
            {
                "sampled_reward": jnp.mean(batch.reward),
                "kl_ref_k1": jnp.mean(jnp.sum(log_ratio_ref, axis=-1)),
                "kl_ref_k3": jnp.mean(jnp.sum(jnp.where(mask, kl.k3(log_ratio_ref), 0), axis=-1)),
                "kl_coefficient": state.kl_coefficient,
                "answer_length": jnp.mean(length),
                "answers_ended": jnp.mean(answers.ended),
                "equal_groups": 1.0 - jnp.mean(differs),
                "advantage_std": jnp.std(sample.advantage, where=sample.counts),
            }
        )
        return sample, metrics

    def make_loss(state: LearnerState, frozen: Any) -> descent.Loss:
        hyperparameters = state.hyperparameters
        constant = hyperparameters.length_constant

        def loss(params: Any, sample: _Sample) -> tuple[Array, dict[str, Array]]:
            answers, counts = sample.answers, sample.counts
            predicted = policy.predict(
                params, frozen, sample.prompts, answers, hyperparameters.temperature
            )
            parts = objective.terms(
                config.aggregation,
                predicted.log_prob,
                answers.log_prob,
                sample.log_prob_ref,
                sample.advantage,
                counts,
            )
            total = objective.policy_loss(
                config, hyperparameters.gate, dual, parts, state.kl_coefficient, constant
            )
            reported = {"log_ratio": parts.log_ratio, "mask": parts.mask}
            by_token = config.aggregation if parts.mask.ndim > 1 else "answer_mean"
            if hyperparameters.entropy_coefficient is not None:
                entropy = objective.aggregate(predicted.entropy, counts, by_token, constant)
                total -= hyperparameters.entropy_coefficient * entropy
            if has_critic:
                assert predicted.value is not None and sample.target is not None
                error = jnp.square(predicted.value - sample.target)
                if hyperparameters.value_clip is not None:
                    assert sample.old_value is not None
                    error += clipped_value_excess(
                        predicted.value, sample.old_value, sample.target, hyperparameters.value_clip
                    )
                value_loss = objective.aggregate(0.5 * error, counts, by_token, constant)
                total += hyperparameters.value_coefficient * value_loss
                reported["squared_error"] = jnp.where(counts, error, 0.0)
            return total, reported

        return loss

    def update(state: LearnerState, frozen: Any, batch: Batch) -> tuple[LearnerState, Metrics]:
        hyperparameters = state.hyperparameters
        sample, metrics = prepare(state, frozen, batch)
        remaining = 1.0 - state.updates * hyperparameters.annealing
        step_size = hyperparameters.learning_rate * jnp.maximum(remaining, 0.0)

        def is_near(terms: dict[str, Array]) -> Array:
            log_ratio, mask = terms["log_ratio"].ravel(), terms["mask"].ravel()
            return diagnostics.kl_k3(log_ratio, mask) <= hyperparameters.target_kl

        def weigh(part: _Sample) -> Array:
            return objective.weight(config.aggregation, part.counts).astype(jnp.float32)

        key, shuffle_key = jax.random.split(state.key)
        params, optimizer_state, steps = descent.descend(
            make_loss(state, frozen),
            state.params,
            state.optimizer_state,
            sample,
            shuffle_key,
            optimizer(hyperparameters, step_size),
            config.num_epochs,
            config.num_minibatches,
            config.microbatch_size,
            flatten=False,
            weigh=weigh if weighs else None,
            goes_on=None if hyperparameters.target_kl is None else is_near,
        )
        predicted = predict(state, frozen, params, sample)
        parts = objective.terms(
            config.aggregation,
            predicted.log_prob,
            sample.answers.log_prob,
            sample.log_prob_ref,
            sample.advantage,
            sample.counts,
        )
        metrics |= diagnostics.gate_diagnostics(
            hyperparameters.gate,
            parts.log_ratio.ravel(),
            jnp.where(parts.mask, parts.advantage, 1.0).ravel(),
            steps.terms["log_ratio"],
            parts.log_ratio_ref.ravel() if dual else None,
            parts.mask.ravel(),
            steps.terms["mask"],
        )
        rate = jnp.mean(steps.taken, dtype=jnp.float32)
        taken = {
            "grad_norm": jnp.mean(steps.grad_norm, where=steps.taken),
            "entropy": jnp.mean(predicted.entropy, where=sample.answers.mask),
        }
        if has_critic:
            errors = jnp.sum(steps.terms["squared_error"], axis=-1)
            tokens = jnp.mean(jnp.sum(sample.counts)) / config.num_minibatches
            taken["value_loss"] = 0.5 * jnp.mean(errors, where=steps.taken) / tokens
        metrics |= means(taken, weight=rate > 0)
        metrics |= means({"gradient_step_rate": rate, "learning_rate": step_size})
        coefficient = state.kl_coefficient
        if hyperparameters.kl_target is not None:
            error = metrics["kl_ref_k1"] / hyperparameters.kl_target - 1.0
            change = jnp.clip(error, -_LARGEST_CHANGE, _LARGEST_CHANGE)
            coefficient *= 1.0 + change * config.batch_size / hyperparameters.kl_horizon
        state = state._replace(
            params=params,
            optimizer_state=optimizer_state,
            key=key,
            updates=state.updates + 1,
            kl_coefficient=coefficient,
        )
        return state, metrics

    return Learner(init, update, defaults)
