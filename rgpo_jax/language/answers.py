"""What a language model answered, and where each answer ends."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Answers(NamedTuple):
    """Answers to prompts [..., T], T tokens at most.

    Attributes:
      tokens: int32 [..., T].
      mask: bool [..., T]; True up to and including the first end token, all True where none came.
      log_prob: float32 [..., T], of each token under the policy that sampled it; 0 where masked.
      ended: bool [...], whether an end token came.
    """

    tokens: Array
    mask: Array
    log_prob: Array
    ended: Array


def last_tokens(mask: Array) -> Array:
    """Where answers have their last token, bool [..., T]; mask [..., T] is that of `Answers`."""
    following = jnp.concatenate([mask[..., 1:], jnp.zeros_like(mask[..., :1])], axis=-1)
    return mask & ~following


def is_end(tokens: Array, end_ids: tuple[int, ...]) -> Array:
    """Where tokens [...] are end tokens, bool [...]."""
    return (tokens[..., None] == jnp.array(end_ids, jnp.int32)).any(-1)


def mask_after_end(tokens: Array, end_ids: tuple[int, ...]) -> tuple[Array, Array]:
    """Masks what follows the first end token, by its position.

    A token's value says nothing of whether it is padding: a model's pad may be its end token.

    Args:
      tokens: [..., T].
      end_ids: the tokens that end an answer.

    Returns:
      The mask [..., T], True up to and including the first end token; whether one came [...].
    """
    end = is_end(tokens, end_ids)
    ends_before = jnp.cumsum(end, -1) - end
    return ends_before == 0, end.any(-1)
