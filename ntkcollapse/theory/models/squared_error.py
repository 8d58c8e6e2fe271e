"""Minimisers of regularised unconstrained features with squared error, mode by mode."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice, check_positive, check_shape
from ntkcollapse._simplex import check_dimension
from ntkcollapse.classes import Classes


class FeatureMinimiser(NamedTuple):
    """A minimiser without within-class scatter, up to a rotation of feature space.

    weight_gram: W Wᵀ; outputs: W M, without bias; mean_gram: MᵀM; bias: b; value: of the objective there;
    alive: how many modes are not zero (0: the trivial minimiser).
    """

    weight_gram: Float[Array, "C C"]
    outputs: Float[Array, "C C"]
    mean_gram: Float[Array, "C C"]
    bias: Float[Array, " C"]
    value: Float[Array, ""]
    alive: Array


def features_minimiser(
    classes: Classes,
    decay_W: Float[ArrayLike, ""],
    decay_H: Float[ArrayLike, ""],
    *,
    bias: str = "free",
    num_features: int | None = None,
) -> FeatureMinimiser:
    r"""Global minimiser of (1/2N)‖W H + b 1ᵀ − Y‖² + (λ_W/2)‖W‖² + (λ_H/2)‖H‖², classes of any sizes.

    With T = Y without a bias and T = Y − d 1ᵀ/N with a free one, T = U diag(σ) Vᵀ and Λ = N √(λ_W λ_H):

        W H = U (σ − Λ)₊ Vᵀ,   W Wᵀ = √(λ_H/λ_W) U (σ − Λ)₊ Uᵀ,   b = d/N (free),
        value = (1/N) Σ_j min(σ_j, Λ)²/2 + Λ (σ_j − Λ)₊.

    Balanced, σ = √m: an orthogonal frame without a bias (W M = (1 − c) I, c = C √(m λ_W λ_H)), a simplex ETF with one
    (I − 11ᵀ/C in place of I), nothing for c ≥ 1. Unequal classes without a bias: each for itself, s_k = (W M)_kk =
    (1 − N √(λ_W λ_H / m_k))₊, so that class k vanishes exactly if m_k ≤ N² λ_W λ_H. Needs n ≥ C − 1 with a free bias
    and n ≥ C without.

    Raises:
        ValueError: decays not above zero, a bias mode other than "free" and "absent", too small a `num_features`.
    References:
        Tirer and Bruna (2022) for balanced classes; Dang et al. (2023) for unequal ones without a bias.
    """
    check_choice("bias", bias, ("free", "absent"))
    check_positive("decay_W, decay_H", (decay_W, decay_H))
    if bias == "free":
        check_dimension(num_features, classes.num_classes)
    elif num_features is not None and num_features < classes.num_classes:
        raise ValueError(
            f"num_features: an orthogonal frame of C = {classes.num_classes} vectors needs as many dimensions, "
            f"got {num_features}."
        )
    N, d = classes.num_samples, classes.weights
    Λ, ratio = N * jnp.sqrt(jnp.asarray(decay_W) * decay_H), jnp.sqrt(jnp.asarray(decay_H) / decay_W)
    free = bias == "free"
    # T Tᵀ and the class means T̄ of T; U, σ from the small matrix.
    T = jnp.eye(len(d)) - (d[:, None] / N if free else 0)
    square, U = jnp.linalg.eigh(T @ jnp.diag(d) @ T.T)
    σ = jnp.sqrt(jnp.maximum(square, 0))
    z = jnp.maximum(σ - Λ, 0)
    # A mode with σ = 0 (the centred one) has z = 0 too.
    shrink, ratio_2 = (jnp.where(z > 0, z / jnp.where(z > 0, σ**k, 1), 0) for k in (1, 2))
    return FeatureMinimiser(
        weight_gram=ratio * (U * z[None, :]) @ U.T,
        outputs=(U * shrink[None, :]) @ U.T @ T,
        mean_gram=T.T @ (U * ratio_2[None, :]) @ U.T @ T / ratio,
        bias=d / N if free else jnp.zeros_like(d),
        value=jnp.sum(jnp.minimum(σ, Λ) ** 2 / 2 + Λ * z) / N,
        alive=jnp.sum(z > 0),
    )


def largest_mode(classes: Classes, *, bias: str = "free") -> float:
    """max σ² of T in `features_minimiser`: nothing is learned from N² λ_W λ_H = max σ² on."""
    d = np.asarray(classes.sizes, dtype=float)
    T = np.eye(len(d)) - (d[:, None] / d.sum() if bias == "free" else 0)
    return float(np.linalg.eigvalsh(T @ np.diag(d) @ T.T)[-1])


def vanishing_size(classes: Classes, decay_W: Float[ArrayLike, ""], decay_H: Float[ArrayLike, ""]) -> Array:
    """N² λ_W λ_H: without a bias, classes of this size and smaller vanish at the minimum."""
    check_positive("decay_W, decay_H", (decay_W, decay_H))
    return jnp.asarray(classes.num_samples**2 * jnp.asarray(decay_W) * decay_H)


class DeepLinearMinimiser(NamedTuple):
    """outputs: the diagonal of W_M ⋯ W_1 M, one number a class (0: the class vanished); value: of the objective."""

    outputs: Float[Array, " C"]
    value: Float[Array, ""]


def deep_linear_minimiser(
    classes: Classes, decay_W: Float[ArrayLike, " L"], decay_H: Float[ArrayLike, ""]
) -> DeepLinearMinimiser:
    r"""Global minimiser of (1/2N)‖W_L ⋯ W_1 H − Y‖² + Σ_l (λ_l/2)‖W_l‖² + (λ_H/2)‖H‖²: L weight layers, no bias.

    Modes decouple, one a class, and their penalties balance:

        min over s ≥ 0 of (m_k/2N)(s − 1)² + ((L + 1)/2) (m_k λ_H Π_l λ_l)^{1/(L+1)} s^{2/(L+1)}

    For L ≥ 2 the local minimum near s = 1 competes with s = 0, so that classes vanish by a jump from s = (L − 1)/L:
    those of size up to `deep_vanishing_size`.

    Raises:
        ValueError: decays not above zero.
    References:
        Tirer and Bruna (2022), the extended model; Dang et al. (2023), any depth and unequal classes.
    """
    check_positive("decay_W, decay_H", (decay_W, decay_H))
    λ = jnp.atleast_1d(jnp.asarray(decay_W))
    p, share = λ.shape[0] + 1, classes.weights / classes.num_samples
    cost = (classes.weights * decay_H * jnp.prod(λ)) ** (1 / p)

    def objective(s):
        return share / 2 * (s - 1) ** 2 + p / 2 * cost * s ** (2 / p)

    def newton(_, s):
        # Of s² f'(s)/s = 0 from s = 1: convex and falling towards the larger root, which Newton reaches monotonically.
        value = s - 1 + cost / share * s ** (2 / p - 1)
        slope = 1 + cost / share * (2 / p - 1) * s ** (2 / p - 2)
        return jnp.where(slope > 0, jnp.maximum(s - value / slope, 1e-12), s)

    s = jax.lax.fori_loop(0, 60, newton, jnp.ones_like(share))
    stationary = jnp.abs(s - 1 + cost / share * s ** (2 / p - 1)) < 1e-9
    s = jnp.where(stationary & (objective(s) < share / 2), s, 0)
    return DeepLinearMinimiser(outputs=s, value=jnp.sum(objective(s)))


def deep_vanishing_size(classes: Classes, decay_W: Float[ArrayLike, " L"], decay_H: Float[ArrayLike, ""]) -> Array:
    r"""m* = (N^{L+1} λ_H Π_l λ_l · L^{2L}/(L − 1)^{L−1})^{1/L}: classes of this size and smaller vanish at the minimum.

    There s = (L − 1)/L is stationary in `deep_linear_minimiser`, and the objective as high as at s = 0. L = 1 gives
    N² λ_W λ_H, without a jump.

    Raises:
        ValueError: decays not above zero.
    References:
        Dang et al. (2023), the phenomenon; in this form derived here.
    """
    check_positive("decay_W, decay_H", (decay_W, decay_H))
    λ = jnp.atleast_1d(jnp.asarray(decay_W, dtype=float))
    L, N = λ.shape[0], classes.num_samples
    shape = L ** (2 * L) / (L - 1) ** (L - 1)
    return (N ** (L + 1) * jnp.asarray(decay_H, dtype=float) * jnp.prod(λ) * shape) ** (1 / L)


class ReLUMinimiser(NamedTuple):
    """A minimiser of the extended model, one number a class (0: the class vanished), and the value of the objective.

    outputs: s_k = w_kᵀ h_k; weight_norms: ‖w_k‖² of the top layer; feature_norms: ‖h_k‖² of the features behind the
    ReLU. Vectors of different classes are orthogonal.
    """

    outputs: Float[Array, " C"]
    weight_norms: Float[Array, " C"]
    feature_norms: Float[Array, " C"]
    value: Float[Array, ""]


def relu_minimiser(
    classes: Classes,
    decay_W: Float[ArrayLike, "2"],
    decay_H: Float[ArrayLike, ""],
    *,
    widths: tuple[int, int] | None = None,
) -> ReLUMinimiser:
    r"""Minimiser of (1/2N)‖W_2 σ(W_1 H) − Y‖² + Σ_l (λ_l/2)‖W_l‖² + (λ_H/2)‖H‖², σ the ReLU: orthogonal frames.

        s_k of `deep_linear_minimiser` for L = 2,   ‖w_k‖² = (√(λ_1 λ_H m_k) s_k/λ_2)^{2/3},   ‖h_k‖² = s_k²/‖w_k‖²

    h_k are class means *behind* the ReLU: orthogonal and nowhere negative, so that no two classes share an active unit,
    each a multiple of its row w_k of W_2. Such features pass the ReLU unchanged, so that a minimiser of the linear
    model can be turned into one of this model with the same value. It is the least one among states with
    ‖σ(A)‖_* ≤ ‖A‖_*, A = W_1 H, which is assumed of the minimiser: the least (λ_1/2)‖W_1‖² + (λ_H/2)‖H‖² with
    W_1 H = A is √(λ_1 λ_H) ‖A‖_*. There are A without that property, and with more layers states of lower rank and
    lower value.

    A class of size up to `deep_vanishing_size` has s_k = 0; where none is larger the minimiser is 0.

    Args:
        classes: of any sizes (balanced in the source).
        decay_W: λ_1 and λ_2, from the features upwards.
        decay_H: λ_H.
        widths: features below and above W_1, if they are to be checked: C at least.
    Raises:
        ValueError: other than two weight layers, decays not above zero, widths below C.
    References:
        Tirer and Bruna (2022), the nonlinear extended model; the argument by nuclear norms is given here. Súkeník et
        al. (2024) on what is lower beyond two layers.
    """
    check_shape(
        "decay_W", decay_W, (2,), "one decay for each of two weight layers; more have lower minima, of lower rank"
    )
    if widths is not None and min(widths) < classes.num_classes:
        raise ValueError(
            f"widths: an orthogonal frame of C = {classes.num_classes} vectors needs as many dimensions, got {widths}."
        )
    s, value = deep_linear_minimiser(classes, decay_W, decay_H)
    λ_1, λ_2 = jnp.asarray(decay_W, dtype=float)
    weights = (jnp.sqrt(λ_1 * jnp.asarray(decay_H) * classes.weights) * s / λ_2) ** (2 / 3)
    features = jnp.where(s > 0, s**2 / jnp.where(s > 0, weights, 1), 0)
    return ReLUMinimiser(outputs=s, weight_norms=weights, feature_norms=features, value=value)


class BatchNormMinimiser(NamedTuple):
    """value: of the objective at its minimum; singular_values: of W, (C,), from the largest."""

    value: Float[Array, ""]
    singular_values: Float[Array, " C"]


def batch_norm_minimiser(
    classes: Classes, decay: Float[ArrayLike, ""], *, loss: str = "squared", relu: bool = False
) -> BatchNormMinimiser:
    r"""Minimum of ℓ(W σ(H)) + (β/2)(‖γ‖² + ‖α‖² + ‖W‖²), H row j = γ_j BN(z_j) + α_j 1/√N, balanced classes.

    BN(z) is z less its mean, with norm 1 over the batch, so that γ_j² + α_j² = ‖row j of H‖²: batch normalisation
    writes unconstrained features without a bias in polar coordinates. (γ, α) themselves are not unique.

    ℓ = ½‖F − Y‖² ("squared"), with σ the identity or a ReLU, whose minimiser is nowhere negative:

        value = C (β √m − β²/2) for β ≤ √m (else N/2),   C singular values √(√m − β)₊:  an orthogonal frame

    ℓ = Σ_i −log softmax(F_i)[y_i] ("cross-entropy"), with e = β/(C √m), and e √(C/(C−1)) in its place behind a ReLU:

        a = log(1/e − (C − 1)) for C e < 1 (else 0),   value = N [log(1 + (C − 1) e^{−a}) + (C − 1) e a]

    C − 1 singular values √(a √m), or √(a √(m C/(C−1))) behind a ReLU, and one 0. Without the ReLU features are a
    simplex ETF, learned for β < √m as under squared error; behind it an orthogonal frame under a classifier that is a
    simplex ETF, learned for β < √(m (C−1)/C). That features cannot be negative costs ‖M‖² a factor C/(C−1): with
    M ≥ 0, ‖M − μ_G 1ᵀ‖² ≤ (1 − 1/C) ‖M‖².

    Raises:
        ValueError: unequal classes, β not above zero, an unknown loss.
    References:
        Ergen et al. (2022), batch normalisation in convex form, squared error. The minimiser under cross-entropy is
        that of Zhu et al. (2021), behind a ReLU the orthogonal frame of Dang et al. (2024, cross-entropy with
        unconstrained ReLU features); put into this head and derived here.
    """
    check_choice("loss", loss, ("squared", "cross-entropy"))
    check_positive("decay", decay)
    C, m, N = classes.num_classes, classes.per_class, classes.num_samples
    β = jnp.asarray(decay, dtype=float)
    if loss == "squared":
        learned = jnp.minimum(β, m**0.5)
        return BatchNormMinimiser(
            value=C * (m**0.5 * learned - learned**2 / 2),
            singular_values=jnp.full(C, 1.0) * jnp.sqrt(jnp.maximum(m**0.5 - β, 0)),
        )
    stretch = (C / (C - 1)) ** 0.5 if relu else 1.0
    e = β / (C * m**0.5) * stretch
    a = jnp.where(C * e < 1, jnp.log(jnp.where(C * e < 1, 1 / e - (C - 1), 1)), 0)
    return BatchNormMinimiser(
        value=N * (jnp.log1p((C - 1) * jnp.exp(-a)) + (C - 1) * e * a),
        singular_values=jnp.where(jnp.arange(C) < C - 1, jnp.sqrt(a * m**0.5 * stretch), 0),
    )


def batch_norm_parameters(H: Float[Array, "n N"]) -> tuple[Float[Array, " n"], Float[Array, "n N"], Float[Array, " n"]]:
    """(γ, BN(z), α) of features H = γ BN(z) + α 1ᵀ/√N; a row without variation has BN(z) = 0 and γ = 0."""
    N = H.shape[1]
    centred = H - H.mean(1)[:, None]
    γ = jnp.linalg.norm(centred, axis=1)
    return γ, centred / jnp.where(γ > 0, γ, 1)[:, None], H.mean(1) * N**0.5
