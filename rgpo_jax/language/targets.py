r"""Where methods settle: their stationary policies, worked out apart from any training.

In a world whose answers are enumerated, with whole answers y, reference q and rewards R, a method
stands still where its expected gradient is 0. For softmax policies that is where

    f(y) = w(y) A(y) - beta D(y)

is the same for all y, with A the expected advantage of y among its group, w the weight of the gate
at a ratio of 1 to the policy that sampled, and D what the KL's gradient weighs: log pi / q for
KL(pi || q), and 1 - q / pi for KL(q || pi), which is what GRPO's published loss has. NumPy in
float64; nothing here is shared with the update step but the gate.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rgpo_jax.gates import Gate, weight
from rgpo_jax.language.config import SEQUENCE_AGGREGATIONS, Config

_ITERATIONS = 200_000
_TOLERANCE = 1e-13
_MOST_COMPOSITIONS = 20_000


def gibbs(reference: np.ndarray, reward: np.ndarray, beta: float) -> np.ndarray:
    """The maximiser of E[R] - beta KL(pi || q): q exp(R / beta) / Z [..., M]."""
    logits = np.log(reference) + np.asarray(reward, np.float64) / beta
    logits -= logits.max(axis=-1, keepdims=True)
    unnormalised = np.exp(logits)
    return unnormalised / unnormalised.sum(axis=-1, keepdims=True)


def expected_group_advantage(policy: np.ndarray, reward: np.ndarray, group_size: int) -> np.ndarray:
    """P_G(y | pi): the expected (R - mean) / std of an answer y among G - 1 others from pi [M].

    Exact: a sum over how many of the others have which of the rewards there are. The standard
    deviation is the population's; groups without spread give 0.

    Raises:
      ValueError: there are too many such cases.
    """
    levels, which = np.unique(reward, return_inverse=True)
    counts, ways, advantage = _groups(tuple(levels.tolist()), group_size)
    mass = np.bincount(which, weights=policy, minlength=len(levels))
    probability = ways * np.prod(np.power(mass, counts), axis=1)
    return (probability @ advantage)[which]


@functools.lru_cache(maxsize=64)
def _groups(
    levels: tuple[float, ...], group_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rewards the others of a group may have.

    Returns:
      How many of them have each [cases, levels]; in how many ways [cases]; and the advantage that
      an answer of each reward then has [cases, levels].
    """
    others, own = group_size - 1, np.array(levels)
    if math.comb(others + len(levels) - 1, others) > _MOST_COMPOSITIONS:
        raise ValueError(f"groups of {group_size} with {len(levels)} rewards are too many cases")
    counts = np.array(
        [
            np.bincount(bars, minlength=len(levels))
            for bars in itertools.combinations_with_replacement(range(len(levels)), others)
        ]
    ).reshape(-1, len(levels))
    factorials = np.array([math.factorial(i) for i in range(group_size)], np.float64)
    ways = factorials[others] / factorials[counts].prod(axis=1)
    mean = ((counts @ own)[:, None] + own) / group_size
    squares = ((counts @ np.square(own))[:, None] + np.square(own)) / group_size
    variance = np.maximum(squares - np.square(mean), 0.0)
    std = np.sqrt(np.where(variance > 1e-14, variance, np.inf))
    return counts, ways, (own - mean) / std


def settle(
    reference: np.ndarray, field: Callable[[np.ndarray], np.ndarray], rate: float
) -> np.ndarray:
    """Follows log pi += rate (f - E_pi f) from the reference to where f is the same for all [M].

    Raises:
      ArithmeticError: it does not come to rest.
    """
    log_policy = np.log(reference)
    for _ in range(_ITERATIONS):
        policy = np.exp(log_policy)
        force = field(policy)
        force = force - policy @ force
        if np.max(np.abs(policy * force)) < _TOLERANCE:
            return policy
        log_policy = log_policy + rate * force
        log_policy -= np.log(np.sum(np.exp(log_policy)))
    raise ArithmeticError("the stationary policy was not found: the iteration does not settle")


def _expected_advantage(config: Config, policy: np.ndarray, reward: np.ndarray) -> np.ndarray:
    if config.scale == "group":
        advantage = expected_group_advantage(policy, reward, config.group_size)
        # An answer's own reward is not part of its baseline then.
        alone = config.baseline == "leave_one_out"
        return advantage * (config.group_size / (config.group_size - 1) if alone else 1.0)
    advantage = reward - policy @ reward
    if config.baseline == "group":
        return advantage * (1.0 - 1.0 / config.group_size)
    if config.baseline == "batch":
        return advantage * (1.0 - 1.0 / config.batch_size)
    return advantage


def stationary_policy(
    config: Config, gate: Gate, is_dual: bool, reference: np.ndarray, reward: np.ndarray
) -> np.ndarray | None:
    """Where a method settles in an enumerated world; None where that is not known.

    With the KL in the reward, an answer's advantage is the same for all answers at
    q exp(R / beta) / Z, and 0 with a baseline of the prompt, so that every gate and every scale
    stands still there. Without a KL there is no interior
    policy to settle at. With the KL in the loss it is worked out for methods with one ratio an
    answer (or one token an answer).

    Args:
      config: of the method.
      gate: of the method.
      is_dual: whether it is one of two ratios.
      reference: q [N, M].
      reward: R [N, M].

    Returns:
      [N, M], or None.
    """
    beta = config.kl_coefficient
    if beta == 0 or config.entropy_coefficient or config.kl_target is not None:
        return None
    if config.missing_end is not None or config.overlong_buffer:  # other rewards than these
        return None
    reference, reward = np.asarray(reference, np.float64), np.asarray(reward, np.float64)
    reference = reference / reference.sum(axis=-1, keepdims=True)
    if config.kl == "reward":
        # Else advantages there are the same for all answers, but not 0, and the gate weighs them.
        rests = not is_dual or config.baseline not in ("none", "batch")
        return gibbs(reference, reward, beta) if config.kl_estimator == "k1" and rests else None
    if config.drop_equal_groups or (config.scale == "batch" and config.baseline != "none"):
        return None
    reversed_kl = (config.kl, config.kl_estimator) == ("published", "k3")
    forward_kl = (config.kl, config.kl_estimator) in (
        ("published", "k2"),
        ("direct", "k1"),
        ("direct", "k3"),
    )
    if not (reversed_kl or forward_kl) or config.baseline == "none":
        return None
    # A batch's mean is no answer's baseline: it leaves a part that two ratios, or a group's scale,
    # weigh by the answer.
    if config.baseline == "batch" and (is_dual or config.scale == "group"):
        return None

    @jax.jit
    def weigh(*arguments: jax.Array) -> jax.Array:
        return weight(gate)(*arguments)

    def of_prompt(q: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        def field(policy: np.ndarray) -> np.ndarray:
            advantage = _expected_advantage(config, policy, rewards)
            log_ratio_ref = np.log(policy / q)
            others: tuple[Any, ...] = (log_ratio_ref,) if is_dual else ()
            w = np.asarray(weigh(np.zeros_like(policy), advantage, *others), np.float64)
            divergence = 1.0 - q / policy if reversed_kl else log_ratio_ref
            return w * advantage - beta * divergence

        return settle(q, field, rate=min(0.2, 0.2 / beta))

    try:
        with jax.enable_x64(True):
            settled = [of_prompt(q, r) for q, r in zip(reference, reward, strict=True)]
    except (ValueError, ArithmeticError):
        return None
    return np.stack(settled)


def has_sequence_targets(config: Config, longest: int) -> bool:
    """Whether `stationary_policy` speaks of this method where answers have so many tokens."""
    if longest == 1:
        return True
    if config.kl == "reward":  # a mean over tokens weighs a constant by the answer's length
        is_by_prompt = config.baseline not in ("none", "batch")
        return is_by_prompt or config.aggregation in ("token_sum", "sequence")
    return config.aggregation in SEQUENCE_AGGREGATIONS[:1]
