"""Pairs of answers to the same prompts, of which one was preferred."""

from typing import Any, NamedTuple

import jax

from rgpo_jax.language.answers import Answers

Array = jax.Array


class Read(NamedTuple):
    """What is known of n answers before an update learns from them.

    Attributes:
      prompts: encoded with the answers (`Policy.encode`), arrays [n, ...].
      log_prob_ref: of whole answers under the reference [n].
    """

    prompts: Any
    log_prob_ref: Array


class Pairs(NamedTuple):
    """n pairs of answers, T tokens at most each.

    Attributes:
      prompts: arrays [n, ...], as the policy takes them.
      chosen: [n, T].
      rejected: [n, T].
      label: probability that the first is the preferred one, float32 [n]: 1 where that is known.
      gap: reward of the first minus that of the second, float32 [n]; 0 where there are none.
      counts: bool [n], whether the pair is learnt from; not where its answers are tied.
      read: what was read of the chosen answers and of the rejected ones; None: nothing yet.
    """

    prompts: Any
    chosen: Answers
    rejected: Answers
    label: Array
    gap: Array
    counts: Array
    read: tuple[Read, Read] | None = None
