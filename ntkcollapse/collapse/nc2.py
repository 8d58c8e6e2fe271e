"""NC2, the simplex ETF: how far class means, or the rows of the classifier, are from equal lengths and angles."""

import warnings

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from ntkcollapse import _safe
from ntkcollapse._checks import check_finite, check_real, check_shape
from ntkcollapse.collapse.statistics import ClassStatistics

# Whose geometry is measured: class means through their statistics, or the rows of a classifier W (C, n).
Frame = ClassStatistics | Float[ArrayLike, "C n"]


def nc2_seleznova2023(of: Frame, *, centred: bool | None = None) -> Float[Array, ""]:
    r"""Frobenius distance of the normalised Gram matrix from that of a simplex ETF.

        ‖ VᵀV / ‖VᵀV‖_F − (I − 11ᵀ/C) / √(C−1) ‖_F

    Args:
        of: statistics, whose class means become the columns of V; or W, whose rows do.
        centred: whether the mean of the columns is taken away first; by default for means, not for W.
    Returns:
        Between 0 (a simplex ETF) and √2, invariant to rotation and scale; 1 where V = 0.
    Warns:
        UserWarning: n < C − 1, where no simplex ETF exists; see `simplex_etf_floor`.
    Raises:
        ValueError: numbers that are not finite, or W of one class only.
    References:
        Seleznova et al. (2023) for centred class means. Zhu et al. (2021): the same of W, `nc2_zhu2021`.
    """
    V = frame_columns(of, centred)
    C = V.shape[1]
    gram = jnp.matmul(V.T, V, precision="highest")
    return _safe.norm(_safe.unit(gram) - simplex_gram(C, V.dtype) / jnp.sqrt(C - 1.0).astype(V.dtype))


def nc2_zhu2021(W: Float[ArrayLike, "C n"]) -> Float[Array, ""]:
    r"""‖ WWᵀ / ‖WWᵀ‖_F − (I − 11ᵀ/C) / √(C−1) ‖_F: the classifier's distance from a simplex ETF, not centred.

    References:
        Zhu et al. (2021).
    """
    return nc2_seleznova2023(W, centred=False)


def nc2_equinorm_papyan2020(of: Frame, *, centred: bool | None = None) -> Float[Array, ""]:
    r"""Coefficient of variation of the lengths, Std_c ‖v_c‖ / Avg_c ‖v_c‖.

    Arguments as in `nc2_seleznova2023`. Zero for equal lengths, invariant to rotation and scale; 0 where V = 0. The
    standard deviation is that of the population (divided by C).

    References:
        Papyan, Han & Donoho (2020), for centred class means and for the classifier.
    """
    lengths = _lengths(frame_columns(of, centred))
    return _safe.divide(_safe.std(lengths), jnp.mean(lengths), 0.0)


def nc2_equiangle_papyan2020(of: Frame, *, centred: bool | None = None) -> Float[Array, ""]:
    r"""Standard deviation over pairs c ≠ c' of the cosine of the angle between v_c and v_c'.

    Arguments as in `nc2_seleznova2023`. Zero for equal angles of any size.

    References:
        Papyan, Han & Donoho (2020).
    """
    return _safe.std(_cosines(frame_columns(of, centred)))


def nc2_maximal_angle_papyan2020(of: Frame, *, centred: bool | None = None) -> Float[Array, ""]:
    r"""Mean over pairs c ≠ c' of | cos(v_c, v_c') + 1/(C−1) |: zero where angles are equal and as wide as possible.

    Arguments as in `nc2_seleznova2023`.

    References:
        Papyan, Han & Donoho (2020).
    """
    V = frame_columns(of, centred)
    return jnp.mean(jnp.abs(_cosines(V) + 1 / (V.shape[1] - 1)))


def simplex_gram(num_classes: int, dtype: DTypeLike = float) -> Float[Array, "C C"]:
    """I − 11ᵀ/C: Gram matrix of a simplex ETF of C vectors, up to scale. Its Frobenius norm is √(C−1)."""
    return jnp.eye(num_classes, dtype=dtype) - 1 / num_classes


def simplex_etf_floor(num_features: int, num_classes: int) -> float:
    r"""The least value of `nc2_seleznova2023` that C vectors in n dimensions can reach.

        √(2 − 2 √(r / (C−1))),  r = min(n, C−1)

    0 for n ≥ C − 1. Below that the Gram matrix has rank n, and its nearest direction is a projector of rank n.

    >>> simplex_etf_floor(9, 10), round(simplex_etf_floor(512, 1000), 4)
    (0.0, 0.7538)
    """
    r = min(num_features, num_classes - 1)
    return float((2 - 2 * (r / (num_classes - 1)) ** 0.5) ** 0.5)


def frame_columns(of: Frame, centred: bool | None, *, simplex: bool = True) -> Float[Array, "n C"]:
    """The vectors of a frame as columns, in a unit of their own; warns where a `simplex` has no room."""
    if isinstance(of, ClassStatistics):
        check_finite("means", of.means)
        V = of.centred_means() if centred in (None, True) else of.means
    else:
        check_real(W=of)
        check_finite("W", of)
        check_shape("W", of, (None, None), "(C classes, n features)")
        V = jnp.asarray(of).T
        if V.shape[1] < 2:
            raise ValueError(
                f"W: expected the rows of at least two classes, got shape {np.shape(of)}; one has no angles."
            )
        V = V - V.mean(1, keepdims=True) if centred else V
    if simplex:
        warn_if_no_simplex(*V.shape)
    # Scale is nothing here, and squares of entries below 1e-19 would be lost in float32.
    return V / _safe.power_of_two(V)


def warn_if_no_simplex(num_features: int, num_classes: int, *, stacklevel: int = 4) -> None:
    if num_features < num_classes - 1:
        warnings.warn(
            f"means, W: {num_features} features cannot hold a simplex ETF of C = {num_classes} vectors, which needs "
            f"n ≥ C − 1; the distance from it stays above {simplex_etf_floor(num_features, num_classes):.3g}.",
            stacklevel=stacklevel,
        )


def _cosines(V: Float[Array, "n C"]) -> Float[Array, " pairs"]:
    """Cosines of all pairs c < c'; a column of length 0 has cosine 0 with every other."""
    lengths = _lengths(V)
    units = V / jnp.where(lengths > 0, lengths, 1)[None, :]
    gram = jnp.matmul(units.T, units, precision="highest")
    return gram[jnp.triu_indices(V.shape[1], 1)]


def _lengths(V: Float[Array, "n C"]) -> Float[Array, " C"]:
    return _safe.root(jnp.sum(jnp.square(V), axis=0))
