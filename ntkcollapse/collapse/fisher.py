"""The Fisher ratio, and what a tight-frame block does to it."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_real, check_shape
from ntkcollapse.collapse.statistics import ClassStatistics


def fisher_ratio_zarka2021(
    statistics: ClassStatistics, *, weighting: str = "class", cutoff: float | None = None
) -> Float[Array, ""]:
    r"""tr(Σ_W⁻¹ Σ_B), Fisher's ratio: the *larger*, the better classes are separated.

    Args:
        statistics: of the features.
        weighting: of Σ_B, by "class" or by "sample".
        cutoff: eigenvalues of Σ_W below it, relative to the largest, count as zero; 10 n ε by default.
    Returns:
        Zero or above, invariant to every invertible linear map of the features. +inf where class means differ in a
        direction without scatter within classes; directions with neither do not count. Σ_W has rank N − C at most: with
        fewer samples than n + C the value is +inf for pure noise as well, and says nothing of classes.
    References:
        Zarka, Guth & Mallat (2021).
    """
    statistics = statistics.in_own_units()
    covariance = statistics.within_class_covariance
    eigenvalues, U = jnp.linalg.eigh(covariance)
    n = statistics.num_features
    cutoff = 10 * n * float(jnp.finfo(covariance.dtype).eps) if cutoff is None else cutoff
    kept = eigenvalues > cutoff * eigenvalues[-1]
    between = jnp.sum(U * (statistics.between_class_covariance(weighting) @ U), axis=0)
    value = jnp.sum(jnp.where(kept, between / jnp.where(kept, eigenvalues, 1), 0))
    size = statistics.between_class_variance(weighting)
    separated = jnp.sum(jnp.where(kept, 0, between)) > cutoff * size
    return jnp.where(separated, jnp.inf, value)


def tight_frame(num_vectors: int, num_features: int, *, key: jax.Array, sign_invariant: bool = False):
    r"""A random tight frame: F (p, n) with FᵀF = I, uniformly distributed.

    Args:
        num_vectors: p ≥ n, the vectors of the frame (its rows).
        num_features: n.
        key: of the random draw.
        sign_invariant: with every vector also its negative, so that p is even and relu(Fx) determines x linearly.
    Raises:
        ValueError: p < n, or p odd (or p/2 < n) where the frame is to be sign-invariant.
    """
    p, n = num_vectors, num_features
    half = p // 2 if sign_invariant else p
    if half < n or (sign_invariant and p % 2):
        need = f"an even number ≥ {2 * n}" if sign_invariant else f"at least {n}"
        raise ValueError(f"num_vectors: expected {need} for a tight frame of {n} dimensions, got {p}.")
    Q, R = jnp.linalg.qr(jax.random.normal(key, (half, n)))
    Q = Q * jnp.sign(jnp.diagonal(R))[None, :]
    return jnp.concatenate([Q, -Q]) / jnp.sqrt(2.0) if sign_invariant else Q


def separation_block(H: Float[ArrayLike, "n N"], F: Float[ArrayLike, "p n"]) -> Float[Array, "p N"]:
    """relu(F h), for a sign-invariant frame.

    It holds h linearly, so that the Fisher ratio cannot fall; classes of equal means but different covariances
    separate.

    References:
        Zarka, Guth & Mallat (2021).
    """
    H, F = _check(H, F)
    return jax.nn.relu(F @ H)


def concentration_block(
    H: Float[ArrayLike, "n N"], F: Float[ArrayLike, "p n"], threshold: float | Float[ArrayLike, ""]
) -> Float[Array, "n N"]:
    """Fᵀ ρ(F h) with ρ the soft threshold, ρ(u) = sign(u) max(|u| − λ, 0): noise that is spread over the frame goes
    below λ, class means that are sparse in it stay.

    References:
        Zarka, Guth & Mallat (2021).
    """
    H, F = _check(H, F)
    U = F @ H
    return F.T @ (jnp.sign(U) * jax.nn.relu(jnp.abs(U) - threshold))


def _check(H, F) -> tuple[Array, Array]:
    check_real(H=H, F=F)
    H, F = jnp.asarray(H), jnp.asarray(F)
    check_shape("H", H, (None, None), "(n features, N samples), one column a sample")
    check_shape("F", F, (None, H.shape[0]), f"(p vectors, n = {H.shape[0]} features, as H has)")
    return H, F
