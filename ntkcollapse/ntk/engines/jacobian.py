"""Per-sample Jacobians in chunks: the plain reference."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from ntkcollapse.ntk._memory import evened, fit, fit_sides
from ntkcollapse.ntk._problem import Problem
from ntkcollapse.ntk.engines._contract import Outputs, contract, group_sums
from ntkcollapse.ntk.engines._engine import (
    BATCH,
    SUMS,
    Batch,
    Chunks,
    Engine,
    Sums,
    add_groups,
    marked,
    unit_cotangents,
)


class Jacobian(Engine):
    """Gradients of every output, sample by sample under `jax.vmap`, as one (N, K, P) array a chunk.

    Memory: two chunks of samples times K·P numbers, and what the backward passes keep.
    """

    def chunks(self, problem, x, rows, columns, outputs, available):
        # Each Jacobian stands twice: as it is made, and as its products need it.
        each = 2 * problem.num_outputs * problem.num_params * problem.dtype.itemsize
        return Chunks(samples=fit_sides(available, 2 * each, rows, columns), outputs=problem.num_outputs)

    def kernel(self, problem, x1, x2, outputs):
        return plain_kernel(problem, x1, x2, outputs)

    def sum_chunks(self, problem, x, num_sums, available):
        # An output's sums, and its gradients in one batch.
        size = problem.num_params * problem.dtype.itemsize
        outputs = evened(problem.num_outputs, fit(SUMS * available // 8, num_sums * size, problem.num_outputs))
        return Chunks(samples=fit(BATCH * available // 8, 2 * outputs * size, 4096), outputs=outputs)

    def add(self, problem, sums, batch, first_output):
        return _add((problem, batch, first_output), sums)


@eqx.filter_jit
def plain_kernel(problem: Problem, x1: Array, x2: Array | None, outputs: Outputs) -> Array:
    """Θ between two chunks of samples by their Jacobians."""
    g = jacobians(problem, x1, 0, problem.num_outputs)
    h = g if x2 is None else jacobians(problem, x2, 0, problem.num_outputs)
    parts = [contract(a, b, outputs) for a, b in zip(g, h, strict=True)]
    return sum(parts[1:], start=parts[0])


@eqx.filter_jit(donate="all-except-first")
def _add(given: tuple[Problem, Batch, Int[Array, ""]], sums: Sums) -> Sums:
    problem, batch, first_output = given
    gradients = jacobians(problem, batch.x, first_output, sums.scatter.shape[1])
    gradients = [g * batch.mask.astype(g.dtype)[:, None, None] for g in gradients]
    totals, scatter = [], sums.scatter
    for total, g in zip(sums.gradients, gradients, strict=True):
        part = group_sums(g, batch.by_group, batch.signs, pairs=sums.output_pairs)
        total, scatter = add_groups(total, scatter, sums.counts, batch, part)
        totals.append(total)
    return Sums(totals, sums.counts, scatter).counted(batch)


def jacobians(problem: Problem, x: Array, first: Int[Array, ""] | int, count: int) -> list[Float[Array, "N k size"]]:
    """Gradients of `count` outputs from `first` on, for each parameter."""

    def one(sample):
        y, pullback = jax.vjp(lambda params: problem.f(params, sample[None])[0], problem.params)
        (tree,) = jax.vmap(pullback)(marked(unit_cotangents(problem.num_outputs, first, count, y.dtype), y[None]))
        return [leaf.reshape(count, -1).astype(problem.dtype) for leaf in jax.tree.leaves(tree)]

    return jax.vmap(one)(x)
