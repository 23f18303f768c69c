r"""Where methods that learn from pairs settle, worked out apart from any training.

Pairs without end, of two independent answers of the reference q, labelled by Bradley and Terry's
model p(y > y') = sigmoid(R(y) - R(y')). With a log-ratio g = log pi / q for each answer:

    DPO, reward distillation   beta g = R + constant, whoever writes the answers
    IPO                        least squares: g(y) = E_q[p(y > y') - 1/2] / beta + constant
    RPO                        the minimum of a convex function of g, by Newton's method

NumPy in float64; nothing here is shared with the update step.
"""

from typing import Any

import numpy as np
from scipy.special import expit

from rgpo_jax.language.targets import gibbs

_MOST_ANSWERS = 400  # of whose pairs Newton's method is asked
_ITERATIONS = 100
_TOLERANCE = 1e-13


def _normalise(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def preferences(reward: np.ndarray) -> np.ndarray:
    """p(y > y') of all pairs of answers [M, M]."""
    return np.asarray(expit(reward[:, None] - reward[None, :]))


def ipo_policy(reference: np.ndarray, reward: np.ndarray, beta: float) -> np.ndarray:
    """Where IPO settles [M]; arguments of one prompt [M]."""
    advantage = (preferences(reward) - 0.5) @ reference
    return _normalise(np.log(reference) + advantage / beta)


def rpo_policy(
    reference: np.ndarray, reward: np.ndarray, beta: float, eta: float
) -> np.ndarray | None:
    """Where RPO settles [M]; None for too many answers.

    Args:
      reference: q of one prompt [M].
      reward: R [M].
      beta: weight of the KL.
      eta: weight of the likelihood of chosen answers.

    Raises:
      ArithmeticError: Newton's method does not come to rest.
    """
    if len(reference) > _MOST_ANSWERS:
        return None
    p, weight = preferences(reward), np.outer(reference, reference)
    chosen = 2.0 * np.sum(weight * p, axis=1)  # how often an answer is the chosen one; sums to 1
    logits = np.log(reference)
    for _ in range(_ITERATIONS):
        policy = _normalise(logits)
        h = beta * (logits - np.log(reference))
        sigmoid = expit(h[:, None] - h[None, :])
        gradient = 2.0 * beta * np.sum(weight * (sigmoid - p), axis=1)
        gradient -= eta * beta * (chosen - policy)
        if np.max(np.abs(gradient)) < _TOLERANCE * beta:
            return policy
        curvature = 2.0 * beta**2 * weight * sigmoid * (1.0 - sigmoid)
        hessian = np.diag(curvature.sum(axis=1)) - curvature
        hessian += eta * beta * (np.diag(policy) - np.outer(policy, policy))
        # A constant changes nothing: the ones make it regular.
        step = np.linalg.solve(hessian + hessian.max(), gradient)
        logits = logits - step * min(1.0, 5.0 / np.max(np.abs(step)))
        logits -= logits.mean()
    raise ArithmeticError("the stationary policy was not found: Newton's method does not settle")


def settled(
    method: str, config: Any, reference: np.ndarray, reward: np.ndarray
) -> np.ndarray | None:
    """Where a method settles with pairs without end [N, M]; None where that is not known.

    Args:
      method: its name.
      config: its settings.
      reference: q [N, M].
      reward: R [N, M].
    """
    beta = config.kl_coefficient
    reference = np.asarray(reference, np.float64)
    reference = reference / reference.sum(axis=-1, keepdims=True)
    reward = np.asarray(reward, np.float64)
    if method == "kto" or beta == 0 or getattr(config, "labels", None) == "reward":
        return None
    if getattr(config, "missing_end", None) is not None:  # other rewards than these
        return None
    if method == "ipo":
        if config.by_length:  # the same only where answers have one token
            return None
        return np.stack([ipo_policy(q, r, beta) for q, r in zip(reference, reward, strict=True)])
    if method == "rpo":
        each = []
        for q, r in zip(reference, reward, strict=True):
            try:
                each.append(rpo_policy(q, r, beta, config.eta))
            except ArithmeticError:
                return None
        found = [policy for policy in each if policy is not None]
        return np.stack(found) if len(found) == len(each) else None
    return gibbs(reference, reward, beta)
