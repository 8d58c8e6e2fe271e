"""The expected gradient outer product: what the average one tends to as points are added."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse._checks import check_key, check_whole
from ntkcollapse.collapse.agop import RowFunction, agop

# A key and how many → so many rows.
Draw = Callable[[jax.Array, int], Float[Array, "B *shape"]]


class ExpectedGradientOuterProduct(NamedTuple):
    """matrix: the estimate; standard_error: of each of its entries; samples: how many points it is of."""

    matrix: Float[Array, "n n"]
    standard_error: Float[Array, "n n"]
    samples: int


def egop(
    f: RowFunction, draw: Draw, *, key: jax.Array, samples: int = 4096, batches: int = 16, chunk: int = 256
) -> ExpectedGradientOuterProduct:
    r"""Expected gradient outer product of a function over a distribution that can be drawn from.

        E_{x ∼ ρ} J(x)ᵀ J(x),   J(x) = ∂f/∂x  (K × n)

    `agop` is its average over the points of a data set. Two things lie between the AGOP of a fitted function and the
    EGOP of what it was fitted to: the finite average, whose standard error this gives, and the fit. Of f(x) = ½ xᵀA x +
    bᵀx over N(μ, Σ) it is AΣA + (Aμ + b)(Aμ + b)ᵀ.

    Args:
        f: as for `agop`.
        draw: (key, B) → B independent points of ρ, rows.
        key: of the draws.
        samples: points in all.
        batches: of equal size that the points are drawn in; the spread of their averages gives the standard error.
        chunk: samples differentiated at once.
    Returns:
        Unbiased, with standard errors that fall as 1/√samples.
    Raises:
        ValueError: as `agop`; fewer than two batches, or a number of samples that is no multiple of theirs.
    References:
        Trivedi, Wang, Kpotufe & Shakhnarovich (2014); Radhakrishnan et al. (2024) for the average.
    """
    check_key("key", key)
    for name, value in (("samples", samples), ("batches", batches)):
        check_whole(name, value)
    if batches < 2 or samples % batches:
        raise ValueError(
            f"samples, batches: expected at least two batches of one size, got {samples} samples in {batches}."
        )
    size = samples // batches
    parts = np.stack([agop(f, draw(part, size), chunk=chunk) for part in jax.random.split(key, batches)])
    return ExpectedGradientOuterProduct(
        jnp.asarray(parts.mean(0)), jnp.asarray(parts.std(0, ddof=1) / np.sqrt(batches)), samples
    )
