"""How much of the empirical NTK is label kernel."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ntkcollapse._checks import check_choice
from ntkcollapse._precision import in_precision
from ntkcollapse.classes import Classes
from ntkcollapse.compiled import compiled_quickly
from ntkcollapse.ntk._spread import Spread, from_matrix
from ntkcollapse.ntk.statistics import block_statistics
from ntkcollapse.sample_kernel import DenseKernel


class Alignment(eqx.Module):
    """Alignment of a kernel with the labels, between 0 and 1.

    alignment: ⟨Θ, YᵀY⟩ / (‖Θ‖ ‖YᵀY‖), Frobenius.
    centred: the same after the mean over samples is taken out of rows and columns of both, centred kernel alignment.
    standard_error, centred_standard_error: over random probes; zero where the value is exact.
    """

    alignment: Float[Array, ""]
    centred: Float[Array, ""]
    standard_error: Float[Array, ""]
    centred_standard_error: Float[Array, ""]


@in_precision
def matrix_alignment(matrix: Float[Array, "N N"] | Any, classes: Classes) -> Alignment:
    """Alignment of a kernel that is at hand, its samples in class order.

    Raises:
        ValueError: a matrix that is not symmetric, or of another size than `classes`.
    """
    theta = DenseKernel(matrix).as_matrix(classes)
    return _aligned(theta, classes)


@compiled_quickly()
def _aligned(theta: Float[Array, "N N"], classes: Classes) -> Alignment:
    return _of(from_matrix(theta, None, classes))


def label_alignment(
    f: Callable,
    params: PyTree,
    x: Any,
    labels: Any,
    *,
    method: Literal["exact", "estimate"] = "exact",
    probes: int = 32,
    key: PRNGKeyArray | None = None,
    **options: Any,
) -> Alignment:
    """Alignment of the output-mean empirical NTK with the labels.

    "exact" makes the N × N kernel. "estimate" is linear in N: ⟨Θ, YᵀY⟩ and the part of ‖Θ‖ on class means are exact,
    only what lies outside the class means is estimated, by `probes` random sign vectors, with a standard error.

    Args:
        f, params, x, labels: as in `block_statistics`, which does the work; `options` go to it.
    References:
        Seleznova et al. (2023), Section 2.3 (alignment of the NTK with labels); Cortes et al. (2012), "Algorithms for
        learning kernels based on centered alignment".
    """
    check_choice("method", method, ("exact", "estimate"))
    statistics = block_statistics(
        f, params, x, labels, residual=method, probes=probes, key=key, output_pairs=False, **options
    )
    assert statistics.spread is not None
    return _of(statistics.spread)


def _of(spread: Spread) -> Alignment:
    values = [spread.value(of) for of in (Spread.alignment, Spread.centred_alignment)]
    errors = [spread.standard_error(of) for of in (Spread.alignment, Spread.centred_alignment)]
    return Alignment(*map(jnp.asarray, (*values, *errors)))
