"""NC1, variability collapse: how large within-class scatter is beside the distances between classes."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse import _safe
from ntkcollapse.collapse.statistics import ClassStatistics


def nc1_han2022(statistics: ClassStatistics, *, weighting: str = "class") -> Float[Array, ""]:
    r"""tr(Σ_W Σ_B⁺), without the 1/C of `nc1_papyan2020`.

    The pseudo-inverse has rank C − 1 by construction: it is taken of the class means' contrasts, where the direction in
    which Σ_B vanishes identically does not occur. Taken of Σ_B as a matrix, rounding in that direction is inverted and
    the result may have either sign. Between-class directions whose singular value is below about 10 max(n, C) ε of the
    largest are left out as well.

    Blind to scatter orthogonal to the class means: report `nc1_tirer2022` or `nc1_seleznova2023` beside it.

    Args:
        statistics: of the features.
        weighting: of Σ_B, and of the mean about which it is taken: by "class" or by "sample".
    Returns:
        Zero or above, without units (invariant to rotation and scale). +inf where all class means coincide.
    References:
        The form in the code published with Han, Papyan & Donoho (2022).
    """
    statistics = statistics.in_own_units()
    p = statistics._weights(weighting)
    # Σ_B = A Aᵀ with A = (M − μ_G 1ᵀ) diag(p)^½, which annihilates √p. So A = B Qᵀ with Q an orthonormal basis of the
    # complement of √p, B = A Q has C − 1 columns, and tr(Σ_W Σ_B⁺) = tr(B⁺ Σ_W B⁺ᵀ).
    A = statistics.centred_means(weighting) * jnp.sqrt(p)[None, :]
    B = without_last_direction(A, jnp.sqrt(p))
    inverse = jnp.linalg.pinv(B)
    value = jnp.sum(jnp.matmul(inverse, statistics.within_class_covariance, precision="highest") * inverse)
    return jnp.where(statistics.between_class_variance(weighting) <= 0, jnp.inf, value)


def nc1_papyan2020(statistics: ClassStatistics, *, weighting: str = "class") -> Float[Array, ""]:
    r"""tr(Σ_W Σ_B⁺) / C, the pseudo-inverse truncated to rank C − 1.

    See `nc1_han2022` for how, and for what it does not see.

    References:
        Papyan, Han & Donoho (2020); Zhu et al. (2021).
    """
    return nc1_han2022(statistics, weighting=weighting) / statistics.num_classes


def nc1_tirer2022(statistics: ClassStatistics, *, weighting: str = "class") -> Float[Array, ""]:
    r"""tr Σ_W / tr Σ_B.

    Sees scatter in every direction, and is cheap: no n × n matrix is needed.

    Args:
        statistics: of the features.
        weighting: of Σ_B: by "class" or by "sample"; Σ_W = S/N in both.
    Returns:
        Zero or above, invariant to rotation and scale. +inf where all class means coincide.
    References:
        Tirer & Bruna (2022); also Beaglehole et al. on the average gradient outer product.
    """
    statistics = statistics.in_own_units()
    within = jnp.trace(statistics.scatter) / statistics.num_samples
    return _safe.divide(within, statistics.between_class_variance(weighting), jnp.inf)


def nc1_seleznova2023(statistics: ClassStatistics) -> Float[Array, ""]:
    r"""Mean over classes and features of the standard deviation of a feature within a class.

        (1 / C n) Σ_c Σ_j √( (S_c)_jj / m_c )

    In units of the features: it scales with them, and is not invariant to rotation. Every class that has samples has
    one vote (C counts those: to `weak_test_collapse` some may be missing).

    References:
        The form in the code published with Seleznova et al. (2023).
    """
    variances = statistics.square_deviations / jnp.maximum(statistics.sizes, 1)[None, :]
    present = jnp.count_nonzero(statistics.sizes).astype(variances.dtype)
    return statistics.unit * (jnp.sum(_safe.root(variances)) / (present * statistics.num_features))


def without_last_direction(A: Float[Array, "n C"], u: Float[Array, " C"]) -> Float[Array, "n D"]:
    """A Q for Q (C, C−1) orthonormal and orthogonal to the unit vector u, all of whose entries are positive.

    Q is the Householder reflection that takes u to −e_C, without its last column.
    """
    v = u.at[-1].add(1)
    reflected = A - (A @ v)[:, None] * (2 * v / jnp.sum(jnp.square(v)))[None, :]
    return reflected[:, :-1]
