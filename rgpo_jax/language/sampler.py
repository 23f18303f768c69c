"""Answers sampled from a decoder, one token at a time, as one compiled program.

Activations are columns here, [D, N] of N tokens, and matrices are stored output x input. On CPUs
W x is the fastest product of a matrix with few tokens, and the embedding is the head as it is.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from rgpo_jax.language import decoder
from rgpo_jax.language.answers import Answers, is_end, mask_after_end
from rgpo_jax.language.decoder import Architecture, Attention

Array = jax.Array
Params = Any
"""Parameters: a pytree of arrays."""

LEAST_TEMPERATURE = 1e-2
"""Below it, log-probabilities of what was not sampled overflow."""


def decoding_weights(params: Params, architecture: Architecture) -> Params:
    """A decoder's parameters as `sample` reads them: a list of layers, matrices transposed.

    Called once for many samples. It holds a copy of all matrices of the layers.
    """
    fused = [("qkv", ("q", "k", "v")), ("o", ("o",)), ("gate_up", ("gate", "up"))]
    fused.append(("down", ("down",)))
    layers = params["layers"]
    stacked = {
        name: jnp.concatenate([jnp.swapaxes(layers[x], 1, 2) for x in parts], axis=1)
        for name, parts in fused
    }
    if architecture.attention_bias:
        stacked["qkv_bias"] = jnp.concatenate([layers[x + "_bias"] for x in "qkv"], axis=1)
    stacked |= {name: layers[name] for name in ("attention_norm", "mlp_norm")}
    return {
        "embedding": params["embedding"],
        "layers": [
            jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(architecture.num_layers)
        ],
        "norm": params["norm"],
        "head": params["head"].T if "head" in params else params["embedding"],
    }


def _norm(x: Array, weight: Array, eps: float) -> Array:
    """`decoder.rms_norm` of columns x [D, N]."""
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=0) + eps)
    return weight[:, None] * wide.astype(x.dtype)


def _run_layer(
    layer: Params,
    x: Array,
    rotated_by: tuple[Array, Array],
    architecture: Architecture,
    attention: Attention,
) -> tuple[Array, Any]:
    """`decoder.run_layer` of columns x [D, B S]."""
    batch, length = rotated_by[0].shape[:2]
    heads, kv_heads = architecture.num_heads, architecture.num_kv_heads
    normed = _norm(x, layer["attention_norm"], architecture.rms_norm_eps)
    qkv = layer["qkv"] @ normed
    if architecture.attention_bias:
        qkv += layer["qkv_bias"][:, None]
    qkv = qkv.reshape(-1, architecture.head_dim, batch, length).transpose(2, 3, 0, 1)
    queries, keys, values = jnp.split(qkv, [heads, heads + kv_heads], axis=2)
    attended, kept = attention(
        decoder.rotate(queries, rotated_by), decoder.rotate(keys, rotated_by), values
    )
    x += layer["o"] @ attended.transpose(2, 3, 0, 1).reshape(-1, batch * length)
    normed = _norm(x, layer["mlp_norm"], architecture.rms_norm_eps)
    gate, up = jnp.split(layer["gate_up"] @ normed, 2)
    x += layer["down"] @ (jax.nn.silu(gate) * up)
    return x, kept


def _prefill(
    weights: Params, architecture: Architecture, prompts: Array, mask: Array, room: int
) -> tuple[Array, list]:
    """What the head reads after the prompts [D, B]; caches (keys, values) [B, P + room, K, Dh]."""
    seen = decoder.causal(mask)
    rotated_by = decoder.rotation(decoder.positions(mask), architecture)

    def attention(queries: Array, keys: Array, values: Array) -> tuple[Array, tuple]:
        kept = (jnp.pad(x, [(0, 0), (0, room), (0, 0), (0, 0)]) for x in (keys, values))
        return decoder.attend(queries, keys, values, seen), tuple(kept)

    x = weights["embedding"][prompts.reshape(-1)].T
    caches = []
    for layer in weights["layers"]:
        x, cache = _run_layer(layer, x, rotated_by, architecture, attention)
        caches.append(cache)
    last = x.reshape(-1, *prompts.shape)[:, :, -1]
    return _norm(last, weights["norm"], architecture.rms_norm_eps), caches


def _decode(
    weights: Params,
    architecture: Architecture,
    tokens: Array,
    positions: Array,
    caches: list,
    slot: Array,
    seen: Array,
) -> tuple[Array, list]:
    """What the head reads after one more token each [B], and the caches with it at a slot.

    Positions [B] are those of the tokens; seen bool [B, cache] has the slot.
    """
    rotated_by = decoder.rotation(positions[:, None], architecture)
    x = weights["embedding"][tokens].T
    updated = []
    for layer, cache in zip(weights["layers"], caches, strict=True):

        def attention(
            queries: Array, key: Array, value: Array, cache: tuple = cache
        ) -> tuple[Array, tuple]:
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=1)
                for old, new in zip(cache, (key, value), strict=True)
            )
            return decoder.attend(queries, keys, values, seen[:, None]), (keys, values)

        x, cache = _run_layer(layer, x, rotated_by, architecture, attention)
        updated.append(cache)
    return _norm(x, weights["norm"], architecture.rms_norm_eps), updated


def _draw(
    head: Array, hidden: Array, key: Array, temperature: Any, greedy: bool
) -> tuple[Array, Array]:
    """Tokens [B] of softmax(head hidden / temperature), and their log-probabilities.

    The vocabulary is cut into blocks. A block is drawn by its probability, then a token within it:
    exact, with about 2 sqrt(V) random numbers for an answer in place of V.

    Args:
      head: [V, D].
      hidden: [D, B].
      key: typed key.
      temperature: of the softmax.
      greedy: take the most probable token.
    """
    logits = jnp.matmul(head, hidden, preferred_element_type=jnp.float32) / temperature
    size = math.isqrt(logits.shape[0] - 1) + 1
    padding = -logits.shape[0] % size
    blocks = jnp.pad(logits, [(0, padding), (0, 0)], constant_values=-jnp.inf)
    blocks = blocks.reshape(-1, size, logits.shape[1])
    of_blocks = jax.nn.logsumexp(blocks, axis=1)
    normalizer = jax.nn.logsumexp(of_blocks, axis=0)
    if greedy:
        tokens = jnp.argmax(logits, axis=0).astype(jnp.int32)
        return tokens, jnp.max(logits, axis=0) - normalizer
    block_key, token_key = jax.random.split(key)
    block = jax.random.categorical(block_key, of_blocks, axis=0)
    within = jnp.take_along_axis(blocks, block[None, None], axis=0)[0]
    token = jax.random.categorical(token_key, within, axis=0)
    chosen = jnp.take_along_axis(within, token[None], axis=0)[0]
    return (block * size + token).astype(jnp.int32), chosen - normalizer


def sample(
    weights: Params,
    architecture: Architecture,
    prompts: Array,
    prompt_mask: Array,
    key: Array,
    max_new_tokens: int,
    end_ids: tuple[int, ...],
    pad_id: int,
    temperature: Any = 1.0,
    greedy: bool = False,
) -> Answers:
    """Answers to prompts, from the full distribution; it stops once all have ended.

    To be compiled with the weights as an argument: closed-over, they would be part of the program.

    Args:
      weights: of `decoding_weights`.
      architecture: shape of the decoder.
      prompts: int [B, P], padded on the left.
      prompt_mask: bool [B, P], False where padded.
      key: typed key.
      max_new_tokens: T, at which answers are cut.
      end_ids: the tokens that end an answer.
      pad_id: what follows an answer's end.
      temperature: answers are sampled from softmax(logits / temperature), whose log-probabilities
        they carry.
      greedy: take the most probable tokens; their log-probabilities are those at temperature 1.

    Raises:
      ValueError: no token is asked for; or a temperature, if it is a Python number, is too near 0
        for ratios of probabilities to mean anything.
    """
    if max_new_tokens < 1:
        raise ValueError(f"an answer has 1 token or more; got {max_new_tokens}")
    if greedy:
        temperature = 1.0
    elif not isinstance(temperature, jax.Array) and temperature < LEAST_TEMPERATURE:
        raise ValueError(
            f"a temperature is {LEAST_TEMPERATURE} or more, or greedy=True; got {temperature}"
        )
    batch, length = prompts.shape
    head, keys = weights["head"], jax.random.split(key, max_new_tokens)
    hidden, caches = _prefill(weights, architecture, prompts, prompt_mask, max_new_tokens - 1)
    first, first_log_prob = _draw(head, hidden, keys[0], temperature, greedy)
    num_real = jnp.sum(prompt_mask, axis=1, dtype=jnp.int32)

    def goes_on(state: tuple) -> Array:
        step, *_, ended = state
        return (step < max_new_tokens) & ~ended.all()

    def advance(state: tuple) -> tuple:
        step, tokens, log_probs, caches, ended = state
        written = jnp.arange(max_new_tokens - 1) < step
        hidden, caches = _decode(
            weights,
            architecture,
            tokens[step - 1],
            num_real + step - 1,
            caches,
            length + step - 1,
            jnp.concatenate([prompt_mask, jnp.broadcast_to(written, (batch, len(written)))], 1),
        )
        token, log_prob = _draw(head, hidden, keys[step], temperature, greedy)
        return (
            step + 1,
            tokens.at[step].set(token),
            log_probs.at[step].set(log_prob),
            caches,
            ended | is_end(token, end_ids),
        )

    tokens = jnp.full((max_new_tokens, batch), pad_id, jnp.int32).at[0].set(first)
    log_probs = jnp.zeros((max_new_tokens, batch)).at[0].set(first_log_prob)
    state = (jnp.int32(1), tokens, log_probs, caches, is_end(first, end_ids))
    _, tokens, log_probs, _, _ = jax.lax.while_loop(goes_on, advance, state)
    mask, ended = mask_after_end(tokens.T, end_ids)
    return Answers(
        jnp.where(mask, tokens.T, pad_id), mask, jnp.where(mask, log_probs.T, 0.0), ended
    )
