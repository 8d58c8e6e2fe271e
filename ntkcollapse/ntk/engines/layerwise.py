"""Layer by layer, from the inputs of every layer and the cotangents of its results."""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ntkcollapse._platforms import number
from ntkcollapse.compiled import compiled_for_products
from ntkcollapse.ntk._memory import evened, fit, step
from ntkcollapse.ntk._problem import Problem, one_like
from ntkcollapse.ntk._trace import Component, Traced
from ntkcollapse.ntk._uses import EveryStep, Use, WithBias
from ntkcollapse.ntk.engines._contract import Outputs, contract, group_sums, kernel_shape, mirror
from ntkcollapse.ntk.engines._engine import BATCH, SUMS, Chunks, Engine, Sums, add_groups, marked, unit_cotangents
from ntkcollapse.ntk.engines._factors import Factors, contract_grams, grams_are_cheaper, is_formed, sum_factors

# From so many samples on, a kernel of samples with themselves is made from the diagonal on, in so many rows of blocks.
_TRIANGLE = 2048
_PANELS = 4
# From so many outputs at a time on, the forward pass is done again for each tile rather than held.
_FORWARD_AGAIN = 4


class Layerwise(Engine):
    """One backward pass an output gives the cotangents at every layer; no Jacobian of the whole network is made.

    For each parameter that enters a matrix product or a convolution, gradients of samples are formed by one batched
    product, or only the Grams of inputs and cotangents are, whichever is cheaper for its shapes. A parameter that
    enters several times has its gradients summed first. Anything else is differentiated sample by sample by JAX.

    Where all of this is small, it is one program, which compiles faster.

    Memory: for a chunk of samples and outputs, the cotangents of all layers, and the gradients of one layer. All
    outputs of a chunk go back together as one larger batch: no loop stands around a convolution, which on a CPU
    would be several times slower.

    The passes are compiled as one piece and every layer's products as one more. Together, a compiler would rather
    compute cotangents again for each of their uses than store them, and unfold the inputs of all layers at once.
    """

    spreads: ClassVar[bool] = True

    def chunks(self, problem, x, num_samples, outputs, available):
        sizes, K = _plan(problem, x), problem.num_outputs
        if (
            sizes.at_once(problem, num_samples, outputs) <= min(available, number("at_once"))
            and jax.device_count() == 1
        ):
            return Chunks(samples=num_samples, outputs=K, whole=True)
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
        return Chunks(samples=samples, outputs=max(least, evened(K, k)))

    def kernel(self, problem, x1, x2, outputs, chunks):
        K, count = problem.num_outputs, chunks.outputs
        plan = _plan(problem, one_like(x1))
        few = len(x1) + (0 if x2 is None else len(x2)) <= number("few")
        if chunks.whole:
            steps = any(isinstance(product.use, EveryStep) for product in plan.products)
            return _BY_ONE_PROGRAM[steps](problem, plan.for_few() if few else plan, x1, x2, outputs)
        if few:
            plan = plan.for_few()
        size = plan.piece(problem.dtype, count)
        again = count >= min(K, _FORWARD_AGAIN)
        left = _pieces(problem, x1, size, again)
        right = None if x2 is None else _pieces(problem, x2, size, again)
        parts = [_tile(problem, plan, left, right, first, count, outputs) for first in range(0, K, count)]
        if outputs == "mean":
            return sum(parts[1:], start=parts[0])
        return parts[0] if outputs == "full" else jnp.concatenate(parts, axis=2)[:, :, :K]

    def sum_chunks(self, problem, x, num_sums, available):
        sizes = _plan(problem, x)
        stored = num_sums * problem.num_params * problem.dtype.itemsize
        outputs = evened(problem.num_outputs, fit(SUMS * available // 8, stored, problem.num_outputs))
        each = sizes.forward + sizes.patches + outputs * (sizes.backward + sizes.gradient)
        return Chunks(samples=fit(BATCH * available // 8, each, 4096), outputs=outputs)

    def add(self, problem, sums, batch, first_output):
        plan = _plan(problem, one_like(batch.x))
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
    sizes = _plan(problem, x)
    return sizes.forward + sizes.backward


class Product(eqx.Module):
    """A parameter whose gradients are products: its number, those of the tap and of its bias."""

    leaf: int = eqx.field(static=True)
    tap: int = eqx.field(static=True)
    bias: int | None = eqx.field(static=True)
    use: Use

    @property
    def leaves(self) -> list[int]:
        """Numbers of the parameter and of its bias."""
        return [leaf for leaf in (self.leaf, self.bias) if leaf is not None]

    @property
    def whole(self) -> Use:
        """The use of parameter and bias together."""
        return self.use if self.bias is None else WithBias.of(self.use)


class Plan(eqx.Module):
    """How each parameter is treated, and how many bytes a sample takes.

    rest: numbers of the parameters that are in no product, in groups whose gradients are there at once.
    inputs: bytes of the inputs of all layers; forward: of the forward pass, these among it; backward: of all cotangents
        and of the gradients of one group of the rest, for each output; patches: of the input of one layer as its
        products need it; gradient: of one layer, for each output, where its sums over samples are made from it.
    """

    products: tuple[Product, ...]
    rest: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    inputs: int = eqx.field(static=True)
    forward: int = eqx.field(static=True)
    backward: int = eqx.field(static=True)
    patches: int = eqx.field(static=True)
    gradient: int = eqx.field(static=True)

    @property
    def together(self) -> bool:
        """Whether all gradients that are no product are made where the cotangents are."""
        return len(self.rest) == 1

    def together_at_most(self, size: float, n: int, count: int, dtype) -> list[list[Product]]:
        """The products from the outputs on, in groups whose inputs, cotangents and gradients are `size` bytes."""
        groups: list[list[Product]] = []
        room = 0.0
        for product in reversed(self.products):
            use = product.whole
            each = use.positions * (use.inputs + count * use.outputs) + count * use.inputs * use.outputs
            room -= n * use.groups * each * dtype.itemsize
            if groups and room >= 0:
                groups[-1].append(product)
            else:
                groups.append([product])
                room = size - n * use.groups * each * dtype.itemsize
        return groups

    def for_few(self) -> "Plan":
        """The same for few samples: products that compile fast."""
        products = tuple(dataclasses.replace(product, use=product.use.for_few()) for product in self.products)
        return dataclasses.replace(self, products=products)

    def at_once(self, problem: Problem, n: int, outputs: Outputs) -> int:
        """Bytes for a kernel of n samples with themselves or others by one program, which may hold all layers."""
        K = problem.num_outputs
        leaves = jax.tree.leaves(problem.params)
        numbers = K * sum(leaves[i].size for group in self.rest for i in group)
        for use in (product.whole for product in self.products):
            numbers += use.groups * use.positions * use.inputs
            if not grams_are_cheaper(use, n, n, K, outputs):
                numbers += K * use.groups * use.inputs * use.outputs
        kernel = int(np.prod(kernel_shape(outputs, n, n, K)))
        return 2 * n * (self.forward + K * self.backward) + (2 * n * numbers + 3 * kernel) * problem.dtype.itemsize

    def piece(self, dtype, count: int) -> int:
        """Samples whose inputs and cotangents at any one layer fit into one step."""
        uses = [product.whole for product in self.products]
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
            (tap,) = component.taps
            bias = traced.taps[tap].bias
            (leaf,) = (leaf for leaf in component.leaves if leaf != bias)
            products.append(Product(leaf, tap, bias, use))
    rest = [tuple(leaf for component in group for leaf in component.leaves) for group in _rest(traced, leaves)]
    formed = max((u.groups * u.inputs * u.outputs for u in uses if is_formed(u)), default=0)
    explicit = max((sum(leaves[i].size for i in group) for group in rest), default=0)
    # Of the forward pass: inputs of the layers, and about twice as much that the way back needs.
    numbers = (inputs, 3 * inputs, cotangents + explicit, patches, formed)
    return Plan(tuple(products), tuple(rest), *(n * item for n in numbers))


class Pass(eqx.Module):
    """A forward pass over samples x: inputs by the number of their tap with a use, and the way back to all taps."""

    x: Array
    inputs: dict[int, Array]
    pullback: PyTree
    outputs: Float[Array, "B K"]


class Side(eqx.Module):
    """Samples on one side of the kernel, once they have been passed there and back.

    inputs, cotangents: by the number of their tap; of products alone where the rest is there, (B, k, size).
    """

    x: Array
    inputs: dict[int, Array]
    cotangents: dict[int, Array]
    rest: Float[Array, "B k size"] | None


def _run(problem: Problem, x: Array) -> Pass:
    traced = Traced(problem.f, problem.params, one_like(x))
    entries = traced.entries(jax.tree.leaves(problem.params))
    zeros = [jnp.zeros((x.shape[0], *tap.like.shape), tap.like.dtype) for tap in traced.taps]
    outputs = jax.vmap(traced.outputs, in_axes=(None, 0, 0))
    y, pullback, inputs = jax.vjp(lambda taps: outputs(entries, x, taps), zeros, has_aux=True)
    of = [n for n, tap in enumerate(traced.taps) if tap.use is not None]
    return Pass(x, dict(zip(of, inputs, strict=True)), pullback, y)


def _go_back(problem: Problem, passed: Pass, first, count: int, mask=None) -> dict[int, Array]:
    """Cotangents at the taps, (count, B, ...) each, for outputs from `first` on."""
    y = passed.outputs
    seeds = unit_cotangents(problem.num_outputs, first, count, y.dtype)
    weights = jnp.ones((y.shape[0],), y.dtype) if mask is None else mask.astype(y.dtype)
    found = jax.vmap(lambda seed: passed.pullback(weights[:, None] * marked(seed[None, :], y))[0])(seeds)
    return dict(enumerate(found))


@compiled_for_products
def _forward(problem: Problem, x: Array) -> Pass:
    return _run(problem, x)


@compiled_for_products
def _back(problem: Problem, passed: Pass, first: Int[Array, ""], count: int, together: bool) -> Side:
    return _side_of(problem, passed, first, count, together)


@compiled_for_products
def _there_and_back(
    problem: Problem, x: Array, first: Int[Array, ""], count: int, together: bool, mask: Array | None = None
) -> Side:
    return _side_of(problem, _run(problem, x), first, count, together, mask)


def _side_of(problem: Problem, passed: Pass, first, count: int, together: bool, mask=None) -> Side:
    side = Side(passed.x, passed.inputs, _go_back(problem, passed, first, count, mask), None)
    if not together:
        return side
    traced = Traced(problem.f, problem.params, one_like(passed.x))
    rest = _explicit(problem, traced, side, *_rest(traced, jax.tree.leaves(problem.params)))
    taps = [c.taps[0] for c in traced.components if _is_product(traced, c)]
    inputs, cotangents = ({tap: values[tap] for tap in taps} for values in (side.inputs, side.cotangents))
    return Side(passed.x, inputs, cotangents, rest)


@compiled_for_products
def _explicit_group(problem: Problem, side: Side, group: int) -> Float[Array, "B k size"]:
    traced = Traced(problem.f, problem.params, one_like(side.x))
    return _explicit(problem, traced, side, _rest(traced, jax.tree.leaves(problem.params))[group])


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


def _is_product(traced: Traced, component: Component) -> bool:
    return component.direct and traced.taps[component.taps[0]].use is not None


def _rest(traced: Traced, leaves: Sequence[Array]) -> list[list[Component]]:
    """The components that are no product, from the outputs on, in groups.

    A group has no more numbers a sample than its largest parameter or all cotangents have, whichever is more.
    """
    room = sum(int(np.prod(tap.like.shape)) for tap in traced.taps)
    groups: list[list[Component]] = []
    sizes: list[int] = []
    for component in reversed(traced.components):
        if _is_product(traced, component):
            continue
        size = sum(leaves[i].size for i in component.leaves)
        if groups and sizes[-1] + size <= room:
            groups[-1].append(component)
            sizes[-1] += size
        else:
            groups.append([component])
            sizes.append(size)
    return groups


def _pieces(problem: Problem, x: Array, size: int, again: bool) -> Sequence[Pass | Array]:
    """Pieces of nearly equal size, at most `size` samples each: as passes, or as they are where each tile passes again.

    What the way back needs of a pass takes the place of the cotangents of two more outputs. With several outputs at a
    time the pass is little beside their ways back, and room for more of them at a time saves more than it costs.
    """
    edges = np.linspace(0, x.shape[0], -(-x.shape[0] // size) + 1).round().astype(int)
    parts = [x[i:j] for i, j in itertools.pairwise(edges)]
    return parts if again else [_forward(problem, part) for part in parts]


def _side(problem: Problem, piece: Pass | Array, first: int, count: int, together: bool) -> Side:
    start = jnp.asarray(first)
    if isinstance(piece, Pass):
        return _back(problem, piece, start, count, together)
    return _there_and_back(problem, piece, start, count, together)


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
    given = [pieces for pieces in (left, right) if pieces is not None]
    sides = [[_side(problem, p, first, count, plan.together) for p in pieces] for pieces in given]
    sizes = [[len(side.x) for side in pieces] for pieces in (sides[0], sides[-1])]
    # Blocks of all pieces with all; above the diagonal only, where both sides are the same.
    blocks = {
        (i, j): jnp.asarray(np.zeros(kernel_shape(outputs, a, b, count), problem.dtype))
        for i, a in enumerate(sizes[0])
        for j, b in enumerate(sizes[1])
        if right is not None or i <= j
    }

    def add(g) -> None:
        for (i, j), total in blocks.items():
            blocks[i, j] = _contract_formed((g[0][i], g[-1][j], outputs), total)

    for group in range(len(plan.rest)):
        add([[s.rest if plan.together else _explicit_group(problem, s, group) for s in pieces] for pieces in sides])
    for product in reversed(plan.products):
        use = product.whole
        at = [[(s.inputs[product.tap], s.cotangents.pop(product.tap)) for s in pieces] for pieces in sides]
        if grams_are_cheaper(use, sum(sizes[0]), sum(sizes[1]), count, outputs):
            for (i, j), total in blocks.items():
                blocks[i, j] = _contract_grams((use, problem.dtype, at[0][i], at[-1][j], outputs), total)
            continue
        each = sum(sum(pieces) for pieces in sizes[: len(sides)]) * count * use.groups * use.outputs
        part = fit(2 * step(), each * problem.dtype.itemsize, use.inputs)
        for begin in range(0, use.inputs, part):
            some = min(part, use.inputs - begin)
            add([[_formed(use, problem.dtype, *s, jnp.asarray(begin), some) for s in pieces] for pieces in at])
    return blocks[0, 0] if len(blocks) == 1 else _assembled(blocks, len(sizes[0]), len(sizes[1]))


def _at_once(problem: Problem, plan: Plan, x1: Array, x2: Array | None, outputs: Outputs) -> Array:
    """The kernel by one program."""
    K, given = problem.num_outputs, [x for x in (x1, x2) if x is not None]
    traced = Traced(problem.f, problem.params, one_like(x1))
    rest = [component for group in _rest(traced, jax.tree.leaves(problem.params)) for component in group]
    sides = [_side_of(problem, _run(problem, x), 0, K, False) for x in given]
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
        use = product.whole
        at = [_factors(use, problem.dtype, s.inputs[product.tap], s.cotangents[product.tap]) for s in sides]
        if grams_are_cheaper(use, len(given[0]), len(given[-1]), K, outputs):
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


@compiled_for_products
def _assembled(blocks: dict[tuple[int, int], Array], rows: int, columns: int) -> Array:
    return _put_together(blocks, rows, columns)


def _put_together(blocks: dict[tuple[int, int], Array], rows: int, columns: int) -> Array:
    def block(i, j):
        return blocks[i, j] if (i, j) in blocks else mirror(blocks[j, i])

    return jnp.concatenate(
        [jnp.concatenate([block(i, j) for j in range(columns)], axis=1) for i in range(rows)], axis=0
    )


@compiled_for_products
def _formed(use: Use, dtype, inputs: Array, cotangents: Array, first: Int[Array, ""], count: int) -> Array:
    """Gradients of each sample, (B, k, P) for `count` of the inputs of each group from `first` on."""
    factors = _factors(use, dtype, inputs, cotangents)
    if count == use.inputs:
        return factors.formed()
    a = jax.lax.dynamic_slice_in_dim(factors.a, first, count, axis=3)
    return Factors(a, factors.d).formed()


@partial(compiled_for_products, donate="all-except-first")
def _contract_formed(given, total: Array) -> Array:
    return total + contract(*given)


@partial(compiled_for_products, donate="all-except-first")
def _contract_grams(given, total: Array) -> Array:
    use, dtype, left, right, outputs = given
    return total + contract_grams(_factors(use, dtype, *left), _factors(use, dtype, *right), outputs)


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
