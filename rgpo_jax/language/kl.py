r"""Estimates of the KL from a policy to its reference, by answers that the policy sampled.

With d = log pi_ref - log pi of a sampled token, all three have the expectation KL(pi || pi_ref)
(k2 but for third order). What a term of the loss does is told by its gradient, though, and that
depends on where the estimate stands (Schulman 2020, "Approximating KL divergence"; the loss of
GRPO, arXiv 2402.03300, has k3 with the gradient of the reverse KL):

    =========  =====================  ====================  =========================
    estimate   in the reward          in the loss           in the loss, times r
    =========  =====================  ====================  =========================
    k1         KL(pi || ref)          0 on average          KL(pi || ref)
    k2         of no divergence       KL(pi || ref)         E_pi[d^2 / 2]
    k3         KL(pi||ref)-KL(ref||pi)  KL(ref || pi)       KL(pi || ref)
    =========  =====================  ====================  =========================

In the reward k1's is the divergence of whole answers; k3's is one of answers of a single token. In
the loss they are of whole answers where an answer's ratio is the product of its tokens' (a sum over
tokens; of GSPO's root of it they are of none); with a ratio a token they are those of each token's
distribution, at the states that were visited: what a token does to later states is not in them.
"""

import jax
import jax.numpy as jnp

from rgpo_jax import diagnostics

Array = jax.Array


def k1(log_ratio_ref: Array) -> Array:
    """log pi - log pi_ref [...]; unbiased, of either sign."""
    return log_ratio_ref


def k2(log_ratio_ref: Array) -> Array:
    """(log pi - log pi_ref)^2 / 2 [...]; never negative."""
    return 0.5 * jnp.square(log_ratio_ref)


def k3(log_ratio_ref: Array) -> Array:
    """e^d - 1 - d with d = log pi_ref - log pi [...]; unbiased and never negative.

    Beyond d = 20 it goes on along its tangent, see `diagnostics.k3`.
    """
    return diagnostics.k3(-log_ratio_ref)


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""Name -> estimator."""
