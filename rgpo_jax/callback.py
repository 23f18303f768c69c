"""What a callback between updates is told, and what it may answer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rgpo_jax.agent import Agent


class Moment(NamedTuple):
    """Where training stands, for S seeds that are trained side by side.

    Attributes:
      updates: number of updates so far.
      steps: environment steps of each seed so far, or whatever is counted.
      metrics: name -> one value per seed [S], over the updates since the moment before; NaN where
        undefined.
      learner: what has been learnt: a pytree of arrays [S, ...], such as a `LearnerState`. The next
        update reuses its memory: copy what you keep, `jax.tree.map(np.asarray, moment.learner)`.
      act: (observation [S, ..., *observation_shape], key=None, memory=None) -> actions [S, ...] in
        the environment's units, as `Agent.act` does; each seed's policy answers its own. None of
        what does not act in environments: language models.
    """

    updates: int
    steps: int
    metrics: Mapping[str, np.ndarray]
    learner: Any
    act: Callable[..., Any] | None


Callback = Callable[[Moment], bool | None]
"""Called between updates; True ends training there, False and None let it go on."""


def asks_to_stop(callback: Callback, moment: Moment) -> bool:
    """Calls back, and returns whether training is to end here.

    Raises:
      TypeError: the answer is neither a truth value nor None.
    """
    answer = callback(moment)
    if answer is None:
        return False
    if np.ndim(answer) or np.asarray(answer).dtype != bool:
        raise TypeError(f"a callback returned {type(answer).__name__}, not True, False or None")
    return bool(answer)


def make_act(agent: Agent) -> Callable[..., Any]:
    """(learners [S, ...], observation [S, ...], key=None, memory=None) -> actions: see `Moment`."""

    act_together = jax.jit(jax.vmap(agent.act))

    def act(learners: Any, observation: Any, key: Any = None, memory: Any = None) -> Any:
        keys = None if key is None else jax.random.split(key, len(learners.updates))
        return act_together(learners, observation, keys, memory)

    return act
