"""Fills a decoder's parameters from the tensors of its files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rgpo_jax.language.decoder import Architecture, Params, shapes
from rgpo_jax.language.weights.layout import slots


class Tensor(NamedTuple):
    """One that a file holds: which file, its shape, and how it is read."""

    file: Path
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def fill(
    path: Path,
    architecture: Architecture,
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    dtype: Any,
) -> Params:
    """The parameters; ValueError if a tensor is missing, of another shape, or one too many."""
    wanted = list(slots(architecture, names))
    for slot in wanted:
        tensor = tensors.get(slot.name)
        if tensor is None:
            raise ValueError(f"{path}: {slot.name}: missing")
        if tensor.shape != slot.shape:
            raise ValueError(
                f"{tensor.file}: {slot.name}: expected shape {slot.shape}, found {tensor.shape}"
            )
    for name in sorted(tensors.keys() - {slot.name for slot in wanted}):
        raise ValueError(f"{tensors[name].file}: {name}: not a part of such a model")

    tree = shapes(architecture)
    params: dict[str, Any] = {"layers": {}}
    buffer = np.empty(0)
    for slot in wanted:
        within = params if slot.layer is None else params["layers"]
        shape = (tree if slot.layer is None else tree["layers"])[slot.parameter]
        if not slot.layer:  # the first of its parameter
            buffer = np.empty(shape, dtype)
        content = tensors[slot.name].read()
        (buffer if slot.layer is None else buffer[slot.layer])[...] = (
            content.T if slot.transposed else content
        )
        if slot.layer is None or slot.layer == shape[0] - 1:
            within[slot.parameter] = jnp.asarray(buffer)
    return params
