"""The matrix that the flow conserves, and what its value says about collapse."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse._safe import norm, unit
from ntkcollapse._types import AnyArray
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.sample_kernel import SampleKernel


def feature_gram(H: Float[AnyArray, "n N"], kernel: SampleKernel, classes: Classes) -> Float[Array, "n n"]:
    """H K⁻¹ Hᵀ for any positive-definite kernel; the part of the invariant that belongs to the features."""
    return jnp.asarray(H) @ kernel.solve(H, classes).T


def reduced_feature_gram(
    M: Float[AnyArray, "n R"], scatter: Float[AnyArray, "G n n"], kernel: SampleKernel, sizes: Float[AnyArray, " C"]
) -> Float[Array, "n n"]:
    """H K⁻¹ Hᵀ = M Γ⁻¹ Mᵀ + Σ_g S_g / λ_g for a reducible kernel, from class means and scatters alone.

    Of a kernel with further directions M is [M, X], the `means` of a `ReducedState`.
    """
    rates = kernel.group_rates(sizes.shape[0])
    return M @ jnp.linalg.solve(kernel.direction_gram(sizes), M.T) + (scatter / rates[:, None, None]).sum(0)


def invariant(state: LastLayer, kernel: SampleKernel, classes: Classes) -> Float[Array, "n n"]:
    r"""Conserved matrix of the gradient flow under a constant kernel.

        I = WᵀW − H K⁻¹ Hᵀ  ( = m E with E the paper's matrix, for a block kernel on balanced classes )

    Constant along `Flow` for every constant positive-definite K, balanced or not, squared error or cross-entropy. With
    equal decay λ of H and W it is I(0) e^{−2λt}; discrete steps move it at the order of the step.

    Args:
        state: features in class-major columns.
        kernel: feature kernel.
        classes: behind the columns.
    Returns:
        I in units of squared weight. Symmetric, of either sign.
    Raises:
        ValueError: shapes that disagree with `classes`.
    References:
        Seleznova et al. (2023), Section 5.2, equation (26).
    """
    state.check(classes)
    return state.W.T @ state.W - feature_gram(state.H, kernel, classes)


def paper_invariant(state: LastLayer, kappa: BlockKernel, classes: Classes) -> Float[Array, "n n"]:
    r"""The paper's form of the conserved matrix, term by term.

        E = WᵀW / m − H₁ (I − α 11ᵀ) H₁ᵀ / λ_class − H₂ H₂ᵀ / λ_single,   α = m κ_n / λ_global

    H₁ = M are the class means and H₂ the within-class contrasts with H₂H₂ᵀ = S/m. It equals `invariant` / m.

    Raises:
        ValueError: classes of unequal sizes, or a kernel not of three numbers.
    References:
        Seleznova et al. (2023), Section 5.2, equation (26).
    """
    state.check(classes)
    m = classes.per_class
    lambda_single, lambda_class, lambda_global = kappa.rates(classes)
    alpha = m * kappa.between / lambda_global
    H1 = classes.means(state.H)
    deviations = classes.deviations(state.H)
    total = H1.sum(1)
    class_term = H1 @ H1.T - alpha * total[:, None] * total[None, :]
    return state.W.T @ state.W / m - class_term / lambda_class - deviations @ deviations.T / (m * lambda_single)


class InvariantTerms(NamedTuple):
    """The four terms of `invariant_terms`, each (n, n), and the coefficient α of the third.

    weights: WᵀW/m; class_means: M Mᵀ/λ_class; mean_feature: (α/λ_class) ⟨h⟩⟨h⟩ᵀ; within: S/(m λ_single).
    """

    weights: Float[Array, "n n"]
    class_means: Float[Array, "n n"]
    mean_feature: Float[Array, "n n"]
    within: Float[Array, "n n"]
    alpha: Float[Array, ""]

    @property
    def total(self) -> Float[Array, "n n"]:
        """E."""
        return self.weights - self.class_means + self.mean_feature - self.within


def invariant_terms(state: LastLayer, kappa: BlockKernel, classes: Classes) -> InvariantTerms:
    r"""The conserved matrix with the global mean ⟨h⟩ in a term of its own, as talks on the paper write it.

        E = WᵀW / m − M Mᵀ / λ_class + (α / λ_class) ⟨h⟩⟨h⟩ᵀ − S / (m λ_single),   α = C² m κ_n / λ_global

    The same matrix as `paper_invariant`, in which this α is divided by C²: M 1 = C ⟨h⟩. The mean's own part of M Mᵀ is
    C ⟨h⟩⟨h⟩ᵀ, so that together with the third term it counts 1 − α/C = λ_class/λ_global of itself.

    Raises:
        ValueError: classes of unequal sizes, or a kernel not of three numbers.
    References:
        Seleznova et al. (2023), Section 5.2; in this form in talks on it.
    """
    state.check(classes)
    m, C = classes.per_class, classes.num_classes
    lambda_single, lambda_class, lambda_global = kappa.rates(classes)
    M, deviations = classes.means(state.H), classes.deviations(state.H)
    alpha, mean = C**2 * m * kappa.between / lambda_global, M.mean(1)
    return InvariantTerms(
        weights=state.W.T @ state.W / m,
        class_means=M @ M.T / lambda_class,
        mean_feature=alpha / lambda_class * mean[:, None] * mean[None, :],
        within=deviations @ deviations.T / (m * lambda_single),
        alpha=alpha,
    )


def alignment(A: Float[AnyArray, "n n"], B: Float[AnyArray, "n n"]) -> Float[Array, ""]:
    """⟨A, B⟩_F / (‖A‖_F ‖B‖_F).

    Of A = WᵀW and B = H K⁻¹ Hᵀ it is the paper's alignment of the invariant: 1 where the two are proportional, which
    does not yet mean that the invariant vanishes. 0 where either matrix is 0.
    """
    return jnp.sum(unit(jnp.asarray(A)) * unit(jnp.asarray(B)))


def necessary_condition_residual(
    invariant: Float[AnyArray, "n n"], W: Float[AnyArray, "C n"], mean_feature: Float[AnyArray, " n"]
) -> Float[Array, ""]:
    r"""How far the invariant is from the form that collapse requires.

        min over a, c of ‖I − a (WᵀW − c ⟨h⟩⟨h⟩ᵀ)‖_F

    At every interpolating collapsed point I is of this form (then c ∝ N / λ_global; or I ∝ ⟨h⟩⟨h⟩ᵀ alone). I is
    conserved under a constant kernel and this distance is not: W and ⟨h⟩ move, and its value at the end of training is
    what excludes collapse. Necessary, not sufficient.

    Args:
        invariant: I or any multiple of it in units of squared weight.
        W: classifier at the same time; the condition is meant for the end of training.
        mean_feature: ⟨h⟩, the mean of the class means.
    Returns:
        The distance, in units of the invariant.
    References:
        Seleznova et al. (2023), Section 5.3.
    """
    A, B = jnp.asarray(W.T @ W), jnp.asarray(mean_feature[:, None] * mean_feature[None, :])
    unit_A = unit(A)
    # Gram-Schmidt instead of normal equations: ⟨h⟩ = 0 and ⟨h⟩⟨h⟩ᵀ ∝ WᵀW are ordinary cases here.
    B = B - jnp.sum(B * unit_A) * unit_A
    norm_B = norm(B)
    small = norm_B <= 1e-12 * (jnp.sum(jnp.square(mean_feature)) + jnp.finfo(B.dtype).tiny)
    unit_B = jnp.where(small, 0, B / jnp.where(small, 1, norm_B))
    rest = jnp.asarray(invariant) - jnp.sum(invariant * unit_A) * unit_A
    rest = rest - jnp.sum(rest * unit_B) * unit_B
    return norm(rest)
