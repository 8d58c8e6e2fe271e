"""Operations in which the gradient of a parameter is a product of input and cotangent.

In all of them, for one sample and after a rearrangement,

    ∂L/∂q[g, o, i] = Σ_t δ[g, t, o] a[g, t, i]

with a the input beside the parameter q, δ the cotangent of the result, t the positions at which q is used, and g
groups that do not mix (of a grouped convolution, or the batch dimensions of a product).
"""

import abc
import dataclasses
import itertools
from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse._platforms import number


@dataclasses.dataclass(frozen=True)
class Use(abc.ABC):
    """How input and cotangent of one sample are brought to (G, T, I) and (G, T, O)."""

    groups: int
    positions: int
    inputs: int
    outputs: int

    @abc.abstractmethod
    def input(self, a: Array) -> Array:
        """a as (G, T, I)."""

    @abc.abstractmethod
    def cotangent(self, d: Any) -> Any:
        """δ as (G, T, O), an array of JAX or of numpy."""

    def for_few(self) -> "Use":
        """The same for few samples, where compiling it takes longer than running it."""
        return self

    def for_forming(self, k: int) -> "Use":
        """One whose gradients of k outputs are formed faster: the same numbers in another order, with other T, I, O."""
        del k
        return self

    @abc.abstractmethod
    def gradient(self, g: Float[Array, "G O I"]) -> Array:
        """A product (G, O, I) in the shape of the parameter."""


@dataclasses.dataclass(frozen=True)
class MatrixProduct(Use):
    """`dot_general` of data and a parameter, on either side."""

    input_order: tuple[int, ...]
    cotangent_order: tuple[int, ...]
    gradient_shape: tuple[int, ...]
    gradient_order: tuple[int, ...]

    def input(self, a):
        return a.transpose(self.input_order).reshape(self.groups, self.positions, self.inputs)

    def cotangent(self, d):
        return d.transpose(self.cotangent_order).reshape(self.groups, self.positions, self.outputs)

    def gradient(self, g):
        return g.reshape(self.gradient_shape).transpose(self.gradient_order)


def _matrix_product(params, shapes, results, operand) -> Use:
    del results
    contract, batch = params["dimension_numbers"]
    a, q = shapes[1 - operand].shape, shapes[operand].shape
    ac, qc = contract[1 - operand], contract[operand]
    ab, qb = batch[1 - operand], batch[operand]
    a_free = [i for i in range(len(a)) if i not in (*ac, *ab)]
    q_free = [i for i in range(len(q)) if i not in (*qc, *qb)]
    # The result's dimensions: batch, free ones of the left, free ones of the right.
    nb, na, nq = len(ab), len(a_free), len(q_free)
    first_a = nb if operand == 1 else nb + nq
    first_q = nb + na if operand == 1 else nb
    order = (*range(nb), *range(first_a, first_a + na), *range(first_q, first_q + nq))
    own = (*qb, *q_free, *qc)
    return MatrixProduct(
        groups=prod(a[i] for i in ab),
        positions=prod(a[i] for i in a_free),
        inputs=prod(a[i] for i in ac),
        outputs=prod(q[i] for i in q_free),
        input_order=(*ab, *a_free, *ac),
        cotangent_order=order,
        gradient_shape=tuple(q[i] for i in own),
        gradient_order=tuple(int(i) for i in np.argsort(own)),
    )


@dataclasses.dataclass(frozen=True)
class Convolution(Use):
    """`conv_general_dilated` of data with a kernel: any stride, padding, dilation and feature groups."""

    numbers: Any
    window: tuple[int, ...]
    places: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    window_dilation: tuple[int, ...]
    gathered: bool

    def for_few(self):
        return dataclasses.replace(self, gathered=True)

    def for_forming(self, k):
        if self.gathered or self.strides[:1] != (1,):
            return self
        slid = SlidConvolution.of(self)
        less, more = (use.positions * (use.inputs + k * use.outputs) for use in (slid, self))
        return slid if _MUCH_LESS * less <= more else self

    def input(self, a):
        a = self.padded(a)
        patches = self._patches(a)
        # (N, places, window, channels) to (G, T, window · channels of a group)
        c = a.shape[-1] // self.groups
        patches = patches.reshape(self.positions, prod(self.window), self.groups, c)
        return patches.transpose((2, 0, 1, 3)).reshape(self.groups, self.positions, self.inputs)

    def padded(self, a, axes: slice = slice(None)):
        """a as (N, ..., channels), with zeros around and between its numbers along these of its axes."""
        batch, channels, *space = self.numbers.lhs_spec
        a = a.transpose((batch, *space, channels))
        edges = [(0, 0, 0)] * len(space)
        edges[axes] = [(lo, hi, d - 1) for (lo, hi), d in zip(self.padding, self.input_dilation, strict=True)][axes]
        return jax.lax.pad(a, jnp.zeros((), a.dtype), [(0, 0, 0), *edges, (0, 0, 0)])

    def _patches(self, a):
        n, *_, c = a.shape
        steps = list(zip(self.places, self.strides, self.window_dilation, strict=True))
        if not self.gathered:
            parts = []
            for offset in itertools.product(*(range(k) for k in self.window)):
                first = [o * d for o, (_, _, d) in zip(offset, steps, strict=True)]
                last = [f + (p - 1) * s + 1 for f, (p, s, _) in zip(first, steps, strict=True)]
                parts.append(jax.lax.slice(a, (0, *first, 0), (n, *last, c), (1, *self.strides, 1)))
            # Beside each other in the last dimension: a new dimension for them takes up to twice the time on a CPU.
            return jnp.concatenate(parts, axis=-1)
        index = [
            np.arange(p)[:, None] * s + np.arange(k)[None, :] * d
            for k, (p, s, d) in zip(self.window, steps, strict=True)
        ]
        # One index array (places, window) over all spatial dimensions.
        flat = np.zeros((1,) * 2 * len(index), dtype=int)
        for axis, (part, size) in enumerate(zip(index, a.shape[1:-1], strict=True)):
            shape = [1] * 2 * len(index)
            shape[axis], shape[len(index) + axis] = part.shape
            flat = flat * size + part.reshape(shape)
        return a.reshape(n, -1, c).at[:, flat.reshape(-1)].get(mode="promise_in_bounds")

    def cotangent(self, d):
        batch, channels, *space = self.numbers.out_spec
        d = d.transpose((batch, *space, channels))
        return d.reshape(self.positions, self.groups, self.outputs).transpose((1, 0, 2))

    def gradient(self, g):
        c = self.inputs // prod(self.window)
        g = g.reshape(self.groups * self.outputs, *self.window, c)
        g = jnp.moveaxis(g, -1, 1)
        return g.transpose(tuple(int(i) for i in np.argsort(self.numbers.rhs_spec)))


# Numbers that are written for a product, of both ways: below this ratio the other way takes as long.
_MUCH_LESS = 1.2


@dataclasses.dataclass(frozen=True)
class SlidConvolution(Use):
    """A convolution that steps by one along its first axis: there its cotangents slide over the input.

        ∂L/∂q[o, (u, v), i] = Σ_{y, x} δ[y − u + p, x, o] a[y, x + v, i]

    Inputs are unfolded along the other axes alone, and cotangents along the first one: 3 (I + k O) numbers a place for
    a window of 3 × 3, and not 9 I + k O.
    """

    alone: Convolution

    @classmethod
    def of(cls, use: Convolution) -> "SlidConvolution":
        first, places = use.window[0], use.places[0]
        # What the first axis has of inputs, its zeros in between included: those around it meet nothing.
        rows = (places - 1) + (first - 1) * use.window_dilation[0] + 1 - sum(use.padding[0])
        return cls(use.groups, use.positions // places * rows, use.inputs // first, use.outputs * first, use)

    def input(self, a):
        use = self.alone
        a = use.padded(a, slice(1, None))
        if use.input_dilation[0] > 1:
            between = [(0, 0, 0)] * a.ndim
            between[1] = (0, 0, use.input_dilation[0] - 1)
            a = jax.lax.pad(a, jnp.zeros((), a.dtype), between)
        rows, c = a.shape[1], a.shape[-1]
        window, places, dilation = (1, *use.window[1:]), (rows, *use.places[1:]), (1, *use.window_dilation[1:])
        across = dataclasses.replace(use, window=window, places=places, window_dilation=dilation)
        patches = across._patches(a).reshape(self.positions, -1, self.groups, c // self.groups)
        return patches.transpose((2, 0, 1, 3)).reshape(self.groups, self.positions, self.inputs)

    def cotangent(self, d):
        use = self.alone
        batch, channels, *space = use.numbers.out_spec
        d = jnp.asarray(d).transpose((batch, *space, channels))
        places, rows = d.shape[1], self.positions * d.shape[1] // use.positions
        step, before = use.window_dilation[0], use.padding[0][0]
        zero = jnp.zeros((), d.dtype)
        # Row y of part u is row y − u + p: that many before it, and what is missing behind; less than none is cut off.
        edges = [(u * step - before, rows - places - u * step + before) for u in range(use.window[0])]
        parts = [jax.lax.pad(d, zero, [(0, 0, 0), (lo, hi, 0), *[(0, 0, 0)] * (d.ndim - 2)]) for lo, hi in edges]
        # (u, T, G, O) to (G, T, u · O)
        slid = jnp.stack([part.reshape(self.positions, self.groups, use.outputs) for part in parts])
        return slid.transpose((2, 1, 0, 3)).reshape(self.groups, self.positions, self.outputs)

    def gradient(self, g):
        use = self.alone
        g = g.reshape(self.groups, use.window[0], use.outputs, self.inputs)
        return use.gradient(jnp.moveaxis(g, 1, 2).reshape(self.groups, use.outputs, use.inputs))


def _convolution(params, shapes, results, operand) -> Use | None:
    if operand != 1 or params["batch_group_count"] != 1:
        return None
    numbers, G = params["dimension_numbers"], params["feature_group_count"]
    x, w, y = shapes[0].shape, shapes[1].shape, results[0].shape
    window = tuple(w[i] for i in numbers.rhs_spec[2:])
    places = tuple(y[i] for i in numbers.out_spec[2:])
    return Convolution(
        groups=G,
        positions=x[numbers.lhs_spec[0]] * prod(places),
        inputs=prod(window) * w[numbers.rhs_spec[1]],
        outputs=w[numbers.rhs_spec[0]] // G,
        numbers=numbers,
        window=window,
        places=places,
        strides=tuple(params["window_strides"]),
        padding=tuple((int(lo), int(hi)) for lo, hi in params["padding"]),
        input_dilation=tuple(params["lhs_dilation"]),
        window_dilation=tuple(params["rhs_dilation"]),
        gathered=prod(window) > number("offsets"),
    )


@dataclasses.dataclass(frozen=True)
class Rows(Use):
    """Rows of a table by their numbers, `gather` along its first dimension: an embedding.

    It is a matrix product with the numbers written as unit vectors.
    """

    row: tuple[int, ...]
    clipped: bool

    def input(self, a):
        # One number a position, in the last dimension; the gradient of a number out of range is zero, or goes to the
        # nearest row.
        numbers = a.reshape(1, self.positions, 1)
        if numbers.dtype.itemsize < 4:
            # A byte cannot count the rows of a longer table.
            numbers = numbers.astype(jnp.int32)
        if self.clipped:
            numbers = jnp.clip(numbers, 0, self.inputs - 1)
        return numbers == jnp.arange(self.inputs, dtype=numbers.dtype)[None, None, :]

    def cotangent(self, d):
        return d.reshape(1, self.positions, self.outputs)

    def gradient(self, g):
        return g[0].T.reshape(self.inputs, *self.row)


def _rows(params, shapes, operand) -> Use | None:
    table, numbers = (s.shape for s in shapes)
    d, mode = params["dimension_numbers"], params["mode"]
    modes = jax.lax.GatherScatterMode
    known = (modes.FILL_OR_DROP, modes.PROMISE_IN_BOUNDS, modes.CLIP)
    whole_rows = tuple(params["slice_sizes"]) == (1, *table[1:])
    along_first = tuple(d.start_index_map) == tuple(d.collapsed_slice_dims) == (0,) and not d.operand_batching_dims
    # The entries of a row come last in the result.
    first = len(numbers) - 1
    last = tuple(d.offset_dims) == tuple(range(first, first + len(table) - 1))
    if operand != 0 or mode not in known or not (whole_rows and along_first and last):
        return None
    return Rows(
        groups=1,
        positions=prod(numbers),
        inputs=table[0],
        outputs=prod(table[1:]),
        row=tuple(table[1:]),
        clipped=mode == modes.CLIP,
    )


@dataclasses.dataclass(frozen=True)
class WithBias(Use):
    """A use to whose result a bias is added at every position: one more input, which is always one."""

    alone: Use

    @classmethod
    def of(cls, use: Use) -> "WithBias":
        return cls(use.groups, use.positions, use.inputs + 1, use.outputs, use)

    def input(self, a):
        a = self.alone.input(a)
        return jnp.concatenate([a, jnp.ones_like(a[..., :1])], axis=-1)

    def cotangent(self, d):
        return self.alone.cotangent(d)

    def gradient(self, g):
        return self.alone.gradient(g[..., :-1])

    def for_few(self):
        return dataclasses.replace(self, alone=self.alone.for_few())


@dataclasses.dataclass(frozen=True)
class EveryStep(Use):
    """A use at every step of a scan: steps come before its positions."""

    at_one: Use

    @classmethod
    def of(cls, use: Use, steps: int) -> "EveryStep":
        return cls(use.groups, steps * use.positions, use.inputs, use.outputs, use)

    def input(self, a):
        return self._flat(jax.vmap(self.at_one.input)(a))

    def cotangent(self, d):
        return self._flat(jax.vmap(self.at_one.cotangent)(d))

    def gradient(self, g):
        return self.at_one.gradient(g)

    def for_few(self):
        return dataclasses.replace(self, at_one=self.at_one.for_few())

    def _flat(self, v):
        return jnp.swapaxes(v, 0, 1).reshape(self.groups, self.positions, v.shape[-1])


def recognise(
    name: str,
    params: dict[str, Any],
    shapes: Sequence[jax.ShapeDtypeStruct],
    results: Sequence[jax.ShapeDtypeStruct],
    operand: int,
) -> Use | None:
    """The product form of an operation with a parameter as `operand`; None where there is none."""
    if any(0 in s.shape for s in (*shapes, *results)):
        return None
    if name == "dot_general":
        return _matrix_product(params, shapes, results, operand)
    if name == "conv_general_dilated":
        return _convolution(params, shapes, results, operand)
    if name == "gather":
        return _rows(params, shapes, operand)
    return None
