"""Inner products of per-sample gradients, by what is asked of the outputs."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Outputs = Literal["full", "diagonal", "mean"]
OUTPUTS: tuple[Outputs, ...] = ("full", "diagonal", "mean")

# Accelerators may otherwise round the factors of float32 products.
EXACT = jax.lax.Precision.HIGHEST


def contract(g: Float[Array, "A k P"], h: Float[Array, "B k P"], outputs: Outputs) -> Float[Array, "A B ..."]:
    """⟨g_i^k, h_j^s⟩: (A, B, k, k), its diagonal k = s (A, B, k), or the **sum** of that diagonal (A, B)."""
    if outputs == "full":
        return jnp.einsum("akp,bsp->abks", g, h, precision=EXACT)
    if outputs == "diagonal":
        return jnp.einsum("akp,bkp->abk", g, h, precision=EXACT)
    # Flat: a product over two axes at once is not joined into one by XLA, and takes twice the time.
    return jnp.matmul(g.reshape(g.shape[0], -1), h.reshape(h.shape[0], -1).T, precision=EXACT)


def own(g: Float[Array, "A k P"], *, pairs: bool) -> Float[Array, "A ..."]:
    """⟨g_i^k, g_i^s⟩ of each sample with itself: (A, k, k), or (A, k) for k = s."""
    if pairs:
        return jnp.einsum("akp,asp->aks", g, g, precision=EXACT)
    return jnp.square(g).sum(2)


def weighted(g: Float[Array, "B k P"], groups: int, signs: Float[Array, "B q"]):
    """Sums of g over `groups` equal groups of samples, (groups, k, P), and with each column of signs, (q, k, P)."""
    # As a matrix product: XLA's reduction over a leading axis is many times slower on a CPU.
    by_group = g.reshape(groups, g.shape[0] // groups, -1)
    grouped = jnp.einsum("gmp,gm->gp", by_group, jnp.ones(by_group.shape[:2], g.dtype), precision=EXACT)
    grouped = grouped.reshape(groups, *g.shape[1:])
    if not signs.shape[1]:
        return grouped, None
    return grouped, jnp.einsum("bkp,bq->qkp", g, signs.astype(g.dtype), precision=EXACT)


def kernel_shape(outputs: Outputs, a: int, b: int, k: int) -> tuple[int, ...]:
    """Shape of the kernel between a and b samples with k outputs."""
    return {"full": (a, b, k, k), "diagonal": (a, b, k), "mean": (a, b)}[outputs]


def mirror(tile: Any) -> Any:
    """Θ(x_j, x_i) from Θ(x_i, x_j): samples and outputs change places."""
    return tile.swapaxes(0, 1).swapaxes(-1, -2) if tile.ndim == 4 else tile.swapaxes(0, 1)
