"""Gradients that are products of inputs and cotangents: formed, or only compared, whichever costs less.

The gradient of one sample is g[o, i] = Σ_t δ[t, o] a[t, i] (group by group), so that

    ⟨g, g'⟩ = Σ_{t,t'} (a_t · a'_{t'}) (δ_t · δ'_{t'})

costs |o|·|i|·|t| by forming g first and |t|²(|o| + |i|) from the two Grams on the right.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse.ntk._uses import Use
from ntkcollapse.ntk.engines._contract import EXACT, Outputs, own, weighted

# Work is counted in multiplications of a matrix product; writing and reading again a number of an array too large for
# the cache costs about as much as this many (measured on a CPU; it decides only near a tie).
_TRAFFIC = 50


class Factors(NamedTuple):
    """Inputs and cotangents of one parameter for all samples of a chunk.

    Outputs stand beside each other in a row: products are then those of one large matrix a sample, and their results
    are the gradients of all outputs without being moved again (half the time on a CPU).
    """

    a: Float[Array, "B G T I"]
    d: Float[Array, "B G T k O"]

    def products(self) -> Float[Array, "B k G O I"]:
        """The gradients, as products."""
        (B, G, T, I), (*_, k, O) = self.a.shape, self.d.shape
        if G == 1:
            g = jnp.einsum("btn,bti->bni", self.d.reshape(B, T, k * O), self.a[:, 0], precision=EXACT)
        else:
            g = jnp.einsum("bgtn,bgti->bgni", self.d.reshape(B, G, T, k * O), self.a, precision=EXACT)
            g = jnp.moveaxis(g.reshape(B, G, k, O, I), 1, 2)
        return g.reshape(B, k, G, O, I)

    def formed(self) -> Float[Array, "B k P"]:
        """The gradients themselves, P = G·O·I."""
        g = self.products()
        return g.reshape(*g.shape[:2], -1)


def grams_are_cheaper(use: Use, A: int, B: int, k: int, outputs: Outputs) -> bool:
    """Whether inner products of the gradients of A and B samples cost less by `contract_grams`."""
    G, T, I, O = use.groups, use.positions, use.inputs, use.outputs
    both = k * k if outputs == "full" else k
    kept = 1 if outputs == "mean" else both
    formed = G * I * O * (k * (A + B) * T + both * A * B + _TRAFFIC * k * (A + B))
    grams = A * B * G * T * T * (I + both * O + _TRAFFIC * (1 + kept))
    memory = A * B * G * T * T * (1 + kept) <= 2 * (A + B) * G * max(k * I * O, T * (I + k * O)) + 2**20
    return memory and grams < formed


def contract_grams(x: Factors, y: Factors, outputs: Outputs) -> Float[Array, "A B ..."]:
    """`contract` of the gradients of two chunks, from the Grams of their inputs and cotangents."""
    inputs = jnp.einsum("agti,bgui->abgtu", x.a, y.a, precision=EXACT)
    if outputs == "mean":
        cotangents = jnp.einsum("agtko,bguko->abgtu", x.d, y.d, precision=EXACT)
        return jnp.einsum("abgtu,abgtu->ab", inputs, cotangents, precision=EXACT)
    if outputs == "diagonal":
        cotangents = jnp.einsum("agtko,bguko->abkgtu", x.d, y.d, precision=EXACT)
        return jnp.einsum("abgtu,abkgtu->abk", inputs, cotangents, precision=EXACT)
    cotangents = jnp.einsum("agtko,bguso->abksgtu", x.d, y.d, precision=EXACT)
    return jnp.einsum("abgtu,abksgtu->abks", inputs, cotangents, precision=EXACT)


def is_formed(use: Use) -> bool:
    """Whether `sum_factors` forms gradients here, for a single output."""
    G, T, I, O = use.groups, use.positions, use.inputs, use.outputs
    return _sums_from_gradients(G, T, I, O, k=1, q=0, pairs=False)


def _sums_from_gradients(G: int, T: int, I: int, O: int, k: int, q: int, pairs: bool) -> bool:
    # Either way the sums cost T·G·I·O·k a sample; the rest differs.
    formed = G * k * I * O * (_TRAFFIC + q + (k if pairs else 0))
    direct = G * T * (T * (I + k * O) + (k * k * O if pairs else 0) + q * I * O * k)
    return formed <= direct


def sum_factors(x: Factors, groups: int, signs: Float[Array, "B q"], *, pairs: bool):
    """`weighted` sums of the gradients, and each sample's `own` inner products."""
    (B, G, T, I), (*_, k, O) = x.a.shape, x.d.shape
    q = signs.shape[1]
    if _sums_from_gradients(G, T, I, O, k, q, pairs):
        g = x.formed()
        return weighted(g, groups, signs), own(g, pairs=pairs)

    a, d = x.a.reshape(groups, -1, G, T, I), x.d.reshape(groups, -1, G, T, k, O)
    grouped = jnp.einsum("qmgtko,qmgti->qkgoi", d, a, precision=EXACT).reshape(groups, k, -1)
    signed = None
    if q:
        signed = jnp.stack([_signed_sum(x, signs[:, j]) for j in range(q)])
    inputs = jnp.einsum("bgti,bgui->bgtu", x.a, x.a, precision=EXACT)
    spread = jnp.einsum("bgtu,bgun->bgtn", inputs, x.d.reshape(B, G, T, k * O), precision=EXACT)
    spread = spread.reshape(x.d.shape)
    squares = jnp.einsum("bgtko,bgtso->bks" if pairs else "bgtko,bgtko->bk", x.d, spread, precision=EXACT)
    return (grouped, signed), squares


def _signed_sum(x: Factors, signs):
    a = x.a * signs.astype(x.a.dtype)[:, None, None, None]
    return jnp.einsum("bgtko,bgti->kgoi", x.d, a, precision=EXACT).reshape(x.d.shape[3], -1)
