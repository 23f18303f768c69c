"""What files call each parameter, and how it lies in them."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rgpo_jax.language.decoder import Architecture, shapes

# Of one file, and of several.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HUGGING_FACE = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    **{name: f"model.layers.{{}}.self_attn.{name}_proj.weight" for name in "qkvo"},
    **{f"{name}_bias": f"model.layers.{{}}.self_attn.{name}_proj.bias" for name in "qkv"},
    **{name: f"model.layers.{{}}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
}
"""Parameter -> a tensor's name in safetensors; {} is the layer."""
GGUF = {
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
"""The same in GGUF files."""


class Slot(NamedTuple):
    """Where a tensor goes: a parameter, and which layer of it; None if it is not of a layer."""

    name: str
    parameter: str
    layer: int | None
    shape: tuple[int, ...]  # in the file: matrices are output x input there
    transposed: bool


def slots(architecture: Architecture, names: Mapping[str, str]) -> Iterator[Slot]:
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
        yield Slot(names[parameter], parameter, None, shape[::-1] if turned else shape, turned)
    for parameter, (layers, *shape) in tree["layers"].items():
        for layer in range(layers):
            name = names[parameter].format(layer)
            yield Slot(name, parameter, layer, tuple(shape[::-1]), len(shape) == 2)
