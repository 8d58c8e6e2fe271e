"""Samples of several arrays (tokens with a mask, graphs), or along another axis, as one array with a row a sample."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt8

from ntkcollapse._checks import check_finite, is_traced


class Part(NamedTuple):
    """One array of a sample: shape without the axis of samples, type, and where that axis stands."""

    shape: tuple[int, ...]
    dtype: np.dtype
    axis: int


class Turned(eqx.Module):
    """(params, x) ↦ f(params, x with its first axis moved to where f has its samples)."""

    f: Callable
    axis: int = eqx.field(static=True)

    def __call__(self, params: PyTree, x: Array) -> Any:
        return self.f(params, jnp.moveaxis(x, 0, self.axis))


class Unpacked(eqx.Module):
    """(params, rows of bytes) ↦ f(params, the pytree of samples that they hold)."""

    f: Callable
    treedef: Any = eqx.field(static=True)
    parts: tuple[Part, ...] = eqx.field(static=True)

    def __call__(self, params: PyTree, rows: UInt8[Array, "N bytes"]) -> Any:
        leaves, start = [], 0
        for shape, dtype, axis in self.parts:
            truth = np.issubdtype(dtype, np.bool_)
            stored = np.dtype(np.uint8) if truth else dtype
            size = int(np.prod(shape)) * stored.itemsize
            words = () if stored.itemsize == 1 else (stored.itemsize,)
            part = rows[:, start : start + size].reshape(-1, *shape, *words)
            start += size
            leaf = part != 0 if truth else jax.lax.bitcast_convert_type(part, dtype)
            leaves.append(jnp.moveaxis(leaf, 0, axis))
        return self.f(params, jax.tree.unflatten(self.treedef, leaves))


def one_array(f: Callable, samples: dict[str, Any], in_axes: Any) -> tuple[Callable, dict[str, Any]]:
    """f and its sets of samples, the same where each is one array with a row a sample.

    Args:
        samples: by the name that messages call them.
        in_axes: where samples stand in the arrays, as `jax.vmap` has it: one number, or a pytree of them that is x's
            or its upper levels.
    Raises:
        ValueError: arrays of unequal numbers of samples, sets of different arrays, axes that are not there.
        TypeError: leaves that are no arrays of real numbers.
    """
    if not callable(f):
        raise TypeError(f"f: expected a function f(params, x) -> (N, K), got {type(f).__name__}.")
    name, x = next(iter(samples.items()))
    if hasattr(x, "dtype") and in_axes == 0:
        return f, samples
    if hasattr(x, "dtype"):
        turned = {}
        for name, x in samples.items():
            turned[name] = (jnp if is_traced(x) else np).moveaxis(x, _axis(name, x, in_axes), 0)
        return Turned(f, in_axes), turned
    packed, first = {}, None
    for name, x in samples.items():
        if not jax.tree.leaves(x) or isinstance(x, str):
            raise TypeError(f"{name}: expected an array, or a pytree of arrays, got {type(x).__name__}.")
        treedef, parts, rows = _packed(name, x, in_axes)
        if first is not None and first != (treedef, parts):
            raise ValueError(f"{name}: expected arrays of the structure, shapes and types of those before, got others.")
        first, packed[name] = (treedef, parts), rows
    assert first is not None
    return Unpacked(f, *first), packed


def _axis(name: str, x: Any, axis: Any) -> int:
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise ValueError(f"in_axes: expected a whole number, where the samples of {name} stand, got {axis!r}.")
    ndim = np.ndim(x)
    if not -ndim <= axis < ndim:
        raise ValueError(f"in_axes: expected an axis of {name}, which has {ndim}, got {axis}.")
    return axis % ndim


def _packed(name: str, x: PyTree, in_axes: Any) -> tuple[Any, tuple[Part, ...], Any]:
    leaves, treedef = jax.tree.flatten(x)
    try:
        axes = jax.tree.leaves(jax.tree.map(lambda axis, part: jax.tree.map(lambda _: axis, part), in_axes, x))
    except ValueError as error:
        raise ValueError(f"in_axes: expected a number, or a pytree like the upper levels of {name}: {error}") from error
    parts, rows, count = [], [], None
    for (path, leaf), axis in zip(jax.tree.leaves_with_path(x), axes, strict=True):
        at = f"{name}{jax.tree_util.keystr(path)}"
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"{at}: expected an array, got {type(leaf).__name__}; np.asarray makes one of it.")
        check_finite(at, leaf)
        axis = _axis(at, leaf, axis)
        n, dtype = np.shape(leaf)[axis], np.dtype(jnp.result_type(leaf))
        if count not in (None, n) or n < 1:
            raise ValueError(f"{at}: expected {count or 'at least one'} samples along axis {axis}, got {n}.")
        count = n
        numpy: Any = jnp if is_traced(leaf) else np
        leaf = numpy.moveaxis(numpy.asarray(leaf, dtype), axis, 0)
        parts.append(Part(leaf.shape[1:], dtype, axis))
        leaf = leaf.astype(np.uint8) if np.issubdtype(dtype, np.bool_) else leaf
        if is_traced(leaf):
            rows.append(_bytes(leaf).reshape(n, -1))
        else:
            rows.append(np.ascontiguousarray(leaf.reshape(n, -1)).view(np.uint8))
    del leaves
    return treedef, tuple(parts), (jnp if is_traced(rows) else np).concatenate(rows, axis=1)


@jax.custom_jvp
def _bytes(a: Array) -> Array:
    return jax.lax.bitcast_convert_type(a, jnp.uint8)


@_bytes.defjvp
def _no_derivative(primals, tangents):
    del primals, tangents
    raise ValueError(
        "x: expected samples of one array to differentiate a kernel in them, got a pytree, whose numbers are handed on "
        "as bytes; join its arrays to one."
    )
