"""The best policy so far of each member, by its evaluations, kept beside the newest."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training.position import Position
from experiments.training.programs import Programs

PART = "best"  # of a checkpoint
_FIELDS = ("params", "observation_moments")


def policy_of(learner: Any) -> dict[str, Any]:
    """What of a learner acts: parameters, and statistics of observations where it has them."""
    return {name: getattr(learner, name) for name in _FIELDS if hasattr(learner, name)}


class Best:
    """The best policy so far of each member, in memory of its own, which no program reuses.

    Attributes:
      policies: of the members; of the newest learners until there was an evaluation.
    """

    def __init__(self, learners: Any, programs: Programs):
        self.policies: Any = _copy(policy_of(learners))
        self._programs = programs

    def keep(self, position: Position, scores: list[float], learners: Any) -> None:
        """Keeps the policies of those members whose last evaluation is their best so far.

        Args:
          position: where training stands; it remembers the best scores, and where they were.
          scores: of that evaluation, per member.
          learners: that were evaluated.
        """
        better = are_better(scores, position.best_scores, position.broken)
        if not better.any():
            return
        newest = policy_of(learners)
        if better.all():  # one model alone has no axis of members
            self.policies = _copy(newest)
        else:
            self.policies = _choose(self._programs.place(better), newest, self.policies)
        best_scores = position.best_scores or [math.nan] * len(scores)
        best_at = position.best_at or [0] * len(scores)
        position.best_scores = np.where(better, scores, best_scores).tolist()
        position.best_at = np.where(better, position.updates, best_at).tolist()


def are_better(scores: list[float], best: list[float], broken: list[list[int]]) -> np.ndarray:
    """Whether each member's score [M] is the best so far, and its parameters are finite.

    Of equal ones, such as the largest return there is, the newest is the best: it was trained most.

    Args:
      scores: of the last evaluation; NaN where undefined.
      best: the largest before it; empty: there was none.
      broken: (member, update) of those whose parameters are not finite.
    """
    new = np.asarray(scores, np.float64)
    old = np.asarray(best, np.float64) if best else np.full_like(new, np.nan)
    better = np.isfinite(new) & ~(new < old)
    better[[member for member, _ in broken]] = False
    return better


def _copy(policies: Any) -> Any:
    return jax.tree.map(jnp.copy, policies)


@jax.jit
def _choose(better: jax.Array, new: Any, old: Any) -> Any:
    """Of each member [M, ...] the new policy where it is better [M], else the old one."""
    return jax.tree.map(lambda x, y: jax.vmap(jnp.where)(better, x, y), new, old)
