"""Inner products of per-sample gradients, by what is asked of the outputs."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Outputs = Literal["full", "diagonal", "mean"]
OUTPUTS: tuple[Outputs, ...] = ("full", "diagonal", "mean")

# The precision that is set around the call (`_precision`): all digits where nothing else is asked for.
EXACT = None


def contract(g: Float[Array, "A k P"], h: Float[Array, "B k P"], outputs: Outputs) -> Float[Array, "A B ..."]:
    """⟨g_i^k, h_j^s⟩: (A, B, k, k), its diagonal k = s (A, B, k), or the **sum** of that diagonal (A, B)."""
    if outputs == "full":
        return jnp.einsum("akp,bsp->abks", g, h, precision=EXACT)
    if outputs == "diagonal":
        return jnp.einsum("akp,bkp->abk", g, h, precision=EXACT)
    # Flat: a product over two axes at once is not joined into one by XLA, and takes twice the time.
    return jnp.matmul(g.reshape(g.shape[0], -1), h.reshape(h.shape[0], -1).T, precision=EXACT)


class GroupSums(NamedTuple):
    """Sums of gradients over the samples of each of Q groups, and how far the samples lie apart.

    sums: (Q, k, P), Σ g_i^k; signed: (q, k, P) with each column of signs over all samples, or None; scatter: (Q, k),
    Σ ‖g_i^k − ḡ^k‖² about the group's mean ḡ, or (Q, k, k) with ⟨g_i^k − ḡ^k, g_i^s − ḡ^s⟩ for pairs of outputs.
    """

    sums: Float[Array, "Q k P"]
    signed: Float[Array, "q k P"] | None
    scatter: Float[Array, "Q k ..."]


def group_sums(
    g: Float[Array, "B k P"], mask: Float[Array, "Q m"], signs: Float[Array, "B q"], *, pairs: bool
) -> GroupSums:
    """Sums of g over equal groups of samples; rows of g are zero where the mask is.

    Gradients are centred before they are squared: a difference of sums of squares would leave rounding only where the
    samples of a class have nearly the same gradient.
    """
    # As a matrix product: XLA's reduction over a leading axis is many times slower on a CPU.
    by_group = g.reshape(*mask.shape, -1)
    sums = jnp.einsum("gmp,gm->gp", by_group, jnp.ones(mask.shape, g.dtype), precision=EXACT)
    mean = sums / counted(mask)[:, None]
    deviations = by_group - mask[:, :, None] * mean[:, None]
    scatter = scatter_of(deviations.reshape(*mask.shape, *g.shape[1:]), pairs=pairs)
    sums = sums.reshape(-1, *g.shape[1:])
    if not signs.shape[1]:
        return GroupSums(sums, None, scatter)
    return GroupSums(sums, jnp.einsum("bkp,bq->qkp", g, signs.astype(g.dtype), precision=EXACT), scatter)


def counted(mask: Float[Array, "Q m"]) -> Float[Array, " Q"]:
    """Samples of each group, at least one, to divide by."""
    return jnp.maximum(mask.sum(1), 1)


def scatter_of(deviations: Float[Array, "Q m k P"], *, pairs: bool) -> Float[Array, "Q k ..."]:
    """Sums over each group of the inner products of deviations with themselves, (Q, k) or (Q, k, k)."""
    if pairs:
        return jnp.einsum("qmkp,qmsp->qks", deviations, deviations, precision=EXACT)
    return jnp.square(deviations).sum((1, 3))


def kernel_shape(outputs: Outputs, a: int, b: int, k: int) -> tuple[int, ...]:
    """Shape of the kernel between a and b samples with k outputs."""
    return {"full": (a, b, k, k), "diagonal": (a, b, k), "mean": (a, b)}[outputs]


def mirror(tile: Any) -> Any:
    """Θ(x_j, x_i) from Θ(x_i, x_j): samples and outputs change places."""
    return tile.swapaxes(0, 1).swapaxes(-1, -2) if tile.ndim == 4 else tile.swapaxes(0, 1)
