"""NC4: how often the network decides otherwise than the nearest class mean."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ntkcollapse import _safe
from ntkcollapse._checks import check_finite, check_real, check_shape


def nc4_mismatch(
    H: Float[ArrayLike, "n N"],
    W: Float[ArrayLike, "C n"],
    b: Float[ArrayLike, " C"] | None,
    means: Float[ArrayLike, "n C"],
) -> Float[Array, ""]:
    r"""Fraction of samples with argmax_c (w_cᵀh + b_c) ≠ argmin_c ‖h − μ_c‖.

    Args:
        H: features in columns, of training or of test data.
        W: classifier.
        b: bias; None leaves it out, as some published code does: then it says something of W alone, not of the network.
        means: class means of the *training* features.
    Returns:
        Between 0 and 1. Ties go to the class of lower index in both decisions.
    Raises:
        ValueError: shapes that disagree, no samples, or numbers that are not finite: they would all be decided for
            class 0.
    References:
        Papyan, Han & Donoho (2020).
    """
    check_real(H=H, W=W, b=b, means=means)
    H, W = jnp.asarray(H), jnp.asarray(W)
    check_samples(H)
    check_shape("W", W, (None, H.shape[0]), f"(C classes, n = {H.shape[0]} features, as H has)")
    check_shape("means", means, (H.shape[0], W.shape[0]), "(n features, C classes), as H and W have")
    for name, value in (("H", H), ("W", W), ("b", b), ("means", means)):
        check_finite(name, value)
    logits = jnp.matmul(W, H, precision="highest")
    if b is not None:
        check_shape("b", b, (W.shape[0],), f"one bias for each of the C = {W.shape[0]} rows of W")
        logits = logits + jnp.asarray(b)[:, None]
    return jnp.mean((jnp.argmax(logits, axis=0) != nearest_class_mean(H, means)).astype(H.dtype))


def check_samples(H: Float[Array, "n N"]) -> None:
    """Features in columns, at least one."""
    check_shape("H", H, (None, None), "(n features, N samples), one column a sample")
    if H.shape[1] == 0:
        raise ValueError(f"H: expected at least one sample, got shape {H.shape}; a fraction of none is undefined.")


def nearest_class_mean(H: Float[ArrayLike, "n N"], means: Float[ArrayLike, "n C"]) -> Int[Array, " N"]:
    """argmin_c ‖h − μ_c‖ of each column; ties go to the lower index. Memory C N."""
    H, M = jnp.asarray(H), jnp.asarray(means)
    # ‖h‖² is the same for all classes; taking the common mean away first leaves no large numbers to cancel.
    centre = M.mean(1)[:, None]
    H, M = H - centre, M - centre
    # One scale for both, so that squares stay in range.
    size = _safe.power_of_two(H, M)
    H, M = H / size, M / size
    scores = jnp.matmul(M.T, H, precision="highest") - jnp.sum(jnp.square(M), axis=0)[:, None] / 2
    return jnp.argmax(scores, axis=0)
