"""Maximal coding rate reduction: how much of the space features fill, and how little of it each class does."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from ntkcollapse._checks import check_finite, check_number, check_positive, check_real, check_shape
from ntkcollapse.classes import Classes, as_classes


class RateReduction(NamedTuple):
    """Coding rates in nats a sample: of all features, of each class by itself on average, and the difference.

    whole: R; within: R_c; reduction: ΔR = R − R_c, never below 0.
    """

    whole: float
    within: float
    reduction: float


def rate_reduction_yu2020(
    H: Float[ArrayLike, "n N"], classes: Classes, *, precision: float = 0.5, normalised: bool = True
) -> RateReduction:
    r"""Coding rates of features up to an error ε, and what knowing the classes saves.

        R   = ½ log det(I + n/(N ε²) Z Zᵀ)
        R_c = Σ_c (m_c/2N) log det(I + n/(m_c ε²) Z_c Z_cᵀ),      ΔR = R − R_c

    Large where classes fill the space together and each of them little of it. Beside NC1: scatter within a class costs
    R_c, as in NC1, but a class that fills a subspace of its own is worth *more* than one that has collapsed to a point
    (`maximal_rate_reduction`), so that the maximum of ΔR is not neural collapse.

    Args:
        H: features in columns, class by class; nothing is centred.
        classes: behind the columns.
        precision: ε.
        normalised: whether columns are put on the unit sphere first, as in the source: Z = H/‖h‖, and 0 where h = 0.
    Returns:
        Numbers, in float64; invariant to rotations. Costs N min(n, N)², memory n N + min(n, N)².
    Raises:
        ValueError: columns that `classes` does not have, numbers that are not finite, or ε not above 0.
    References:
        Yu, Chan, You, Song & Ma (2020).
    """
    _check_precision(precision)
    check_real(H=H)
    classes = as_classes(classes)
    check_shape("H", H, (None, classes.num_samples), f"(n, N) for the {classes.num_samples} samples of classes")
    check_finite("H", H)
    Z = np.asarray(H, dtype=np.float64)
    if normalised:
        # By the largest entry first: squares of the smallest would be lost.
        Z = Z / np.maximum(np.abs(Z).max(0, initial=0), np.finfo(float).tiny)
        lengths = np.linalg.norm(Z, axis=0)
        Z = Z / np.where(lengths > 0, lengths, 1)
    n, N = Z.shape
    whole = _log_det(Z, n / (N * precision**2)) / 2
    parts = np.split(Z, np.cumsum(classes.sizes)[:-1], axis=1)
    within = sum(z.shape[1] / (2 * N) * _log_det(z, n / (z.shape[1] * precision**2)) for z in parts)
    return RateReduction(whole, within, whole - within)


def maximal_rate_reduction(
    classes: Classes, num_features: int, *, ranks: int | Sequence[int] = 1, precision: float = 0.5
) -> float:
    r"""The largest ΔR of features with Σ_{i ∈ c} ‖z_i‖² = m_c and class c in at most d_c dimensions, Σ d_c ≤ n.

        ΔR* = Σ_c [ (d_c/2) log(1 + n m_c/(N ε² d_c)) − (m_c d_c/2N) log(1 + n/(ε² d_c)) ]

    Reached by classes in orthogonal subspaces, each filling its own evenly (Z_c Z_cᵀ with d_c eigenvalues m_c/d_c).
    With f(x) = log(1 + n x/(N ε²)) − (m_c/N) log(1 + n x/(m_c ε²)) of one eigenvalue x, ΔR ≤ ½ Σ f, and f is first
    convex, then concave: the even spread x = m_c/d_c is the largest exactly where f(x) ≥ x f'(x) on the concave side,
    which holds for ε small enough.

    ranks = 1 is an orthogonal frame of collapsed classes. It beats a simplex ETF, which has
    ((C−1)/2) log(1 + n/((C−1) ε²)) − ½ log(1 + n/ε²), and is beaten by every larger rank.

    Args:
        classes: of any sizes, or a list of them.
        num_features: n.
        ranks: d_c, of each class or of all.
        precision: ε.
    Raises:
        ValueError: ranks below 1, above a class's size or above n together; ε too large for the even spread to be best.
    References:
        Yu, Chan, You, Song & Ma (2020), with ε⁴ < (m_c/N) n²/d_c², which says that x is on the concave side; the exact
        condition is derived here.
    """
    _check_precision(precision)
    classes = as_classes(classes)
    m, N = np.asarray(classes.sizes, float), classes.num_samples
    d = np.broadcast_to(np.asarray(ranks), m.shape).astype(float)
    if (d < 1).any() or (d > m).any() or d.sum() > num_features:
        raise ValueError(
            f"ranks: expected at least 1, at most the size of each class, and at most n = {num_features} together, got "
            f"{ranks} for classes of {classes.sizes}."
        )
    a, share, x = num_features / (N * precision**2), m / N, m / d
    value = np.log1p(a * x) - share * np.log1p(a * x / share)
    slope = a / (1 + a * x) - a / (1 + a * x / share)
    if (a * x <= np.sqrt(share)).any() or (value < x * slope).any():
        raise ValueError(
            f"precision: expected an ε so small that every class is best spread evenly over its dimensions, got "
            f"{precision} for ranks {ranks}; take a smaller one, or smaller ranks."
        )
    return float((d * value).sum() / 2)


def _log_det(Z: np.ndarray, scale: float) -> float:
    """log det(I + scale · Z Zᵀ), through the smaller of Z Zᵀ and ZᵀZ."""
    gram = Z @ Z.T if Z.shape[0] <= Z.shape[1] else Z.T @ Z
    return float(np.linalg.slogdet(np.eye(len(gram)) + scale * gram)[1])


def _check_precision(precision: float) -> None:
    check_number("precision", precision)
    check_positive("precision", precision)
