"""States that `lax.scan` can carry: every leaf keeps its type from one step to the next."""

from typing import Any

import jax
import jax.numpy as jnp


def definite(tree: Any) -> Any:
    """Gives every leaf a definite type, where a Python scalar would change its own in a step."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def like(new: Any, old: Any) -> Any:
    """The new tree in the types of the old: some steps return other types than they were given."""
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), new, old)
