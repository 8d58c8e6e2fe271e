"""What an engine does: kernels between samples, and sums of gradients over classes."""

import abc
from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkcollapse.ntk._problem import Problem
from ntkcollapse.ntk.engines._contract import Outputs


class Chunks(eqx.Module):
    """How much is done at a time: samples of a chunk, and outputs of it."""

    samples: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)


# Sums over each group, (Q, k, size), and over each column of signs, (q, k, size) or None.
GradientSums = tuple[Array, Array | None]
# Inner products of one sample's own gradients: (B, k), or (B, k, k) where pairs of outputs are asked for.
PerSample = Array


class Batch(eqx.Module):
    """Samples in groups of one class each, for sums over classes.

    x: (Q·m, ...), group by group; group_class: (Q,) the class of each group; mask: (Q·m,) one, or zero for samples
    that only fill up; signs: (Q·m, q) weights of further sums over all samples (random probes).
    """

    x: Array
    group_class: Int[Array, " Q"]
    mask: Float[Array, " B"]
    signs: Float[Array, "B q"]

    def added(self, total: Float[Array, "W k size"], grouped: Array, signed: Array | None) -> Float[Array, "W k size"]:
        """Sums of gradients in one parameter, with those of this batch's groups and signs added."""
        total = total.at[self.group_class].add(grouped)
        return total if signed is None else total.at[total.shape[0] - signed.shape[0] :].add(signed)


class Sums(eqx.Module):
    """Sums over samples for k of the K outputs; additive over batches.

    gradients: one (C + q, k, size) array a parameter: Σ_i w_i g_i^k, where w is the indicator of each class, then each
        column of signs. Inner products of these sums are entries of Wᵀ Θ W.
    squares: (C, k), Σ_{i of class c} ‖g_i^k‖².
    output_squares: (C, k, k), Σ_{i of class c} ⟨g_i^k, g_i^s⟩; None where not asked for.
    """

    gradients: list[Float[Array, "W k _"]]
    squares: Float[Array, "C k"]
    output_squares: Float[Array, "C k k"] | None

    @classmethod
    @eqx.filter_jit
    def zeros(cls, problem: Problem, k: int, num_classes: int, num_signs: int, *, output_pairs: bool) -> "Sums":
        leaves, dtype = jax.tree.leaves(problem.params), problem.dtype
        return cls(
            [jnp.zeros((num_classes + num_signs, k, leaf.size), dtype) for leaf in leaves],
            jnp.zeros((num_classes, k), dtype),
            jnp.zeros((num_classes, k, k), dtype) if output_pairs else None,
        )

    def plus(self, batch: Batch, parts: Mapping[int, GradientSums], squares: PerSample) -> "Sums":
        """With sums of a batch added: by parameter over its groups and signs, and squares a sample over all of them."""
        gradients = list(self.gradients)
        for leaf, part in parts.items():
            gradients[leaf] = batch.added(gradients[leaf], *part)

        def over_groups(values):
            return values.reshape(batch.group_class.shape[0], -1, *values.shape[1:]).sum(1)

        if self.output_squares is None:
            return Sums(gradients, self.squares.at[batch.group_class].add(over_groups(squares)), None)
        pairs = over_groups(squares)
        diagonal = jnp.diagonal(pairs, axis1=1, axis2=2)
        return Sums(
            gradients,
            self.squares.at[batch.group_class].add(diagonal),
            self.output_squares.at[batch.group_class].add(pairs),
        )


class Engine(eqx.Module):
    """How kernels are computed; every engine gives the same numbers.

    `linear` tells whether it has sums over classes, at a cost linear in the number of samples.
    """

    linear: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    @abc.abstractmethod
    def chunks(
        self, problem: Problem, x: jax.ShapeDtypeStruct, num_samples: int, outputs: Outputs, available: int
    ) -> Chunks:
        """Chunks of at most `num_samples` samples like `x`, (1, ...), for a kernel in `available` bytes."""

    @abc.abstractmethod
    def kernel(self, problem: Problem, x1: Array, x2: Array | None, outputs: Outputs, chunks: Chunks) -> Array:
        """Θ between two chunks of samples (x2 None: x1 with itself), not yet divided by K where it is a mean."""

    def sum_chunks(self, problem: Problem, x: jax.ShapeDtypeStruct, num_sums: int, available: int) -> Chunks:
        """Chunks for `add` with that many sums (classes and signs) in `available` bytes."""
        raise NotImplementedError(f"{self.name} has no sums over classes.")

    def add(self, problem: Problem, sums: Sums, batch: Batch, first_output: Int[Array, ""]) -> Sums:
        """`sums` with a batch added, for the outputs from `first_output` on. The given sums are consumed."""
        raise NotImplementedError(f"{self.name} has no sums over classes.")


def unit_cotangents(num_outputs: int, first: Int[Array, ""] | int, count: int, dtype) -> Float[Array, "k K"]:
    """e_k for k = first, ..., first + count − 1; zero beyond the last output."""
    return (jnp.arange(count)[:, None] + first == jnp.arange(num_outputs)[None, :]).astype(dtype)
