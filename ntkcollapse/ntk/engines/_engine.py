"""What an engine does: kernels between samples, and sums of gradients over classes."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkcollapse.ntk._problem import Problem
from ntkcollapse.ntk.engines._contract import GroupSums, Outputs, scatter_of

# Eighths of the memory for sums over classes and for one batch of samples. The rest is for what no plan knows: compiled
# code, products before they are added, and what the allocator of the system keeps of arrays that are gone.
SUMS, BATCH = 3, 2


class Chunks(eqx.Module):
    """How much is done at a time: samples of a block, and outputs of it; whole: by one program.

    blocks: of how many blocks an engine keeps what it needs, while the others pass by; pieces: in how many equal parts
    a block passes through f; formed: whether all that is kept of a parameter is gradients, where these are formed;
    working: bytes for what is only being made; few: whether what compiles fast comes before what runs fast.
    """

    samples: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    whole: bool = eqx.field(static=True, default=False)
    blocks: int = eqx.field(static=True, default=1)
    pieces: int = eqx.field(static=True, default=1)
    formed: bool = eqx.field(static=True, default=True)
    working: int = eqx.field(static=True, default=0)
    few: bool = eqx.field(static=True, default=False)

    def block(self, n: int, devices: int) -> tuple[int, int]:
        """(samples of a block on all devices, number of blocks) for n samples; the last block may lack some."""
        number = -(-n // (self.samples * devices))
        unit = self.pieces * devices
        size = unit * -(-n // (number * unit))
        return size, -(-n // size)


class Batch(eqx.Module):
    """Samples in groups of one class each, for sums over classes.

    x: (Q·m, ...), group by group; group_class: (Q,) the class of each group, groups of one class side by side; mask:
    (Q·m,) one, or zero for samples that only fill up; signs: (Q·m, q) weights of further sums over all samples (random
    probes); split: whether a class may have several groups, in this batch or in others.
    """

    x: Array
    group_class: Int[Array, " Q"]
    mask: Float[Array, " B"]
    signs: Float[Array, "B q"]
    split: bool = eqx.field(static=True, default=True)

    @property
    def by_group(self) -> Float[Array, "Q m"]:
        """The mask, one group a row."""
        return self.mask.reshape(self.group_class.shape[0], -1)


class Sums(eqx.Module):
    """Sums over samples for k of the K outputs, batch by batch.

    gradients: one (C + q, k, size) array a parameter: Σ_i w_i g_i^k, where w is the indicator of each class, then each
        column of signs. Inner products of these sums are entries of Wᵀ Θ W.
    counts: (C,), samples of each class.
    scatter: (C, k), Σ_{i of class c} ‖g_i^k − ḡ_c^k‖² about the mean of the samples so far; or (C, k, k) with
        ⟨g_i^k − ḡ_c^k, g_i^s − ḡ_c^s⟩ where pairs of outputs are asked for.
    """

    gradients: list[Float[Array, "W k _"]]
    counts: Float[Array, " C"]
    scatter: Float[Array, "C k ..."]

    @classmethod
    @eqx.filter_jit
    def zeros(cls, problem: Problem, k: int, num_classes: int, num_signs: int, *, output_pairs: bool) -> "Sums":
        leaves, dtype = jax.tree.leaves(problem.params), problem.dtype
        return cls(
            [jnp.zeros((num_classes + num_signs, k, leaf.size), dtype) for leaf in leaves],
            jnp.zeros(num_classes, dtype),
            jnp.zeros((num_classes, *(k,) * (1 + output_pairs)), dtype),
        )

    @property
    def output_pairs(self) -> bool:
        """Whether the scatter has pairs of outputs."""
        return self.scatter.ndim == 3

    def counted(self, batch: Batch) -> "Sums":
        """The same sums with the samples of a batch counted, once its gradients are in them."""
        return Sums(self.gradients, self.counts.at[batch.group_class].add(batch.by_group.sum(1)), self.scatter)


def add_groups(
    total: Float[Array, "W k size"],
    scatter: Float[Array, "C k ..."],
    counts: Float[Array, " C"],
    batch: Batch,
    part: GroupSums,
) -> tuple[Float[Array, "W k size"], Float[Array, "C k ..."]]:
    """Sums and scatter of one parameter with a batch added, group after group (Chan, Golub, LeVeque 1979).

    A group of n samples with mean ḡ adds its own scatter and n m / (n + m) ‖ḡ − ḡ_c‖² to a class of m so far.
    """
    of, parts = batch.group_class, part.scatter
    if batch.split:
        parts = parts + _between(total[of], counts[of], batch, part)
    total = total.at[of].add(part.sums)
    if part.signed is not None:
        total = total.at[total.shape[0] - part.signed.shape[0] :].add(part.signed)
    return total, scatter.at[of].add(parts)


def _between(earlier: Float[Array, "Q k size"], counts: Float[Array, " Q"], batch: Batch, part: GroupSums):
    """n m / (n + m) ‖ḡ − ḡ_c‖² of each group; `earlier` and `counts`: sum and number in its class before this batch."""
    of, samples, pairs = batch.group_class, batch.by_group.sum(1), part.scatter.ndim == 3

    def add(q, state):
        so_far, m, parts = state
        n, new = samples[q], (q == 0) | (of[q] != of[q - 1])
        so_far = jax.lax.cond(new, lambda: earlier[q], lambda: so_far)
        m = jnp.where(new, counts[q], m)

        def apart():
            return scatter_of((part.sums[q] / n - so_far / m)[None, None], pairs=pairs)[0] * (n * m / (n + m))

        none = jnp.zeros(part.scatter.shape[1:], part.scatter.dtype)
        parts = parts.at[q].set(jax.lax.cond(n * m > 0, apart, lambda: none))
        return so_far + part.sums[q], m + n, parts

    start = jnp.zeros_like(earlier[0]), jnp.zeros((), counts.dtype), jnp.zeros_like(part.scatter)
    return jax.lax.fori_loop(0, samples.shape[0], add, start)[2]


class Engine(eqx.Module):
    """How kernels are computed; every engine gives the same numbers.

    `linear` tells whether it has sums over classes, at a cost linear in the number of samples; `spreads` whether its
    samples may stand on several devices (XLA gets gradients of single samples in a convolution wrong there: each device
    has only those of its own).
    """

    linear: ClassVar[bool] = True
    spreads: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @abc.abstractmethod
    def chunks(
        self,
        problem: Problem,
        x: jax.ShapeDtypeStruct,
        rows: int,
        columns: int | None,
        outputs: Outputs,
        available: int,
    ) -> Chunks:
        """Chunks for a kernel of so many samples like `x`, (1, ...), with others, or with themselves where `columns` is
        None, in `available` bytes.
        """

    @abc.abstractmethod
    def kernel(self, problem: Problem, x1: Array, x2: Array | None, outputs: Outputs) -> Array:
        """Θ between two blocks of samples (x2 None: x1 with itself), not yet divided by K where it is a mean."""

    def keep(self, problem: Problem, blocks: Sequence[Array], first: int, outputs: Outputs, chunks: Chunks) -> Any:
        """What a row of tiles needs of its samples again and again, for the outputs from `first` on."""
        del problem, first, outputs, chunks
        (x,) = blocks
        return x

    def against(
        self, problem: Problem, kept: Any, x2: Array | None, first: int, outputs: Outputs, chunks: Chunks
    ) -> Array:
        """`kernel` between what is kept and the samples x2, for the outputs from `first` on."""
        del first, chunks
        return self.kernel(problem, kept, x2, outputs)

    def sum_chunks(self, problem: Problem, x: jax.ShapeDtypeStruct, num_sums: int, available: int) -> Chunks:
        """Chunks for `add` with that many sums (classes and signs) in `available` bytes."""
        raise NotImplementedError(f"{self.name} has no sums over classes.")

    def add(self, problem: Problem, sums: Sums, batch: Batch, first_output: Int[Array, ""]) -> Sums:
        """`sums` with a batch added, for the outputs from `first_output` on. The given sums are consumed."""
        raise NotImplementedError(f"{self.name} has no sums over classes.")


def unit_cotangents(num_outputs: int, first: Int[Array, ""] | int, count: int, dtype) -> Float[Array, "k K"]:
    """e_k for k = first, ..., first + count − 1; zero beyond the last output."""
    return (jnp.arange(count)[:, None] + first == jnp.arange(num_outputs)[None, :]).astype(dtype)


def marked(cotangents: Array, outputs: Array) -> Array:
    """Cotangents that are not finite where an output is not: a derivative may hide it, as that of log x at x < 0."""
    return cotangents + 0 * outputs
