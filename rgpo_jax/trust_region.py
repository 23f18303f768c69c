"""TRPO's step: a natural gradient by conjugate gradient, and a line search that may say no."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from rgpo_jax.ranges import AT_LEAST_ONE, FRACTION, NON_NEGATIVE, POSITIVE
from rgpo_jax.tunable import Tunable, require

Array = jax.Array


class StepReport(NamedTuple):
    """What a trust-region step did, scalars.

    Attributes:
      accepted: 1.0 if the line search found an acceptable step, else 0.0 (parameters unchanged).
      kl: KL(old || new) of the step that was taken, in nats.
      improvement: of what it maximised, the surrogate with its entropy bonus.
      step_scale: fraction of the full natural-gradient step.
      grad_norm: norm of the gradient of that.
    """

    accepted: Array
    kl: Array
    improvement: Array
    step_scale: Array
    grad_norm: Array


def conjugate_gradient(
    product: Callable[[Array], Array], b: Array, iterations: int, tolerance: float = 1e-10
) -> Array:
    """Solves A x = b for a symmetric positive definite A, given v -> A v; starts from 0.

    Runs a fixed number of iterations, so that it compiles under jit, vmap and scan; an
    iteration after convergence (squared residual below tolerance |b|^2) changes nothing.
    """
    threshold = tolerance * jnp.vdot(b, b)

    def iterate(_: Array, carry: tuple) -> tuple:
        x, residual, direction, squared = carry
        going_on = squared > threshold
        image = product(direction)
        curvature = jnp.vdot(direction, image)
        # Non-positive curvature can only be rounding here: stop rather than divide by it.
        going_on &= curvature > 0
        alpha = jnp.where(going_on, squared / jnp.where(going_on, curvature, 1.0), 0.0)
        x = x + alpha * direction
        residual = residual - alpha * image
        new_squared = jnp.vdot(residual, residual)
        beta = new_squared / jnp.where(squared > 0, squared, 1.0)
        direction = jnp.where(going_on, residual + beta * direction, direction)
        return x, residual, direction, jnp.where(going_on, new_squared, squared)

    carry = (jnp.zeros_like(b), b, b, jnp.vdot(b, b))
    return jax.lax.fori_loop(0, iterations, iterate, carry)[0]


def _step(
    params: Any,
    surrogate: Callable[[Any], Array],
    kl: Callable[[Any], Array],
    mean: Callable[[Any], Any] = lambda tree: tree,
    *,
    max_kl: Any,
    damping: Any,
    backtrack_factor: Any,
    cg_iterations: int,
    line_search_steps: int,
) -> tuple[Any, StepReport]:
    theta, unravel = ravel_pytree(params)

    def flat_surrogate(theta: Array) -> Array:
        return surrogate(unravel(theta))

    def flat_kl(theta: Array) -> Array:
        return kl(unravel(theta))

    # Means are taken of derivatives, and not derivatives of means: of its share each device has
    # a derivative of its own.
    before, gradient = mean(jax.value_and_grad(flat_surrogate)(theta))
    # The KL's Hessian at theta_old is the Fisher matrix; forward over reverse gives its products.
    kl_gradient = jax.grad(flat_kl)

    def fisher_product(v: Array) -> Array:
        return mean(jax.jvp(kl_gradient, (theta,), (v,))[1]) + damping * v

    direction = conjugate_gradient(fisher_product, gradient, cg_iterations)
    curvature = jnp.vdot(direction, fisher_product(direction))
    length = jnp.sqrt(2.0 * max_kl / jnp.where(curvature > 0, curvature, 1.0))
    full_step = jnp.where(curvature > 0, length, 0.0) * direction

    def trial(scale: Array) -> tuple[Array, Array, Array]:
        candidate = theta + scale * full_step
        gained, divergence = mean((flat_surrogate(candidate), flat_kl(candidate)))
        improvement = gained - before
        # Comparisons with NaN are false: a step into NaN is refused.
        return (improvement > 0) & (divergence <= max_kl), divergence, improvement

    def search(carry: tuple) -> tuple:
        attempt, scale, *_ = carry
        accepted, divergence, improvement = trial(scale)
        next_scale = jnp.where(accepted, scale, scale * backtrack_factor)
        return attempt + 1, next_scale, accepted, divergence, improvement

    def unfinished(carry: tuple) -> Array:
        attempt, _, accepted, *_ = carry
        return (attempt < line_search_steps) & ~accepted

    zero = jnp.zeros_like(before)
    start = (jnp.int32(0), jnp.ones_like(before), jnp.bool_(False), zero, zero)
    _, scale, accepted, divergence, improvement = jax.lax.while_loop(unfinished, search, start)
    scale = jnp.where(accepted, scale, 0.0)
    # `where` and not `scale * full_step` alone: a refused step may hold NaN.
    theta = jnp.where(accepted, theta + scale * full_step, theta)
    report = StepReport(
        accepted=accepted.astype(jnp.float32),
        kl=jnp.where(accepted, divergence, 0.0),
        improvement=jnp.where(accepted, improvement, 0.0),
        step_scale=scale,
        grad_norm=jnp.linalg.norm(gradient),
    )
    return unravel(theta), report


def natural_gradient(
    max_kl: Any = 0.01,
    damping: Any = 0.1,
    backtrack_factor: Any = 0.8,
    cg_iterations: int = 10,
    line_search_steps: int = 15,
) -> Tunable:
    r"""The trust-region step that TRPO puts in the optimiser's place.

    .. math:: x = (F + \lambda I)^{-1} g, \qquad
              \theta \leftarrow \theta + \beta^j \sqrt{2 \delta / x^\top (F + \lambda I) x} \; x

    with the least j at which the surrogate, with its entropy bonus, improved *and* KL(old || new)
    <= delta; if there is none, the parameters stay. Works under jit, vmap and scan.

    Args:
      max_kl: delta > 0, in nats.
      damping: lambda >= 0, added to the Fisher matrix.
      backtrack_factor: beta in (0, 1).
      cg_iterations: of conjugate gradient.
      line_search_steps: step sizes tried at most.

    Returns:
      Function (params, surrogate, kl, mean) -> (params, StepReport), where surrogate and kl map
      params to scalars, and kl is measured from the policy that drew the samples. Where each of
      several devices has them of its share of the samples, mean is over the devices
      (`DataParallel.mean`); else it is the identity.

    Source: arXiv 1502.05477.
    """
    require("max_kl", max_kl, POSITIVE)
    require("damping", damping, NON_NEGATIVE)
    require("backtrack_factor", backtrack_factor, FRACTION)
    require("cg_iterations", cg_iterations, AT_LEAST_ONE)
    require("line_search_steps", line_search_steps, AT_LEAST_ONE)
    return Tunable(
        _step,
        {"max_kl": max_kl, "damping": damping, "backtrack_factor": backtrack_factor},
        (("cg_iterations", cg_iterations), ("line_search_steps", line_search_steps)),
    )
