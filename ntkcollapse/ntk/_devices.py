"""Samples spread over all devices, everything else on each of them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ntkcollapse._platforms import shared_devices


class Devices:
    """All of `jax.devices()`: those of one process, or of every process after `jax.distributed.initialize`.

    Where `jax.default_device` names one, it is that one alone. Every process is given the same samples and gets the
    same numbers back.
    """

    def __init__(self):
        devices = shared_devices()
        self.count = len(devices)
        mesh = Mesh(np.asarray(devices), ("samples",))
        self._along = [NamedSharding(mesh, PartitionSpec(*[None] * axis, "samples")) for axis in (0, 1)]
        self._everywhere = NamedSharding(mesh, PartitionSpec())

    def split(self, x: Any, *, axis: int = 0):
        """Samples over the devices; those too many or too few to share evenly must be padded first."""
        if self.count == 1:
            return jnp.asarray(x)
        return jax.device_put(np.asarray(x), self._along[axis])

    def place(self, x: Any, *, spread: bool):
        """Samples over the devices, or all of them on each."""
        return self.split(x) if spread else self.everywhere(jnp.asarray(x))

    def everywhere(self, tree: Any):
        """The arrays of a pytree on every device."""
        if self.count == 1:
            return tree
        arrays, rest = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.device_put(arrays, self._everywhere), rest)

    def fetch(self, tree: Any):
        """The pytree's arrays on the host of every process."""
        return jax.tree.map(np.asarray, self.to_fetch(tree))

    def to_fetch(self, tree: Any):
        """The same on its way there, without waiting for it."""
        if jax.process_count() > 1:
            tree = _to_all(self._everywhere)(tree)
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()
        return tree

    def padded(self, x: Any) -> Any:
        """With the last sample repeated until the devices share evenly."""
        missing = -len(x) % self.count
        return x if not missing else np.concatenate([np.asarray(x), np.repeat(np.asarray(x[-1:]), missing, axis=0)])


@cache
def _to_all(sharding: NamedSharding) -> Callable:
    """One function a sharding, so that it is compiled once for each shape and not at every call."""
    return jax.jit(lambda tree: tree, out_shardings=sharding)
