"""Decoders on disk: Hugging Face's folders of safetensors, and GGUF files.

Everything is read from this machine; nothing is fetched, and nothing is unpickled. The libraries
that this needs (`safetensors`, `gguf`) are imported where they are first used.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from rgpo_jax.language.weights import folder, gguf_file
from rgpo_jax.language.weights.model import Model
from rgpo_jax.language.weights.places import find, find_smollm2, hub_cache
from rgpo_jax.language.weights.saving import save

__all__ = ["Model", "find", "find_smollm2", "hub_cache", "load", "save"]


def load(path: str | Path, dtype: Any = jnp.float32) -> Model:
    """Reads a decoder: Qwen2 or Llama (SmolLM2 is one).

    Tensors are read one at a time, and each parameter goes to JAX's default device once it is
    whole: beside the model, the host holds one parameter. For one that a device cannot hold, load
    it under `jax.default_device(jax.devices("cpu")[0])` and place it by `decoder.shard`.

    Args:
      path: see `find`: a folder with config.json and model.safetensors, or the index of several;
        a .gguf file; a repository in Hugging Face's cache.
      dtype: of the parameters.

    Raises:
      FileNotFoundError: there is nothing there.
      ImportError: a library is missing; the message says how to install it.
      ValueError: it is not a decoder of this kind, or not whole; one line names file and key.
    """
    path = find(path)
    if path.suffix == ".gguf" and path.is_file():
        return gguf_file.load(path, dtype)
    if not path.is_dir():
        raise ValueError(f"{path}: expected a folder or a .gguf file")
    return folder.load(path, dtype)
