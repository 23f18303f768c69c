"""What a checkpoint holds of a training beside its position, and how that is put back."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training import best
from experiments.training.best import Best
from experiments.training.programs import Programs
from rgpo_jax import schedules
from rgpo_jax.train import Progress

Content = dict[str, Any]  # part of a checkpoint -> pytree of arrays


def take(programs: Programs, states: Any, progress: Progress, kept: Best | None) -> Content:
    """Where training is; the states' own memory, which the next update reuses."""
    # The learner apart: who wants the policy alone reads nothing else.
    rest = {name: value for name, value in states._asdict().items() if name != "learner"}
    content = {"learner": states.learner, "rest": rest, "progress": programs.to_keep(progress)}
    return content if kept is None else {**content, best.PART: kept.policies}


def copied(content: Content) -> Content:
    """The same in memory that no program reuses: the host's."""

    def copy(leaf: Any) -> Any:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jnp.copy(leaf) if is_key else np.array(leaf)

    return jax.tree.map(copy, content)


def put_back(
    content: Content, programs: Programs, states: Any, kept: Best | None
) -> tuple[Any, Progress]:
    """Where training was when it was taken: states, and a report in the making.

    Args:
      content: of a checkpoint.
      programs: those of the run.
      states: where the run would start; their schedule stays, as the run may be longer now.
      kept: gets the policies that were the best then.
    """
    learner = _with_schedule_of(states.learner, content["learner"])
    if kept is not None:
        kept.policies = content[best.PART]
    states = states._replace(learner=learner, **content["rest"])
    return states, programs.from_kept(content["progress"])


def _with_schedule_of(own: Any, learner: Any) -> Any:
    numbers = getattr(own, "hyperparameters", None)
    if numbers is None:  # not all that is trained has a learning rate
        return learner
    schedule = {name: getattr(numbers, name) for name in schedules.NUMBERS}
    return learner._replace(
        hyperparameters=dataclasses.replace(learner.hyperparameters, **schedule)
    )
