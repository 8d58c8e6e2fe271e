"""NC3, self-duality: how far the classifier is from the centred class means."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse import _safe
from ntkcollapse._checks import check_finite, check_real, check_shape
from ntkcollapse.collapse.nc2 import simplex_gram, warn_if_no_simplex
from ntkcollapse.collapse.statistics import ClassStatistics


def nc3_seleznova2023(statistics: ClassStatistics, W: Float[ArrayLike, "C n"]) -> Float[Array, ""]:
    r"""‖ Wᵀ/‖W‖_F − (M − μ_G 1ᵀ)/‖M − μ_G 1ᵀ‖_F ‖_F, W not centred.

    Args:
        statistics: of the features; μ_G is the mean of the class means.
        W: classifier.
    Returns:
        Between 0 and 2, invariant to scale and to a common rotation; 1 where one of W and the centred means vanishes,
        0 where both do.
    Raises:
        ValueError: W that does not fit the statistics, or numbers that are not finite.
    References:
        Papyan, Han & Donoho (2020), the statement of (NC3); Seleznova et al. (2023).
    """
    return _safe.norm(_safe.unit(check_classifier(statistics, W).T) - _safe.unit(statistics.centred_means()))


def nc3_han2022(statistics: ClassStatistics, W: Float[ArrayLike, "C n"]) -> Float[Array, ""]:
    r"""The square of `nc3_seleznova2023`: 2 − 2 cos of the angle between Wᵀ and the centred means. Between 0 and 4.

    References:
        The form in the code published with Han, Papyan & Donoho (2022).
    """
    return jnp.sum(jnp.square(_safe.unit(check_classifier(statistics, W).T) - _safe.unit(statistics.centred_means())))


def nc3_zhu2021(statistics: ClassStatistics, W: Float[ArrayLike, "C n"]) -> Float[Array, ""]:
    r"""‖ W M̄ / ‖W M̄‖_F − (I − 11ᵀ/C) / √(C−1) ‖_F with M̄ = M − μ_G 1ᵀ: the product form.

    Zero is necessary for duality of a simplex ETF, and less than it: W = M̄⁺ for any M̄ of rank C−1 gives 0 as well.

    Returns:
        Between 0 and 2, invariant to scale and to a common rotation; 1 where the product vanishes.
    Warns:
        UserWarning: n < C − 1, where it cannot reach 0.
    References:
        Zhu et al. (2021).
    """
    W = check_classifier(statistics, W)
    C = statistics.num_classes
    warn_if_no_simplex(statistics.num_features, C, stacklevel=3)
    factors = (A / _safe.power_of_two(A) for A in (W, statistics.centred_means()))
    product = jnp.matmul(*factors, precision="highest")
    return _safe.norm(_safe.unit(product) - simplex_gram(C, W.dtype) / jnp.sqrt(C - 1.0).astype(W.dtype))


def check_classifier(statistics: ClassStatistics, W: Float[ArrayLike, "C n"]) -> Float[Array, "C n"]:
    """W as an array; raises ValueError where it does not fit the statistics, or is not finite."""
    C, n = statistics.num_classes, statistics.num_features
    check_shape("W", W, (C, n), f"({C} classes, {n} features) as statistics has; flax stores its transpose")
    check_real(W=W)
    for name, value in (("W", W), ("means", statistics.means)):
        check_finite(name, value)
    return jnp.asarray(W)
