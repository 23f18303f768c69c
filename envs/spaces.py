"""Gymnasium's spaces as those of `rgpo_jax.environment`."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from gymnasium import spaces

from envs.words import one_line
from rgpo_jax.environment import (
    ActionSpace,
    Box,
    Discrete,
    MultiDiscrete,
    Observation,
    ObservationShape,
)

_MOST_VALUES = 2**16  # of a whole number that is chosen, and not an amount
_VECTOR = "vector"  # the part of an observation in which all that is no image is joined


def action_space(name: str, space: Any) -> ActionSpace:
    """The actions of a space; whole numbers in a Box, as EnvPool has them, are a MultiDiscrete.

    Raises:
      ValueError: they are neither whole numbers of few values nor arrays of reals; it names the
        space.
    """
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n), int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = (tuple(map(int, numbers.flat)) for numbers in (space.nvec, space.start))
        return MultiDiscrete(nvec, start, tuple(space.shape))
    if isinstance(space, spaces.MultiBinary):
        shape = tuple(space.shape)
        return MultiDiscrete((2,) * int(np.prod(shape)), shape=shape)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (tuple(map(float, bound.flat)) for bound in (space.low, space.high))
        return Box(tuple(space.shape), low, high)
    if isinstance(space, spaces.Box) and space.shape and np.issubdtype(space.dtype, np.integer):
        nvec = space.high.astype(float) - space.low.astype(float) + 1
        if nvec.max() <= _MOST_VALUES:
            start = tuple(map(int, space.low.flat))
            return MultiDiscrete(tuple(map(int, nvec.flat)), start, tuple(space.shape))
    raise ValueError(f"{name}: actions of kind {one_line(space)} are not supported")


class Reading(NamedTuple):
    """How observations of a space are read.

    Attributes:
      shape: of one observation, as `Environment.observation_shape` says.
      dtype: as `HostEnvironment.observation_dtype` says.
      read: a batch of the space's own observations, whose arrays are [n, ...] -> ours [n, *shape].
    """

    shape: ObservationShape
    dtype: Any
    read: Callable[[Any], Observation]


class _Part(NamedTuple):
    """A `Reading` that is one array."""

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[Any], np.ndarray]


def observation(name: str, space: Any) -> Reading:
    """How observations of a space become arrays that networks take.

    - Box, MultiBinary: an array, float32 but for an image's pixels of uint8. Three axes are an
      image, and so are two or four of uint8 from 0 to 255 (see `_image`).
    - Discrete, MultiDiscrete: one-hot vectors, one after another.
    - Dict, Tuple: all that is no image is flattened into one vector, in the order of the space. If
      there is an image beside it, or another image, an observation is a dict: "vector", and each
      image by the keys that lead to it, as in "arm/camera"; those of a Tuple are 0, 1, ... A text,
      such as MiniGrid's mission, is left out, with a warning.

    Raises:
      ValueError: there is something else, such as a graph or a sequence, which it names.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return Reading(*_array(space, f"{name}: observations"))
    parts: dict[str, _Part] = {}
    vectors: list[_Part] = []
    for path, leaf in _leaves(space):
        key = "/".join(map(str, path))
        if _is_words(leaf):
            what = type(leaf).__name__
            warnings.warn(f"{name}: the policy does not see {key!r}, a {what}", stacklevel=2)
            continue
        array = _array(leaf, f"{name}: observations with a part {key!r}")
        part = array._replace(read=_behind(path, array.read))
        if not _is_image(leaf):
            vectors.append(part)
        elif key in parts or key == _VECTOR:
            raise ValueError(f"{name}: observations with two parts {key!r} are not supported")
        else:
            parts[key] = part
    if vectors:
        parts[_VECTOR] = _joined(vectors)
    if not parts:
        raise ValueError(f"{name}: observations of kind {one_line(space)} are not supported")
    if len(parts) == 1:
        return Reading(*next(iter(parts.values())))
    return Reading(
        {key: part.shape for key, part in parts.items()},
        {key: part.dtype for key, part in parts.items()},
        lambda batch: {key: part.read(batch) for key, part in parts.items()},
    )


def replaced(observations: Observation, rows: np.ndarray, others: Observation) -> Observation:
    """A batch of observations in new arrays, with others in some of its rows."""

    def replace(array: np.ndarray, other: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[rows] = other
        return array

    return jax.tree.map(replace, observations, others)


def _leaves(space: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The spaces inside of Dicts and Tuples, each behind the keys that lead to it."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        yield path, space
        return
    within = space.spaces
    for key, part in within.items() if isinstance(within, dict) else enumerate(within):
        yield from _leaves(part, (*path, key))


def _behind(path: tuple[Any, ...], read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Reads what these keys lead to."""

    def read_part(batch: Any) -> Any:
        for key in path:
            batch = batch[key]
        return read(batch)

    return read_part


def _joined(vectors: Sequence[_Part]) -> _Part:
    """One vector of several arrays."""
    size = sum(int(np.prod(part.shape)) for part in vectors)

    def read(batch: Any) -> np.ndarray:
        arrays = [part.read(batch) for part in vectors]
        return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)

    return _Part((size,), np.float32, read)


def _array(space: Any, what: str) -> _Part:
    """A space that is neither a Dict nor a Tuple, as one array."""
    if isinstance(space, spaces.Discrete):
        return _one_hot([int(space.n)], [int(space.start)])
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot(space.nvec.ravel(), space.start.ravel())
    if not isinstance(space, spaces.Box | spaces.MultiBinary):
        raise ValueError(f"{what} of kind {one_line(space)} are not supported")
    if _is_image(space):
        return _image(tuple(space.shape), np.uint8 if space.dtype == np.uint8 else np.float32)
    return _Part(tuple(space.shape), np.float32, lambda batch: batch.astype(np.float32, copy=False))


def _one_hot(nvec: Any, start: Any) -> _Part:
    """A vector with a 1 for the value of each whole number, start_i to start_i + nvec_i - 1."""
    values = np.concatenate(
        [np.arange(first, first + n) for first, n in zip(start, nvec, strict=True)]
    )

    def read(batch: Any) -> np.ndarray:
        numbers = batch.reshape(len(batch), -1)
        return (np.repeat(numbers, nvec, axis=1) == values).astype(np.float32)

    return _Part((len(values),), np.float32, read)


def _is_words(space: Any) -> bool:
    """Whether its values are no numbers: a text, or of a class that Gymnasium does not know."""
    if type(space).__module__.partition(".")[0] == "gymnasium":
        return isinstance(space, spaces.Text)
    structures = spaces.Graph | spaces.Sequence | spaces.OneOf
    return space.shape is None and not isinstance(space, structures)


def _is_image(space: Any) -> bool:
    if isinstance(space, spaces.Box) and len(space.shape) in (2, 4):  # a matrix, if not of pixels
        is_bytes = space.dtype == np.uint8
        return is_bytes and bool(np.all(space.low == 0) and np.all(space.high == 255))
    return isinstance(space, spaces.Box | spaces.MultiBinary) and len(space.shape) == 3


def _image(shape: tuple[int, ...], dtype: Any) -> _Part:
    """An image [height, width, channels] of what may be in another order.

    Three axes are [C, H, W] where the first is shorter than the last, as in a stack of gray
    pictures [4, 84, 84], unless the first two are equal, as in a board of many planes [9, 9, 17];
    else they are [H, W, C]. Two axes [H, W] get one channel. Four are a stack of such images, which
    lie in the channels one after another.
    """
    if len(shape) == 2:
        return _Part((*shape, 1), dtype, lambda batch: batch[..., None].astype(dtype, copy=False))
    *stack, first, middle, last = shape
    channels_first = first < last and first != middle
    height, width, channels = (middle, last, first) if channels_first else (first, middle, last)
    stacked = (height, width, int(np.prod(stack)) * channels)

    def read(batch: Any) -> np.ndarray:
        if channels_first:
            batch = np.moveaxis(batch, -3, -1)
        if stack:
            batch = np.moveaxis(batch, 1, -2)
        return batch.reshape(len(batch), *stacked).astype(dtype, copy=False)

    return _Part(stacked, dtype, read)
