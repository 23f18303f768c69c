"""Random keys as states hold them."""

from typing import Any

import jax


def as_typed(key: Any) -> jax.Array:
    """A typed key, as `jax.random.key` gives; one of `jax.random.PRNGKey` becomes such a one."""
    if jax.dtypes.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def as_raw(key: jax.Array) -> jax.Array:
    """Numbers for libraries that split raw keys, which JAX takes for its default kind of key.

    The data of a key of that kind [2] (threefry); of another kind, such as rbg, drawn by the key.
    """
    data = jax.random.key_data(key)
    shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    return data if data.shape == shape else jax.random.bits(key, shape, "uint32")
