"""Reads Hugging Face's folders: config.json, and safetensors."""

import functools
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from rgpo_jax.language.tokenizer import need, special_ids
from rgpo_jax.language.weights.config_json import architecture_of, read_json
from rgpo_jax.language.weights.filling import Tensor, fill
from rgpo_jax.language.weights.layout import HUGGING_FACE, INDEX, WEIGHTS
from rgpo_jax.language.weights.model import Model

_FLOATS = ("F64", "F32", "F16", "BF16")
# Old Llama files hold what is computed from the rope's base.
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def load(folder: Path, dtype: Any) -> Model:
    """See `weights.load`."""
    file = folder / "config.json"
    config = read_json(file)
    architecture = architecture_of(file, config)
    with ExitStack() as stack:
        tensors = _safetensors(folder, stack)
        for name in [name for name in tensors if _COMPUTED.fullmatch(name)]:
            del tensors[name]
        head = tensors.get(HUGGING_FACE["head"])
        if architecture.tied_head and head is not None:
            embedding = tensors.get(HUGGING_FACE["embedding"])
            if embedding is None or not np.array_equal(head.read(), embedding.read()):
                raise ValueError(
                    f"{head.file}: {HUGGING_FACE['head']}: is not the embedding, though "
                    f"{file} ties them"
                )
            del tensors[HUGGING_FACE["head"]]
        params = fill(folder, architecture, HUGGING_FACE, tensors, dtype)
    end_ids, pad_id = special_ids(folder)
    length = config.get("max_position_embeddings")
    return Model(architecture, params, folder, end_ids, pad_id, length)


def _safetensors(folder: Path, stack: ExitStack) -> dict[str, Tensor]:
    """The tensors of a folder's files, which stay open as long as the stack."""
    index = folder / INDEX
    listed: dict[str, str] | None = None
    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif index.is_file():
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{index}: weight_map: missing")
        for name, shard in listed.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ValueError(f"{index}: {name}: expected a file's name, found {shard}")
        files = [folder / name for name in sorted(set(listed.values()))]
    elif next(folder.glob("pytorch_model*.bin"), None) is not None:
        raise ValueError(
            f"{folder}: has pytorch_model.bin but no {WEIGHTS}; pickles are not read, for they "
            "can run any code: convert it to safetensors"
        )
    else:
        raise ValueError(f"{folder}: no {WEIGHTS} and no {INDEX}")

    library = need("safetensors", "align")
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: missing, though {index} lists it")
        try:
            opened = stack.enter_context(library.safe_open(file, framework="np"))
        except (library.SafetensorError, OSError) as error:
            raise ValueError(f"{file}: not a safetensors file: {error}") from None
        for name in opened.keys():  # noqa: SIM118  it is no mapping
            if listed is not None and listed.get(name) != file.name:
                raise ValueError(f"{file}: {name}: not listed in {index}")
            content = opened.get_slice(name)
            if content.get_dtype() not in _FLOATS:
                known = ", ".join(_FLOATS)
                raise ValueError(f"{file}: {name}: expected {known}, found {content.get_dtype()}")
            read = functools.partial(opened.get_tensor, name)
            tensors[name] = Tensor(file, tuple(content.get_shape()), read)
    return tensors
