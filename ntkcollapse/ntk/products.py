"""Products of the empirical NTK with vectors, for networks and sets of any size."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntkcollapse._checks import check_choice, check_real, check_shape, is_traced
from ntkcollapse._precision import Precision, exact_products
from ntkcollapse.ntk._devices import Devices
from ntkcollapse.ntk._memory import budget, evened, fit
from ntkcollapse.ntk._problem import Problem, one_like, prepare
from ntkcollapse.ntk._samples import one_array
from ntkcollapse.ntk.engines._engine import marked
from ntkcollapse.ntk.engines.layerwise import sample_bytes

# So many samples go through a pass together at least, where there are as many.
_SAMPLES = 32


class NTKOperator:
    r"""The empirical NTK of a set of samples, or between two sets, as a linear map, Θ(x, x2) v = J(x) J(x2)ᵀ v.

    A product is one backward pass over the samples (`jax.vjp`), which sums a gradient, and one forward pass
    (`jax.jvp`) along it. Samples stream through in chunks: nothing of size N·P or N² is made. The mean over outputs
    takes a gradient for each output, and `matmat` one for each vector (and output): as many of them as memory allows,
    P numbers each, go back and forth together. Several devices share the samples.

    Args:
        f, params, x, x2, parameters, in_axes, memory, precision: as in `empirical_ntk`. With x2 the map is rectangular:
            from vectors on x2 to vectors on x.
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
        x2: Any = None,
        *,
        outputs: Literal["full", "mean"] = "full",
        parameters: Any = None,
        in_axes: Any = 0,
        memory: int | float | None = None,
        precision: Precision | None = None,
    ):
        check_choice("outputs", outputs, ("full", "mean"))
        with exact_products(precision):
            pass
        self.outputs = outputs
        f, samples = one_array(f, {"x": x} if x2 is None else {"x": x, "x2": x2}, in_axes)
        self._problem = prepare(f, params, samples, parameters)
        x = samples["x"]
        self._x, self._x2 = x, samples.get("x2", x)
        self.is_symmetric = x2 is None
        # No bytes where no chosen parameter meets the samples.
        self._sample_bytes = max(1, sample_bytes(self._problem, one_like(x)))
        self._memory, self._precision = budget(memory), precision

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the vectors: (N, K), or (N,) for the mean over outputs; N samples of x2 where there is one."""
        n = np.shape(self._x2)[0]
        return (n, self._problem.num_outputs) if self.outputs == "full" else (n,)

    @property
    def T(self) -> "NTKOperator":
        """The transposed map, from vectors on x to vectors on x2."""
        other = copy.copy(self)
        other._x, other._x2 = self._x2, self._x
        return other

    @property
    def dtype(self):
        """Precision of the products."""
        return self._problem.dtype

    def __call__(self, v: Any) -> Float[Array, "N ..."]:
        """Θ v, one number for each row of the kernel.

        Raises:
            ValueError: a vector of another shape, or gradients that are not finite.
        """
        check_real(v=v)
        check_shape("v", v, self.shape, "one number for each column of the kernel")
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
        with exact_products(self._precision):
            return self._product(X)

    def _product(self, X):
        """Θ X by gradients: one for each vector, and for each output where the kernel is a mean over them."""
        (n2, *_, k), n, K = X.shape, np.shape(self._x)[0], self._problem.num_outputs
        outputs = np.tile(np.arange(K), k) if self.outputs == "mean" else np.zeros(k, int)
        vectors = np.arange(k).repeat(len(outputs) // max(k, 1))
        # Not so many gradients at once that only a few samples fit beside them.
        each = max(3 * self._problem.num_params * self.dtype.itemsize, min(n, _SAMPLES) * self._sample_bytes)
        together = evened(len(vectors), fit(self._memory // 2, each, len(vectors)))
        # What has no values yet is shared by the devices of the program that it is a part of.
        devices = None if is_traced(self._problem, self._x, self._x2, X) else Devices()
        count = 1 if devices is None else devices.count

        def of_all(m: int) -> int:
            """Samples that all devices pass through together."""
            each = -(-m // count)
            return count * evened(each, fit(self._memory // 2, together * self._sample_bytes, each))

        def placed(x, axis: int = 0):
            return x if count == 1 or devices is None else devices.split(x, axis=axis)

        # Of one size, so that one shape is compiled; the last ones are filled up with samples and vectors of zeros.
        chunk, chunk2 = of_all(n), of_all(n2)
        problem = self._problem if devices is None else devices.everywhere(self._problem)
        out = jnp.zeros((k, n, *X.shape[1:-1]), X.dtype)
        finite = []
        for first in range(0, len(vectors), together):
            some = slice(first, first + together)
            V = _filled(jnp.moveaxis(X, -1, 0)[vectors[some]], together)
            at = None if self.outputs == "full" else jnp.asarray(np.resize(outputs[some], together))
            at = at if devices is None else devices.everywhere(at)
            total = None
            for i in range(0, n2, chunk2):
                here = _filled(V[:, i : i + chunk2], chunk2, axis=1)
                part = _back(problem, placed(_samples(self._x2, i, chunk2)), placed(here, axis=1), at)
                total = part if total is None else _sum(total, part)
            finite.append(_is_finite(total))
            parts = [_forth(problem, placed(_samples(self._x, i, chunk)), total, at) for i in range(0, n, chunk)]
            if count > 1 and devices is not None:
                parts = [jnp.asarray(part) for part in devices.fetch(parts)]
            out = out.at[vectors[some]].add(jnp.concatenate(parts, axis=1)[: len(vectors[some]), :n])
        # Asked for once all is on its way.
        if devices is not None and not np.all(jax.device_get(devices.to_fetch(finite))):
            raise ValueError("gradients of f: expected finite numbers; find what produced the others before going on.")
        return jnp.moveaxis(out, 0, -1) / (K if self.outputs == "mean" else 1)


@partial(jax.jit, donate_argnums=0)
def _sum(total: PyTree, part: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, part)


@jax.jit
def _is_finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _samples(x, i, chunk):
    return _filled(jnp.asarray(x[i : i + chunk]), chunk, zero=False)


def ntk_vector_product(f: Callable, params: PyTree, x: Any, v: Any, **options: Any) -> Float[Array, "N K"]:
    """Θ v for one vector (N, K), on x2 where the options have one; build an `NTKOperator` for many."""
    return NTKOperator(f, params, x, **options)(v)


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
