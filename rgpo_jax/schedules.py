"""The learning rate of an update, by optax's schedules over the share of a run that is done."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array

# Share of the decay that is done -> share of the way down that is left, from 1 to 0.
_LEFT = {
    "linear": optax.linear_schedule(1.0, 0.0, 1),
    "cosine": optax.cosine_decay_schedule(1.0, 1),
}
NUMBERS = ("annealing", "end_learning_rate", "warmup_updates")
"""The traced numbers of a schedule, in the order in which versions brought them."""


def learning_rate(schedule: str, numbers: Any, updates: Array) -> Array:
    """The step size of the update after so many.

    With p the peak, e the end, W the updates of the warm-up and N those of the whole run, it is
    p (t + 1) / (W + 1) for t < W, and e + (p - e) s((t - W) / (N - W)) from then on, where s falls
    from 1 to 0: `optax.linear_schedule` or `optax.cosine_decay_schedule`. All of these are traced,
    so that runs of other lengths and rates are the same program; a constant rate is a linear one
    whose `annealing` = 1 / (N - W) is 0.

    Args:
      schedule: "linear" or "cosine", or "constant".
      numbers: scalars `learning_rate`, and `NUMBERS`, as `learner.Hyperparameters` has them.
      updates: number of updates so far (t), int32 [].
    """
    since = updates - numbers.warmup_updates
    left = _LEFT["linear" if schedule == "constant" else schedule]
    share = left(jnp.clip(since * numbers.annealing, 0.0, 1.0))
    peak, end = numbers.learning_rate, numbers.end_learning_rate
    rising = peak * (updates + 1) / (numbers.warmup_updates + 1)
    return jnp.where(since < 0, rising, end + (peak - end) * share)
