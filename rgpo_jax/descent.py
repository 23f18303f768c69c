"""Epochs of minibatches down the gradient of a loss, whatever the loss is of.

The loss is a mean over the samples that it is given; parameters are any pytree. Policies of control
and language models are trained by this one function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rgpo_jax import shuffle
from rgpo_jax.data_parallel import DataParallel

Array = jax.Array
Loss = Callable[[Any, Any], tuple[Array, Any]]
"""(params, batch) -> (loss, whatever else), as `jax.grad` takes it with `has_aux`."""


class GradientSteps(NamedTuple):
    """What the gradient steps of an update were [epochs, minibatches, ...].

    Attributes:
      terms: of the loss, before each step, a value per sample.
      grad_norm: of the gradient, before the optimiser changes it.
      taken: whether early stopping let it count, its minibatch had weight, and the gradient was
        finite where that is asked for.
    """

    terms: Any
    grad_norm: Array
    taken: Array


def check_optimizer(optimizer: Any) -> None:
    """Raises ValueError for what is no function (hyper-parameters, step size) -> transformation."""
    if not callable(optimizer):
        raise ValueError(
            f"optimizer: a {type(optimizer).__name__}; expected a function (hyper-parameters, step "
            "size) -> optax's transformation, such as lambda _, size: optax.adam(size)"
        )


def init(optimizer: optax.GradientTransformation, params: Any, flatten: bool = True) -> Any:
    """The optimiser's first state for `descend`."""
    return optimizer.init(ravel_pytree(params)[0] if flatten else params)


def num_samples(batch: Any) -> int:
    """The length of the first axis, which all of a batch's arrays share.

    Raises:
      ValueError: they differ in it, or there is no array.
    """
    lengths = {x.shape[:1] for x in jax.tree.leaves(batch)}
    if len(lengths) != 1 or () in lengths:
        shapes = sorted({str(x.shape) for x in jax.tree.leaves(batch)})
        raise ValueError(f"a batch's arrays share their first axis; got {', '.join(shapes)}")
    return int(lengths.pop()[0])


def _times(gradient: Any, factor: Array) -> Any:
    """A gradient times a factor, in its own precision; 0 where that is 0, even if undefined."""
    return jax.tree.map(lambda x: jnp.where(factor > 0, x * factor, 0).astype(x.dtype), gradient)


def mean_gradient(
    loss: Loss,
    params: Any,
    batch: Any,
    microbatch_size: int | None = None,
    weigh: Callable[[Any], Array] | None = None,
) -> tuple[Any, Any, Array | None]:
    """Gradient of a mean over a batch, by parts if asked for.

    Args:
      loss: (params, batch) -> (mean over its samples, terms: a pytree of arrays [samples, ...]).
      params: where it is differentiated.
      batch: n samples.
      microbatch_size: samples differentiated at a time; a divisor of n. None: all.
      weigh: batch -> of how many things its loss is the mean, such as the tokens of a mask. None:
        of its samples.

    Returns:
      The gradient of the mean over the batch, 0 where nothing has weight; the terms [n, ...]; the
      weight of the batch, if it is weighed.

    Raises:
      ValueError: n does not divide into microbatches.
    """
    gradient_of = jax.grad(loss, has_aux=True)
    length = num_samples(batch)
    if microbatch_size is None or microbatch_size >= length:
        gradient, terms = gradient_of(params, batch)
        if weigh is None:
            return gradient, terms, None
        weight = weigh(batch)
        return _times(gradient, jnp.where(weight > 0, 1, 0)), terms, weight
    if length % microbatch_size:
        raise ValueError(
            f"{length} samples of a minibatch do not divide into microbatches of {microbatch_size}"
        )
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatch_size, *x.shape[1:]), batch)

    def add(total: tuple, part: Any) -> tuple[tuple, Any]:
        gradient, terms = gradient_of(params, part)
        sums, weights = total
        if weigh is not None:
            weight = weigh(part)
            gradient = _times(gradient, weight)
            weights += weight
        return (jax.tree.map(jnp.add, sums, gradient), weights), terms

    none = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0))
    (total, weight), terms = jax.lax.scan(add, none, parts)
    terms = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), terms)
    if weigh is None:
        return jax.tree.map(lambda x: x * (microbatch_size / length), total), terms, None
    return _times(total, 1 / jnp.where(weight > 0, weight, 1)), terms, weight


def descend(
    loss: Loss,
    params: Any,
    optimizer_state: Any,
    batch: Any,
    key: Array,
    optimizer: optax.GradientTransformation,
    num_epochs: int,
    num_minibatches: int,
    microbatch_size: int | None = None,
    flatten: bool = True,
    weigh: Callable[[Any], Array] | None = None,
    goes_on: Callable[[Any], Array] | None = None,
    finite_only: bool = False,
    parallel: DataParallel = DataParallel(),
    prepare: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any, GradientSteps]:
    """Passes over a batch in shuffled minibatches, each a step down the gradient of their loss.

    Args:
      loss: see `mean_gradient`.
      params: any pytree.
      optimizer_state: of `init`, with the same optimiser and `flatten`.
      batch: a pytree of arrays [n, ...], the samples; all devices have all of it.
      key: typed key, for shuffling.
      optimizer: optax's.
      num_epochs: passes over the batch.
      num_minibatches: steps a pass; a divisor of n.
      microbatch_size: see `mean_gradient`.
      flatten: hand the optimiser all parameters as one vector. Adam is then a handful of operations
        and not a handful per layer; but parameters that are sharded, masked or of several
        precisions have to stay apart.
      weigh: see `mean_gradient`.
      goes_on: early stopping: terms of a minibatch -> whether its step is to be taken. The first
        that is not, and all after it, change nothing. None: all are taken.
      finite_only: a step whose gradient has a NaN or an infinity changes nothing.
      parallel: each device differentiates its share of every minibatch.
      prepare: a whole minibatch -> what is learnt from it, with the same axes; None: the same.

    Returns:
      Parameters, the optimiser's state, and what the steps were, their terms flattened to
      [epochs, minibatches, values of a minibatch].

    Raises:
      ValueError: n does not divide into minibatches, or those into microbatches.
    """
    length = num_samples(batch)
    if length % num_minibatches:
        raise ValueError(f"{length} samples do not divide into num_minibatches = {num_minibatches}")
    inner, unravel = ravel_pytree(params) if flatten else (params, lambda params: params)

    def inner_loss(inner: Any, minibatch: Any) -> tuple[Array, Any]:
        return loss(unravel(inner), minibatch)

    def gradient_step(carry: tuple, minibatch: Any) -> tuple[tuple, GradientSteps]:
        before, taken = carry
        inner, optimizer_state = before
        gradient, terms, weight = mean_gradient(
            inner_loss, inner, minibatch, microbatch_size, weigh
        )
        if weight is not None:  # shares differ: a mean of them is that of all by their weights
            mean = parallel.mean(weight)
            gradient = _times(gradient, weight / jnp.where(mean > 0, mean, 1))
        gradient = parallel.mean(gradient)
        change, optimizer_state = optimizer.update(gradient, optimizer_state, inner)
        norm = optax.tree.norm(gradient)
        after = (optax.apply_updates(inner, change), optimizer_state)
        if goes_on is not None:
            taken &= goes_on(terms)
        counts = taken if weight is None else taken & (mean > 0)
        if finite_only:
            counts &= jnp.isfinite(norm)
        if goes_on is not None or weight is not None or finite_only:
            after = jax.tree.map(lambda new, old: jnp.where(counts, new, old), after, before)
        return (after, taken), GradientSteps(terms, norm, counts)

    def epoch(carry: tuple, key: Array) -> tuple[tuple, GradientSteps]:
        order = shuffle.permutation(key, length).reshape(num_minibatches, -1)
        if prepare is None:
            order = parallel.share(order, axis=1)
        order = jax.lax.optimization_barrier(order)
        minibatches = jax.tree.map(lambda x: jnp.asarray(x)[order], batch)
        if prepare is not None:
            minibatches = parallel.share(jax.vmap(prepare)(minibatches), axis=1)
        return jax.lax.scan(gradient_step, carry, minibatches)

    ((inner, optimizer_state), _), steps = jax.lax.scan(
        epoch, ((inner, optimizer_state), jnp.bool_(True)), jax.random.split(key, num_epochs)
    )
    # [epochs, minibatches, samples of one], whether a sample was a step or a sequence.
    terms = jax.tree.map(
        lambda x: x.reshape(*x.shape[:2], -1), parallel.gather(steps.terms, axis=2)
    )
    return unravel(inner), optimizer_state, steps._replace(terms=terms)
