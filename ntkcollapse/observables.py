"""What is observed of a last layer: the same functions for theory and for trained networks.

Everything but `column_observables` is a function of class means and within-class scatter, so that it costs the same
for every number of samples.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse import collapse
from ntkcollapse._safe import norm, root
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.collapse import ClassStatistics
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.losses import Loss
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.theory.invariant import alignment, feature_gram, necessary_condition_residual

Observables = dict[str, Array]


def residual_observables(
    statistics: ClassStatistics, deviations: Float[Array, "n X"], W: Float[Array, "C n"], b: Float[Array, " C"]
) -> Observables:
    """Frobenius norms of the three orthogonal parts of R, and the loss ½‖R‖² that they add up to.

        ‖R_global‖² = ‖R̄ d‖² / N,  ‖R_class‖² = tr(R̄ D R̄ᵀ) − ‖R_global‖²,  ‖R_single‖² = tr(W S Wᵀ)

    with R̄ = W M + b 1ᵀ − I. `residual_class` is the norm of R_class − R_global, orthogonal to the other two. Any X with
    X Xᵀ = S serves as `deviations`: ‖W X‖ keeps the digits that a root of tr(W S Wᵀ) loses below √ε.
    """
    M, S, d = statistics.means, statistics.scatter, statistics.sizes
    R = W @ M + b[:, None] - jnp.eye(d.shape[0], dtype=W.dtype)
    overall = (R * d[None, :]).sum(1) / d.sum()
    # The value of ‖W X‖ with the derivative of tr(W S Wᵀ): a root X has none where S is singular.
    single, square = jax.lax.stop_gradient(norm(W @ deviations)), jnp.sum((W @ S) * W)
    single = single + (square - jax.lax.stop_gradient(square)) / jnp.where(single > 0, 2 * single, jnp.inf)
    class_ = norm((R - overall[:, None]) * jnp.sqrt(d)[None, :])
    global_ = jnp.sqrt(d.sum()) * norm(overall)
    return {
        "loss": (single**2 + class_**2 + global_**2) / 2,
        "residual_single": single,
        "residual_class": class_,
        "residual_global": global_,
    }


def collapse_observables(statistics: ClassStatistics, W: Float[Array, "C n"], b: Float[Array, " C"]) -> Observables:
    """NC1 to NC3 under the names of their sources (see `ntkcollapse.collapse`), and the sizes behind them."""
    M = statistics.means
    mean_feature = M.mean(1)
    return {
        "nc1_papyan2020": collapse.nc1_papyan2020(statistics),
        "nc1_seleznova2023": collapse.nc1_seleznova2023(statistics),
        "nc1_tirer2022": collapse.nc1_tirer2022(statistics),
        "nc2_seleznova2023": collapse.nc2_seleznova2023(statistics),
        "nc3_seleznova2023": collapse.nc3_seleznova2023(statistics, W),
        "weight_norm": norm(W),
        "bias_norm": norm(b),
        "class_means_norm": norm(M - mean_feature[:, None]),
        "mean_feature_norm": norm(mean_feature),
        "scatter_norm": root(jnp.trace(statistics.scatter)),
    }


def invariant_observables(
    W: Float[Array, "C n"], gram: Float[Array, "n n"], mean_feature: Float[Array, " n"]
) -> Observables:
    """Norm and alignment of the invariant I = WᵀW − H K⁻¹ Hᵀ, and its distance from the form that collapse needs.

    `invariant_relative` is ‖I‖ over ‖WᵀW‖ + ‖H K⁻¹ Hᵀ‖, between 0 and 1, and so is `necessary_condition`.
    """
    A = W.T @ W
    size = norm(A) + norm(gram)
    size = jnp.where(size > 0, size, 1)
    length = norm(A - gram)
    return {
        "invariant_norm": length,
        "invariant_relative": length / size,
        "invariant_alignment": alignment(A, gram),
        "necessary_condition": necessary_condition_residual(A - gram, W, mean_feature) / size,
    }


def column_observables(state: LastLayer, classes: Classes) -> Observables:
    """Accuracy on the samples, and NC4: how often the network disagrees with the nearest class mean. Costs n N C."""
    means = classes.means(state.H)
    return {
        "accuracy": jnp.mean((jnp.argmax(state.logits, axis=0) == classes.labels).astype(state.H.dtype)),
        "nc4_mismatch": collapse.nc4_mismatch(state.H, state.W, state.b, means),
    }


def kernel_observables(kernel: SampleKernel, name: str = "kappa") -> Observables:
    """The three numbers of a block kernel in the theorem's form; nothing for other kernels."""
    if not (isinstance(kernel, BlockKernel) and kernel.is_uniform):
        return {}
    return {
        f"{name}_diagonal": kernel.diagonal,
        f"{name}_within": kernel.within,
        f"{name}_between": kernel.between,
    }


def observe(
    state: LastLayer,
    classes: Classes,
    kernel: SampleKernel | None = None,
    loss: Loss | None = None,
    *,
    gram: Float[Array, "n n"] | None = None,
) -> Observables:
    """Everything that is observed of one full state.

    Args:
        state: features in class-major columns.
        classes: behind the columns.
        kernel: of the features; without one nothing is said of the invariant.
        loss: the loss to report; ½‖R‖² without one.
        gram: H K⁻¹ Hᵀ, where it is known already.
    """
    statistics = ClassStatistics.from_columns(state.H, classes)
    W, b = state.W, state.b
    seen: dict[str, Any] = residual_observables(statistics, classes.deviations(state.H), W, b)
    if loss is not None:
        seen["loss"] = loss.value(state.logits, classes.Y.astype(state.H.dtype))
    seen |= collapse_observables(statistics, W, b)
    if kernel is not None:
        gram = feature_gram(state.H, kernel, classes) if gram is None else gram
        seen |= invariant_observables(W, gram, statistics.means.mean(1)) | kernel_observables(kernel)
    return seen | column_observables(state, classes)


def stack(records: list[Observables]) -> Observables:
    """Records of single times as one record with a leading time axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *records)
