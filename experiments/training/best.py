"""The best policy so far of each member, by its evaluations, kept beside the newest."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PART = "best"  # of a checkpoint
_FIELDS = ("params", "observation_moments")


def policy_of(learner: Any) -> dict[str, Any]:
    """What of a learner acts: parameters, and statistics of observations where it has them."""
    return {name: getattr(learner, name) for name in _FIELDS if hasattr(learner, name)}


def copy(policies: Any) -> Any:
    """In memory of their own, which no program reuses."""
    return jax.tree.map(jnp.copy, policies)


def are_better(scores: list[float], best: list[float], broken: list[list[int]]) -> np.ndarray:
    """Whether each member's score [M] is the best so far, and its parameters are finite.

    Args:
      scores: of the last evaluation; NaN where undefined.
      best: the largest before it; empty: there was none.
      broken: (member, update) of those whose parameters are not finite.
    """
    new = np.asarray(scores, np.float64)
    old = np.asarray(best, np.float64) if best else np.full_like(new, np.nan)
    better = np.isfinite(new) & ~(new <= old)
    better[[member for member, _ in broken]] = False
    return better


def choose(better: np.ndarray, new: Any, old: Any, place: Callable[[np.ndarray], jax.Array]) -> Any:
    """Of each member [M, ...] the new policy where it is better, else the old one; as copies.

    Args:
      better: whether it is [M].
      new: policies.
      old: policies.
      place: lays values [M] on devices as members lie there.
    """
    if better.all():  # one model alone has no axis of members
        return copy(new)
    return _choose(place(better), new, old)


@jax.jit
def _choose(better: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda x, y: jax.vmap(jnp.where)(better, x, y), new, old)
