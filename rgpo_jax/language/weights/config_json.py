"""The shape that a config.json tells of; what is not computed here is refused."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgpo_jax.language.decoder import Architecture


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object of a file; ValueError if there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file.parent}: no {file.name}") from None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object")
    return content


def architecture_of(file: Path, config: Mapping[str, Any]) -> Architecture:
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
    return checked(
        file,
        vocab_size=whole("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=whole("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=whole("num_key_value_heads", heads),
        head_dim=whole("head_dim", hidden_size // heads),
        rope_theta=_rope_theta(file, config),
        rms_norm_eps=positive(file, "rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
        attention_bias=kind == "qwen2",
        tied_head=bool(config.get("tie_word_embeddings", False)),
    )


def checked(file: Path, **fields: Any) -> Architecture:
    """An architecture of these fields; ValueError, with the file, where they do not go together."""
    try:
        return Architecture(**fields)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def positive(file: Path, key: str, value: Any) -> float:
    """The number that a file has under a key; ValueError unless it is positive and finite."""
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
    return positive(file, "rope_theta", 10000.0 if theta is None else theta)


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
