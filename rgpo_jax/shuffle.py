"""Random permutations without a sort, which on a CPU costs as much as learning from the batch."""

import jax
import jax.numpy as jnp

Array = jax.Array

_ROUNDS = 8
_SORTED_BELOW = 256  # few bits mix badly, and few numbers are sorted quickly


def _hash(x: Array, key: Array) -> Array:
    """Mixes 32 bits with a key; the finaliser of MurmurHash3 (public domain)."""
    x = (x ^ key) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def permutation(key: Array, n: int) -> Array:
    """A pseudo-random permutation of 0, ..., n - 1.

    A Feistel network is a bijection of b-bit numbers, whatever its round functions; numbers that
    land at n or above go round again until they land below it, which keeps it a bijection. Short
    permutations are drawn by sorting.

    Args:
      key: a typed key.
      n: length, from 1 to 2^31 - 1.

    Returns:
      int32 [n].

    Source: arXiv 2106.06161 (bijective shuffling).
    """
    if n < _SORTED_BELOW:
        return jax.random.permutation(key, n)
    bits = (n - 1).bit_length()
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

    def bijection(x: Array) -> Array:
        low, high = x & low_mask, x >> low_bits
        for i in range(0, _ROUNDS, 2):
            high = high ^ (_hash(low, round_keys[i]) & high_mask)
            low = low ^ (_hash(high, round_keys[i + 1]) & low_mask)
        return (high << low_bits) | low

    x = bijection(jnp.arange(n, dtype=jnp.uint32))
    if n < 1 << bits:
        x = jax.lax.while_loop(
            lambda x: jnp.any(x >= n), lambda x: jnp.where(x >= n, bijection(x), x), x
        )
    return x.astype(jnp.int32)
