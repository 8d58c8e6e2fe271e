"""Layer by layer, from the inputs of every layer and the cotangents of its results."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ntkcollapse.ntk._memory import fit
from ntkcollapse.ntk._problem import Problem, one_like
from ntkcollapse.ntk._trace import Component, Traced
from ntkcollapse.ntk.engines._contract import contract, kernel_shape, own, weighted
from ntkcollapse.ntk.engines._engine import Batch, Chunks, Engine, Sums, unit_cotangents
from ntkcollapse.ntk.engines._factors import Factors, contract_factors, is_formed, sum_factors


class Layerwise(Engine):
    """One backward pass an output gives the cotangents at every layer; no Jacobian of the whole network is made.

    For each parameter that enters a matrix product or a convolution, gradients of samples are formed by one batched
    product, or only the Grams of inputs and cotangents are, whichever is cheaper for its shapes. A parameter that
    enters several times has its gradients summed first. Anything else is differentiated sample by sample by JAX.

    Memory: for a chunk of samples and outputs, the cotangents of all layers, and the gradients of one layer. All
    outputs of a chunk go back together as one larger batch: no loop stands around a convolution, which on a CPU
    would be several times slower.
    """

    def chunks(self, problem, x, num_samples, outputs, available):
        sizes, K = _sizes(problem, x), problem.num_outputs
        least = K if outputs == "full" else 1
        each = sizes.forward + least * sizes.backward
        # All samples against themselves need half as much as two chunks; what is left goes to more outputs at a time.
        samples, sides = num_samples, 1
        if num_samples * each > available:
            samples, sides = fit(available, 2 * each, num_samples), 2
        k = fit(available // (sides * samples) - sizes.forward, sizes.backward, K)
        return Chunks(samples=samples, outputs=max(least, -(-K // -(-K // k))))

    def kernel(self, problem, x1, x2, outputs, chunks):
        like = one_like(x1)
        left = _forward(problem, x1)
        right = None if x2 is None else _forward(problem, x2)
        parts = []
        K, step = problem.num_outputs, chunks.outputs
        for first in range(0, K, step):
            parts.append(_tile(problem, like, left, right, jnp.asarray(first), step, outputs))
        if outputs == "mean":
            return sum(parts[1:], start=parts[0])
        return parts[0] if outputs == "full" else jnp.concatenate(parts, axis=2)[:, :, :K]

    def sum_chunks(self, problem, x, num_sums, available):
        sizes = _sizes(problem, x)
        stored = num_sums * problem.num_params * problem.dtype.itemsize
        outputs = fit(available // 2, stored, problem.num_outputs)
        each = sizes.forward + outputs * sizes.backward
        return Chunks(samples=fit(available // 2, each, 4096), outputs=outputs)

    def add(self, problem, sums, batch, first_output):
        return _add((problem, batch, first_output), sums)


def sample_bytes(problem: Problem, x: jax.ShapeDtypeStruct) -> int:
    """Bytes for one sample of a forward and a backward pass, about."""
    sizes = _sizes(problem, x)
    return sizes.forward + sizes.backward


class Sizes(eqx.Module):
    """Bytes of one sample: of the forward pass, and for each output of the way back."""

    forward: int = eqx.field(static=True)
    backward: int = eqx.field(static=True)


@eqx.filter_jit
def _sizes(problem: Problem, x: jax.ShapeDtypeStruct) -> Sizes:
    # Under jit only so that f is traced once, not at every call: nothing is computed.
    traced = Traced(problem.f, problem.params, x)
    item = problem.dtype.itemsize
    uses = [tap.use for tap in traced.taps if tap.use is not None]
    patches = max((u.groups * u.positions * u.inputs for u in uses), default=0)
    inputs = sum(int(np.prod(tap.beside.shape)) for tap in traced.taps if tap.beside is not None)
    cotangents = sum(int(np.prod(tap.like.shape)) for tap in traced.taps)
    leaves = jax.tree.leaves(problem.params)
    formed = [leaves[i].size for c in traced.components if not _is_product(traced, c) for i in c.leaves]
    formed += [u.groups * u.inputs * u.outputs for u in uses if is_formed(u)]
    # Forward: inputs of the layers, about twice as much that the way back needs, and the patches of one layer;
    # backward: cotangents of the layers, and the gradient of one of them where it is formed at all.
    return Sizes((3 * inputs + patches) * item, (cotangents + max(formed, default=0)) * item)


class Pass(eqx.Module):
    """A forward pass over a chunk: inputs at the taps, and the way back to the taps."""

    inputs: list[Array]
    pullback: PyTree
    outputs: Float[Array, "B K"]
    position: tuple[int | None, ...] = eqx.field(static=True)


def _run(problem: Problem, traced: Traced, x: Array) -> Pass:
    entries = traced.entries(jax.tree.leaves(problem.params))
    zeros = [jnp.zeros((x.shape[0], *tap.like.shape), tap.like.dtype) for tap in traced.taps]
    outputs = jax.vmap(traced.outputs, in_axes=(None, 0, 0))
    y, pullback, inputs = jax.vjp(lambda taps: outputs(entries, x, taps), zeros, has_aux=True)
    places = itertools.count()
    return Pass(inputs, pullback, y, tuple(None if tap.use is None else next(places) for tap in traced.taps))


@eqx.filter_jit
def _forward(problem: Problem, x: Array) -> Pass:
    return _run(problem, Traced(problem.f, problem.params, one_like(x)), x)


def _back(problem: Problem, passed: Pass, first, count: int, mask=None) -> list[Array]:
    """Cotangents at the taps, (count, B, ...) each, for outputs from `first` on."""
    y = passed.outputs
    seeds = unit_cotangents(problem.num_outputs, first, count, y.dtype)
    weights = jnp.ones((y.shape[0],), y.dtype) if mask is None else mask.astype(y.dtype)
    return jax.vmap(lambda seed: passed.pullback(weights[:, None] * seed[None, :])[0])(seeds)


def _factors(problem: Problem, traced: Traced, passed: Pass, cotangents: list[Array], n: int) -> Factors:
    """Inputs and cotangents at a tap with a use, in the parameters' precision."""
    use = traced.taps[n].use
    assert use is not None
    position = passed.position[n]
    assert position is not None
    a = jax.vmap(use.input)(passed.inputs[position].astype(problem.dtype))
    d = jax.vmap(jax.vmap(use.cotangent))(cotangents[n].astype(problem.dtype))
    return Factors(a, d)


def _explicit(problem: Problem, traced: Traced, passed: Pass, cotangents, component: Component) -> list[Array]:
    """Gradients of each sample in each of the component's parameters, (B, k, size): the sum over its uses."""
    parts = []
    for n in component.taps:
        tap = traced.taps[n]
        if tap.use is None:
            parts.append(jnp.swapaxes(cotangents[n], 0, 1))
        else:
            products = _factors(problem, traced, passed, cotangents, n).products()
            parts.append(jax.vmap(jax.vmap(tap.use.gradient))(products))
    if component.direct:
        return [parts[0].reshape(*parts[0].shape[:2], -1).astype(problem.dtype)]
    leaves = jax.tree.leaves(problem.params)
    dtypes = [jax.typeof(traced.entries(leaves)[traced.taps[n].entry]).dtype for n in component.taps]
    parts = [part.astype(dtype) for part, dtype in zip(parts, dtypes, strict=True)]
    pulled = jax.vmap(jax.vmap(lambda cotangent: traced.pull(component, leaves, cotangent)))(parts)
    return [g.reshape(*g.shape[:2], -1).astype(problem.dtype) for g in pulled]


def _is_product(traced: Traced, component: Component) -> bool:
    return component.direct and traced.taps[component.taps[0]].use is not None


@eqx.filter_jit
def _tile(problem: Problem, x: jax.ShapeDtypeStruct, left: Pass, right: Pass | None, first, count: int, outputs):
    traced = Traced(problem.f, problem.params, x)
    sides = [(side, _back(problem, side, first, count)) for side in (left, right) if side is not None]
    shape = kernel_shape(outputs, left.outputs.shape[0], (right or left).outputs.shape[0], count)
    total = jnp.zeros(shape, problem.dtype)
    for component in reversed(traced.components):
        sides = _after(sides, component, total)
        if _is_product(traced, component):
            (n,) = component.taps
            pair = [_factors(problem, traced, side, cotangents, n) for side, cotangents in sides]
            total += contract_factors(pair[0], pair[1] if len(pair) == 2 else None, outputs)
        else:
            pair = [_explicit(problem, traced, side, cotangents, component) for side, cotangents in sides]
            total += sum(contract(g, h, outputs) for g, h in zip(pair[0], pair[-1], strict=True))
    return total


def _after(sides, component: Component, total):
    """The same passes, their numbers at this component's taps available only once `total` is.

    Without it the compiler unfolds the inputs of all layers at once, which is most of the memory. An optimisation
    barrier is gone before the CPU backend schedules, so it is a zero that has to be waited for.
    """
    zero = 0 * total.ravel()[0]
    ordered = []
    for passed, cotangents in sides:
        cotangents, inputs = list(cotangents), list(passed.inputs)
        for n in component.taps:
            i = passed.position[n]
            if i is not None:
                inputs[i] = inputs[i] + zero.astype(inputs[i].dtype)
        ordered.append((Pass(inputs, passed.pullback, passed.outputs, passed.position), cotangents))
    return ordered


@eqx.filter_jit(donate="all-except-first")
def _add(given: tuple[Problem, Batch, Int[Array, ""]], sums: Sums) -> Sums:
    problem, batch, first = given
    traced = Traced(problem.f, problem.params, one_like(batch.x))
    passed = _run(problem, traced, batch.x)
    cotangents = _back(problem, passed, first, sums.squares.shape[1], batch.mask)
    groups, pairs = batch.group_class.shape[0], sums.output_squares is not None
    parts, squares = {}, jnp.zeros(passed.outputs.shape[:1] + sums.squares.shape[1:] * (1 + pairs), problem.dtype)
    for component in reversed(traced.components):
        ((passed, cotangents),) = _after([(passed, cotangents)], component, squares)
        if _is_product(traced, component):
            (n,) = component.taps
            factors = _factors(problem, traced, passed, cotangents, n)
            parts[component.leaves[0]], squared = sum_factors(factors, groups, batch.signs, pairs=pairs)
            squares += squared
            continue
        gradients = _explicit(problem, traced, passed, cotangents, component)
        for leaf, g in zip(component.leaves, gradients, strict=True):
            parts[leaf] = weighted(g, groups, batch.signs)
            squares += own(g, pairs=pairs)
    return sums.plus(batch, parts, squares)
