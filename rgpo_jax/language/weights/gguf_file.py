"""Reads GGUF files, whose tensors may be quantised."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rgpo_jax.language.decoder import Architecture
from rgpo_jax.language.tokenizer import need, open_gguf, read_vocabulary
from rgpo_jax.language.weights.config_json import checked, positive
from rgpo_jax.language.weights.filling import Tensor, fill
from rgpo_jax.language.weights.layout import GGUF
from rgpo_jax.language.weights.model import Model


def load(path: Path, dtype: Any) -> Model:
    """See `weights.load`."""
    gguf, reader = need("gguf", "gguf"), open_gguf(path)

    def entry(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        return default if field is None else field.contents()

    kind = entry("general.architecture")
    if kind not in ("qwen2", "llama"):
        raise ValueError(f"{path}: general.architecture: expected qwen2 or llama, found {kind}")

    def whole(key: str, default: int | None = None) -> int:
        value = entry(f"{kind}.{key}", default)
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{path}: {kind}.{key}: expected a positive whole number, found {value}"
            )
        return value

    def number(key: str, default: float | None = None) -> float:
        value = entry(f"{kind}.{key}", default)
        # Stored in float32: of 1e-5 that the file means, not of the nearest one's digits.
        value = float(str(np.float32(value))) if isinstance(value, float) else value
        return positive(path, f"{kind}.{key}", value)

    scaling = entry(f"{kind}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise ValueError(f"{path}: {kind}.rope.scaling.type: expected no scaling, found {scaling}")
    if entry("split.count", 1) > 1:
        raise ValueError(f"{path}: split.count: expected one file for all tensors")
    heads, hidden_size = whole("attention.head_count"), whole("embedding_length")
    head_dim = whole("attention.key_length", hidden_size // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if whole(key, head_dim) != head_dim:
            raise ValueError(f"{path}: {kind}.{key}: expected {head_dim}, found {whole(key)}")

    tensors = {}
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in tensor.shape[::-1])
        tensors[tensor.name] = Tensor(path, shape, _dequantiser(path, gguf, tensor))
    embedding = tensors.get(GGUF["embedding"])
    if embedding is None:
        raise ValueError(f"{path}: {GGUF['embedding']}: missing")
    architecture = checked(
        path,
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        intermediate_size=whole("feed_forward_length"),
        num_layers=whole("block_count"),
        num_heads=heads,
        num_kv_heads=whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=number("rope.freq_base", 10000.0),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        attention_bias=kind == "qwen2",
        tied_head=GGUF["head"] not in tensors,
    )
    if kind == "llama":
        _separate_halves(tensors, architecture)
    params = fill(path, architecture, GGUF, tensors, dtype)
    vocabulary = read_vocabulary(path, reader)
    length = entry(f"{kind}.context_length")
    return Model(architecture, params, vocabulary, vocabulary.end_ids, vocabulary.pad_id, length)


def _dequantiser(path: Path, gguf: Any, tensor: Any) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        try:
            content: np.ndarray = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise ValueError(f"{path}: {tensor.name}: {kind} cannot be dequantised") from None
        return content

    return read


def _separate_halves(tensors: dict[str, Tensor], architecture: Architecture) -> None:
    """Undoes the order of rows that GGUF gives Llama's queries and keys.

    There a rotation's two coordinates are neighbours; here one is in each half of a head.
    """
    for parameter, heads in (("q", architecture.num_heads), ("k", architecture.num_kv_heads)):
        for layer in range(architecture.num_layers):
            name = GGUF[parameter].format(layer)
            if name in tensors:
                tensors[name] = _halved(tensors[name], heads)


def _halved(tensor: Tensor, heads: int) -> Tensor:
    def read() -> np.ndarray:
        content = tensor.read()
        pairs = content.reshape(heads, -1, 2, content.shape[-1])
        return pairs.swapaxes(1, 2).reshape(content.shape)

    return tensor._replace(read=read)
