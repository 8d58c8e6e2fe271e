"""Layer by layer, from the inputs of every layer and the cotangents of its results."""

import itertools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ntkcollapse.ntk._memory import fit, step
from ntkcollapse.ntk._problem import Problem, one_like
from ntkcollapse.ntk._trace import Component, Traced
from ntkcollapse.ntk._uses import Use
from ntkcollapse.ntk.engines._contract import Outputs, contract, group_sums, kernel_shape, mirror
from ntkcollapse.ntk.engines._engine import Chunks, Engine, Sums, add_groups, marked, unit_cotangents
from ntkcollapse.ntk.engines._factors import Factors, contract_grams, grams_are_cheaper, is_formed, sum_factors

# From so many outputs at a time on, the forward pass is done again for each tile rather than held.
_FORWARD_AGAIN = 4


class Layerwise(Engine):
    """One backward pass an output gives the cotangents at every layer; no Jacobian of the whole network is made.

    For each parameter that enters a matrix product or a convolution, gradients of samples are formed by one batched
    product, or only the Grams of inputs and cotangents are, whichever is cheaper for its shapes. A parameter that
    enters several times has its gradients summed first. Anything else is differentiated sample by sample by JAX.

    Memory: for a chunk of samples and outputs, the cotangents of all layers, and the gradients of one layer. All
    outputs of a chunk go back together as one larger batch: no loop stands around a convolution, which on a CPU
    would be several times slower.

    The passes are compiled as one piece and every layer's products as one more. Together, a compiler would rather
    compute cotangents again for each of their uses than store them, and unfold the inputs of all layers at once.
    """

    def chunks(self, problem, x, num_samples, outputs, available):
        sizes, K = _plan(problem, x), problem.num_outputs
        least = K if outputs == "full" else 1
        each = sizes.forward + least * sizes.backward
        # All samples against themselves need half as much as two chunks; what is left goes to more outputs at a time.
        samples, sides = num_samples, 1
        if num_samples * each > available:
            samples, sides = fit(available, 2 * each, num_samples), 2
        room = available // (sides * samples)
        k = fit(room - sizes.forward, sizes.backward, K)
        again = fit(room - sizes.inputs, sizes.backward, K)
        if again >= _FORWARD_AGAIN:
            k = again
        return Chunks(samples=samples, outputs=max(least, -(-K // -(-K // k))))

    def kernel(self, problem, x1, x2, outputs, chunks):
        K, count = problem.num_outputs, chunks.outputs
        plan = _plan(problem, one_like(x1))
        size = plan.piece(problem.dtype, count)
        left = _pieces(problem, x1, size, count)
        right = None if x2 is None else _pieces(problem, x2, size, count)
        parts = [_tile(problem, plan, left, right, first, count, outputs) for first in range(0, K, count)]
        if outputs == "mean":
            return sum(parts[1:], start=parts[0])
        return parts[0] if outputs == "full" else jnp.concatenate(parts, axis=2)[:, :, :K]

    def sum_chunks(self, problem, x, num_sums, available):
        sizes = _plan(problem, x)
        stored = num_sums * problem.num_params * problem.dtype.itemsize
        outputs = fit(available // 2, stored, problem.num_outputs)
        each = sizes.forward + sizes.patches + outputs * (sizes.backward + sizes.gradient)
        return Chunks(samples=fit(available // 2, each, 4096), outputs=outputs)

    def add(self, problem, sums, batch, first_output):
        plan = _plan(problem, one_like(batch.x))
        count, counts, scatter = sums.scatter.shape[1], sums.counts, sums.scatter
        inputs, cotangents = _there_and_back(problem, batch.x, first_output, count, batch.mask)
        gradients = list(sums.gradients)
        if plan.rest:
            given = (problem, batch, counts, inputs, cotangents)
            some, scatter = _add_rest(given, ([gradients[leaf] for leaf in plan.rest], scatter))
            for leaf, gradient in zip(plan.rest, some, strict=True):
                gradients[leaf] = gradient
        for product in reversed(plan.products):
            given = (product.use, problem.dtype, batch, counts, inputs[product.input], cotangents.pop(product.tap))
            gradients[product.leaf], scatter = _add_product(given, (gradients[product.leaf], scatter))
        return Sums(gradients, counts, scatter).counted(batch)


def sample_bytes(problem: Problem, x: jax.ShapeDtypeStruct) -> int:
    """Bytes for one sample of a forward and a backward pass, about."""
    sizes = _plan(problem, x)
    return sizes.forward + sizes.backward


class Product(eqx.Module):
    """A parameter whose gradients are products: its number, and those of the tap and of the input beside it."""

    leaf: int = eqx.field(static=True)
    tap: int = eqx.field(static=True)
    input: int = eqx.field(static=True)
    use: Use


class Plan(eqx.Module):
    """How each parameter is treated, and how many bytes a sample takes.

    rest: numbers of the parameters that are in no product.
    inputs: bytes of the inputs of all layers; forward: of the forward pass, these among it; backward: of all cotangents
        and of one gradient that is no product, for each output; patches: of the input of one layer as its products
        need it; gradient: of one layer, for each output, where its sums over samples are made from it.
    """

    products: tuple[Product, ...]
    rest: tuple[int, ...] = eqx.field(static=True)
    inputs: int = eqx.field(static=True)
    forward: int = eqx.field(static=True)
    backward: int = eqx.field(static=True)
    patches: int = eqx.field(static=True)
    gradient: int = eqx.field(static=True)

    def piece(self, dtype, count: int) -> int:
        """Samples whose inputs and cotangents at any one layer fit into one step."""
        uses = [product.use for product in self.products]
        each = max((u.groups * u.positions * (u.inputs + 2 * count * u.outputs) for u in uses), default=1)
        return fit(step(), each * dtype.itemsize, sys.maxsize)


@eqx.filter_jit
def _plan(problem: Problem, x: jax.ShapeDtypeStruct) -> Plan:
    # Under jit only so that f is traced once, not at every call: nothing is computed.
    traced = Traced(problem.f, problem.params, x)
    item = problem.dtype.itemsize
    uses = [tap.use for tap in traced.taps if tap.use is not None]
    patches = max((u.groups * u.positions * u.inputs for u in uses), default=0)
    inputs = sum(int(np.prod(tap.beside.shape)) for tap in traced.taps if tap.beside is not None)
    cotangents = sum(int(np.prod(tap.like.shape)) for tap in traced.taps)
    leaves = jax.tree.leaves(problem.params)
    products = []
    for component in traced.components:
        use = traced.taps[component.taps[0]].use
        if use is not None and _is_product(traced, component):
            ((leaf,), (tap,)) = component.leaves, component.taps
            products.append(Product(leaf, tap, _inputs_before(traced, tap), use))
    rest = [leaf for component in _rest(traced) for leaf in component.leaves]
    formed = max((u.groups * u.inputs * u.outputs for u in uses if is_formed(u)), default=0)
    explicit = max((leaves[i].size for i in rest), default=0)
    # Of the forward pass: inputs of the layers, and about twice as much that the way back needs.
    numbers = (inputs, 3 * inputs, cotangents + explicit, patches, formed)
    return Plan(tuple(products), tuple(rest), *(n * item for n in numbers))


class Pass(eqx.Module):
    """A forward pass over samples x: inputs at the taps with a use, and the way back to all taps."""

    x: Array
    inputs: list[Array]
    pullback: PyTree
    outputs: Float[Array, "B K"]


def _inputs_before(traced: Traced, tap: int) -> int:
    return sum(t.use is not None for t in traced.taps[:tap])


def _run(problem: Problem, x: Array) -> Pass:
    traced = Traced(problem.f, problem.params, one_like(x))
    entries = traced.entries(jax.tree.leaves(problem.params))
    zeros = [jnp.zeros((x.shape[0], *tap.like.shape), tap.like.dtype) for tap in traced.taps]
    outputs = jax.vmap(traced.outputs, in_axes=(None, 0, 0))
    y, pullback, inputs = jax.vjp(lambda taps: outputs(entries, x, taps), zeros, has_aux=True)
    return Pass(x, inputs, pullback, y)


def _go_back(problem: Problem, passed: Pass, first, count: int, mask=None) -> dict[int, Array]:
    """Cotangents at the taps, (count, B, ...) each, for outputs from `first` on."""
    y = passed.outputs
    seeds = unit_cotangents(problem.num_outputs, first, count, y.dtype)
    weights = jnp.ones((y.shape[0],), y.dtype) if mask is None else mask.astype(y.dtype)
    found = jax.vmap(lambda seed: passed.pullback(weights[:, None] * marked(seed[None, :], y))[0])(seeds)
    return dict(enumerate(found))


@eqx.filter_jit
def _forward(problem: Problem, x: Array) -> Pass:
    return _run(problem, x)


@eqx.filter_jit
def _back(problem: Problem, passed: Pass, first: Int[Array, ""], count: int) -> dict[int, Array]:
    return _go_back(problem, passed, first, count)


@eqx.filter_jit
def _there_and_back(problem: Problem, x: Array, first: Int[Array, ""], count: int, mask: Array | None = None):
    passed = _run(problem, x)
    return passed.inputs, _go_back(problem, passed, first, count, mask)


def _factors(use: Use, dtype, inputs: Array, cotangents: Array) -> Factors:
    """Inputs and cotangents at a tap, in the parameters' precision."""
    a = jax.vmap(use.input)(inputs)
    d = jnp.moveaxis(jax.vmap(jax.vmap(use.cotangent))(cotangents), 0, 3)
    return Factors(a.astype(dtype), d.astype(dtype))


def _explicit(problem: Problem, traced: Traced, inputs, cotangents, component: Component) -> list[Array]:
    """Gradients of each sample in each of the component's parameters, (B, k, size): the sum over its uses."""
    parts = []
    for n in component.taps:
        use = traced.taps[n].use
        if use is None:
            parts.append(jnp.swapaxes(cotangents[n], 0, 1))
        else:
            factors = _factors(use, problem.dtype, inputs[_inputs_before(traced, n)], cotangents[n])
            parts.append(jax.vmap(jax.vmap(use.gradient))(factors.products()))
    if component.direct:
        return [parts[0].reshape(*parts[0].shape[:2], -1).astype(problem.dtype)]
    leaves = jax.tree.leaves(problem.params)
    dtypes = [jax.typeof(traced.entries(leaves)[traced.taps[n].entry]).dtype for n in component.taps]
    parts = [part.astype(dtype) for part, dtype in zip(parts, dtypes, strict=True)]
    pulled = jax.vmap(jax.vmap(lambda cotangent: traced.pull(component, leaves, cotangent)))(parts)
    return [g.reshape(*g.shape[:2], -1).astype(problem.dtype) for g in pulled]


def _is_product(traced: Traced, component: Component) -> bool:
    return component.direct and traced.taps[component.taps[0]].use is not None


def _rest(traced: Traced) -> list[Component]:
    """The components that are no product, from the outputs on."""
    return [component for component in reversed(traced.components) if not _is_product(traced, component)]


def _after(traced: Traced, inputs, cotangents, component: Component, used):
    """The same, the numbers at this component's taps available only once those of `used` are.

    Without it the compiler may have the gradients of many parameters at once. An optimisation barrier is gone before
    the CPU backend schedules, so it is a zero that has to be waited for.
    """
    inputs = list(inputs)
    for n in component.taps:
        if traced.taps[n].use is not None:
            i = _inputs_before(traced, n)
            inputs[i] = inputs[i] + (0 * used.ravel()[0]).astype(inputs[i].dtype)
    return inputs, cotangents


def _pieces(problem: Problem, x: Array, size: int, count: int) -> Sequence[Pass | Array]:
    """Pieces of nearly equal size, at most `size` samples each: as passes, or as they are where each tile passes again.

    What the way back needs of a pass takes the place of the cotangents of two more outputs. With several outputs at a
    time the pass is little beside their ways back, and room for more of them at a time saves more than it costs.
    """
    edges = np.linspace(0, x.shape[0], -(-x.shape[0] // size) + 1).round().astype(int)
    parts = [x[i:j] for i, j in itertools.pairwise(edges)]
    return parts if count >= _FORWARD_AGAIN else [_forward(problem, part) for part in parts]


class Side(NamedTuple):
    """A piece of the samples on one side of the kernel."""

    x: Array
    inputs: list[Array]
    cotangents: dict[int, Array]


def _side(problem: Problem, piece: Pass | Array, first: int, count: int) -> Side:
    if isinstance(piece, Pass):
        return Side(piece.x, piece.inputs, _back(problem, piece, jnp.asarray(first), count))
    return Side(piece, *_there_and_back(problem, piece, jnp.asarray(first), count))


def _tile(
    problem: Problem,
    plan: Plan,
    left: Sequence[Pass | Array],
    right: Sequence[Pass | Array] | None,
    first: int,
    count: int,
    outputs: Outputs,
) -> Array:
    """The kernel between the samples of all pieces, for `count` outputs from `first` on."""
    sides = [[_side(problem, p, first, count) for p in pieces] for pieces in (left, right) if pieces is not None]
    sizes = [[len(side.x) for side in pieces] for pieces in (sides[0], sides[-1])]
    # Blocks of all pieces with all; above the diagonal only, where both sides are the same.
    blocks = {
        (i, j): jnp.zeros(kernel_shape(outputs, a, b, count), problem.dtype)
        for i, a in enumerate(sizes[0])
        for j, b in enumerate(sizes[1])
        if right is not None or i <= j
    }
    if plan.rest:
        for (i, j), total in blocks.items():
            pair = [sides[0][i]] if right is None and i == j else [sides[0][i], sides[-1][j]]
            blocks[i, j] = _contract_rest(problem, pair, outputs, total)
    for product in reversed(plan.products):
        use = product.use
        at = [[(s.inputs[product.input], s.cotangents.pop(product.tap)) for s in pieces] for pieces in sides]
        if grams_are_cheaper(use, sum(sizes[0]), sum(sizes[1]), count, outputs):
            for (i, j), total in blocks.items():
                blocks[i, j] = _contract_grams(use, problem.dtype, at[0][i], at[-1][j], outputs, total)
            continue
        each = sum(sum(pieces) for pieces in sizes[: len(sides)]) * count * use.groups * use.outputs
        part = fit(2 * step(), each * problem.dtype.itemsize, use.inputs)
        for begin in range(0, use.inputs, part):
            some = min(part, use.inputs - begin)
            g = [[_formed(use, problem.dtype, *s, jnp.asarray(begin), some) for s in pieces] for pieces in at]
            for (i, j), total in blocks.items():
                blocks[i, j] = _contract_formed(g[0][i], g[-1][j], outputs, total)
    return _assembled(blocks, len(sizes[0]), len(sizes[1]))


def _assembled(blocks: dict[tuple[int, int], Array], rows: int, columns: int) -> Array:
    def block(i, j):
        return blocks[i, j] if (i, j) in blocks else mirror(blocks[j, i])

    return jnp.concatenate(
        [jnp.concatenate([block(i, j) for j in range(columns)], axis=1) for i in range(rows)], axis=0
    )


@eqx.filter_jit
def _formed(use: Use, dtype, inputs: Array, cotangents: Array, first: Int[Array, ""], count: int) -> Array:
    """Gradients of each sample, (B, k, P) for `count` of the inputs of each group from `first` on."""
    factors = _factors(use, dtype, inputs, cotangents)
    if count == use.inputs:
        return factors.formed()
    a = jax.lax.dynamic_slice_in_dim(factors.a, first, count, axis=3)
    return Factors(a, factors.d).formed()


@eqx.filter_jit
def _contract_formed(g: Array, h: Array, outputs, total: Array) -> Array:
    return total + contract(g, h, outputs)


@eqx.filter_jit
def _contract_grams(use: Use, dtype, left, right, outputs, total: Array) -> Array:
    return total + contract_grams(_factors(use, dtype, *left), _factors(use, dtype, *right), outputs)


@eqx.filter_jit
def _contract_rest(problem: Problem, sides: list[Side], outputs, total: Array) -> Array:
    traced = Traced(problem.f, problem.params, one_like(sides[0].x))
    given = [(side.inputs, side.cotangents) for side in sides]
    for component in _rest(traced):
        given = [_after(traced, *side, component, total) for side in given]
        pair = [_explicit(problem, traced, *side, component) for side in given]
        total += sum(contract(g, h, outputs) for g, h in zip(pair[0], pair[-1], strict=True))
    return total


@eqx.filter_jit(donate="all-except-first")
def _add_product(given, state):
    use, dtype, batch, counts, inputs, cotangents = given
    total, scatter = state
    factors = _factors(use, dtype, inputs, cotangents)
    part = sum_factors(factors, batch.by_group, batch.signs, pairs=scatter.ndim == 3)
    return add_groups(total, scatter, counts, batch, part)


@eqx.filter_jit(donate="all-except-first")
def _add_rest(given, state):
    problem, batch, counts, inputs, cotangents = given
    traced = Traced(problem.f, problem.params, one_like(batch.x))
    totals, scatter = state
    added = []
    for component in _rest(traced):
        inputs, cotangents = _after(traced, inputs, cotangents, component, scatter)
        for g in _explicit(problem, traced, inputs, cotangents, component):
            part = group_sums(g, batch.by_group, batch.signs, pairs=scatter.ndim == 3)
            total, scatter = add_groups(totals[len(added)], scatter, counts, batch, part)
            added.append(total)
    return added, scatter
