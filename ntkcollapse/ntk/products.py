"""Products of the empirical NTK with vectors, for networks and sets of any size."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntkcollapse._checks import check_choice, check_finite, check_real, check_shape
from ntkcollapse.ntk._memory import budget
from ntkcollapse.ntk._problem import Problem, one_like, prepare
from ntkcollapse.ntk.engines._engine import marked
from ntkcollapse.ntk.engines.layerwise import sample_bytes


class NTKOperator:
    r"""The empirical NTK of a set of samples as a linear map, Θ v = J Jᵀ v.

    A product is one backward pass over the samples (`jax.vjp`), which sums a gradient, and one forward pass
    (`jax.jvp`) along it. Samples stream through in chunks: nothing of size N·P or N² is made.

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
        n = np.shape(x)[0]
        # No bytes where no chosen parameter meets the samples.
        chunk = max(1, min(n, budget(memory) // max(1, sample_bytes(self._problem, one_like(x)))))
        # Of one size, so that one shape is compiled; the last one is filled up with samples of weight zero.
        self._chunk = -(-n // -(-n // chunk))

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
        v = jnp.asarray(v, self._problem.dtype)
        if self.outputs == "full":
            return self._apply(v)
        K = self._problem.num_outputs
        eye = jnp.eye(K, dtype=v.dtype)
        return jnp.stack([self._apply(v[:, None] * eye[k][None, :])[:, k] for k in range(K)]).mean(0)

    def _apply(self, v):
        n, size = len(v), self._chunk
        total = None
        for i in range(0, n, size):
            part = _back(self._problem, self._samples(i), _filled(v[i : i + size], size))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        check_finite("gradients of f", total)
        parts = [_forth(self._problem, self._samples(i), total) for i in range(0, n, size)]
        return jnp.concatenate(parts)[:n]

    def _samples(self, i):
        return _filled(jnp.asarray(self._x[i : i + self._chunk]), self._chunk, zero=False)


def ntk_vector_product(f: Callable, params: PyTree, x: Any, v: Any, **options: Any) -> Float[Array, "N K"]:
    """Θ v for one vector (N, K); build an `NTKOperator` for many."""
    return NTKOperator(f, params, x, **options)(v)


def _filled(a, size: int, *, zero: bool = True):
    missing = size - a.shape[0]
    if not missing:
        return a
    more = jnp.zeros((missing, *a.shape[1:]), a.dtype) if zero else jnp.repeat(a[:1], missing, axis=0)
    return jnp.concatenate([a, more])


@eqx.filter_jit
def _back(problem: Problem, x: Array, v: Array) -> PyTree:
    y, pullback = jax.vjp(lambda params: problem.f(params, x), problem.params)
    return pullback(marked(v.astype(y.dtype), y))[0]


@eqx.filter_jit
def _forth(problem: Problem, x: Array, direction: PyTree) -> Array:
    return jax.jvp(lambda params: problem.f(params, x), (problem.params,), (direction,))[1].astype(problem.dtype)
