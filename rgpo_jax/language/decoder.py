"""A decoder as pure functions: that of Qwen2, Llama and SmolLM2.

Parameters are a tree of arrays, float32 or bfloat16; activations have their precision. Norms,
softmaxes and rotations are computed in float32. Matrices are stored input x output, those of all
layers stacked:

    {"embedding": [V, D],
     "layers": {"attention_norm": [L, D],
                "q": [L, D, H Dh], "k": [L, D, K Dh], "v": [L, D, K Dh], "o": [L, H Dh, D],
                "mlp_norm": [L, D],
                "gate": [L, D, F], "up": [L, D, F], "down": [L, F, D]},
     "norm": [D]}

and, where attention has a bias, "q_bias" [L, H Dh], "k_bias" and "v_bias" [L, K Dh] among the
layers; where the head is not the embedding, "head" [D, V].
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Array = jax.Array
Params = Any
"""Parameters: a pytree of arrays."""
Attention = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(queries, keys, values) -> (what was attended to, what is kept for later)."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The shape of a decoder.

    Attributes:
      vocab_size: V.
      hidden_size: D.
      intermediate_size: F, of the MLPs.
      num_layers: L.
      num_heads: H, of queries.
      num_kv_heads: K, of keys and values; a divisor of H.
      head_dim: Dh; even.
      rope_theta: base of the rotary embedding's wavelengths.
      rms_norm_eps: added to mean squares.
      attention_bias: whether queries, keys and values have one (Qwen2).
      tied_head: whether logits are read out by the embedding.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    tied_head: bool = True

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} heads do not share {self.num_kv_heads} of keys and values"
            )
        if self.head_dim % 2:
            raise ValueError(f"a rotary head's size is even; got {self.head_dim}")


def shapes(architecture: Architecture) -> Params:
    """The shape of every parameter, a tree of tuples."""
    a = architecture
    queries, keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    of_layer = {
        "attention_norm": (a.hidden_size,),
        "q": (a.hidden_size, queries),
        "k": (a.hidden_size, keys),
        "v": (a.hidden_size, keys),
        "o": (queries, a.hidden_size),
        "mlp_norm": (a.hidden_size,),
        "gate": (a.hidden_size, a.intermediate_size),
        "up": (a.hidden_size, a.intermediate_size),
        "down": (a.intermediate_size, a.hidden_size),
    }
    if a.attention_bias:
        of_layer |= {"q_bias": (queries,), "k_bias": (keys,), "v_bias": (keys,)}
    tree = {
        "embedding": (a.vocab_size, a.hidden_size),
        "layers": {name: (a.num_layers, *shape) for name, shape in of_layer.items()},
        "norm": (a.hidden_size,),
    }
    return tree if a.tied_head else tree | {"head": (a.hidden_size, a.vocab_size)}


def init(key: Array, architecture: Architecture, scale: float = 0.02) -> Params:
    """Random float32 parameters: matrices ~ N(0, scale^2), norms 1, biases 0."""
    paths, tree = jax.tree.flatten_with_path(
        shapes(architecture), is_leaf=lambda x: isinstance(x, tuple)
    )

    def draw(key: Array, name: str, shape: tuple[int, ...]) -> Array:
        if name.endswith("norm"):
            return jnp.ones(shape)
        if name.endswith("bias"):
            return jnp.zeros(shape)
        return scale * jax.random.normal(key, shape)

    keys = jax.random.split(key, len(paths))
    drawn = [draw(k, path[-1].key, shape) for k, (path, shape) in zip(keys, paths, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x [..., D] by its root mean square, times weight [D]."""
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return weight * wide.astype(x.dtype)


def rotation(positions: Array, architecture: Architecture) -> tuple[Array, Array]:
    """Cosine and sine, float32 [..., 1, Dh / 2], of the rotary embedding at positions [...]."""
    exponents = jnp.arange(0, architecture.head_dim, 2) / architecture.head_dim
    angles = positions[..., None, None] / architecture.rope_theta**exponents
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, by: tuple[Array, Array]) -> Array:
    """Heads x [..., heads, Dh], of which the halves are the pairs' coordinates, rotated."""
    cos, sin = by
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(queries: Array, keys: Array, values: Array, mask: Array) -> Array:
    """Grouped-query attention; H / K successive heads of queries share one of keys and values.

    Args:
      queries: [B, S, H, Dh].
      keys: [B, T, K, Dh].
      values: [B, T, K, Dh].
      mask: bool [B, S, T], what each query sees.

    Returns:
      [B, S, H, Dh]; something finite where a query sees nothing.
    """
    batch, length, heads, size = queries.shape
    grouped = queries.reshape(batch, length, keys.shape[2], -1, size)
    scores = jnp.einsum("bskgd,btkd->bkgst", grouped, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * size**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bkgst,btkd->bskgd", weights, values).reshape(batch, length, heads, size)


def run_layer(
    layer: Params,
    x: Array,
    rotated_by: tuple[Array, Array],
    architecture: Architecture,
    attention: Attention,
) -> tuple[Array, Any]:
    """One layer.

    Args:
      layer: its parameters.
      x: [B, S, D].
      rotated_by: see `rotation`, of positions [B, S].
      architecture: shape of the decoder.
      attention: (queries [B, S, H, Dh], keys and values [B, S, K, Dh]) -> ([B, S, H, Dh], whatever
        else it returns).

    Returns:
      x [B, S, D] after the layer; what else attention returned.
    """
    normed = rms_norm(x, layer["attention_norm"], architecture.rms_norm_eps)

    def heads(name: str) -> Array:
        y = normed @ layer[name]
        if architecture.attention_bias:
            y += layer[name + "_bias"]
        return y.reshape(*y.shape[:-1], -1, architecture.head_dim)

    attended, kept = attention(
        rotate(heads("q"), rotated_by), rotate(heads("k"), rotated_by), heads("v")
    )
    x += attended.reshape(*x.shape[:-1], -1) @ layer["o"]
    normed = rms_norm(x, layer["mlp_norm"], architecture.rms_norm_eps)
    x += (jax.nn.silu(normed @ layer["gate"]) * (normed @ layer["up"])) @ layer["down"]
    return x, kept


def positions(mask: Array) -> Array:
    """Of each token among the real ones, int32 [B, S]; mask [B, S] is False where padded."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def causal(mask: Array) -> Array:
    """What each token sees, bool [B, S, S]: the real ones up to itself."""
    return jnp.tril(jnp.ones((mask.shape[-1],) * 2, bool)) & mask[:, None, :]


def embed(params: Params, tokens: Array) -> Array:
    """Tokens [...] -> [..., D], what the first layer sees."""
    return params["embedding"][tokens]


def run_layers(
    layers: Params,
    x: Array,
    positions: Array,
    mask: Array,
    architecture: Architecture,
    remat: bool = False,
) -> Array:
    """Layers in turn.

    Args:
      layers: stacked parameters of them all, or of some that follow each other.
      x: [B, S, D], what the first of them sees.
      positions: int [B, S].
      mask: bool [B, S], False where padded.
      architecture: shape of the decoder; its number of layers is not read.
      remat: compute a layer's activations anew for its gradient, rather than keep them.

    Returns:
      [B, S, D], after the last of them.
    """
    seen, rotated_by = causal(mask), rotation(positions, architecture)

    def body(x: Array, layer: Params) -> tuple[Array, None]:
        def attention(queries: Array, keys: Array, values: Array) -> tuple[Array, None]:
            return attend(queries, keys, values, seen), None

        return run_layer(layer, x, rotated_by, architecture, attention)

    return jax.lax.scan(jax.checkpoint(body) if remat else body, x, layers)[0]


def final_norm(params: Params, x: Array, architecture: Architecture) -> Array:
    """What the last layer left, [..., D] -> what the head reads, [..., D]."""
    return rms_norm(x, params["norm"], architecture.rms_norm_eps)


def head(params: Params) -> Array:
    """The matrix [D, V] of the logits."""
    return params["head"] if "head" in params else params["embedding"].T


def hidden_states(
    params: Params, architecture: Architecture, tokens: Array, mask: Array, remat: bool = False
) -> Array:
    """What the head reads at each token.

    Args:
      params: of the decoder.
      architecture: its shape.
      tokens: int [B, S].
      mask: bool [B, S]; False where padded, on the left or the right. The padding changes nothing.
      remat: see `run_layers`.

    Returns:
      [B, S, D]; where padded, something finite.
    """
    x = embed(params, tokens)
    x = run_layers(params["layers"], x, positions(mask), mask, architecture, remat)
    return final_norm(params, x, architecture)


def partition_specs(architecture: Architecture) -> Params:
    """How every parameter is split over the axes "fsdp" and "tp" of a mesh.

    Heads and the MLP's width are split over tp, and so are the inputs of what follows them: a layer
    communicates twice. The other axis of a matrix is split over fsdp. Norms are everywhere.
    """
    into, out_of = PartitionSpec(None, "fsdp", "tp"), PartitionSpec(None, "tp", "fsdp")
    layers = dict.fromkeys(("q", "k", "v", "gate", "up"), into)
    layers |= dict.fromkeys(("o", "down"), out_of)
    layers |= dict.fromkeys(("attention_norm", "mlp_norm"), PartitionSpec())
    if architecture.attention_bias:
        layers |= dict.fromkeys(("q_bias", "k_bias", "v_bias"), PartitionSpec(None, "tp"))
    specs = {
        "embedding": PartitionSpec("tp", "fsdp"),
        "layers": layers,
        "norm": PartitionSpec(),
    }
    return specs if architecture.tied_head else specs | {"head": PartitionSpec("fsdp", "tp")}


def fitting(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]) -> NamedSharding:
    """A spec on a mesh, without the axes that the mesh lacks or that do not divide the shape."""
    axes = (
        axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(spec, shape, strict=False)
    )
    return NamedSharding(mesh, PartitionSpec(*axes))


def shardings(tree: Any, architecture: Architecture, mesh: Mesh) -> Any:
    """Where the arrays of a tree lie on a mesh by `partition_specs`.

    An axis that the mesh lacks, or that does not divide what it would split, splits nothing. The
    axes are taken as of the type Auto, whatever they are: XLA finds how activations are split.

    Args:
      tree: arrays, or shapes; parameters in it, or what an optimiser keeps of each, stand under
        their names and have their ranks. All else is everywhere.
      architecture: of the decoder.
      mesh: with axes "fsdp" and "tp", or one of them.
    """
    mesh = Mesh(mesh.devices, mesh.axis_names)
    specs = partition_specs(architecture)
    specs = specs["layers"] | {name: spec for name, spec in specs.items() if name != "layers"}

    def place(path: tuple, x: Any) -> NamedSharding:
        name = getattr(path[-1], "key", None) if path else None
        spec = specs.get(name, PartitionSpec())
        return fitting(mesh, spec if len(spec) == len(x.shape) else PartitionSpec(), x.shape)

    return jax.tree_util.tree_map_with_path(place, tree)


def shard(params: Params, architecture: Architecture, mesh: Mesh) -> Params:
    """Places parameters on a mesh; see `shardings`."""
    return jax.device_put(params, shardings(params, architecture, mesh))
