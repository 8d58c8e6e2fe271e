"""Gradients that are products of inputs and cotangents: formed, or only compared, whichever costs less.

The gradient of one sample is g[o, i] = Σ_t δ[t, o] a[t, i] (group by group), so that

    ⟨g, g'⟩ = Σ_{t,t'} (a_t · a'_{t'}) (δ_t · δ'_{t'})

costs |o|·|i|·|t| by forming g first and |t|²(|o| + |i|) from the two Grams on the right.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse._platforms import constant
from ntkcollapse.ntk._uses import Use
from ntkcollapse.ntk.engines._contract import EXACT, GroupSums, Outputs, contract, counted, group_sums, scatter_of


class Layer(NamedTuple):
    """Sizes of a `Use`, with how many numbers its input has before it is unfolded."""

    groups: int
    positions: int
    inputs: int
    outputs: int
    beside: int

    @property
    def numbers(self) -> int:
        """Numbers of the gradient of one output."""
        return self.groups * self.inputs * self.outputs

    def factors(self, k: int) -> int:
        """Numbers of the input and of the cotangents of k outputs."""
        return self.beside + k * self.groups * self.positions * self.outputs


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

    def bias(self) -> Float[Array, "B k P"]:
        """Gradients of a bias that is added at every position, P = G·O."""
        d = jnp.swapaxes(self.d.sum(2), 1, 2)
        return d.reshape(*d.shape[:2], -1)


def grams_are_cheaper(use: Use, A: int, B: int, k: int, outputs: Outputs) -> bool:
    """Whether inner products of the gradients of A and B samples cost less by `contract_grams`."""
    G, T, I, O = use.groups, use.positions, use.inputs, use.outputs
    fits = A * B * gram_numbers(use, k, outputs) <= 2 * (A + B) * G * max(k * I * O, T * (I + k * O)) + 2**20
    formed = (A + B) * forming_work(use, k) + A * B * G * I * O * pairs_of(outputs, k)
    return fits and A * B * gram_work(use, k, outputs) < formed


def pairs_of(outputs: Outputs, k: int) -> int:
    """Pairs of k outputs of which inner products are asked for."""
    return k * k if outputs == "full" else k


def gram_numbers(use: Use | Layer, k: int, outputs: Outputs) -> int:
    """Numbers that `contract_grams` holds for a pair of samples."""
    kept = 1 if outputs == "mean" else pairs_of(outputs, k)
    return use.groups * use.positions**2 * (1 + kept)


def gram_work(use: Use | Layer, k: int, outputs: Outputs) -> int:
    """Work of `contract_grams` for a pair of samples."""
    products = use.groups * use.positions**2 * (use.inputs + pairs_of(outputs, k) * use.outputs)
    return products + constant("traffic") * gram_numbers(use, k, outputs)


def forming_work(use: Use | Layer, k: int) -> int:
    """Work of forming the gradients of a sample."""
    return k * use.groups * use.inputs * use.outputs * (use.positions + constant("traffic"))


def contract_grams(x: Factors, y: Factors, outputs: Outputs) -> Float[Array, "A B ..."]:
    """`contract` of the gradients of two chunks, from the Grams of their inputs and cotangents."""
    if x.a.shape[1:3] == (1, 1) == y.a.shape[1:3]:
        # One position: the product of two matrices, number by number.
        gram = jnp.matmul(x.a[:, 0, 0], y.a[:, 0, 0].T, precision=EXACT)
        cotangents = contract(x.d[:, 0, 0], y.d[:, 0, 0], outputs)
        return gram.reshape(*gram.shape, *(1,) * (cotangents.ndim - 2)) * cotangents
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
    formed = G * k * I * O * (constant("traffic") + q + (k if pairs else 0))
    direct = G * T * (3 * T * (I + k * O) + (2 * k * k * O if pairs else 0) + q * I * O * k)
    return formed <= direct


def sum_factors(x: Factors, mask: Float[Array, "Q m"], signs: Float[Array, "B q"], *, pairs: bool) -> GroupSums:
    """`group_sums` of the gradients.

    Without forming them: about r = Σ_t δ̄[t] ā[t], of the group's mean input and cotangent, the gradient of a sample is

        g − r = Σ_t (δ[t] − δ̄[t]) a[t] + δ̄[t] (a[t] − ā[t]),

    two products of small factors, whose squares have nothing to cancel. The mean of the group is then ḡ − r away.
    """
    (_, G, T, I), (*_, k, O) = x.a.shape, x.d.shape
    q = signs.shape[1]
    if _sums_from_gradients(G, T, I, O, k, q, pairs):
        return group_sums(x.formed(), mask, signs, pairs=pairs)

    Q, n = mask.shape[0], counted(mask)
    a, d = x.a.reshape(*mask.shape, G, T, I), x.d.reshape(*mask.shape, G, T, k, O)
    sums = jnp.einsum("qmgtko,qmgti->qkgoi", d, a, precision=EXACT).reshape(Q, k, -1)
    signed = None
    if q:
        signed = jnp.stack([_signed_sum(x, signs[:, j]) for j in range(q)])
    a_mean = jnp.einsum("qmgti,qm->qgti", a, mask, precision=EXACT) / n[:, None, None, None]
    d_mean = jnp.einsum("qmgtko,qm->qgtko", d, mask, precision=EXACT) / n[:, None, None, None, None]
    a_apart = (a - a_mean[:, None]) * mask[:, :, None, None, None]
    d_apart = d - d_mean[:, None] * mask[:, :, None, None, None, None]
    outputs = "tko,tso->ks" if pairs else "tko,tko->k"

    def gram(first, second):
        return jnp.einsum("qmgti,qmgui->qmgtu", first, second, precision=EXACT)

    def product(cotangents, others, samples=""):
        """⟨·, ·⟩ of the outputs, summed over all but the groups of samples."""
        left, right = (f"q{samples}g{part}" for part in outputs.partition("->")[0].split(","))
        return jnp.einsum(f"{left},{right}->q{outputs.partition('->')[2]}", cotangents, others, precision=EXACT)

    # Σ over samples and t first, wherever the other factor is the group's mean.
    mixed = jnp.einsum("qmgtko,qmgtu->qguko", d_apart, gram(a, a_apart), precision=EXACT)
    of_mean = jnp.einsum("qgtu,qguko->qgtko", gram(a_apart, a_apart).sum(1), d_mean, precision=EXACT)
    own = jnp.einsum("qmgtu,qmguko->qmgtko", gram(a, a), d_apart, precision=EXACT)
    mixed = product(mixed, d_mean)
    scatter = (
        product(d_apart, own, "m") + (mixed + mixed.swapaxes(1, 2) if pairs else 2 * mixed) + product(d_mean, of_mean)
    )
    away = sums / n[:, None, None] - jnp.einsum("qgtko,qgti->qkgoi", d_mean, a_mean, precision=EXACT).reshape(Q, k, -1)
    weight = mask.sum(1).reshape(-1, *(1,) * (scatter.ndim - 1))
    return GroupSums(sums, signed, scatter - weight * scatter_of(away[:, None], pairs=pairs))


def _signed_sum(x: Factors, signs):
    a = x.a * signs.astype(x.a.dtype)[:, None, None, None]
    return jnp.einsum("bgtko,bgti->kgoi", x.d, a, precision=EXACT).reshape(x.d.shape[3], -1)
