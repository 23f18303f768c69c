"""Gymnasium's spaces as those of `rgpo_jax.environment`."""

from typing import Any

import numpy as np
from gymnasium import spaces

from rgpo_jax.environment import Box, Discrete


def action_space(name: str, space: Any) -> Discrete | Box:
    """Raises ValueError unless actions are 0, ..., n - 1 or arrays of reals."""
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (tuple(map(float, bound.flat)) for bound in (space.low, space.high))
        return Box(tuple(space.shape), low, high)
    raise ValueError(f"{name}: actions of kind {space} are not supported")


def observation(name: str, space: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and type of an observation: pixels stay uint8, all other arrays become float32.

    Raises ValueError unless observations are arrays.
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(f"{name}: observations of kind {space} are not supported")
    is_image = space.dtype == np.uint8 and len(space.shape) == 3
    return tuple(space.shape), np.uint8 if is_image else np.float32
