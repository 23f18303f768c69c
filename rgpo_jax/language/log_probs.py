"""Log-probabilities and entropies of tokens, of which the logits need not fit into memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgpo_jax.language import decoder
from rgpo_jax.language.decoder import Architecture

Array = jax.Array
Params = Any
"""Parameters: a pytree of arrays."""


class AnswerLogProbs(NamedTuple):
    """What a policy says of answers [B, T].

    Attributes:
      log_prob: float32 [B, T], of each token; 0 where masked.
      entropy: float32 [B, T], of the distribution that the token is from; 0 where masked.
      hidden: [B, T, D], the state that predicts the token, such as for a value function.
    """

    log_prob: Array
    entropy: Array
    hidden: Array


def next_token_log_probs(hidden: Array, head: Array, temperature: Any = 1.0) -> Array:
    """log softmax(hidden head / temperature), float32 [..., V], of hidden [..., D]."""
    logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32) / temperature
    return jax.nn.log_softmax(logits)


def _of_logits(hidden: Array, head: Array, targets: Array, temperature: Any) -> tuple[Array, Array]:
    """Log-probabilities and entropies [N] of targets [N] from hidden [N, D]."""
    log_probs = next_token_log_probs(hidden, head, temperature)
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    return jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0], entropy


def token_log_probs(
    hidden: Array,
    head: Array,
    targets: Array,
    temperature: Any = 1.0,
    chunk_size: int | None = None,
) -> tuple[Array, Array]:
    """Of softmax(hidden head / temperature): log-probabilities of tokens, and entropies.

    Args:
      hidden: [B, T, D].
      head: [D, V].
      targets: int [B, T].
      temperature: that of sampling.
      chunk_size: of how many tokens logits exist at a time, forward and backward. None: of all.

    Returns:
      Both float32 [B, T].
    """
    shape, size = targets.shape, targets.size
    flat, targets = hidden.reshape(size, -1), targets.reshape(size)
    if chunk_size is None or chunk_size >= size:
        log_prob, entropy = _of_logits(flat, head, targets, temperature)
        return log_prob.reshape(shape), entropy.reshape(shape)

    def chunks(x: Array) -> Array:
        padding = [(0, -size % chunk_size), *[(0, 0)] * (x.ndim - 1)]
        return jnp.pad(x, padding).reshape(-1, chunk_size, *x.shape[1:])

    @jax.checkpoint
    def of_chunk(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        return _of_logits(chunk[0], head, chunk[1], temperature)

    log_prob, entropy = jax.lax.map(of_chunk, (chunks(flat), chunks(targets)))
    return log_prob.reshape(-1)[:size].reshape(shape), entropy.reshape(-1)[:size].reshape(shape)


def answer_states(
    params: Params,
    architecture: Architecture,
    prompts: Array,
    prompt_mask: Array,
    tokens: Array,
    mask: Array,
    remat: bool = False,
) -> Array:
    """The states [B, T, D] that predict the tokens of answers; see `answer_log_probs`."""
    tokens = jnp.where(mask, tokens, 0)
    first = prompts.shape[1] - 1  # the prompt's last token predicts the answer's first
    return decoder.hidden_states(
        params,
        architecture,
        jnp.concatenate([prompts, tokens[:, :-1]], axis=1),
        jnp.concatenate([prompt_mask, mask[:, :-1]], axis=1),
        remat,
    )[:, first:]


def answer_log_probs(
    params: Params,
    architecture: Architecture,
    prompts: Array,
    prompt_mask: Array,
    tokens: Array,
    mask: Array,
    temperature: Any = 1.0,
    chunk_size: int | None = None,
    remat: bool = False,
) -> AnswerLogProbs:
    """Log-probabilities of answers to prompts, all tokens at once.

    Args:
      params: of the decoder.
      architecture: its shape.
      prompts: int [B, P], padded on the left.
      prompt_mask: bool [B, P], False where padded.
      tokens: int [B, T], the answers.
      mask: bool [B, T], as that of `Answers`; where it is False a token may be anything.
      temperature: that of sampling.
      chunk_size: see `token_log_probs`.
      remat: compute the layers' activations anew for their gradient.
    """
    tokens = jnp.where(mask, tokens, 0)
    hidden = answer_states(params, architecture, prompts, prompt_mask, tokens, mask, remat)
    log_prob, entropy = token_log_probs(
        hidden, decoder.head(params), tokens, temperature, chunk_size
    )
    return AnswerLogProbs(jnp.where(mask, log_prob, 0), jnp.where(mask, entropy, 0), hidden)
