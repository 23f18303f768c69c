"""The zeroth-order estimate from judges' verdicts: its mean and its noise, in closed form."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.special import expit

from experiments.theory.alignment import softmax
from rgpo_jax.language import zeroth_order as library

PAIRS, MU = 64, 0.5  # of a direction: pairs of answers, and how far they are apart


def expected_logit(gap: np.ndarray, judges: int, trim: float, power: int = 1) -> np.ndarray:
    """E[logit(share of wins, cut off)^power] of a pair, by the binomial sum over its judges.

    Args:
      gap: reward of the first minus that of the second [...].
      judges: M.
      trim: delta.
      power: 1 or 2.
    """
    return expected_function(expit(gap), judges, trim, power)


def expected_function(p: np.ndarray, number: int, trim: float, power: int = 1) -> np.ndarray:
    """The same of so many verdicts that are won with probability p [...]."""
    wins = np.arange(number + 1)
    share = np.clip(wins / number, trim, 1.0 - trim)
    values = np.power(np.log(share / (1.0 - share)), power)
    return np.asarray(stats.binom.pmf(wins, number, np.asarray(p)[..., None]) @ values)


def expected_sign(p: np.ndarray, number: int) -> np.ndarray:
    """E[sign(share - 1/2)] of so many verdicts that are won with probability p [...]."""
    wins = np.arange(number + 1)
    return np.asarray(
        stats.binom.pmf(wins, number, np.asarray(p)[..., None]) @ np.sign(2 * wins - number)
    )


class Signal(NamedTuple):
    """Of the estimate along one direction, for small mu.

    Attributes:
      scale: projection of its mean on the true gradient, over the gradient's length squared.
      cosine: of its mean to the true gradient.
      directions: at which the noise of their mean is as large as the signal: E|g|^2 / |E g|^2.
    """

    scale: float
    cosine: float
    directions: float


def signal_of(
    policy: np.ndarray, reward: np.ndarray, feedback: str, judges: int, trim: float, mu: float
) -> Signal:
    """In closed form: the mean estimate is the gradient of E[F], with F what pairs make of R.

    With independent answers a, b and f(a, b) the expected advantage of a over b, it is pi (F - E F)
    with F(a) = E_b f(a, b), as mu goes to 0; pooled and sign are for one judge a pair.

    Args:
      policy: pi [K].
      reward: R [K].
      feedback: see `ZerothConfig`; exact: values themselves, without answers or judges.
      judges: M.
      trim: delta.
      mu: smoothing.
    """

    def gradient(values: np.ndarray) -> np.ndarray:
        return np.asarray(policy * (values - policy @ values))

    truth, d = gradient(reward), len(policy)
    gap, both = reward[:, None] - reward[None, :], np.outer(policy, policy)
    if feedback == "exact":
        return Signal(1.0, 1.0, float(d))
    if feedback == "each":
        mean = gradient(expected_logit(gap, judges, trim) @ policy)
        second = float(np.sum(both * expected_logit(gap, judges, trim, 2))) / PAIRS
    else:
        if judges != 1:
            raise ValueError("pooled and sign have a closed form for one judge a pair")
        step = 1e-4

        def of(p: float) -> float:
            x = np.array(p)
            if feedback == "sign":
                return float(expected_sign(x, PAIRS))
            return float(expected_function(x, PAIRS, trim))

        slope = (of(0.5 + step) - of(0.5 - step)) / (2 * step)
        mean = slope * gradient(expit(gap) @ policy)
        ties = float(stats.binom.pmf(PAIRS // 2, PAIRS, 0.5))
        second = 1.0 - ties
        if feedback == "pooled":
            second = float(expected_function(np.array(0.5), PAIRS, trim, 2))
    square = float(mean @ mean)
    dot = float(mean @ truth)
    # To the noise of answers and judges comes that of the direction, which is there without them.
    needed = d + (d / mu) ** 2 * second / square
    return Signal(
        dot / float(truth @ truth), dot / math.sqrt(square * float(truth @ truth)), needed
    )


def drawn(
    policy: np.ndarray,
    reward: np.ndarray,
    judges: int,
    trim: float,
    seed: int,
    number: int = 20_000,
) -> tuple[float, float, float]:
    """The suite's own estimate, drawn: its scale less the exact one of the same directions.

    Returns:
      Exact scale at this mu; the mean difference; its standard error.
    """
    mu, d = 1.0, len(policy)
    theta, value = jnp.log(jnp.asarray(policy)), jnp.asarray(reward)
    truth = policy * (reward - policy @ reward)

    def of_direction(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        v_key, first_key, second_key, judge_key = jax.random.split(key, 4)
        v = library.on_sphere(v_key, d)
        first = jax.random.categorical(first_key, theta + mu * v, shape=(PAIRS,))
        second = jax.random.categorical(second_key, theta, shape=(PAIRS,))
        wins = library.share_of_wins(judge_key, value[first] - value[second], judges)
        return v, library.advantage_of(wins, "each", trim)

    keys = jax.random.split(jax.random.key(seed), number)
    v, advantage = (np.asarray(x, np.float64) for x in jax.jit(jax.vmap(of_direction))(keys))
    ahead = softmax(np.log(policy) + mu * v)
    of_arm = expected_logit(reward[:, None] - reward[None, :], judges, trim) @ policy
    along = d / mu * (v @ truth) / float(truth @ truth)
    exact, gap = along * (ahead @ of_arm), along * (advantage - ahead @ of_arm)
    return float(exact.mean()), float(gap.mean()), float(gap.std(ddof=1) / math.sqrt(number))
