"""A user's callback between updates: what it is told, and what is said where it fails."""

import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from rgpo_jax.callback import Callback, Moment, asks_to_stop


class CallbackFailed(Exception):
    """A user's callback raised something, or gave what is no answer; the message says where."""


class Stopped(Exception):
    """A user's callback has asked to end here."""


def call(
    callback: Callback,
    updates: int,
    steps: int,
    metrics: dict[str, list[float]],
    learner: Any,
    act: Callable[..., Any] | None,
) -> bool:
    """Tells a callback where training stands; returns whether it asks to end.

    Raises:
      CallbackFailed: it raised anything but what ends a program.
    """
    arrays = {name: np.array(values) for name, values in metrics.items()}
    try:
        return asks_to_stop(callback, Moment(updates, steps, arrays, learner, act))
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        named = callback if hasattr(callback, "__name__") else type(callback)
        name = f"{named.__module__}:{named.__name__}"
        last = traceback.format_exception_only(error)[-1].strip()
        raise CallbackFailed(
            f"--callback {name}: {last} ({frame.filename}, line {frame.lineno})"
        ) from error
