"""Arrays of numpy as arrays of JAX, computing with known numbers, without a compilation, and numpy in one thread."""

from contextlib import AbstractContextManager
from functools import cache
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from threadpoolctl import ThreadpoolController


def as_array(x: Any) -> Any:
    """`jnp.asarray(x)`, but numbers of numpy are put on the device as they are.

    `jnp.asarray` of a numpy array compiles a program for each shape and type, some hundredths of a second that a run of
    many shapes pays again and again, and keeps.
    """
    if not isinstance(x, np.ndarray | np.generic) or x.dtype == object:
        return jnp.asarray(x)
    # While a function around is being traced it would else be no longer known.
    with jax.ensure_compile_time_eval():
        return jax.device_put(x)


def as_arrays(tree: Any) -> Any:
    """`as_array` of all leaves, in one call of the device where all are numpy's or numbers: a call costs most of it."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)):
        return jax.tree.map(as_array, tree)
    with jax.ensure_compile_time_eval():
        return jax.device_put(jax.tree.map(np.asarray, tree))


def module_of(*trees: Any) -> ModuleType:
    """The module that computes with these arrays: numpy, or jax.numpy where it must be.

    Outside of compiled functions every operation of JAX is compiled anew for each shape. What is known and lies in this
    process's memory numpy computes at once, in single precision or better; its results go through `as_array`.
    """
    return np if all(_is_at_hand(leaf) for leaf in jax.tree.leaves(trees)) else jnp


def _is_at_hand(x: Any) -> bool:
    if isinstance(x, Tracer):
        return False
    dtype = getattr(x, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind not in "biu" and (dtype.kind != "f" or dtype.itemsize < 4):
        return False
    if isinstance(x, jax.Array):
        return isinstance(dtype, np.dtype) and x.is_fully_addressable and all(d.platform == "cpu" for d in x.devices())
    return True


def entry(x: Any, index: Any) -> Any:
    """x[index], as an array of JAX."""
    return as_array(np.asarray(x)[index]) if module_of(x) is np else x[index]


def stacked(*arrays: Any) -> Any:
    """`jnp.stack`."""
    return as_array(np.stack(arrays)) if module_of(arrays) is np else jnp.stack(arrays)


def one_thread() -> AbstractContextManager:
    """Within it numpy's products take one thread: for small ones, several cost more than they save."""
    return _threads().limit(limits=1)


@cache
def _threads() -> ThreadpoolController:
    # Looks for libraries in the whole memory of the process, which takes as long as a short run.
    return ThreadpoolController()
