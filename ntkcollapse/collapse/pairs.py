"""Class-distance normalised variance: collapse pair by pair."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse import _safe
from ntkcollapse.collapse.statistics import ClassStatistics


def cdnv_galanti2022(statistics: ClassStatistics) -> Float[Array, "C C"]:
    r"""Class-distance normalised variance of every pair of classes.

        V_cd = (Var_c + Var_d) / (2 ‖μ_c − μ_d‖²),   Var_c = tr S_c / m_c

    Args:
        statistics: of the features.
    Returns:
        Symmetric, invariant to rotation and scale; 0 on the diagonal, which is no pair, and +inf for two classes whose
        means coincide. A class without samples has Var 0 here. Costs C² n, memory C n.
    References:
        Galanti, György & Hutter (2022).
    """
    statistics = statistics.in_own_units()
    M, variances = statistics.means.T, statistics.class_variances

    def row(inputs):
        # Differences first: distances from a Gram matrix would cancel for means that are close.
        mean, variance, index = inputs
        distances = jnp.sum(jnp.square(M - mean[None, :]), axis=1)
        values = _safe.divide(variances + variance, 2 * distances, jnp.inf)
        return values.at[index].set(0)

    return jax.lax.map(row, (M, variances, jnp.arange(M.shape[0])))


def mean_cdnv_galanti2022(statistics: ClassStatistics) -> Float[Array, ""]:
    """Mean of `cdnv_galanti2022` over pairs of different classes that have samples; NaN where fewer than two have."""
    present = statistics.sizes > 0
    pairs = present[:, None] & present[None, :] & ~jnp.eye(statistics.num_classes, dtype=bool)
    values = jnp.where(pairs, cdnv_galanti2022(statistics), 0)
    return values.sum() / jnp.count_nonzero(pairs).astype(values.dtype)
