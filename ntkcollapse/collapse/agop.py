"""The average gradient outer product: which directions of its input a function uses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse import _safe
from ntkcollapse._checks import check_finite, check_positive, check_real, check_shape, check_whole

# Rows in, rows out: (B, ...) -> (B, K), each row of the output a function of the same row of the input.
RowFunction = Callable[[Any], Any]


class LowRankAGOP(NamedTuple):
    """The leading eigenpairs of an AGOP: it is about V diag(eigenvalues) Vᵀ.

    eigenvalues: (r,), falling; eigenvectors: V (n, r), orthonormal; trace: of the whole AGOP, so that
    1 − Σ eigenvalues / trace is the part left out.
    """

    eigenvalues: Float[Array, " r"]
    eigenvectors: Float[Array, "n r"]
    trace: Float[Array, ""]


def agop(f: RowFunction, x: Float[ArrayLike, "N *shape"], *, chunk: int = 256) -> Float[Array, "n n"]:
    r"""Average gradient outer product of a function, exact.

        (1/N) Σ_i J(x_i)ᵀ J(x_i),   J(x) = ∂f/∂x  (K × n), with inputs flattened to n numbers

    Of f(x) = A x it is AᵀA. Costs K backward passes of each sample and K N n² multiplications; memory n² and
    chunk · K · n numbers. For wide inputs use `low_rank_agop`.

    Args:
        f: rows (B, ...) to rows (B, K) or (B,); a row's output must not depend on other rows (batch normalisation in
            evaluation mode). Passed to `jax.jit`: arrays that it holds are best in a `jax.tree_util.Partial`.
        x: points to average over, rows.
        chunk: samples differentiated at once.
    Returns:
        Symmetric, positive semi-definite, in units of (output / input)².
    Raises:
        ValueError: outputs that are not one row a sample, inputs that are not finite.
    References:
        Radhakrishnan, Beaglehole, Pandit & Belkin (2024).
    """
    x = _check(f, x)
    check_whole("chunk", chunk)
    n = int(np.prod(x.shape[1:]))
    total = jnp.zeros((n, n), dtype=jnp.result_type(float, x))
    for start in range(0, x.shape[0], chunk):
        total = total + _gradient_gram(f, x[start : start + chunk]).astype(total.dtype)
    return total / x.shape[0]


def low_rank_agop(
    f: RowFunction,
    x: Float[ArrayLike, "N *shape"],
    rank: int,
    *,
    key: jax.Array,
    iterations: int = 4,
    oversampling: int = 8,
    chunk: int = 256,
) -> LowRankAGOP:
    r"""The leading eigenpairs of the AGOP by randomised subspace iteration; no n × n matrix is formed.

    Each iteration multiplies r + p directions by the AGOP, one derivative forwards and one backwards for each direction
    and sample. The error of directions falls as (λ_{r+p+1} / λ_r)^iterations, that of eigenvalues as its square; they
    are never above the true ones. Memory (r + p) n numbers and chunk · (r + p) · n for the derivatives.

    Args:
        f, x, chunk: as for `agop`.
        rank: r, at most n.
        key: of the random start.
        iterations: multiplications before the last one.
        oversampling: p, directions beyond r that are carried along.
    Raises:
        ValueError: as `agop`; a rank below 1 or above n, a chunk below 1, iterations or oversampling below 0.
    References:
        Halko, Martinsson & Tropp (2011) for the iteration.
    """
    x = _check(f, x)
    n = int(np.prod(x.shape[1:]))
    if not 1 <= rank <= n:
        raise ValueError(f"rank: expected 1 to n = {n}, got {rank}.")
    check_whole("chunk", chunk)
    for name, value in (("iterations", iterations), ("oversampling", oversampling)):
        check_positive(name, value, zero=True)
    width = min(rank + oversampling, n)
    V = jnp.linalg.qr(jax.random.normal(key, (n, width), dtype=x.dtype))[0]
    for _ in range(iterations):
        V = jnp.linalg.qr(_product(f, x, V, chunk)[0])[0]
    AV, trace = _product(f, x, V, chunk, with_trace=True)
    small = V.T @ AV
    eigenvalues, U = jnp.linalg.eigh((small + small.T) / 2)
    return LowRankAGOP(eigenvalues[::-1][:rank], (V @ U)[:, ::-1][:, :rank], trace)


def matrix_square_root(A: Float[ArrayLike, "n n"]) -> Float[Array, "n n"]:
    """The positive semi-definite square root; eigenvalues below 0 by rounding count as 0."""
    eigenvalues, U = jnp.linalg.eigh(jnp.asarray(A))
    return (U * jnp.sqrt(jnp.maximum(eigenvalues, 0))[None, :]) @ U.T


def _check(f: RowFunction, x) -> Array:
    check_real(x=x)
    x = jnp.asarray(x)
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"x: expected rows of at least one sample, got shape {x.shape}.")
    check_finite("x", x)
    shape = jax.eval_shape(f, x).shape
    if len(shape) not in (1, 2) or shape[0] != x.shape[0]:
        raise ValueError(
            f"f: expected one output row for each of the {x.shape[0]} rows of x, (N, K) or (N,); got {shape}."
        )
    return x


def _rows(f: RowFunction, x: Array) -> Array:
    y = f(x)
    return y.reshape(x.shape[0], -1)


@eqx.filter_jit
def _gradient_gram(f: RowFunction, x: Array) -> Float[Array, "n n"]:
    y, pull = jax.vjp(lambda x: _rows(f, x), x)
    # One output at a time for all samples: rows do not mix, so that the cotangent e_k gives every sample's gradient.
    total = 0
    for k in range(y.shape[1]):
        (gradients,) = pull(jnp.zeros_like(y).at[:, k].set(1))
        gradients = gradients.reshape(x.shape[0], -1)
        total = total + jnp.matmul(gradients.T, gradients, precision="highest")
    return jnp.asarray(total)


def _product(f, x, V, chunk: int, with_trace: bool = False) -> tuple[Array, Array]:
    total, trace = jnp.zeros_like(V), jnp.zeros((), V.dtype)
    for start in range(0, x.shape[0], chunk):
        part, squares = _chunk_product(f, x[start : start + chunk], V, with_trace)
        total, trace = total + part, trace + squares
    return total / x.shape[0], trace / x.shape[0]


@eqx.filter_jit
def _chunk_product(f: RowFunction, x: Array, V: Array, with_trace: bool) -> tuple[Array, Array]:
    """Σ_i J_iᵀ J_i V, and Σ_i ‖J_i‖² if asked for."""
    y, push = jax.linearize(lambda x: _rows(f, x), x)
    pull = jax.linear_transpose(push, x)

    def along(v):
        (back,) = pull(push(jnp.broadcast_to(v.reshape(1, *x.shape[1:]), x.shape)))
        return back.reshape(x.shape[0], -1).sum(0)

    squares = jnp.zeros((), V.dtype)
    if with_trace:
        for k in range(y.shape[1]):
            (gradients,) = pull(jnp.zeros_like(y).at[:, k].set(1))
            squares = squares + jnp.sum(jnp.square(gradients))
    return jax.vmap(along, in_axes=1, out_axes=1)(V), squares


def ansatz_correlation(
    A: Float[ArrayLike, "n n"], B: Float[ArrayLike, "n n"], *, centred: bool = False
) -> Float[Array, ""]:
    r"""⟨A, B⟩_F / (‖A‖_F ‖B‖_F), the correlation of the neural feature ansatz.

    With A the neural feature matrix WᵀW of a layer, and B the AGOP with respect to the layer's input or its square
    root: the two published forms of the ansatz differ by that root. In a balanced deep linear network WᵀW is the k-th
    root of the AGOP where k layers lie between that input and the output.

    Args:
        A, B: symmetric matrices of one size.
        centred: whether the mean of the entries is taken from both matrices first (Pearson's correlation).
    Returns:
        Between −1 and 1, between 0 and 1 for uncentred positive semi-definite matrices; 0 where one vanishes.
    References:
        Radhakrishnan et al. (2024); Beaglehole, Mitliagkas & Agarwala (2024).
    """
    check_real(A=A, B=B)
    A, B = jnp.asarray(A), jnp.asarray(B)
    check_shape("B", B, A.shape, "as A has")
    for name, value in (("A", A), ("B", B)):
        check_finite(name, value)
    if centred:
        A, B = A - A.mean(), B - B.mean()
    # Unit matrices: squares of entries below 1e-19 would be lost in float32.
    return jnp.sum(_safe.unit(A) * _safe.unit(B))


def neural_feature_matrix(kernel: Float[ArrayLike, "*fan out"]) -> Float[Array, "fan fan"]:
    """WᵀW of a layer's weight as flax stores it: (in, out), or (height, width, in, out) of a convolution.

    A convolution's "fan" are the numbers of one window, height · width · in, in the order of its kernel.
    """
    K = jnp.asarray(kernel)
    flat = K.reshape(-1, K.shape[-1])
    return jnp.matmul(flat, flat.T, precision="highest")
