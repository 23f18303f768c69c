"""Writes a decoder as a folder of safetensors."""

import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rgpo_jax.language.decoder import Architecture, Params, shapes
from rgpo_jax.language.tokenizer import Tokenizer, Vocabulary, need
from rgpo_jax.language.weights.layout import HUGGING_FACE, INDEX, WEIGHTS, Slot, slots
from rgpo_jax.language.weights.model import Model

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    "tokenizer.model",
)


def save(
    folder: str | Path,
    architecture: Architecture,
    params: Params,
    like: Model | None = None,
    *,
    dtype: Any = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a decoder as Hugging Face's libraries read it: config.json, model.safetensors.

    The folder appears once it is whole: it is written beside itself and then renamed.

    Args:
      folder: does not exist yet, or is empty.
      architecture: its shape; with biases it is written as Qwen2's, without as Llama's.
      params: see `decoder`.
      like: the model that it was made from, of which it takes the tokeniser and its ids.
      dtype: of the numbers on disk; by default that of each parameter.
      shard_bytes: the most in one file; beyond it there are several, and an index.

    Raises:
      FileExistsError: there is something there.
      ImportError: a library is missing; the message says how to install it.
      ValueError: a parameter is missing, of another shape, or one too many.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: is there already")
    need("safetensors", "align")
    _check_params(architecture, params)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_weights(temporary, architecture, params, dtype, shard_bytes)
        _write_config(temporary, architecture, params, like, dtype)
        if like is not None:
            _write_tokenizer(temporary, like.tokenizer_source)
        _open_to_readers(temporary)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _open_to_readers(folder: Path) -> None:
    """Gives a temporary folder and its files, which are their owner's alone, the usual rights."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)


def _check_params(architecture: Architecture, params: Params) -> None:
    """Raises ValueError unless the parameters are exactly those of the architecture."""

    def by_path(tree: Any, is_leaf: Any = None) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
        return {
            jax.tree_util.keystr(path, simple=True, separator="."): getattr(leaf, "shape", leaf)
            for path, leaf in leaves
        }

    expected = by_path(shapes(architecture), lambda leaf: isinstance(leaf, tuple))
    found = by_path(params)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            wanted, there = expected.get(name, "none"), found.get(name, "none")
            raise ValueError(f"parameter {name}: expected shape {wanted}, found {there}")


def _write_weights(
    folder: Path, architecture: Architecture, params: Params, dtype: Any, shard_bytes: int
) -> None:
    """Fills one file after another, each of which is held in memory while it is written."""
    library = need("safetensors.numpy", "align")

    def leaf(slot: Slot) -> Any:
        return (params if slot.layer is None else params["layers"])[slot.parameter]

    def size(slot: Slot) -> int:
        return math.prod(slot.shape) * jnp.dtype(dtype or leaf(slot).dtype).itemsize

    shards: list[list[Slot]] = [[]]
    room = shard_bytes
    for slot in slots(architecture, HUGGING_FACE):
        if size(slot) > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(slot)
        room -= size(slot)

    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [WEIGHTS]
    for name, shard in zip(names, shards, strict=True):
        tensors = {}
        for slot in shard:
            content = leaf(slot) if slot.layer is None else leaf(slot)[slot.layer]
            array = np.asarray(content if dtype is None else content.astype(dtype))
            tensors[slot.name] = np.ascontiguousarray(array.T if slot.transposed else array)
        library.save_file(tensors, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        listed = {
            slot.name: name for name, shard in zip(names, shards, strict=True) for slot in shard
        }
        total = sum(size(slot) for shard in shards for slot in shard)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": listed})


def _write_config(
    folder: Path, architecture: Architecture, params: Params, like: Model | None, dtype: Any
) -> None:
    a = architecture
    kind, name = ("qwen2", "Qwen2") if a.attention_bias else ("llama", "Llama")
    ids: dict[str, Any] = {}
    if like is not None:
        ends = list(like.end_ids)
        ids = {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
        ids["pad_token_id"] = like.pad_id
    config = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "intermediate_size": a.intermediate_size,
        "num_hidden_layers": a.num_layers,
        "num_attention_heads": a.num_heads,
        "num_key_value_heads": a.num_kv_heads,
        "head_dim": a.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": a.rms_norm_eps,
        # Older readers look for the first, newer ones for the second.
        "rope_theta": a.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": a.rope_theta},
        "tie_word_embeddings": a.tied_head,
        "torch_dtype": jnp.dtype(dtype or params["embedding"].dtype).name,
        **ids,
    }
    if like is not None and like.max_length is not None:
        config["max_position_embeddings"] = like.max_length
    if a.attention_bias:
        config["use_sliding_window"] = False
    _write_json(folder / "config.json", config)
    if ids:
        _write_json(folder / "generation_config.json", ids)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, source: Path | Vocabulary) -> None:
    if isinstance(source, Vocabulary):
        Tokenizer.load(source).save(folder)
        return
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
