"""Centred states that are not aligned: the matrix Riccati equation of the Gram matrix, solved."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_real, is_traced
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.last_layer import LastLayer


def class_gram_solution(
    times: Float[ArrayLike, "*T"], start: LastLayer, kappa: BlockKernel, classes: Classes
) -> Float[Array, "*T D D"]:
    r"""Gram matrix Q Qᵀ of Q = [W; √(m/λ_class) Mᵀ] as a function of time.

        Q Qᵀ(t) = e^{Ft} Q₀ (I + λ_class Q₀ᵀ G(t) Q₀)⁻¹ Q₀ᵀ e^{Ft},   G(t) = ∫₀ᵗ e^{2Fs} ds
        F = [[a I, c Π], [c Π, −a I]],  a = λ_class e / 2,  c = √(m λ_class),  Π = I − 11ᵀ/C

    Its blocks are W Wᵀ, √(m/λ_class) W M and (m/λ_class) MᵀM: everything but the rotation of feature space. Exact for
    balanced classes, ⟨h⟩ = 0, b = 1/C, no scatter, and an invariant that is 0 or e times a projector of rank C − 1 on
    a space that contains the rows of W and the columns of M; all of this is checked at the start. W M tends to the
    projector on the range of Π (W₀ + √(m/λ_class) M₀ᵀ): collapse needs that range to have C − 1 dimensions.

    From E = 0, half of all states miss a dimension and end at a saddle; rounding in the start then grows like e^{ct}.

    Args:
        times: flow times, none negative.
        start: the state at time 0.
        kappa: feature kernel, three numbers.
        classes: balanced.
    Returns:
        Q Qᵀ, shape of `times` followed by (2C, 2C).
    Raises:
        ValueError: a start that violates a condition, by more than 1e-6 of its size; unequal classes.
    References:
        Derived here; setting of Seleznova et al. (2023), Section 5.3.
    """
    start.check(classes)
    C, m, λ = classes.num_classes, classes.per_class, kappa.lambda_class(classes)
    W, M = start.W, start.class_means(classes)
    Mt = jnp.sqrt(m / λ) * M
    eye, Π = jnp.eye(C), jnp.eye(C) - 1 / C
    I = W.T @ W - Mt @ Mt.T
    e = jnp.trace(I) / (C - 1)
    size = jnp.linalg.norm(W) + jnp.linalg.norm(Mt)
    _check_centred(start, classes, jnp.linalg.norm(Mt.sum(1)) / size)
    _check_small("start", "no scatter within classes", jnp.linalg.norm(classes.deviations(start.H)) / size)
    # I = 0, or I = e P with P² = P that leaves the rows of W and the columns of M where they are.
    Q = jnp.concatenate([W, Mt.T])
    _check_small("start", "an invariant of 0, or e times a projector", jnp.linalg.norm(Q @ I - e * Q) / size**3)
    F = jnp.block([[λ * e / 2 * eye, jnp.sqrt(m * λ) * Π], [jnp.sqrt(m * λ) * Π, -λ * e / 2 * eye]])
    return _solution(times, Q, F, λ)


def ufm_gram_solution(
    times: Float[ArrayLike, "*T"], start: LastLayer, diagonal: Float[ArrayLike, ""], classes: Classes
) -> Float[Array, "*T D D"]:
    r"""Gram matrix Q Qᵀ of Q = [W; Hᵀ/√κ_d] as a function of time, for unconstrained features: K = κ_d I.

        as `class_gram_solution` with λ = κ_d,  F = √κ_d [[0, Yc], [Ycᵀ, 0]],  Yc = Y (I − 11ᵀ/N)

    Scatter within classes is allowed. Exact for balanced classes, ⟨h⟩ = 0, b = 1/C and WᵀW = H Hᵀ/κ_d.

    Args:
        times: flow times, none negative.
        start: the state at time 0.
        diagonal: κ_d.
        classes: balanced.
    Returns:
        Q Qᵀ, shape of `times` followed by (C + N, C + N); (C + N)³ operations a time.
    Raises:
        ValueError: a start that violates a condition by more than 1e-6 of its size; unequal classes.
    References:
        Derived here.
    """
    start.check(classes)
    λ = jnp.asarray(diagonal, dtype=float)
    C, N = classes.num_classes, classes.per_class * classes.num_classes
    Q = jnp.concatenate([start.W, start.H.T / jnp.sqrt(λ)])
    size = jnp.linalg.norm(Q)
    _check_centred(start, classes, jnp.linalg.norm(start.H.sum(1)) / jnp.sqrt(λ) / size)
    balance = start.W.T @ start.W - start.H @ start.H.T / λ
    _check_small("start", "WᵀW = H Hᵀ/κ_d", jnp.linalg.norm(balance) / size**2)
    Y = jnp.sqrt(λ) * (classes.Y - 1 / C)
    F = jnp.block([[jnp.zeros((C, C)), Y], [Y.T, jnp.zeros((N, N))]])
    return _solution(times, Q, F, λ)


def _solution(times, Q, F, λ):
    """e^{Ft} Q (I + λ Qᵀ G Q)⁻¹ Qᵀ e^{Ft} in the eigenbasis of F."""
    values, vectors = jnp.linalg.eigh(F)
    X = vectors.T @ Q

    def at(t):
        # Beyond e^300 what grows has converged, and what falls is 0.
        ft = jnp.clip(values * t, -300.0, 300.0)
        flat = jnp.abs(ft) < 1e-300
        safe = jnp.where(flat, 1, ft)
        G = t * jnp.where(flat, 1, jnp.expm1(2 * safe) / (2 * safe))
        G = jnp.where(jnp.abs(values * t) > 300, jnp.expm1(2 * ft) / (2 * jnp.where(flat, 1, values)), G)
        # The bracket is KᵀK with K = [√(λG) X; I] = U R: its square would cost half the digits. Largest rows first, so
        # that elimination does not swamp the small ones. Rows that grow are read from U, where they have size 1,
        # instead of being divided by R.
        rows = jnp.sqrt(λ * G)
        order = jnp.argsort(-rows)
        U, R = jnp.linalg.qr(jnp.concatenate([(rows[:, None] * X)[order], jnp.eye(Q.shape[1])]))
        grown = jnp.exp(ft) / jnp.where(ft > 1, rows, 1)
        from_U = grown[:, None] * U[: X.shape[0]][jnp.argsort(order)]
        from_R = jax.scipy.linalg.solve_triangular(R, (jnp.exp(jnp.minimum(ft, 1))[:, None] * X).T, trans=1).T
        half = jnp.where((ft > 1)[:, None], from_U, from_R)
        return vectors @ (half @ half.T) @ vectors.T

    check_real(times=times)
    t = jnp.asarray(times, dtype=float)
    return jax.vmap(at)(t.reshape(-1)).reshape(*t.shape, *F.shape)


def _check_centred(start: LastLayer, classes: Classes, mean) -> None:
    _check_small("start", "centred features, ⟨h⟩ = 0", mean)
    _check_small("start", "the bias 1/C", jnp.linalg.norm(start.b - 1 / classes.num_classes))


def _check_small(name: str, wanted: str, relative) -> None:
    if not is_traced(relative) and float(relative) > 1e-6:
        raise ValueError(
            f"{name}: expected {wanted}, got a relative violation of {float(relative):.2g}; the closed form does not "
            "hold there, integrate with ntkcollapse.simulate."
        )
