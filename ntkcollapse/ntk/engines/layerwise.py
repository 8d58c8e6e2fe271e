"""Layer by layer, from the inputs of every layer and the cotangents of its results."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ntkcollapse._platforms import number
from ntkcollapse._types import AnyArray
from ntkcollapse.compiled import compiled_for_products
from ntkcollapse.ntk._memory import evened, fit, step
from ntkcollapse.ntk._problem import Problem, one_like
from ntkcollapse.ntk._trace import Component, Traced
from ntkcollapse.ntk._uses import EveryStep, Use
from ntkcollapse.ntk.engines._contract import Outputs, contract, group_sums, kernel_shape, mirror
from ntkcollapse.ntk.engines._engine import BATCH, SUMS, Chunks, Engine, Sums, add_groups, marked, unit_cotangents
from ntkcollapse.ntk.engines._factors import Factors, contract_grams, grams_are_cheaper, sum_factors
from ntkcollapse.ntk.engines._plan import Plan, is_product, plan_of, rest_of
from ntkcollapse.ntk.engines._tiling import parts, tile_of, tiling, way

# From so many samples on, a kernel of samples with themselves is made from the diagonal on, in so many rows of blocks.
_TRIANGLE = 2048
_PANELS = 4


class Layerwise(Engine):
    """One backward pass an output gives the cotangents at every layer; no Jacobian of the whole network is made.

    For each parameter that enters a matrix product or a convolution, gradients of samples are formed by one batched
    product, or only the Grams of inputs and cotangents are, whichever is cheaper for its shapes. A parameter that
    enters several times has its gradients summed first. Anything else is differentiated sample by sample by JAX.

    Where all of this is small, it is one program, which compiles faster.

    Memory: gradients of a row of tiles, or the smaller inputs and cotangents that they are formed of, and what a piece
    of the samples passes with. All outputs of a turn go back together as one larger batch: no loop stands around a
    convolution, which on a CPU would be several times slower.

    The passes are compiled as one piece and every layer's products as one more. Together, a compiler would rather
    compute cotangents again for each of their uses than store them, and unfold the inputs of all layers at once.
    """

    spreads: ClassVar[bool] = True

    def chunks(self, problem, x, rows, columns, outputs, available):
        plan, K = plan_of(problem, x), problem.num_outputs
        most, whole = max(rows, columns or 0), available if columns is None else available // 2
        if plan.at_once(problem, most, outputs) <= min(whole, number("at_once")) and jax.device_count() == 1:
            return Chunks(samples=most, outputs=K, whole=True)
        chunks = tiling(plan.counted(problem), K, rows, columns, outputs, available)
        return dataclasses.replace(chunks, few=rows + (columns or 0) <= number("few"))

    def kernel(self, problem, x1, x2, outputs):
        plan = plan_of(problem, one_like(x1))
        few = len(x1) + (0 if x2 is None else len(x2)) <= number("few")
        steps = any(isinstance(product.use, EveryStep) for product in plan.products)
        return _BY_ONE_PROGRAM[steps](problem, plan.for_few() if few else plan, x1, x2, outputs)

    def keep(self, problem, blocks, first, outputs, chunks):
        if chunks.whole:
            return super().keep(problem, blocks, first, outputs, chunks)
        return _kept(problem, blocks, first, chunks, _how(problem, one_like(blocks[0]), outputs, chunks))

    def against(self, problem, kept, x2, first, outputs, chunks):
        if chunks.whole:
            return super().against(problem, kept, x2, first, outputs, chunks)
        right = kept if x2 is None else _kept(problem, [x2], first, chunks, kept.how)
        return _between(problem, kept, right, outputs, chunks)

    def sum_chunks(self, problem, x, num_sums, available):
        sizes = plan_of(problem, x)
        stored = num_sums * problem.num_params * problem.dtype.itemsize
        outputs = evened(problem.num_outputs, fit(SUMS * available // 8, stored, problem.num_outputs))
        each = sizes.forward + sizes.patches + outputs * (sizes.backward + sizes.gradient)
        return Chunks(samples=fit(BATCH * available // 8, each, 4096), outputs=outputs)

    def add(self, problem, sums, batch, first_output):
        plan = plan_of(problem, one_like(batch.x))
        count, counts, scatter = sums.scatter.shape[1], sums.counts, sums.scatter
        side = _there_and_back(problem, batch.x, first_output, count, plan.together, batch.mask)
        gradients = list(sums.gradients)
        for group, leaves in enumerate(plan.rest):
            rest = side.rest if plan.together else _explicit_group(problem, side, group)
            some, scatter = _add_rest((batch, counts, rest), ([gradients[leaf] for leaf in leaves], scatter))
            for leaf, gradient in zip(leaves, some, strict=True):
                gradients[leaf] = gradient
        for products in plan.together_at_most(number("together"), len(batch.x), count, problem.dtype):
            at = [(side.inputs[p.tap], side.cotangents.pop(p.tap)) for p in products]
            given = (tuple(p.use for p in products), problem.dtype, batch, counts, at)
            leaves = [p.leaves for p in products]
            some, scatter = _add_products(given, ([[gradients[leaf] for leaf in of] for of in leaves], scatter))
            for leaf, gradient in zip(itertools.chain(*leaves), itertools.chain(*some), strict=True):
                gradients[leaf] = gradient
        return Sums(gradients, counts, scatter).counted(batch)


def sample_bytes(problem: Problem, x: jax.ShapeDtypeStruct) -> int:
    """Bytes for one sample of a forward and a backward pass, about."""
    sizes = plan_of(problem, x)
    return sizes.forward + sizes.backward


class Side(eqx.Module):
    """Samples on one side of the kernel, once they have been passed there and back.

    inputs, cotangents: by the number of their tap; of products alone where the rest is there, (B, k, size).
    """

    x: Array
    inputs: dict[int, Array]
    cotangents: dict[int, Array]
    rest: Float[Array, "B k size"] | None


def _passed(problem: Problem, x: Array, first, count: int, mask=None) -> tuple[dict[int, Array], dict[int, Array]]:
    """Inputs at the taps with a use, and cotangents at all, (count, B, ...) each, for outputs from `first` on."""
    traced = Traced(problem.f, problem.params, one_like(x))
    entries = traced.entries(jax.tree.leaves(problem.params))
    zeros = [jnp.zeros((x.shape[0], *tap.like.shape), tap.like.dtype) for tap in traced.taps]
    outputs = jax.vmap(traced.outputs, in_axes=(None, 0, 0))
    y, pullback, inputs = jax.vjp(lambda taps: outputs(entries, x, taps), zeros, has_aux=True)
    seeds = unit_cotangents(problem.num_outputs, first, count, y.dtype)
    weights = jnp.ones((y.shape[0],), y.dtype) if mask is None else mask.astype(y.dtype)
    cotangents = jax.vmap(lambda seed: pullback(weights[:, None] * marked(seed[None, :], y))[0])(seeds)
    of = [n for n, tap in enumerate(traced.taps) if tap.use is not None]
    return dict(zip(of, inputs, strict=True)), dict(enumerate(cotangents))


@compiled_for_products
def _there_and_back(
    problem: Problem, x: Array, first: Int[AnyArray, ""], count: int, together: bool, mask: Array | None = None
) -> Side:
    return _side_of(problem, x, first, count, together, mask)


def _side_of(problem: Problem, x: Array, first, count: int, together: bool, mask=None) -> Side:
    side = Side(x, *_passed(problem, x, first, count, mask), None)
    if not together:
        return side
    traced = Traced(problem.f, problem.params, one_like(x))
    rest = _explicit(problem, traced, side, *rest_of(traced, jax.tree.leaves(problem.params)))
    taps = [c.taps[0] for c in traced.components if is_product(traced, c)]
    inputs, cotangents = ({tap: values[tap] for tap in taps} for values in (side.inputs, side.cotangents))
    return Side(x, inputs, cotangents, rest)


@compiled_for_products
def _explicit_group(problem: Problem, side: Side, group: int) -> Float[Array, "B k size"]:
    traced = Traced(problem.f, problem.params, one_like(side.x))
    return _explicit(problem, traced, side, rest_of(traced, jax.tree.leaves(problem.params))[group])


def _factors(use: Use, dtype, inputs: Array, cotangents: Array) -> Factors:
    """Inputs and cotangents at a tap, in the parameters' precision."""
    a = jax.vmap(use.input)(inputs)
    d = jnp.moveaxis(jax.vmap(jax.vmap(use.cotangent))(cotangents), 0, 3)
    return Factors(a.astype(dtype), d.astype(dtype))


def _explicit(
    problem: Problem, traced: Traced, side: Side, components: Sequence[Component]
) -> Float[Array, "B k size"]:
    """Gradients of each sample in all parameters of the components, one beside the other."""
    found = [g for component in components for g in _explicit_one(problem, traced, side, component)]
    return jnp.concatenate([g.reshape(*g.shape[:2], -1).astype(problem.dtype) for g in found], axis=2)


def _explicit_one(problem: Problem, traced: Traced, side: Side, component: Component) -> list[Array]:
    """Gradients of each sample in each of the component's parameters: the sum over its uses."""
    parts = []
    for n in component.taps:
        use = traced.taps[n].use
        if use is None:
            parts.append(jnp.swapaxes(side.cotangents[n], 0, 1))
        else:
            factors = _factors(use, problem.dtype, side.inputs[n], side.cotangents[n])
            parts.append(jax.vmap(jax.vmap(use.gradient))(factors.products()))
    if component.direct:
        return parts
    parts = [part.astype(traced.taps[n].entry_dtype) for n, part in zip(component.taps, parts, strict=True)]
    leaves = jax.tree.leaves(problem.params)
    return jax.vmap(jax.vmap(lambda cotangent: traced.pull(component, leaves, cotangent)))(parts)


class _Other(NamedTuple):
    """A product whose gradients are not kept: whether they are compared by Grams, and in how many parts of a block."""

    tap: int
    use: Use
    grams: bool
    parts: int


class _Part(NamedTuple):
    """Some of the samples of a block at one tap: so many from `start` on."""

    inputs: Array
    cotangents: Array
    start: Int[AnyArray, ""]
    size: int

    def factors(self, use: Use, dtype) -> Factors:
        """Their inputs and cotangents in the parameters' precision."""
        inputs, cotangents = self.inputs, self.cotangents
        if self.size < len(inputs):
            inputs = jax.lax.dynamic_slice_in_dim(inputs, self.start, self.size, 0)
            cotangents = jax.lax.dynamic_slice_in_dim(cotangents, self.start, self.size, 1)
        return _factors(use, dtype, inputs, cotangents)


class _How(NamedTuple):
    """Taps and uses of products whose gradients are kept, and the other products."""

    plan: Plan
    gradients: list[tuple[int, Use]]
    others: list[_Other]


class Kept(NamedTuple):
    """Samples that have passed there and back, block by block.

    gradients: for each block those that are kept, (b, k, size) each; factors: for every other product the parts of all
    blocks.
    """

    how: _How
    samples: int
    gradients: list[list[Float[Array, "b k _"]]]
    factors: list[list[_Part]]


def _how(problem: Problem, x: jax.ShapeDtypeStruct, outputs: Outputs, chunks: Chunks) -> _How:
    plan, tile, item = plan_of(problem, x), tile_of(chunks), problem.dtype.itemsize
    how = _How(plan.for_few() if chunks.few else plan, [], [])
    for product in how.plan.products:
        kept = way(product.layer, tile, outputs, item)
        if kept == "gradients":
            how.gradients.append((product.tap, product.whole.for_forming(chunks.outputs)))
        else:
            count, grams = parts(product.layer, kept, tile, outputs, item), kept == "grams"
            use = product.whole if grams else product.whole.for_forming(chunks.outputs)
            how.others.append(_Other(product.tap, use, grams, count))
    return how


def _kept(problem: Problem, blocks: Sequence[Array], first: int, chunks: Chunks, how: _How) -> Kept:
    kept = Kept(how, sum(map(len, blocks)), [], [[] for _ in how.others])
    for block in blocks:
        whole: tuple[list[Array], list[Array], list[Array]] | None = None
        for n, x in enumerate(_equal_parts(block, chunks.pieces)):
            piece = _piece(problem, x, first, chunks, how)
            if whole is None:
                whole = piece if chunks.pieces == 1 else _with_room(piece, chunks.pieces)
            else:
                whole = _placed((np.asarray(n * len(x), np.int32), piece), whole)
            del piece
        assert whole is not None
        gradients, inputs, cotangents = whole
        kept.gradients.append(gradients)
        for other, a, d, so_far in zip(how.others, inputs, cotangents, kept.factors, strict=True):
            size = len(block) // other.parts
            so_far += [_Part(a, d, np.asarray(n * size, np.int32), size) for n in range(other.parts)]
    return kept


def _piece(
    problem: Problem, x: Array, first: int, chunks: Chunks, how: _How
) -> tuple[list[Array], list[Array], list[Array]]:
    """Gradients that are kept, (b, k, size) each; inputs of the other products; their cotangents, (k, b, ...) each."""
    plan, gradients, others = how
    side, start = _there_and_back(problem, x, np.asarray(first), chunks.outputs, plan.together), np.zeros((), np.int32)
    rest = [side.rest] if plan.together else [_explicit_group(problem, side, n) for n in range(len(plan.rest))]
    formed = [gradients_of for gradients_of in rest if gradients_of is not None]
    for tap, use in gradients:
        part = _Part(side.inputs.pop(tap), side.cotangents.pop(tap), start, len(x))
        formed.append(_formed(use, problem.dtype, part, start, use.inputs))
    return formed, [side.inputs.pop(other.tap) for other in others], [side.cotangents.pop(o.tap) for o in others]


def _equal_parts(x: Array, count: int) -> list[Array]:
    size = len(x) // count
    return [x] if count == 1 else [x[i : i + size] for i in range(0, len(x), size)]


def _between(problem: Problem, left: Kept, right: Kept, outputs: Outputs, chunks: Chunks) -> Array:
    """The kernel between what is kept, or of that with itself, for the outputs of it."""
    others, own, dtype = left.how.others, left is right, problem.dtype
    shape = kernel_shape(outputs, left.samples, right.samples, chunks.outputs)
    total = jnp.asarray(np.zeros(shape, dtype))

    def places(rows: Sequence[Any], columns: Sequence[Any], a: int, b: int):
        """Rows and columns that are compared, and their place in the kernel: from the diagonal on where it is one."""
        for i, j in itertools.product(range(len(rows)), range(len(columns))):
            if i <= j or not own:
                yield i, j, np.asarray([i * a, j * b], np.int32)

    # Blocks as a whole: kept gradients, and the Grams for which these are not too large.
    whole = [n for n, other in enumerate(others) if other.grams and other.parts == 1]
    uses = [others[n].use for n in whole]
    sides = [
        [(formed, [side.factors[n][i] for n in whole]) for i, formed in enumerate(side.gradients)]
        for side in (left, right)
    ]
    if whole or left.gradients[0]:
        a, b = (side.samples // len(side.gradients) for side in (left, right))
        for i, j, at in places(sides[0], sides[1], a, b):
            total = _contract_blocks((uses, dtype, sides[0][i], sides[1][j], outputs, at), total)
    for n, other in enumerate(others):
        if n in whole:
            continue
        rows, columns = left.factors[n], right.factors[n]
        use, a, b = other.use, rows[0].size, columns[0].size
        if other.grams:
            for i, j, at in places(rows, columns, a, b):
                given = ([use], dtype, ([], [rows[i]]), ([], [columns[j]]), outputs, at)
                total = _contract_blocks(given, total)
            continue
        # Gradients of one part of the left side at a time, beside all of the right.
        each = (len(columns) * b + (0 if own else a)) * chunks.outputs * use.groups * use.outputs
        some = evened(use.inputs, fit(min(2 * step(), chunks.working // 2), each * dtype.itemsize, use.inputs))
        for begin in range(0, use.inputs, some):
            count, start = min(some, use.inputs - begin), np.asarray(begin, np.int32)
            h = [_formed(use, dtype, column, start, count) for column in columns]
            g, of = None, -1
            for i, j, at in places(rows, columns, a, b):
                if of != i:
                    g, of = h[i] if own else _formed(use, dtype, rows[i], start, count), i
                total = _contract_blocks(([], dtype, ([g], []), ([h[j]], []), outputs, at), total)
    return _mirrored(np.triu(np.ones(total.shape[:2], bool)), total) if own else total


def _at_once(problem: Problem, plan: Plan, x1: Array, x2: Array | None, outputs: Outputs) -> Array:
    """The kernel by one program."""
    K, given = problem.num_outputs, [x for x in (x1, x2) if x is not None]
    traced = Traced(problem.f, problem.params, one_like(x1))
    rest = [component for group in rest_of(traced, jax.tree.leaves(problem.params)) for component in group]
    sides = [_side_of(problem, x, 0, K, False) for x in given]
    # Rows of blocks; only from the diagonal on, where both sides are the same.
    count = 1 if x2 is not None or len(x1) < _TRIANGLE else _PANELS
    edges = np.linspace(0, len(x1), count + 1).astype(int)
    rows = [(i, j, 0 if count == 1 else i) for i, j in itertools.pairwise(edges)]
    totals: list[Any] = [0.0] * count

    def add(between: Callable[[Any, Any], Array], at: Sequence[Any]) -> None:
        for n, (i, j, first) in enumerate(rows):
            left, right = (
                jax.tree.map(lambda v, s=s: v[s], side)
                for s, side in ((slice(i, j), at[0]), (slice(first, None), at[-1]))
            )
            totals[n] = totals[n] + between(left, right)

    if rest:
        add(partial(contract, outputs=outputs), [_explicit(problem, traced, side, rest) for side in sides])
    for product in reversed(plan.products):
        grams = grams_are_cheaper(product.whole, len(given[0]), len(given[-1]), K, outputs)
        use = product.whole if grams else product.whole.for_forming(K)
        at = [_factors(use, problem.dtype, s.inputs[product.tap], s.cotangents[product.tap]) for s in sides]
        if grams:
            add(partial(contract_grams, outputs=outputs), at)
        else:
            add(partial(contract, outputs=outputs), [factors.formed() for factors in at])
    blocks = {
        (n, m): totals[n][:, edges[m] - first : edges[m + 1] - first]
        for n, (_, _, first) in enumerate(rows)
        for m in range(n, count)
    }
    return totals[0] if count == 1 else _put_together(blocks, count, count)


# The effort follows the function alone: the same job is the same program, to the last bit of its result.
_BY_ONE_PROGRAM = {steps: compiled_for_products(_at_once, steps=steps) for steps in (False, True)}


def _put_together(blocks: dict[tuple[int, int], Array], rows: int, columns: int) -> Array:
    def block(i, j):
        return blocks[i, j] if (i, j) in blocks else mirror(blocks[j, i])

    return jnp.concatenate(
        [jnp.concatenate([block(i, j) for j in range(columns)], axis=1) for i in range(rows)], axis=0
    )


@compiled_for_products
def _formed(use: Use, dtype, part: _Part, first: Int[AnyArray, ""], count: int) -> Array:
    """Gradients of each sample, (B, k, P) for `count` of the inputs of each group from `first` on."""
    factors = part.factors(use, dtype)
    if count == use.inputs:
        return factors.formed()
    a = jax.lax.dynamic_slice_in_dim(factors.a, first, count, axis=3)
    return Factors(a, factors.d).formed()


@partial(compiled_for_products, donate="all-except-first")
def _contract_blocks(given, total: Array) -> Array:
    """The total with inner products added: of gradients, and of inputs and cotangents by their Grams."""
    uses, dtype, left, right, outputs, at = given
    added = [contract(g, h, outputs) for g, h in zip(left[0], right[0], strict=True)]
    for use, row, column in zip(uses, left[1], right[1], strict=True):
        added.append(contract_grams(row.factors(use, dtype), column.factors(use, dtype), outputs))
    # Products on their own: a compiler may make them again, number by number, within the sum.
    part, *others = jax.lax.optimization_barrier(added)
    for other in others:
        part = part + other
    return _added(total, part, at)


def _added(total: Array, part: Array, at: Int[AnyArray, "2"]) -> Array:
    """The total with a part added from the row and column `at` on."""
    start = (at[0], at[1], *(jnp.zeros_like(at[0]) for _ in total.shape[2:]))
    sum_of_both = jax.lax.dynamic_slice(total, start, part.shape) + part
    return jax.lax.dynamic_update_slice(total, sum_of_both, start)


@compiled_for_products
def _mirrored(upper: Bool[AnyArray, "b b"], total: Array) -> Array:
    """A kernel of samples with themselves, of which only the part from the diagonal on is whole."""
    return jnp.where(jnp.expand_dims(upper, range(2, total.ndim)), total, mirror(total))


@compiled_for_products
def _with_room(
    piece: tuple[list[Array], list[Array], list[Array]], pieces: int
) -> tuple[list[Array], list[Array], list[Array]]:
    """What is kept of a block, of which this is the first of so many equal pieces."""

    def longer(part: Array, axis: int) -> Array:
        edges = [(0, (pieces - 1) * part.shape[axis] * (n == axis), 0) for n in range(part.ndim)]
        return jax.lax.pad(part, jnp.zeros((), part.dtype), edges)

    gradients, inputs, cotangents = piece
    return [longer(g, 0) for g in gradients], [longer(a, 0) for a in inputs], [longer(d, 1) for d in cotangents]


@partial(compiled_for_products, donate="all-except-first")
def _placed(
    given: tuple[Int[AnyArray, ""], tuple[list[Array], list[Array], list[Array]]],
    whole: tuple[list[Array], list[Array], list[Array]],
) -> tuple[list[Array], list[Array], list[Array]]:
    """What is kept of a block with a further piece, whose first sample is that of this number."""
    at, piece = given

    def placed(block: list[Array], parts: list[Array], axis: int) -> list[Array]:
        place = jax.lax.dynamic_update_slice_in_dim
        return [place(b, part, at, axis) for b, part in zip(block, parts, strict=True)]

    return placed(whole[0], piece[0], 0), placed(whole[1], piece[1], 0), placed(whole[2], piece[2], 1)


@partial(compiled_for_products, donate="all-except-first")
def _add_products(given, state):
    uses, dtype, batch, counts, at = given
    totals, scatter = state
    added = []
    for use, (inputs, cotangents), of in zip(uses, at, totals, strict=True):
        factors = _factors(use, dtype, inputs, cotangents)
        parts = [sum_factors(factors, batch.by_group, batch.signs, pairs=scatter.ndim == 3)]
        if len(of) > 1:
            bias = factors.bias()
            parts.append(group_sums(bias, batch.by_group, batch.signs, pairs=scatter.ndim == 3))
        added.append([])
        for total, part in zip(of, parts, strict=True):
            total, scatter = add_groups(total, scatter, counts, batch, part)
            added[-1].append(total)
    return added, scatter


@partial(compiled_for_products, donate="all-except-first")
def _add_rest(given, state):
    batch, counts, rest = given
    totals, scatter = state
    added, start = [], 0
    for total in totals:
        g = rest[:, :, start : start + total.shape[2]]
        start += total.shape[2]
        part = group_sums(g, batch.by_group, batch.signs, pairs=scatter.ndim == 3)
        total, scatter = add_groups(total, scatter, counts, batch, part)
        added.append(total)
    return added, scatter
