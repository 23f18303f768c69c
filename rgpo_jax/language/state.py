"""What an update of answers changes, and the numbers by which it does."""

import dataclasses
from typing import Any, NamedTuple

import jax

from rgpo_jax.hyperparameters import TracedNumbers
from rgpo_jax.tunable import Tunable

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyperparameters(TracedNumbers):
    """The traced numbers of an update, as `Config` explains them; scalars, or batched by vmap.

    Those of a critic are None where there is none.
    """

    learning_rate: Any
    max_grad_norm: Any
    target_kl: Any
    entropy_coefficient: Any
    temperature: Any
    kl_coefficient: Any
    kl_target: Any
    kl_horizon: Any
    old_kl_coefficient: Any
    length_constant: Any
    missing_end: Any
    annealing: Any
    gate: Tunable
    value_coefficient: Any = None
    value_clip: Any = None
    gae_lambda: Any = None
    end_learning_rate: Any = 0.0  # it and what follows are missing from checkpoints of earlier ones
    warmup_updates: Any = 0.0


class LearnerState(NamedTuple):
    """What an update changes, and what it needs to go on.

    Attributes:
      params: {"actor": ..., "critic": ...}; what is trained.
      optimizer_state: of the optimiser.
      key: typed key, for shuffling.
      updates: number of updates so far, int32 [].
      kl_coefficient: beta now; it moves where it adapts.
      hyperparameters: traced numbers, `Hyperparameters` or those of another kind; replaced freely
        between updates, but for `kl_coefficient`, which is where this state's own begins.
    """

    params: Any
    optimizer_state: Any
    key: Array
    updates: Array
    kl_coefficient: Array
    hyperparameters: Any
