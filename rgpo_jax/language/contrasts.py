r"""Losses of pairs of answers: functions of what policy and reference say of both.

With h = log rho(chosen) - log rho(rejected), rho = pi / pi_ref of whole answers, p the probability
that the first is the preferred one (1 where that is known) and beta the KL's weight:

    ===================  ========================================================================
    dpo                  -p log sigmoid(beta h) - (1 - p) log sigmoid(-beta h)
    ipo                  p (h - 1 / (2 beta))^2 + (1 - p) (h + 1 / (2 beta))^2
    kto                  u sigmoid(beta (z - log rho_w)) + v sigmoid(beta (log rho_l - z))
    rpo                  dpo - eta beta log pi(chosen)
    reward_distillation  (beta h - (R_w - R_l))^2
    rebel                (log(pi / pi_t)_w - log(pi / pi_t)_l - eta (R_w - R_l))^2, or that / eta^2
    ===================  ========================================================================

Sources: DPO arXiv 2305.18290, IPO 2310.12036, KTO 2402.01306, RPO 2405.16436, reward distillation
2601.08421, REBEL 2404.16767.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Contrast(NamedTuple):
    """What is known of n pairs; sums over the tokens of whole answers, chosen and rejected [n, 2].

    Attributes:
      log_prob: log pi.
      log_ratio_ref: log pi / pi_ref.
      log_ratio_old: log pi / pi_t, with pi_t the policy before the update.
      length: number of tokens.
      label: p [n].
      gap: R_w - R_l [n].
      kl: an estimate of KL(pi || pi_ref) that has no gradient, []; 0 where none was asked for.
    """

    log_prob: Array
    log_ratio_ref: Array
    log_ratio_old: Array
    length: Array
    label: Array
    gap: Array
    kl: Any = 0.0

    @property
    def margin(self) -> Array:
        """h [n]."""
        return self.log_ratio_ref[:, 0] - self.log_ratio_ref[:, 1]


Loss = Callable[..., Array]
"""(contrast, beta, **numbers) -> the loss of each pair [n]."""


def dpo(contrast: Contrast, beta: Any) -> Array:
    """Direct preference optimisation: the Bradley-Terry likelihood of beta log rho as reward."""
    h, p = beta * contrast.margin, contrast.label
    return -p * jax.nn.log_sigmoid(h) - (1.0 - p) * jax.nn.log_sigmoid(-h)


def ipo(contrast: Contrast, beta: Any, by_length: bool = False) -> Array:
    """Identity preference optimisation: a square that is least at a finite margin.

    Args:
      contrast: of n pairs.
      beta: weight of the KL; the paper's tau.
      by_length: divide each answer's log-ratio by its number of tokens, as widely used code does;
        the paper does not.
    """
    log_ratio = contrast.log_ratio_ref
    if by_length:
        log_ratio = log_ratio / jnp.maximum(contrast.length, 1)
    h, p, target = log_ratio[:, 0] - log_ratio[:, 1], contrast.label, 1.0 / (2.0 * beta)
    return p * jnp.square(h - target) + (1.0 - p) * jnp.square(h + target)


def kto(contrast: Contrast, beta: Any, desirable_weight: Any, undesirable_weight: Any) -> Array:
    """Kahneman-Tversky optimisation: each answer by itself, against the KL as point of reference.

    The loss of a pair is the sum over its two answers; code that takes the mean over answers has
    half of it.
    """
    z = jax.lax.stop_gradient(jnp.maximum(contrast.kl, 0.0))

    def desirable(log_ratio: Array) -> Array:
        return desirable_weight * jax.nn.sigmoid(-beta * (log_ratio - z))

    def undesirable(log_ratio: Array) -> Array:
        return undesirable_weight * jax.nn.sigmoid(-beta * (z - log_ratio))

    (first, second), p = contrast.log_ratio_ref.T, contrast.label
    as_labelled = desirable(first) + undesirable(second)
    other_way = desirable(second) + undesirable(first)
    return p * as_labelled + (1.0 - p) * other_way


def rpo(contrast: Contrast, beta: Any, eta: Any) -> Array:
    """Regularised preference optimisation: DPO and the likelihood of the chosen answer.

    The second term is the sum over an answer's tokens: an adversary's reward model, which the
    regulariser eta keeps near the data, comes down to it.
    """
    (first, second), p = contrast.log_prob.T, contrast.label
    return dpo(contrast, beta) - eta * beta * (p * first + (1.0 - p) * second)


def reward_distillation(contrast: Contrast, beta: Any) -> Array:
    """Squared error of beta h to the difference of rewards."""
    return jnp.square(beta * contrast.margin - contrast.gap)


def rebel(contrast: Contrast, beta: Any, eta: Any, by_eta: bool = False) -> Array:
    """Regression to relative rewards: one exact fit is a step of mirror descent.

    Args:
      contrast: of n pairs, with the KL in the rewards.
      beta: weight of that KL; nothing else has it.
      eta: step size of mirror descent.
      by_eta: divide by eta^2, as the paper writes it; its code does not. The minimiser is the same,
        and a learning rate is not.
    """
    del beta
    change = contrast.log_ratio_old[:, 0] - contrast.log_ratio_old[:, 1]
    error = jnp.square(change - eta * contrast.gap)
    return error / jnp.square(eta) if by_eta else error
