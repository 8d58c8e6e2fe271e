"""The central path: features kept at within-class covariance I, under their own least-squares classifier."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_positive
from ntkcollapse.classes import Classes
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.theory.constraints import least_squares_classifier


def signal_to_noise(H: Float[Array, "n N"], classes: Classes) -> Float[Array, " r"]:
    """Singular values ω of Σ_W^{-1/2} (M − ⟨h⟩ 1ᵀ), the largest min(n, C − 1) of them, descending; balanced classes.

    Raises:
        ValueError: unequal classes.
    """
    _ = classes.per_class
    deviations, M = classes.deviations(H), classes.means(H)
    root = jnp.linalg.cholesky(deviations @ deviations.T / classes.num_samples)
    centred = M - M.mean(1)[:, None]
    values = jnp.linalg.svd(jax.scipy.linalg.solve_triangular(root, centred, lower=True), compute_uv=False)
    return values[: min(M.shape[0], M.shape[1] - 1)]


def central_path_law(
    times: Float[ArrayLike, "*T"], start: Float[ArrayLike, " r"], classes: Classes
) -> Float[Array, "*T r"]:
    r"""Singular values on the central path, exactly.

        (N/C) [C² log ω + C ω² + ω⁴/4] = a + t,     that is     ω' = (C/N) ω / (C + ω²)²

    for the loss (1/2N)‖W H + b 1ᵀ − Y‖², balanced classes, ⟨h⟩ = 0, and the velocity of the features projected onto the
    tangent space of Σ_W = I (`models.central_path`). Renormalising instead, H ← Σ_W^{−1/2} H at every instant of the
    plain flow, is another flow, with ω' = (1/N) ω / (C + ω²). Singular vectors stay; ω ~ (4 C t/N)^{1/4}, so that all
    ratios tend to 1: collapse to a simplex ETF.

    Args:
        times: flow times t ≥ 0.
        start: ω at t = 0, above zero.
    Raises:
        ValueError: unequal classes, a start not above zero, negative times.
    References:
        Han, Papyan and Donoho (2022), Section 4: the form; constants, and which flow obeys them, derived here.
    """
    check_positive("start", start)
    check_positive("times", times, zero=True)
    C, N = classes.num_classes, classes.per_class * classes.num_classes
    ω0 = jnp.asarray(start, dtype=float)
    t = jnp.asarray(times, dtype=float)[..., None]

    def clock(x):
        # x = log ω: convex and increasing in x, so that Newton from above falls onto the root.
        return N / C * (C**2 * x + C * jnp.exp(2 * x) + jnp.exp(4 * x) / 4)

    def speed(x):
        return N / C * (C**2 + 2 * C * jnp.exp(2 * x) + jnp.exp(4 * x))

    shape = (1,) * (t.ndim - 1) + ω0.shape
    goal = clock(jnp.log(ω0)).reshape(shape) + t
    # (ω⁴)' = 4 (C/N) ω⁴/(C + ω²)² ≤ 4 C/N: an upper bound to start from.
    x = jnp.log(ω0.reshape(shape) ** 4 + 4 * C / N * t) / 4
    x = jax.lax.fori_loop(0, 60, lambda _, x: x - (clock(x) - goal) / speed(x), x)
    return jnp.exp(x)


class LossParts(NamedTuple):
    """L = nc1 + nc2_nc3 + off_path, exactly."""

    nc1: Float[Array, ""]
    nc2_nc3: Float[Array, ""]
    off_path: Float[Array, ""]


def loss_parts(state: LastLayer, classes: Classes) -> LossParts:
    r"""The loss (1/2N)‖W H + b 1ᵀ − Y‖² split into what the features owe and what the classifier owes.

    With (W*, b*) the least-squares classifier of H: nc1 is the within-class part of its loss, ½ tr(W* Σ_W W*ᵀ);
    nc2_nc3 what its class means miss, (1/2N) Σ_k m_k ‖W* M_k + b* − e_k‖²; off_path =
    (1/2N)‖(W − W*) H + (b − b*) 1ᵀ‖².

    Raises:
        ValueError: shapes that disagree.
    References:
        Han, Papyan and Donoho (2022), Section 3: the decomposition of the loss.
    """
    state.check(classes)
    N = classes.num_samples
    W, b = least_squares_classifier(state.H, classes)
    deviations, M = classes.deviations(state.H), classes.means(state.H)
    missed = W @ M + b[:, None] - jnp.eye(classes.num_classes, dtype=W.dtype)
    off = (state.W - W) @ state.H + (state.b - b)[:, None]
    return LossParts(
        nc1=jnp.sum(jnp.square(W @ deviations)) / (2 * N),
        nc2_nc3=jnp.sum(classes.weights.astype(W.dtype)[None, :] * jnp.square(missed)) / (2 * N),
        off_path=jnp.sum(jnp.square(off)) / (2 * N),
    )
