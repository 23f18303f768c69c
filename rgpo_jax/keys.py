"""Random keys as states hold them."""

from typing import Any

import jax


def as_typed(key: Any) -> jax.Array:
    """A typed key, as `jax.random.key` gives; one of `jax.random.PRNGKey` becomes such a one."""
    if jax.dtypes.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)
