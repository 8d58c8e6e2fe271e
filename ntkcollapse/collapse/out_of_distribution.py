"""Samples of no class of the training set: how far from the simplex of class means their features fall."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse import _safe
from ntkcollapse._checks import check_finite, check_real, check_shape, check_whole
from ntkcollapse.collapse.nc4 import check_samples, nearest_class_mean
from ntkcollapse.collapse.statistics import ClassStatistics, as_floats


def nc5_ammar2024(train: ClassStatistics, H: Float[ArrayLike, "n N"], *, centred: bool = False) -> Float[Array, ""]:
    r"""NC5: mean over classes of |cos(μ_c, μ_out)|, with μ_out the mean feature of samples from elsewhere.

    0 where that mean is orthogonal to every class mean. Features that are never negative, as those after a ReLU, have
    no orthogonal means unless they are on different units; `centred` takes cosines about the mean μ_G of class means.

    Args:
        train: statistics of the training features.
        H: features, in columns, of samples of none of its classes.
    Returns:
        Between 0 and 1, invariant to scale and to a common rotation.
    Raises:
        ValueError: shapes that disagree, no samples, or numbers that are not finite.
    References:
        Ammar et al. (2024), NECO, orthogonality of what is in and out of distribution.
    """
    H = _check(H, train)
    M, outside = train.means, H.mean(1)
    if centred:
        M, outside = M - train.global_mean()[:, None], outside - train.global_mean()
    lengths = _safe.root(jnp.sum(jnp.square(M), axis=0))
    return jnp.mean(_safe.divide(jnp.abs(_safe.unit(outside) @ M), lengths, 0.0))


def simplex_distance(H: Float[ArrayLike, "n N"], train: ClassStatistics) -> Float[Array, " N"]:
    r"""Distance of each feature from the nearest class mean of training, over the mean radius of these means.

        min_c ‖h − μ_c‖ / ρ,   ρ² = (1/C) Σ_c ‖μ_c − μ_G‖²

    0 at a vertex of the simplex and, where NC2 holds, 1 at its centre: large for samples of no class.

    Args:
        H: features in columns.
        train: statistics of the training features.
    Returns:
        One score a sample, zero or above, invariant to scale and to a common rotation; +inf where all class means
        coincide.
    Raises:
        ValueError: shapes that disagree, no samples, or numbers that are not finite.
    References:
        This package's form of what the average-gradient-outer-product literature names as a use of collapse.
    """
    H = _check(H, train)
    nearest = train.means[:, nearest_class_mean(H, train.means)]
    distance = _safe.root(jnp.sum(jnp.square(H - nearest), axis=0))
    radius = _safe.root(train.between_class_variance())
    return _safe.divide(distance, jnp.broadcast_to(radius, distance.shape), jnp.inf)


def simplex_angle(H: Float[ArrayLike, "n N"], train: ClassStatistics) -> Float[Array, " N"]:
    r"""1 − max_c cos(h − μ_G, μ_c − μ_G): the direction of each feature against those of the simplex, not its length.

    0 along a vertex, 1 where no vertex is on its side (and at the centre itself), never above 1 + 1/(C − 1) where NC2
    holds. Arguments and errors as for `simplex_distance`.
    """
    H = _check(H, train)
    vertices = _unit_columns(train.centred_means())
    directions = _unit_columns(H - train.global_mean()[:, None])
    return 1 - jnp.max(jnp.matmul(vertices.T, directions, precision="highest"), axis=0)


def neco_ammar2024(
    H: Float[ArrayLike, "n N"], train: ClassStatistics, *, dimension: int | None = None
) -> Float[Array, " N"]:
    r"""1 − ‖P h‖/‖h‖ with P on the leading principal directions of the training features: what a feature has outside.

    Principal directions are the eigenvectors of Σ_W + Σ_B (weighted by sample), h is taken about the mean of the
    training features. The published score is ‖P h‖/‖h‖, large for what is in distribution; published code divides each
    feature by its standard deviation first, and may multiply by the largest logit: neither is done here.

    Args:
        H: features in columns.
        train: statistics of the training features.
        dimension: of the principal space; C − 1, that of the simplex, unless given.
    Returns:
        Between 0 and 1, one a sample: large for samples of no class; 1 at the mean of training itself.
    Raises:
        ValueError: as `simplex_distance`; a dimension below 1 or above n.
    References:
        Ammar et al. (2024).
    """
    H = _check(H, train)
    d = min(train.num_classes - 1, train.num_features) if dimension is None else dimension
    check_whole("dimension", d)
    if not 1 <= d <= train.num_features:
        raise ValueError(f"dimension: expected 1 to n = {train.num_features}, got {d}.")
    covariance = train.within_class_covariance + train.between_class_covariance("sample")
    principal = jnp.linalg.eigh(covariance)[1][:, -d:]
    directions = _unit_columns(H - train.global_mean("sample")[:, None])
    inside = jnp.matmul(principal.T, directions, precision="highest")
    return 1 - jnp.minimum(_safe.root(jnp.sum(jnp.square(inside), axis=0)), 1)


def auroc(inside: Float[ArrayLike, " N"], outside: Float[ArrayLike, " M"]) -> Float[Array, ""]:
    r"""P(score_out > score_in) + ½ P(equal): the area under the curve of true against false detections.

    The chance that a sample from elsewhere has the larger score of a pair, ties counted half: ½ tells nothing apart,
    1 everything. Costs (N + M) log N.

    Args:
        inside: scores of samples of the training distribution.
        outside: scores of samples from elsewhere, which should be the larger ones. Both may be infinite.
    Raises:
        ValueError: no scores, or NaN among them.
    References:
        Hanley & McNeil (1982): the area as the Mann-Whitney statistic.
    """
    check_real(inside=inside, outside=outside)
    inside, outside = as_floats(inside), as_floats(outside)
    for name, scores in (("inside", inside), ("outside", outside)):
        check_shape(name, scores, (None,), "one score a sample")
        check_finite(name, jnp.where(jnp.isinf(scores), 0, scores))
        if scores.shape[0] == 0:
            raise ValueError(f"{name}: expected at least one score, got none.")
    ordered = jnp.sort(inside)
    below = jnp.searchsorted(ordered, outside, side="left") + jnp.searchsorted(ordered, outside, side="right")
    return jnp.mean(below.astype(inside.dtype)) / (2 * inside.shape[0])


def _check(H: Float[ArrayLike, "n N"], train: ClassStatistics) -> Float[Array, "n N"]:
    check_real(H=H)
    H = as_floats(H)
    check_samples(H)
    check_shape("H", H, (train.num_features, None), "(n features, N samples) with n as train has")
    check_finite("H", H)
    return H.astype(train.means.dtype)


def _unit_columns(A: Float[Array, "n k"]) -> Float[Array, "n k"]:
    lengths = jnp.broadcast_to(_safe.root(jnp.sum(jnp.square(A), axis=0))[None, :], A.shape)
    return _safe.divide(A, lengths, 0.0)
