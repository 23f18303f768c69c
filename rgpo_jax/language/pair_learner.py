"""The update step of pairs: a loss of what policy and reference say of both, and the descent."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rgpo_jax import descent, schedules
from rgpo_jax.hyperparameters import TracedNumbers
from rgpo_jax.language import samples
from rgpo_jax.language.answers import Answers
from rgpo_jax.language.contrasts import Contrast
from rgpo_jax.language.learner import Learner, adam, initializer
from rgpo_jax.language.pair_config import PairConfig
from rgpo_jax.language.pairs import Pairs
from rgpo_jax.language.policy import Policy
from rgpo_jax.language.state import LearnerState
from rgpo_jax.metrics import Metrics, maxima, means
from rgpo_jax.tunable import Tunable

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Numbers(TracedNumbers):
    """The traced numbers of an update, as `PairConfig` explains them; scalars, or batched."""

    learning_rate: Any
    max_grad_norm: Any
    temperature: Any
    kl_coefficient: Any
    annealing: Any
    loss: Tunable
    missing_end: Any = None
    end_learning_rate: Any = 0.0  # it and what follows are missing from checkpoints of earlier ones
    warmup_updates: Any = 0.0


class _Sides(NamedTuple):
    """Answers [n, 2, ...] and what does not change in an update."""

    prompts: Any  # encoded
    answers: Answers
    log_prob_ref: Array  # of whole answers [n, 2]


class _Sample(NamedTuple):
    own: _Sides
    others: _Sides | None  # the answers of other pairs, to the same prompts
    label: Array
    gap: Array
    counts: Array


def _sum(log_prob: Array, mask: Array) -> Array:
    return jnp.sum(jnp.where(mask, log_prob, 0.0), axis=-1)


def _side_by_side(first: Any, second: Any) -> Any:
    """Two trees of arrays [n, ...] as one of [n, 2, ...]."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1), first, second)


def _one_by_one(tree: Any) -> Any:
    """Arrays [n, 2, ...] as [2 n, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _in_pairs(tree: Any) -> Any:
    """The inverse of `_one_by_one`."""
    return jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), tree)


def measure(
    policy: Policy,
    params: Any,
    frozen: Any,
    pairs: Pairs,
    temperature: Any,
    beta: Any,
    size: int | None = None,
) -> Metrics:
    """What policy and reference say of pairs: margin and accuracy of the implicit reward.

    Args:
      policy: what answers.
      params: of it.
      frozen: what is not trained.
      pairs: n of them.
      temperature: of sampling.
      beta: by which log-ratios are multiplied.
      size: answers that are read at a time; None: all.
    """
    prompts = _one_by_one(_side_by_side(pairs.prompts, pairs.prompts))
    answers = _one_by_one(_side_by_side(pairs.chosen, pairs.rejected))

    def read(part: tuple) -> tuple[Array, Array]:
        encoded = policy.encode(frozen, part[0], part[1])
        predicted = policy.predict(params, frozen, encoded, part[1], temperature)
        reference = policy.reference(frozen, encoded, part[1], temperature)
        return _sum(predicted.log_prob, part[1].mask), _sum(reference, part[1].mask)

    log_prob, reference = map(_in_pairs, samples.in_parts(read, (prompts, answers), size))
    return _described(log_prob, log_prob - reference, pairs.label, beta, pairs.counts)


def _described(
    log_prob: Array, log_ratio: Array, label: Array, beta: Any, counts: Array
) -> Metrics:
    """Means over the pairs that count, of log pi and log pi / ref of both answers [n, 2]."""
    margin = log_ratio[:, 0] - log_ratio[:, 1]
    right = jnp.where(margin == 0, 0.5, margin > 0)
    numbers = {
        "margin": beta * margin,
        # Which is expected of a label above a half.
        "accuracy": jnp.where(label >= 0.5, right, 1.0 - right),
        "chosen_log_prob": log_prob[:, 0],
        "rejected_log_prob": log_prob[:, 1],
        "chosen_log_ratio": log_ratio[:, 0],
        "rejected_log_ratio": log_ratio[:, 1],
    }
    weight = jnp.sum(counts).astype(jnp.float32)
    return means({name: jnp.mean(x, where=counts) for name, x in numbers.items()}, weight=weight)


def _prepare(
    policy: Policy,
    config: PairConfig,
    state: LearnerState,
    frozen: Any,
    prompts: Any,
    answers: Answers,
) -> _Sides:
    """Encodes prompts [n, ...] with answers [n, 2, T], and asks the reference of them."""
    temperature = state.hyperparameters.temperature
    size = None if config.microbatch_size is None else 2 * config.microbatch_size
    flat = _one_by_one(answers)
    asked = _one_by_one(_side_by_side(prompts, prompts))

    def encode(part: tuple) -> Any:
        return policy.encode(frozen, part[0], part[1])

    def judge(part: tuple) -> Array:
        return policy.reference(frozen, part[0], part[1], temperature)

    encoded = samples.in_parts(encode, (asked, flat), size)
    reference = samples.in_parts(judge, (encoded, flat), size)
    return _Sides(_in_pairs(encoded), answers, _in_pairs(_sum(reference, flat.mask)))


def _sample_of(
    policy: Policy,
    config: PairConfig,
    state: LearnerState,
    frozen: Any,
    pairs: Pairs,
    mismatched: bool,
) -> _Sample:
    """Pairs with what their loss needs to know; see `make` for `mismatched`."""
    answers = _side_by_side(pairs.chosen, pairs.rejected)
    others = None
    if mismatched:
        of_others = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), answers)
        others = _prepare(policy, config, state, frozen, pairs.prompts, of_others)
    if pairs.read is None:
        own = _prepare(policy, config, state, frozen, pairs.prompts, answers)
    else:
        read = _side_by_side(*pairs.read)
        own = _Sides(read.prompts, answers, read.log_prob_ref)
    return _Sample(own, others, pairs.label, pairs.gap, pairs.counts)


def _loss(policy: Policy, state: LearnerState, frozen: Any) -> descent.Loss:
    """Of a minibatch: the mean loss of the pairs that count."""
    numbers = state.hyperparameters

    def log_probs(params: Any, sides: _Sides) -> Array:
        """log pi of whole answers [n, 2]."""
        flat = _one_by_one(sides.answers)
        predicted = policy.predict(
            params, frozen, _one_by_one(sides.prompts), flat, numbers.temperature
        )
        return _in_pairs(_sum(predicted.log_prob, flat.mask))

    def loss(params: Any, sample: _Sample) -> tuple[Array, dict[str, Array]]:
        answers = sample.own.answers
        log_prob = log_probs(params, sample.own)
        estimate: Any = 0.0
        if sample.others is not None:
            other = log_probs(jax.lax.stop_gradient(params), sample.others)
            estimate = jnp.mean(other - sample.others.log_prob_ref)
        contrast = Contrast(
            log_prob,
            log_prob - sample.own.log_prob_ref,
            log_prob - _sum(answers.log_prob, answers.mask),
            jnp.sum(answers.mask, axis=-1),
            sample.label,
            sample.gap,
            estimate,
        )
        losses = numbers.loss(contrast, state.kl_coefficient)
        total = jnp.sum(jnp.where(sample.counts, losses, 0.0))
        mean = total / jnp.maximum(jnp.sum(sample.counts), 1)
        # Apart, for terms are flattened.
        both = {"log_prob": log_prob, "log_ratio": contrast.log_ratio_ref}
        terms = {f"{name}_{i}": x[:, i] for name, x in both.items() for i in range(2)}
        terms |= {"loss": losses, "label": sample.label, "counts": sample.counts}
        terms["log_ratio_old"] = jnp.max(jnp.abs(contrast.log_ratio_old), axis=-1)
        return mean, terms

    return loss


def _metrics_of(steps: descent.GradientSteps, beta: Any, own: bool) -> Metrics:
    """Of the first pass, before each step; see `make` for `own`."""
    first = jax.tree.map(lambda x: x[0].ravel(), steps.terms)
    counts = first["counts"]
    weight = jnp.sum(counts).astype(jnp.float32)
    log_prob, log_ratio = (
        jnp.stack([first[f"{name}_{i}"] for i in range(2)], axis=1)
        for name in ("log_prob", "log_ratio")
    )
    metrics = _described(log_prob, log_ratio, first["label"], beta, counts)
    numbers = {
        "loss": jnp.mean(first["loss"], where=counts),
        "grad_norm": jnp.mean(steps.grad_norm),
    }
    metrics |= means(numbers, weight=weight)
    if own:
        met = steps.terms["counts"][0, 0], steps.terms["log_ratio_old"][0, 0]
        deviation = jnp.max(jnp.where(met[0], jnp.abs(jnp.expm1(met[1])), 0.0))
        metrics |= maxima({"first_ratio_deviation": deviation})
    undefined = jnp.mean(~jnp.isfinite(steps.grad_norm), dtype=jnp.float32)
    return metrics | means({"nonfinite_step_rate": undefined})


def make(
    policy: Policy,
    config: PairConfig,
    loss: Tunable,
    optimizer: Callable[[Any, Any], optax.GradientTransformation] = adam,
    mismatched: bool = False,
    own: bool = False,
) -> Learner:
    """Builds the update step of pairs, (LearnerState, frozen, Pairs) -> (LearnerState, metrics).

    It takes `num_epochs` passes over the pairs in `num_minibatches` shuffled parts, each a step of
    the optimiser on the mean loss of the pairs that count. A step whose gradient is not finite is
    skipped and counted. Metrics are those of the first pass, before each step: `margin` and
    `accuracy` are of the implicit reward, beta log(pi / ref).

    Args:
      policy: what answers.
      config: settings.
      loss: of `contrasts`, or your own: (Contrast, beta) -> [n].
      optimizer: (numbers, step size) -> optax's transformation.
      mismatched: estimate the KL to the reference in each minibatch, from the answers of other
        pairs to the same prompts (KTO).
      own: whether the policy sampled the answers; then the first ratios are 1, as a metric says.
    """
    defaults = Numbers.from_settings(config, loss=loss)

    def update(state: LearnerState, frozen: Any, pairs: Pairs) -> tuple[LearnerState, Metrics]:
        numbers = state.hyperparameters
        sample = _sample_of(policy, config, state, frozen, pairs, mismatched)
        step_size = schedules.learning_rate(config.schedule, numbers, state.updates)
        key, shuffle_key = jax.random.split(state.key)
        params, optimizer_state, steps = descent.descend(
            _loss(policy, state, frozen),
            state.params,
            state.optimizer_state,
            sample,
            shuffle_key,
            optimizer(numbers, step_size),
            config.num_epochs,
            config.num_minibatches,
            config.microbatch_size,
            flatten=False,
            weigh=lambda part: jnp.sum(part.counts).astype(jnp.float32),
            finite_only=True,
        )
        metrics = _metrics_of(steps, state.kl_coefficient, own)
        metrics |= means({"learning_rate": step_size})
        state = state._replace(
            params=params,
            optimizer_state=optimizer_state,
            key=key,
            updates=state.updates + 1,
        )
        return state, metrics

    return Learner(initializer(policy, optimizer, False, defaults), update, defaults)
