"""Collapse of the features that a kernel stands for, from its Gram matrix alone."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from ntkcollapse import _safe
from ntkcollapse._checks import check_finite, check_real, check_shape, is_traced
from ntkcollapse.collapse.nc1 import without_last_direction
from ntkcollapse.collapse.nc2 import simplex_gram
from ntkcollapse.collapse.statistics import as_floats, check_labels, in_range, unit_of_squares


class KernelStatistics(eqx.Module):
    r"""Class means and within-class scatter of the features behind K = Φ(X)ᵀΦ(X), as far as inner products tell them.

        sizes            m_c
        mean_gram        MᵀM             (C, C): the mean of K over blocks of classes, diagonal entries included
        within_variance  tr Σ_W          = (1/N) Σ_i ( K_ii − mean of K over i's class block )
        mean_scatter     Mᵀ S M / N      (C, C), in units of the square of `unit`
        rounding         ε max |K|       what inner products are known to
        unit             1, or a power of two where squares of K would leave the range of its type

    Features, and so M, are taken about the first sample (K_ij − K_i1 − K_1j + K_11): no metric depends on the origin,
    and what all features share is gone before anything is summed.

    Works for kernels whose features are infinitely many (NNGP, infinite-width NTK) or only implicit (an empirical NTK),
    so that all of them can be compared on one data set.
    """

    sizes: Float[Array, " C"]
    mean_gram: Float[Array, "C C"]
    within_variance: Float[Array, ""]
    mean_scatter: Float[Array, "C C"]
    rounding: Float[Array, ""]
    unit: Float[Array, ""]

    @classmethod
    def from_gram(
        cls,
        K: Float[ArrayLike, "N N"],
        labels: Shaped[ArrayLike, " N"] | Sequence[int],
        num_classes: int | None = None,
    ) -> "KernelStatistics":
        """Measures a Gram matrix and the classes of its rows, in any order; in float32 at least. Costs C N².

        Raises:
            ValueError: K that is not square, real, finite and symmetric; labels as in `ClassStatistics.from_features`.
        """
        check_real(K=K)
        K = as_floats(K)
        check_shape("K", K, (None, None), "one row and one column a sample")
        check_shape("K", K, (K.shape[0], K.shape[0]), "square: rows and columns are the same samples")
        check_finite("K", K)
        if not is_traced(K):
            values = np.asarray(K)
            asymmetry = np.abs(values - values.T).max() / max(np.abs(values).max(), np.finfo(values.dtype).tiny)
            if asymmetry > 1e-4:
                raise ValueError(f"K: expected a symmetric Gram matrix, got relative asymmetry {asymmetry:.2g}.")
        y, C = check_labels(labels, K.shape[0], num_classes)
        return _from_gram(K, y, C)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.mean_gram.shape[0]

    @property
    def centred_mean_gram(self) -> Float[Array, "C C"]:
        """Gram matrix of the class means about their mean; 0 where its trace is not above C times `rounding`."""
        P = simplex_gram(self.num_classes, self.mean_gram.dtype)
        G = jnp.matmul(jnp.matmul(P, self.mean_gram, precision="highest"), P, precision="highest")
        return jnp.where(jnp.trace(G) <= self.num_classes * self.rounding, 0, G)


def kernel_nc1_kothapalli2025(statistics: KernelStatistics) -> Float[Array, ""]:
    r"""tr Σ_W / tr Σ_B of the kernel's features; of a linear kernel, `nc1_tirer2022` (class-weighted).

        tr Σ_B = (1/C) Σ_c K̄_cc − (1/C²) Σ_cd K̄_cd,   K̄ = mean_gram

    +inf where all class means coincide, to the rounding of K.

    References:
        Kothapalli & Tirer (2025), Can kernel methods explain how the data affects neural collapse?
    """
    between = jnp.trace(statistics.centred_mean_gram) / statistics.num_classes
    return _safe.divide(statistics.within_variance, between, jnp.inf)


def kernel_nc1_papyan2020(statistics: KernelStatistics) -> Float[Array, ""]:
    r"""tr(Σ_W Σ_B⁺) / C of the kernel's features, truncated to rank C − 1 by construction.

    With A the contrasts of the class means, C − 1 orthonormal ones, and G = AᵀA, it is tr(G⁺ (AᵀΣ_W A) G⁺).
    Directions of G below the rounding of K are left out. Digits: those of the *squared* condition number of the class
    means, twice what `nc1_papyan2020` loses. +inf where all class means coincide, to the rounding of K.
    """
    G = _contrasts(statistics.centred_mean_gram / statistics.unit)
    scatter = _contrasts(statistics.mean_scatter)
    largest = jnp.max(jnp.abs(jnp.linalg.eigvalsh(jax.lax.stop_gradient(G))))
    inverse = jnp.linalg.pinv(G, rtol=_safe.divide(statistics.rounding / statistics.unit, largest, 0.0), hermitian=True)
    value = jnp.sum(inverse * jnp.matmul(inverse, scatter, precision="highest"))
    return jnp.where(largest <= 0, jnp.inf, value)


def kernel_nc2_seleznova2023(statistics: KernelStatistics) -> Float[Array, ""]:
    """`nc2_seleznova2023` of the class means of the kernel's features; 1 where they coincide, to the rounding of K."""
    P = simplex_gram(statistics.num_classes, statistics.mean_gram.dtype)
    return _safe.norm(_safe.unit(statistics.centred_mean_gram) - _safe.unit(P))


def _contrasts(A: Float[Array, "C C"]) -> Float[Array, "D D"]:
    """Qᵀ A Q with Q (C, C−1) an orthonormal basis of the complement of 1."""
    u = jnp.full(A.shape[0], A.shape[0] ** -0.5, A.dtype)
    return without_last_direction(without_last_direction(A, u).T, u)


@eqx.filter_jit
def _from_gram(K, labels, num_classes: int) -> KernelStatistics:
    labels, valid = in_range(labels, num_classes, K.dtype)
    rounding = float(jnp.finfo(K.dtype).eps) * jnp.max(jnp.abs(jax.lax.stop_gradient(K)))
    unit = unit_of_squares(K)
    K = K / unit
    K = (K - K[:, :1]) - (K[:1, :] - K[0, 0])
    member = (labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)[None, :]).astype(K.dtype)
    sizes = member.sum(0)
    average = member / sizes[None, :]
    inner = jnp.matmul(average.T, K, precision="highest")  # Mᵀ H
    gram = jnp.matmul(inner, average, precision="highest")
    deviations = inner - gram[:, labels]
    within = jnp.mean(jnp.diagonal(K) - jnp.diagonal(gram)[labels])
    return KernelStatistics(
        sizes=sizes * valid,
        mean_gram=gram * unit * valid,
        within_variance=within * unit * valid,
        mean_scatter=jnp.matmul(deviations, deviations.T, precision="highest") / K.shape[0] * valid,
        rounding=rounding,
        unit=unit,
    )
