"""Products of the empirical NTK with vectors, for networks and sets of any size."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntkcollapse._checks import check_choice, check_finite, check_real, check_shape
from ntkcollapse.ntk._memory import budget, fit
from ntkcollapse.ntk._problem import Problem, one_like, prepare
from ntkcollapse.ntk.engines._engine import marked
from ntkcollapse.ntk.engines.layerwise import sample_bytes


class NTKOperator:
    r"""The empirical NTK of a set of samples as a linear map, Θ v = J Jᵀ v.

    A product is one backward pass over the samples (`jax.vjp`), which sums a gradient, and one forward pass
    (`jax.jvp`) along it. Samples stream through in chunks: nothing of size N·P or N² is made. The mean over outputs
    takes a gradient for each output, and `matmat` one for each vector (and output): as many of them as memory allows,
    P numbers each, go back and forth together.

    Args:
        f, params, x, parameters, memory: as in `empirical_ntk`.
        outputs: "full", vectors (N, K) and Θ with all its outputs; or "mean", vectors (N,) and the mean of Θ_kk over
            k, at the cost of K products.
    Raises:
        ValueError: as `empirical_ntk`.
    """

    def __init__(
        self,
        f: Callable,
        params: PyTree,
        x: Any,
        *,
        outputs: Literal["full", "mean"] = "full",
        parameters: Any = None,
        memory: int | float | None = None,
    ):
        check_choice("outputs", outputs, ("full", "mean"))
        self.outputs = outputs
        self._problem = prepare(f, params, {"x": x}, parameters)
        self._x = x
        # No bytes where no chosen parameter meets the samples.
        self._sample_bytes = max(1, sample_bytes(self._problem, one_like(x)))
        self._memory = budget(memory)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the vectors: (N, K), or (N,) for the mean over outputs."""
        n = np.shape(self._x)[0]
        return (n, self._problem.num_outputs) if self.outputs == "full" else (n,)

    @property
    def dtype(self):
        """Precision of the products."""
        return self._problem.dtype

    def __call__(self, v: Any) -> Float[Array, "N ..."]:
        """Θ v.

        Raises:
            ValueError: a vector of another shape, or gradients that are not finite.
        """
        check_real(v=v)
        check_shape("v", v, self.shape, "one number for each row of the kernel")
        return self._applied(jnp.asarray(v, self.dtype)[..., None])[..., 0]

    def matmat(self, X: Any) -> Float[Array, "N ... k"]:
        """Θ X for k vectors at once, on the last axis of X: (N, k) for the mean over outputs, (N, K, k) for all.

        Raises:
            ValueError: vectors of another shape, or gradients that are not finite.
        """
        check_real(X=X)
        check_shape(
            "X", X, (*self.shape, None), "vectors as the kernel takes them, one for each entry of the last axis"
        )
        return self._applied(jnp.asarray(X, self.dtype))

    def _applied(self, X):
        """Θ X by gradients: one for each vector, and for each output where the kernel is a mean over them."""
        (n, *_, k), K = X.shape, self._problem.num_outputs
        outputs = np.tile(np.arange(K), k) if self.outputs == "mean" else np.zeros(k, int)
        vectors = np.arange(k).repeat(len(outputs) // max(k, 1))
        gradient = 3 * self._problem.num_params * self.dtype.itemsize
        together = _even(len(vectors), fit(self._memory // 2, gradient, len(vectors)))
        # Of one size, so that one shape is compiled; the last ones are filled up with samples and vectors of zeros.
        chunk = _even(n, fit(self._memory // 2, together * self._sample_bytes, n))
        out = jnp.zeros((k, *X.shape[:-1]), X.dtype)
        for first in range(0, len(vectors), together):
            some = slice(first, first + together)
            V = _filled(jnp.moveaxis(X, -1, 0)[vectors[some]], together)
            at = None if self.outputs == "full" else jnp.asarray(np.resize(outputs[some], together))
            total = None
            for i in range(0, n, chunk):
                here = _filled(V[:, i : i + chunk], chunk, axis=1)
                part = _back(self._problem, self._samples(i, chunk), here, at)
                total = part if total is None else jax.tree.map(jnp.add, total, part)
            check_finite("gradients of f", total)
            parts = [_forth(self._problem, self._samples(i, chunk), total, at) for i in range(0, n, chunk)]
            out = out.at[vectors[some]].add(jnp.concatenate(parts, axis=1)[: len(vectors[some]), :n])
        return jnp.moveaxis(out, 0, -1) / (K if self.outputs == "mean" else 1)

    def _samples(self, i, chunk):
        return _filled(jnp.asarray(self._x[i : i + chunk]), chunk, zero=False)


def ntk_vector_product(f: Callable, params: PyTree, x: Any, v: Any, **options: Any) -> Float[Array, "N K"]:
    """Θ v for one vector (N, K); build an `NTKOperator` for many."""
    return NTKOperator(f, params, x, **options)(v)


def _even(number: int, most: int) -> int:
    """The size of as few equal parts as there can be with at most so many each."""
    return -(-number // -(-number // most)) if number else 1


def _filled(a, size: int, *, axis: int = 0, zero: bool = True):
    missing = size - a.shape[axis]
    if not missing:
        return a
    if not zero:
        return jnp.concatenate([a, jnp.repeat(a[:1], missing, axis=0)])
    return jnp.pad(a, [(0, missing if i == axis else 0) for i in range(a.ndim)])


@eqx.filter_jit
def _back(problem: Problem, x: Array, V: Array, outputs: Array | None) -> PyTree:
    """Gradients of f along each of the vectors V (B, n, K); or V (B, n), each at one output (B,) alone."""
    y, pullback = jax.vjp(lambda params: problem.f(params, x), problem.params)
    if outputs is not None:
        V = V[:, :, None] * jax.nn.one_hot(outputs, problem.num_outputs, dtype=V.dtype)[:, None, :]
    return jax.vmap(lambda v: pullback(marked(v.astype(y.dtype), y))[0])(V)


@eqx.filter_jit
def _forth(problem: Problem, x: Array, directions: PyTree, outputs: Array | None) -> Array:
    """The change of f along each direction (B, n, K); or (B, n), that of one output each."""
    change = jax.linearize(lambda params: problem.f(params, x), problem.params)[1]
    moved = jax.vmap(change)(directions).astype(problem.dtype)
    return moved if outputs is None else jnp.take_along_axis(moved, outputs[:, None, None], axis=2)[:, :, 0]
