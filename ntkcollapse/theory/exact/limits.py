"""Limits of the flow: the collapsed state, the imbalanced one, and those where collapse fails."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_finite, check_positive, check_shape
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.sample_kernel import SampleKernel


class LimitState(NamedTuple):
    """A state without within-class scatter, up to a rotation of feature space.

    weight_gram: W Wᵀ; outputs: W M, the part of the logits that features make; mean_gram: MᵀM between class means,
    so that HᵀH = Z (MᵀM) Zᵀ; bias: b. Logits of the classes are W M + b 1ᵀ.
    """

    weight_gram: Float[Array, "C C"]
    outputs: Float[Array, "C C"]
    mean_gram: Float[Array, "C C"]
    bias: Float[Array, " C"]


class NonCollapsedLimit(NamedTuple):
    """An interpolating state where one of NC1 and NC3 fails: a collapsed one with one more direction.

    state: its moments; weight_square: (1ᵀW v)²/C in the extra direction v; scatter: vᵀ S v, S summed over samples;
    nc1_tirer2022: tr Σ_W / tr Σ_B; nc3_seleznova2023: ‖M_c/‖M_c‖ − Wᵀ/‖W‖‖.
    """

    state: LimitState
    weight_square: Float[Array, ""]
    scatter: Float[Array, ""]
    nc1_tirer2022: Float[Array, ""]
    nc3_seleznova2023: Float[Array, ""]


def collapsed_limit(kappa: BlockKernel, classes: Classes) -> LimitState:
    r"""The collapsed state with invariant 0.

        W Wᵀ = √(m/λ_class) Π,  M = √(λ_class/m) Wᵀ,  HᵀH = √(λ_class/m) Π ⊗ 11ᵀ,  b = 1/C,  W M = Π = I − 11ᵀ/C

    The limit of balanced starts with E = 0, ⟨h⟩ = 0, b = 1/C *if* the flow reaches R = 0. E = 0 alone does not do it:
    without scatter half of these starts end at a saddle, and with 1ᵀW ≠ 0 the scatter falls only like 1/t.

    Raises:
        ValueError: unequal classes, a general block kernel.
    References:
        Seleznova et al. (2023), Section 5.3 (emergence of collapse); scales and qualifications derived here.
    """
    C, scale = classes.num_classes, jnp.sqrt(kappa.lambda_class(classes) / classes.per_class)
    Π = jnp.eye(C) - 1 / C
    return LimitState(weight_gram=Π / scale, outputs=Π, mean_gram=scale * Π, bias=jnp.full(C, 1 / C))


def imbalanced_limit(bias: Float[ArrayLike, " C"], kernel: SampleKernel, classes: Classes) -> LimitState:
    r"""The interpolating state with invariant 0 and no scatter, for classes of any sizes.

        W Wᵀ = (T Γ⁻¹ Tᵀ)^{1/2},  M = W⁺ T,  T = I − b 1ᵀ

    b is not determined by interpolation: it is where the dynamics leave it. For unconstrained features (K = κ_d I)
    started small it is d/N, the class frequencies; with κ_c > κ_n it is not. NC2 fails unless sizes are equal.

    Args:
        bias: b at the end, with 1ᵀb = 1 where the state is centred.
        kernel: of the features; any with a `class_gram`.
        classes: of any sizes.
    Raises:
        ValueError: a bias of another length than C, or not finite.
    References:
        Derived here.
    """
    C = classes.num_classes
    check_shape("bias", bias, (C,), "one bias a class")
    check_finite("bias", bias)
    b = jnp.asarray(bias, dtype=float)
    T = jnp.eye(C) - b[:, None]
    square = T @ jnp.linalg.solve(kernel.class_gram(classes.weights), T.T)
    values, vectors = jnp.linalg.eigh((square + square.T) / 2)
    root = jnp.sqrt(jnp.maximum(values, 0))
    # T, and with it W, misses a direction where 1ᵀb = 1: its eigenvalue is 0 up to rounding.
    alive = values > 1e-12 * values[-1]
    inverse = jnp.where(alive, 1 / jnp.where(alive, root, 1), 0)
    weight_gram = (vectors * root[None, :]) @ vectors.T
    mean_gram = T.T @ (vectors * inverse[None, :]) @ vectors.T @ T
    return LimitState(weight_gram=weight_gram, outputs=T, mean_gram=mean_gram, bias=b)


def non_collapsed_limit(e0: Float[ArrayLike, ""], kappa: BlockKernel, classes: Classes) -> NonCollapsedLimit:
    r"""The fixed point that a start with invariant e₀ v vᵀ reaches: loss 0, without full collapse.

        e₀ < 0:  1ᵀW v → 0,           S → λ_single |e₀| v vᵀ    NC2 = NC3 = 0, NC1 fails
        e₀ > 0:  (1ᵀW v)²/C → e₀,    S → 0                      NC1 = NC2 = 0, NC3 fails
        e₀ = 0:  both vanish, like 1/t

    For starts whose class modes have invariant 0, with ⟨h⟩ = 0, b = 1/C, plus one within-class direction v,
    orthogonal to the class means, on which W acts with output direction 1 only. The course: `aligned_pair`.

    Args:
        e0: (1ᵀW v)²/C − vᵀSv/λ_single, constant in time. The paper's matrix is then E = e₀ v vᵀ / m.
        kappa: feature kernel, three numbers.
        classes: balanced.
    Raises:
        ValueError: unequal classes, a general block kernel, e₀ not finite.
    References:
        Derived here.
    """
    check_finite("e0", e0)
    C, m, λ = classes.num_classes, classes.per_class, kappa.lambda_class(classes)
    e0 = jnp.asarray(e0, dtype=float)
    weight_square, scatter = jnp.maximum(e0, 0), kappa.lambda_single * jnp.maximum(-e0, 0)
    state = collapsed_limit(kappa, classes)
    between = (C - 1) * jnp.sqrt(λ / m) / C
    class_weight = (C - 1) * jnp.sqrt(m / λ)
    # M_c is parallel to the class part of W, so that NC3² = 2 − 2 cos; written without cancellation at e₀ → 0.
    total = class_weight + weight_square
    nc3 = jnp.sqrt(2 * weight_square / (total + jnp.sqrt(total * class_weight)))
    return NonCollapsedLimit(
        state=state._replace(weight_gram=state.weight_gram + weight_square / C),
        weight_square=weight_square,
        scatter=scatter,
        nc1_tirer2022=scatter / (C * m) / between,
        nc3_seleznova2023=nc3,
    )


def feature_scale_of_invariant(e: Float[ArrayLike, "*E"], kappa: BlockKernel, classes: Classes) -> Float[Array, "*E"]:
    r"""g in M_c = g Wᵀ at the collapsed point whose invariant has the (C − 1)-fold eigenvalue e.

        g = λ_class (−e + √(e² + 4 m/λ_class)) / (2 m),     W Wᵀ = Π/g

    At every interpolating collapsed point (S = 0, M_c = g Wᵀ, W Wᵀ = Π/g, b = 1/C − W⟨h⟩)

        I = (1 − m g²/λ_class) WᵀW − (N/λ_global) ⟨h⟩⟨h⟩ᵀ,      I = WᵀW − H K⁻¹ Hᵀ = m E,

    so that E ∝ WᵀW − c ⟨h⟩⟨h⟩ᵀ with c = (N/λ_global)/(1 − m g²/λ_class): necessary for collapse, not sufficient. e = 0
    is the collapsed state of `collapsed_limit`, g = √(λ_class/m).

    Raises:
        ValueError: unequal classes, a general block kernel, e not finite.
    References:
        Seleznova et al. (2023), Section 5.3 (form of E); the relation of g and e is derived here.
    """
    check_finite("e", e)
    e, ratio = jnp.asarray(e, dtype=float), kappa.lambda_class(classes) / classes.per_class
    # −e + √… loses all digits for large e: 2/(e + √…) is the same number.
    total = jnp.abs(e) + jnp.sqrt(e**2 + 4 / ratio)
    return jnp.where(e > 0, 2 / total, ratio * total / 2)


def invariant_of_feature_scale(g: Float[ArrayLike, "*E"], kappa: BlockKernel, classes: Classes) -> Float[Array, "*E"]:
    r"""The (C − 1)-fold eigenvalue e = 1/g − m g/λ_class of the invariant where M_c = g Wᵀ; see above.

    Raises:
        ValueError: g not above zero, unequal classes, a general block kernel.
    """
    check_positive("g", g)
    g = jnp.asarray(g, dtype=float)
    return 1 / g - classes.per_class * g / kappa.lambda_class(classes)


def minimal_scatter_rank(num_features: int, classes: Classes) -> int:
    r"""The rank that within-class scatter keeps for ever, from a start where it had full rank.

        rank S_∞ ≥ n − 2C    for S(0) of rank n (which needs N − C ≥ n), without weight decay

    The conserved matrix is negative on the n − C or more directions that W(0) does not see, and in the limit only C +
    rank S_∞ directions can be. For n > 2C exact NC1 is thus impossible; the residual still vanishes, because the
    scatter that remains lies where W_∞ does not look. Balanced or not, any constant positive-definite kernel.

    References:
        Derived here.

    >>> minimal_scatter_rank(64, Classes.balanced(10, 12))
    44
    """
    return max(num_features - 2 * classes.num_classes, 0)
