"""Unequal classes: at what rate each contrast of class means is learnt, lazily and from a small start."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_arrays, check_finite, check_shape
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes


class Contrasts(NamedTuple):
    """rates: in ascending order; directions: orthonormal columns u_k on the root-weighted classes, D^½ u_k of them."""

    rates: Float[Array, " C"]
    directions: Float[Array, "C C"]


def lazy_contrasts(gamma: BlockKernel, classes: Classes) -> Contrasts:
    r"""Rates at which class means of the residual decay under a constant output kernel, one for each contrast.

        D^½ Γ D^½ u_k = λ_k u_k,   Γ = G + diag(λ_single/m_c),   R̄(t) D^½ u_k = R̄(0) D^½ u_k e^{−λ_k t}

    with R̄ the residual of class means (C × C), D the class sizes, G the block kernel's class pairs. In the three-number
    form D^½ Γ D^½ = λ_single + (γ_c − γ_n) D + γ_n d^½ d^½ᵀ: λ_class (C − 1 times) and λ_global for equal classes; of
    unequal ones the smallest class makes the slowest contrast, at λ_single + (γ_c − γ_n) m or more.

    Args:
        gamma: output kernel; of a feature kernel these are no rates of the residual.
        classes: of any sizes.
    Returns:
        Rates per flow time of the loss ½‖R‖².
    References:
        Seleznova et al. (2023), Section 4.1, for equal classes; unequal ones derived here.
    """
    root = jnp.sqrt(classes.weights)
    values, vectors = jnp.linalg.eigh(root[:, None] * gamma.class_gram(classes.weights) * root[None, :])
    return Contrasts(values, vectors)


def small_start_contrasts(kappa: BlockKernel, classes: Classes) -> Contrasts:
    r"""Rates at which class means grow from a small start, one for each contrast.

        A Γ A u_k = ω_k² u_k,   A = D − d dᵀ/N,   Γ = G + diag(λ_single/m_c)

    Near H = W = 0, with the bias at its relaxed value d/N, the flow is Ẇ = A Mᵀ, Ṁ = Wᵀ A Γ: W and M grow as e^{ω_k t}
    along u_kᵀW, and contrast k of a start of size ε is learnt at about ln(1/ε)/ω_k. One rate is 0, that of u = 1; for
    equal classes the others are √(m λ_class). Feature and output learn together here: rates go as roots of kernel and
    as powers of class size of order one, where those of `lazy_contrasts` are linear in both.

    Args:
        kappa: feature kernel.
        classes: of any sizes.
    Returns:
        Rates per flow time of the loss ½‖R‖²; directions are orthonormal on the outputs of W.
    References:
        Derived here; equal classes as in the logistic modes of `theory.exact`.
    """
    d = classes.weights
    A = jnp.diag(d) - d[:, None] * d[None, :] / d.sum()
    values, vectors = jnp.linalg.eigh(A @ kappa.class_gram(d) @ A)
    return Contrasts(jnp.sqrt(jnp.maximum(values, 0)), vectors)


def contrast_norms(
    class_residuals: Float[ArrayLike, "*T C C"], classes: Classes, directions: Float[ArrayLike, "C C"]
) -> Float[Array, "*T C"]:
    r"""‖R̄ D^½ u_k‖ of each contrast: their squares sum to ‖R_class‖².

    Args:
        class_residuals: R̄ = W M + b 1ᵀ − 1, one or a course of them.
        classes: of the columns.
        directions: of `lazy_contrasts`.
    Raises:
        ValueError: shapes that disagree, or numbers that are not finite.
    """
    check_arrays(class_residuals=class_residuals, directions=directions)
    R, U, C = jnp.asarray(class_residuals), jnp.asarray(directions), classes.num_classes
    check_shape("class_residuals", R, (*R.shape[:-2], C, C), f"(..., C, C) for the {C} classes")
    check_shape("directions", U, (C, C), f"(C, C) for the {C} classes")
    check_finite("class_residuals", R)
    return jnp.linalg.norm(R @ (jnp.sqrt(classes.weights)[:, None] * U), axis=-2)
