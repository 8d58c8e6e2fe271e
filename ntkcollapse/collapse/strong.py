"""Strong neural collapse: not the shape of the collapsed state alone, but its size too."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse import _safe
from ntkcollapse._checks import check_finite, check_positive, check_real, check_shape, is_traced
from ntkcollapse.collapse.nc2 import simplex_gram
from ntkcollapse.collapse.nc3 import check_classifier
from ntkcollapse.collapse.statistics import ClassStatistics


def snc1_mixon2022(
    statistics: ClassStatistics, W: Float[ArrayLike, "C n"], *, lambda_class: Float[ArrayLike, ""] = 1.0
) -> Float[Array, ""]:
    r"""‖W Wᵀ − √(m/λ) P‖_F / ‖√(m/λ) P‖_F, P = I − 11ᵀ/C: SNC1, the classifier is a simplex ETF of *that* size.

    Strong neural collapse is the state W Wᵀ = √m P, H = Wᵀ/√m ⊗ 1ᵀ, b = 1/C, to which unconstrained features (K = I,
    loss ½‖R‖²) go from small starts. Under a block-structured kernel the same state has √(m/λ_class) in place of √m.

    Args:
        statistics: of the features, for the size m of the classes.
        W: classifier.
        lambda_class: λ; 1 for unconstrained features, `BlockKernel.lambda_class` otherwise.
    Returns:
        Zero or above; in units of what it compares with, so that it depends on the scale of W. NaN where class sizes
        that are traced differ.
    Raises:
        ValueError: classes of unequal sizes, W that does not fit, numbers that are not finite, λ not above 0.
    References:
        Mixon, Parshall & Pi (2022), for λ = 1.
    """
    W = check_classifier(statistics, W)
    P = simplex_gram(statistics.num_classes, W.dtype)
    scale = jnp.sqrt(_per_class(statistics) / _rate(lambda_class, W)).astype(W.dtype)
    return _safe.norm(jnp.matmul(W, W.T, precision="highest") - scale * P) / (scale * _root(statistics, W))


def snc2_mixon2022(
    statistics: ClassStatistics, W: Float[ArrayLike, "C n"], *, lambda_class: Float[ArrayLike, ""] = 1.0
) -> Float[Array, ""]:
    r"""‖H − √(λ/m) Wᵀ ⊗ 1ᵀ‖_F / (m λ)^{1/4} √(C − 1): SNC2, every feature is its row of the classifier, and not more.

        ‖H − √(λ/m) Wᵀ ⊗ 1ᵀ‖² = tr S + m ‖M − √(λ/m) Wᵀ‖²

    What it is divided by is the norm of the features in the collapsed state. Nothing is centred. Arguments, errors and
    source as in `snc1_mixon2022`.
    """
    W = check_classifier(statistics, W)
    m, λ = _per_class(statistics), _rate(lambda_class, W)
    off = jnp.asarray(statistics.means, W.dtype) - jnp.sqrt(λ / m).astype(W.dtype) * W.T
    spread = statistics.unit * _safe.root(jnp.trace(statistics.scatter))
    distance = jnp.hypot(spread, jnp.sqrt(m) * _safe.norm(off))
    return distance / ((m * λ) ** 0.25 * _root(statistics, W))


def snc3_mixon2022(b: Float[ArrayLike, " C"]) -> Float[Array, ""]:
    r"""‖b − 1/C‖ / ‖1/C‖ with 1/C the vector of C such entries: SNC3, the bias is the mean label.

    Raises:
        ValueError: numbers that are not finite, or not one of them a class.
    References:
        Mixon, Parshall & Pi (2022).
    """
    check_real(b=b)
    check_shape("b", b, (None,), "one bias a class")
    check_finite("b", b)
    b = jnp.asarray(b)
    C = b.shape[0]
    return _safe.norm(b - 1 / C) * jnp.sqrt(jnp.asarray(C, b.dtype))


def _per_class(statistics: ClassStatistics) -> Float[Array, ""]:
    """m; NaN where classes differ in size."""
    sizes = statistics.sizes
    if not is_traced(sizes) and np.ptp(np.asarray(sizes)) > 0:
        raise ValueError(
            f"statistics: expected classes of one size, got sizes from {float(sizes.min()):g} to "
            f"{float(sizes.max()):g}; strong collapse is defined for balanced classes only."
        )
    return jnp.where(jnp.all(sizes == sizes[0]), sizes[0], jnp.nan)


def _rate(lambda_class: Float[ArrayLike, ""], W: Float[Array, "C n"]) -> Float[Array, ""]:
    check_positive("lambda_class", lambda_class)
    return jnp.asarray(lambda_class, W.dtype)


def _root(statistics: ClassStatistics, W: Float[Array, "C n"]) -> Float[Array, ""]:
    """√(C − 1) = ‖P‖_F."""
    return jnp.sqrt(jnp.asarray(statistics.num_classes - 1.0, W.dtype))
