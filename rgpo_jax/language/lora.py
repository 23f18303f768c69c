"""Low-rank adapters: the matrices of a decoder plus products of two thin ones.

The decoder knows nothing of them. Its parameters are merged with them, inside the loss that is
differentiated by them, and before sampling.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Params = Any
"""Parameters: a pytree of arrays."""

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
"""The matrices of a decoder's layer that can have an adapter."""


def init(key: Array, params: Params, rank: int, targets: Sequence[str] = MATRICES) -> Params:
    """Adapters that change nothing yet: a ~ N(0, 1/inputs), b = 0, float32.

    Args:
      key: typed key.
      params: of the decoder.
      rank: r, of each product.
      targets: the matrices that are adapted, of `MATRICES`.

    Returns:
      {name: {"a": [L, inputs, r], "b": [L, r, outputs]}}.

    Raises:
      ValueError: the rank is not positive, or a target is no matrix of a layer.
    """
    if rank < 1:
        raise ValueError(f"the rank of adapters is 1 or more; got {rank}")
    unknown = [name for name in targets if name not in MATRICES]
    if unknown:
        raise ValueError(f"no matrix {', '.join(unknown)}; there are {', '.join(MATRICES)}")
    adapters = {}
    for name, its_key in zip(targets, jax.random.split(key, len(targets)), strict=True):
        layers, inputs, outputs = params["layers"][name].shape
        a = jax.random.normal(its_key, (layers, inputs, rank)) / inputs**0.5
        adapters[name] = {"a": a, "b": jnp.zeros((layers, rank, outputs))}
    return adapters


def merge(params: Params, lora: Params, alpha: float) -> Params:
    """The decoder's parameters with W + (alpha / r) a b for each matrix W that has an adapter.

    The sum is taken in float32 and rounded to the precision of W.
    """
    layers = dict(params["layers"])
    for name, adapter in lora.items():
        change = (alpha / adapter["a"].shape[-1]) * jnp.matmul(adapter["a"], adapter["b"])
        layers[name] = (layers[name] + change).astype(layers[name].dtype)
    return params | {"layers": layers}
