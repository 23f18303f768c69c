"""The update step of answers: advantages, then the same descent over minibatches as control's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rgpo_jax import descent, diagnostics, gates, keys, schedules
from rgpo_jax.gates import Gate
from rgpo_jax.language import objective, samples
from rgpo_jax.language.config import Config
from rgpo_jax.language.policy import Policy
from rgpo_jax.language.samples import Batch, Sample
from rgpo_jax.language.state import Hyperparameters, LearnerState
from rgpo_jax.metrics import Metrics, means
from rgpo_jax.penalties import clipped_value_excess
from rgpo_jax.tunable import Tunable, as_tunable

Array = jax.Array

_LARGEST_CHANGE = 0.2  # of the adaptive coefficient, as a share of n / horizon (Ziegler et al.)


class Learner(NamedTuple):
    """The update alone, without prompts or rewards: an (init, update) pair.

    Attributes:
      init: (key, frozen, hyperparameters=None) -> LearnerState; None: the defaults.
      update: (LearnerState, frozen, Batch, or what else it learns from) -> (LearnerState, metrics).
      hyperparameters: the defaults.
    """

    init: Callable[..., LearnerState]
    update: Callable[[LearnerState, Any, Any], tuple[LearnerState, Metrics]]
    hyperparameters: Any


def adam(hyperparameters: Hyperparameters, step_size: Any) -> optax.GradientTransformation:
    """Adam with clipped gradients, with the epsilon that is usual for language models."""
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.max_grad_norm),
        optax.scale_by_adam(eps=1e-8),
        optax.scale_by_learning_rate(step_size),
    )


def is_broken(metrics: Metrics) -> Array:
    """Whether an update had no gradient that was finite: it changed nothing, nor will the next."""
    return metrics["nonfinite_step_rate"] >= 1.0


def initializer(
    policy: Policy,
    optimizer: Callable[[Any, Any], optax.GradientTransformation],
    critic: bool,
    defaults: Any,
) -> Callable[..., LearnerState]:
    """`Learner.init` of a policy, with a critic or without; ValueError for no such optimizer."""
    descent.check_optimizer(optimizer)

    def init(key: Array, frozen: Any, hyperparameters: Any = None) -> LearnerState:
        hyperparameters = defaults if hyperparameters is None else hyperparameters
        hyperparameters = jax.tree.map(jnp.copy, hyperparameters)  # a state's may be donated
        params_key, key = jax.random.split(keys.as_typed(key))
        params = policy.init(params_key, frozen, critic)
        return LearnerState(
            params,
            descent.init(optimizer(hyperparameters, 0.0), params, flatten=False),
            key,
            jnp.int32(0),
            jnp.array(getattr(hyperparameters, "kl_coefficient", 0.0), jnp.float32),
            hyperparameters,
        )

    return init


def _has_critic(config: Config) -> bool:
    return config.baseline == "value"


def _terms(config: Config, sample: Sample, log_prob: Array) -> objective.Terms:
    """What the objective is of, where the policy says this of the sample's tokens [n, T]."""
    return objective.terms(
        config.aggregation,
        log_prob,
        sample.answers.log_prob,
        sample.log_prob_ref,
        sample.advantage,
        sample.counts,
    )


def _squared_error(hyperparameters: Hyperparameters, value: Array | None, sample: Sample) -> Array:
    """Twice the loss of what a critic says, token by token [n, T]."""
    assert value is not None and sample.target is not None
    error = jnp.square(value - sample.target)
    if hyperparameters.value_clip is not None:
        assert sample.old_value is not None
        error += clipped_value_excess(
            value, sample.old_value, sample.target, hyperparameters.value_clip
        )
    return error


def _loss(policy: Policy, config: Config, state: LearnerState, frozen: Any) -> descent.Loss:
    """Of a minibatch: the gated objective, less the entropy bonus, and a critic's error."""
    hyperparameters = state.hyperparameters
    constant = hyperparameters.length_constant

    def loss(params: Any, sample: Sample) -> tuple[Array, dict[str, Array]]:
        counts = sample.counts
        predicted = policy.predict(
            params, frozen, sample.prompts, sample.answers, hyperparameters.temperature
        )
        parts = _terms(config, sample, predicted.log_prob)
        total = objective.policy_loss(
            config,
            hyperparameters.gate,
            gates.is_dual(hyperparameters.gate),
            parts,
            state.kl_coefficient,
            constant,
            hyperparameters.old_kl_coefficient,
        )
        reported = {"log_ratio": parts.log_ratio, "mask": parts.mask}
        by_token = config.aggregation if parts.mask.ndim > 1 else "answer_mean"
        if hyperparameters.entropy_coefficient is not None:
            entropy = objective.aggregate(predicted.entropy, counts, by_token, constant)
            total -= hyperparameters.entropy_coefficient * entropy
        if _has_critic(config):
            error = _squared_error(hyperparameters, predicted.value, sample)
            value_loss = objective.aggregate(0.5 * error, counts, by_token, constant)
            total += hyperparameters.value_coefficient * value_loss
            reported["squared_error"] = jnp.where(counts, error, 0.0)
        return total, reported

    return loss


def _gate_metrics(gate: Tunable, parts: objective.Terms, steps: descent.GradientSteps) -> Metrics:
    """What the gate made of the ratios, after all steps and at each."""
    return diagnostics.gate_diagnostics(
        gate,
        parts.log_ratio.ravel(),
        jnp.where(parts.mask, parts.advantage, 1.0).ravel(),
        steps.terms["log_ratio"],
        parts.log_ratio_ref.ravel() if gates.is_dual(gate) else None,
        parts.mask.ravel(),
        steps.terms["mask"],
    )


def _step_metrics(
    config: Config, sample: Sample, entropy: Array, steps: descent.GradientSteps
) -> Metrics:
    """Of the steps that were taken, and which were."""
    rate = jnp.mean(steps.taken, dtype=jnp.float32)
    taken = {
        "grad_norm": jnp.mean(steps.grad_norm, where=steps.taken),
        "entropy": jnp.mean(entropy, where=sample.answers.mask),
    }
    if _has_critic(config):
        errors = jnp.sum(steps.terms["squared_error"], axis=-1)
        tokens = jnp.mean(jnp.sum(sample.counts)) / config.num_minibatches
        taken["value_loss"] = 0.5 * jnp.mean(errors, where=steps.taken) / tokens
    metrics = means(taken, weight=rate > 0)
    undefined = jnp.mean(~jnp.isfinite(steps.grad_norm), dtype=jnp.float32)
    return metrics | means({"gradient_step_rate": rate, "nonfinite_step_rate": undefined})


def _next_kl_coefficient(state: LearnerState, metrics: Metrics, batch_size: int) -> Array:
    """The weight of the KL after an update; with `kl_target`, larger where the KL was too large."""
    hyperparameters = state.hyperparameters
    if hyperparameters.kl_target is None:
        return state.kl_coefficient
    error = metrics["kl_ref_k1"] / hyperparameters.kl_target - 1.0
    change = jnp.clip(error, -_LARGEST_CHANGE, _LARGEST_CHANGE)
    return state.kl_coefficient * (1.0 + change * batch_size / hyperparameters.kl_horizon)


def make(
    policy: Policy,
    config: Config,
    gate: Gate,
    optimizer: Callable[[Hyperparameters, Any], optax.GradientTransformation] = adam,
) -> Learner:
    """Builds the update step of answers.

    An update turns the rewards of a batch into advantages (`Config.baseline`, `scale`), then takes
    `num_epochs` passes over the answers in `num_minibatches` shuffled parts, each a step of the
    optimiser on the gated objective, aggregated as `Config.aggregation` says, with the KL to the
    reference where `Config.kl` says. A step whose gradient is not finite is skipped and counted
    (`nonfinite_step_rate`).

    Args:
      policy: what answers.
      config: settings.
      gate: function (log_ratio, advantage) -> g, or of two ratios, (log_ratio, advantage,
        log_ratio_ref) -> g; which it is, the name of its third argument says.
      optimizer: (hyper-parameters, step size) -> optax's transformation.
    """
    gate = as_tunable(gate)
    # Where answers may differ in weight: else a mean over minibatches of equal size is exact.
    weighs = config.aggregation == "token_mean" or config.drop_equal_groups
    defaults = Hyperparameters.from_settings(config, gate=gate)

    def weigh(part: Sample) -> Array:
        return objective.weight(config.aggregation, part.counts).astype(jnp.float32)

    def update(state: LearnerState, frozen: Any, batch: Batch) -> tuple[LearnerState, Metrics]:
        hyperparameters = state.hyperparameters
        sample, metrics = samples.prepare(policy, config, state, frozen, batch)
        step_size = schedules.learning_rate(config.schedule, hyperparameters, state.updates)

        def is_near(terms: dict[str, Array]) -> Array:
            log_ratio, mask = terms["log_ratio"].ravel(), terms["mask"].ravel()
            return diagnostics.kl_k3(log_ratio, mask) <= hyperparameters.target_kl

        key, shuffle_key = jax.random.split(state.key)
        params, optimizer_state, steps = descent.descend(
            _loss(policy, config, state, frozen),
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
            finite_only=True,
        )
        predicted = samples.predict(
            policy, config, state, frozen, params, sample.prompts, sample.answers
        )
        parts = _terms(config, sample, predicted.log_prob)
        metrics |= _gate_metrics(hyperparameters.gate, parts, steps)
        metrics |= _step_metrics(config, sample, predicted.entropy, steps)
        metrics |= means({"learning_rate": step_size})
        kl_coefficient = _next_kl_coefficient(state, metrics, config.batch_size)
        state = state._replace(
            params=params,
            optimizer_state=optimizer_state,
            key=key,
            updates=state.updates + 1,
            kl_coefficient=kl_coefficient,
        )
        return state, metrics

    init = initializer(policy, optimizer, _has_critic(config), defaults)
    return Learner(init, update, defaults)
