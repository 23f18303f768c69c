"""Environments spread over devices: the few operations in which such a program differs."""

import dataclasses
from typing import Any

import jax

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """How the environments of one agent are spread over a mapped axis.

    Every device steps an equal share of the environments and differentiates an equal share of
    each minibatch; everything else is the same on all of them. Random numbers are drawn for all
    environments and then shared out, and minibatches are shuffled over all of them, so that the
    result does not depend on the number of devices but for the order of float sums.

    Attributes:
      axis_name: of `jax.shard_map` or `jax.vmap`; None: one device has all environments.
    """

    axis_name: str | None = None

    @property
    def size(self) -> int:
        """Number of devices; to be asked for within the mapped function only."""
        return 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)

    def share(self, tree: Any, axis: int) -> Any:
        """This device's share of arrays that all devices have, cut along an array axis.

        Raises:
          ValueError: the axis does not divide into equal shares.
        """
        if self.axis_name is None:
            return tree
        index, size = jax.lax.axis_index(self.axis_name), self.size

        def cut(x: Array) -> Array:
            if x.shape[axis] % size:
                raise ValueError(f"{x.shape[axis]} does not divide into shares for {size} devices")
            length = x.shape[axis] // size
            return jax.lax.dynamic_slice_in_dim(x, index * length, length, axis)

        return jax.tree.map(cut, tree)

    def gather(self, tree: Any, axis: int) -> Any:
        """The devices' shares put together along an array axis, on every device."""
        if self.axis_name is None:
            return tree
        name = self.axis_name
        return jax.tree.map(lambda x: jax.lax.all_gather(x, name, axis=axis, tiled=True), tree)

    def mean(self, tree: Any) -> Any:
        """Mean over the devices."""
        return tree if self.axis_name is None else jax.lax.pmean(tree, self.axis_name)

    def sum(self, tree: Any) -> Any:
        """Sum over the devices."""
        return tree if self.axis_name is None else jax.lax.psum(tree, self.axis_name)
