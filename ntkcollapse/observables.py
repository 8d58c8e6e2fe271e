"""What is observed of a last layer: the same functions for theory and for trained networks.

Everything but `column_observables` is a function of class means and within-class scatter, so that it costs the same
for every number of samples.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse import collapse, observable_table
from ntkcollapse._safe import norm, root
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.collapse import ClassStatistics
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.losses import Loss
from ntkcollapse.observable_table import Observable
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.theory.invariant import alignment, feature_gram, necessary_condition_residual

Observables = dict[str, Array]


def residual_observables(
    statistics: ClassStatistics, deviations: Float[Array, "n X"], W: Float[Array, "C n"], b: Float[Array, " C"]
) -> Observables:
    """Frobenius norms of the three orthogonal parts of R, and the loss ½‖R‖² that they add up to.

        ‖R_global‖² = ‖R̄ d‖² / N,  ‖R_class − R_global‖² = tr(R̄ D R̄ᵀ) − ‖R_global‖²,  ‖R_single‖² = tr(W S Wᵀ)

    with R̄ = W M + b 1ᵀ − I. `residual_class` is the norm of R_class − R_global, orthogonal to the other two. Any X with
    X Xᵀ = S serves as `deviations`: ‖W X‖ keeps the digits that a root of tr(W S Wᵀ) loses below √ε.
    """
    M, S, d = statistics.means, statistics.scatter, statistics.sizes
    R = W @ M + b[:, None] - jnp.eye(d.shape[0], dtype=W.dtype)
    overall = (R * d[None, :]).sum(1) / d.sum()
    # The value of ‖W X‖ with the derivatives, of any order, of √tr(W S Wᵀ): a root X has none where S is singular.
    single, square = jax.lax.stop_gradient(norm(W @ deviations)), jnp.sum((W @ S) * W) * jnp.square(statistics.unit)
    moved = square - jax.lax.stop_gradient(square)
    small = jnp.finfo(single.dtype).tiny ** 0.5
    single = single * jnp.sqrt(1 + moved / jnp.square(jnp.where(single > small, single, jnp.inf)))
    class_ = norm((R - overall[:, None]) * jnp.sqrt(d)[None, :])
    global_ = jnp.sqrt(d.sum()) * norm(overall)
    return {
        "loss": (single**2 + class_**2 + global_**2) / 2,
        "residual_single": single,
        "residual_class": class_,
        "residual_global": global_,
    }


def collapse_observables(
    statistics: ClassStatistics,
    W: Float[Array, "C n"],
    b: Float[Array, " C"],
    metrics: Sequence[Observable] | None = None,
) -> Observables:
    """Evaluates the metrics of collapse that are observed along runs, and the sizes behind them.

    Args:
        statistics, W, b: of one state.
        metrics: entries of the table of observables; by default those that it has now. What is compiled once and called
            again takes them as a static argument: `observable_table.metrics(along_runs=True)`.
    """
    M = statistics.means
    mean_feature = M.mean(1)
    entries = observable_table.metrics(along_runs=True) if metrics is None else metrics
    return collapse.evaluate(entries, statistics, W, b) | {
        "weight_norm": norm(W),
        "bias_norm": norm(b),
        "class_means_norm": norm(M - mean_feature[:, None]),
        "mean_feature_norm": norm(mean_feature),
        "scatter_norm": statistics.unit * root(jnp.trace(statistics.scatter)),
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
    """Names the three numbers of a block kernel in the theorem's form; nothing for other kernels."""
    if not (isinstance(kernel, BlockKernel) and kernel.is_uniform):
        return {}
    return block_observables((kernel.diagonal, kernel.within, kernel.between), name)


def block_observables(means: Sequence[Any], name: str = "kappa") -> dict[str, Any]:
    """Names the three block means of a kernel: over i = j, within classes (i ≠ j), and between classes."""
    return dict(zip((f"{name}_{part}" for part in ("diagonal", "within", "between")), means, strict=True))


def observe(
    state: LastLayer,
    classes: Classes,
    kernel: SampleKernel | None = None,
    loss: Loss | None = None,
    *,
    gram: Float[Array, "n n"] | None = None,
    metrics: Sequence[Observable] | None = None,
) -> Observables:
    """Observes everything of one full state.

    Args:
        state: features in class-major columns.
        classes: behind the columns.
        kernel: of the features; without one nothing is said of the invariant.
        loss: the loss to report; ½‖R‖² without one.
        gram: H K⁻¹ Hᵀ, where it is known already.
        metrics: of collapse, as for `collapse_observables`.
    """
    statistics = ClassStatistics.from_columns(state.H, classes)
    W, b = state.W, state.b
    observables: dict[str, Any] = residual_observables(statistics, classes.deviations(state.H), W, b)
    if loss is not None:
        observables["loss"] = loss.value(state.logits, classes.Y.astype(state.H.dtype))
    observables |= collapse_observables(statistics, W, b, metrics)
    if kernel is not None:
        gram = feature_gram(state.H, kernel, classes) if gram is None else gram
        observables |= invariant_observables(W, gram, statistics.means.mean(1)) | kernel_observables(kernel)
    return observables | column_observables(state, classes)


def stack(records: list[Observables]) -> Observables:
    """Records of single times as one record with a leading time axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *records)
