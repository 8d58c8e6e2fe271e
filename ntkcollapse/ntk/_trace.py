"""A pure function split at the places where its parameters meet data.

f is traced once for a single sample. What depends on parameters only (a transpose, a cast, a normalised weight) is
kept apart as *entries*, the arrays that then meet data; everything else depends on the sample. At each such meeting,
a *use*, a zero array called *tap* is added:

- to the result of an operation whose derivative is a product of its input and the result's cotangent (a matrix
  product, a convolution, rows of a table), so that this input and the tap's cotangent are all that is needed;
- to the entry itself anywhere else, so that the tap's cotangent *is* the gradient of one sample, by JAX's own rules.

One backward pass to the taps then serves all parameters, and nothing is ever guessed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array, PyTree

from ntkcollapse._flat_trace import Operation, bind, flatten, like, read, scan
from ntkcollapse.ntk._uses import EveryStep, Use, recognise
from ntkcollapse.ntk._work import Work, work


class Tap(NamedTuple):
    """Where a zero of shape `like` is added: at an operand of an equation, or at its result where there is a `use`.

    Both are −1 where an entry is the function's own output. Within a scan, `step` is the equation of its body and
    `operand` one of that; otherwise −1. `beside` is the shape of the data that it meets in a use, `entry_dtype` the
    type of the entry. bias: a parameter that is added to the result of the use, position by position, and nowhere else:
    its gradient is the sum of the tap's cotangents over positions.
    """

    equation: int
    step: int
    operand: int
    entry: int
    use: Use | None
    like: jax.ShapeDtypeStruct
    beside: jax.ShapeDtypeStruct | None
    entry_dtype: Any
    bias: int | None = None


class Component(NamedTuple):
    """Parameters whose gradients come from the same taps.

    direct: the single tap of a parameter that meets data once, and reaches it unchanged but for its shape and type,
    so that inner products of gradients are the same for the parameter and for its entry; beside it there may be the
    tap's bias.
    """

    leaves: tuple[int, ...]
    taps: tuple[int, ...]
    direct: bool


# Operations that move numbers about and change none.
_REARRANGE = {"reshape", "transpose", "squeeze", "expand_dims", "copy", "rev"}


@eqx.filter_jit
def _applied(f: Callable, params: PyTree, x: Array) -> Any:
    return f(params, x)


def trace(f: Callable, params: PyTree, x: jax.ShapeDtypeStruct) -> tuple[ClosedJaxpr, Any]:
    """f as operations, and the shapes of what it returns; f itself runs once for each of its shapes."""
    # What is called under jit is traced once, in however many programs it stands.
    return jax.make_jaxpr(lambda params, x: _applied(f, params, x), return_shape=True)(params, x)


class Traced:
    """f for one sample, by entries and taps."""

    def __init__(self, f: Callable, params: PyTree, x: jax.ShapeDtypeStruct):
        closed, _ = trace(f, params, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
        leaves, self.treedef = jax.tree.flatten(params)
        flat = flatten(closed, steps=True)
        self._equations, self._constants = flat.operations, flat.constants
        (self._output,) = flat.outputs
        self._params, self._x = flat.inputs[: len(leaves)], flat.inputs[-1]
        self._split(leaves, closed.jaxpr.outvars[0].aval)

    @property
    def work(self) -> tuple[Work, Work]:
        """What f does with one sample, and what of it is gone through again on the way back from an output."""
        reached, back = set(), []
        for i in self._after:
            e = self._equations[i]
            if reached.intersection(o for o in e.operands if isinstance(o, int)):
                back.append(e)
            elif i not in self._taps_at:
                continue
            reached.update(e.results)
        return work(self._equations[i] for i in self._after), work(back)

    def entries(self, leaves: Sequence[Array], wanted: Iterable[int] | None = None) -> dict[int, Array]:
        """What depends on parameters only and meets data, by number; those of the numbers wanted, or all."""
        values = dict(self._constants) | dict(zip(self._params, leaves, strict=True))
        wanted = self._meeting if wanted is None else set(wanted)
        needed, steps = set(wanted), []
        for i in reversed(self._before):
            e = self._equations[i]
            if needed.intersection(e.results):
                needed.update(o for o in e.operands if isinstance(o, int))
                steps.append(e)
        for e in reversed(steps):
            results = bind(e, [read(o, values) for o in e.operands])
            values.update(zip(e.results, results, strict=True))
        return {number: values[number] for number in wanted}

    def outputs(self, entries: dict[int, Array], x: Array, taps: Sequence[Array]) -> tuple[Array, list[Array]]:
        """(K,) outputs of the one sample x, and the input beside the parameter at each tap with a `Use`."""
        values = dict(self._constants) | entries | {self._x: x[None]}
        inputs: dict[int, Array] = {}
        for i in self._after:
            equation = self._equations[i]
            operands = [read(o, values) for o in equation.operands]
            within = {n: taps[n] for n in self._taps_at.get(i, ()) if self.taps[n].step >= 0}
            for n in self._taps_at.get(i, ()):
                tap = self.taps[n]
                if tap.use is None:
                    operands[tap.operand] = operands[tap.operand] + taps[n]
                elif n not in within:
                    inputs[n] = operands[1 - tap.operand]
            if within:
                results, beside = scan(equation, operands, within, {n: self.taps[n][1:3] for n in within})
                inputs |= beside
            else:
                results = bind(equation, operands)
            for n in self._taps_at.get(i, ()):
                if self.taps[n].use is not None and n not in within:
                    results[0] = results[0] + taps[n]
            values.update(zip(equation.results, results, strict=True))
        y = read(self._output, values)
        for n in self._taps_at.get(-1, ()):
            y = y + taps[n]
        return y[0], [inputs[n] for n in sorted(inputs)]

    def pull(self, component: Component, leaves: Sequence[Array], cotangents: Sequence[Array]) -> list[Array]:
        """Gradients in the component's parameters, from those in the entries of its taps."""

        def entries_of(part):
            full = list(leaves)
            for i, leaf in zip(component.leaves, part, strict=True):
                full[i] = leaf
            numbers = [self.taps[t].entry for t in component.taps]
            entries = self.entries(full, numbers)
            return [entries[number] for number in numbers]

        _, pullback = jax.vjp(entries_of, [leaves[i] for i in component.leaves])
        return pullback(list(cotangents))[0]

    # ---- reading the trace

    def _split(self, leaves: Sequence[Array], output) -> None:
        """Equations before data is met and after; entries, taps and components."""
        data = {self._x}
        depends = {n: frozenset([i]) for i, n in enumerate(self._params)}
        shape_of = {n: like(jax.typeof(leaf)) for n, leaf in zip(self._params, leaves, strict=True)}
        rearranged = {n for n, leaf in zip(self._params, leaves, strict=True)}
        self._before, self._after = [], []
        for i, e in enumerate(self._equations):
            shape_of.update(zip(e.results, e.result_shapes, strict=True))
            names = [o for o in e.operands if isinstance(o, int)]
            if any(o in data for o in names):
                self._after.append(i)
                data.update(e.results)
                continue
            self._before.append(i)
            on = frozenset().union(*(depends.get(o, frozenset()) for o in names))
            depends.update(dict.fromkeys(e.results, on) if on else {})
            if names and names[0] in rearranged and _only_rearranges(e):
                rearranged.update(e.results)

        def meets(number) -> bool:
            entry = isinstance(number, int) and number not in data and bool(depends.get(number))
            return entry and jnp.issubdtype(shape_of[number].dtype, jnp.inexact)

        self.taps: list[Tap] = []
        self._meeting = set()
        for i in self._after:
            e = self._equations[i]
            # Values beside the data that no parameter reaches are entries too, without a tap.
            self._meeting |= {o for o in e.operands if isinstance(o, int) and o not in data}
            tapped = [j for j, o in enumerate(e.operands) if meets(o)]
            for j in tapped:
                entry, at = e.operands[j], e.shapes[j]
                within = _uses_within(e, entry) if e.steps is not None else None
                if within:
                    self.taps += [Tap(i, *use, at.dtype) for use in within]  # pyright: ignore
                    continue
                use = None if e.steps is not None or len(tapped) > 1 else _use(e, j)
                zero = at if use is None else e.result_shapes[0]
                beside = None if use is None else e.shapes[1 - j]
                self.taps.append(Tap(i, -1, j, entry, use, zero, beside, at.dtype))  # pyright: ignore
        if not isinstance(self._output, Literal) and self._output not in data:
            self._meeting.add(self._output)
            if meets(self._output):
                self.taps.append(Tap(-1, -1, -1, self._output, None, like(output), None, output.dtype))  # pyright: ignore
        self._add_biases(depends, rearranged, shape_of)
        self._taps_at: dict[int, list[int]] = {}
        for n, tap in enumerate(self.taps):
            self._taps_at.setdefault(tap.equation, []).append(n)
        self.components = self._components(depends, rearranged, len(leaves))

    def _add_biases(self, depends, rearranged, shape_of) -> None:
        """Gives taps their biases, which then need no tap of their own."""
        uses = [[tap for tap in self.taps if leaf in depends[tap.entry]] for leaf in range(len(self._params))]
        alone = lambda on: len(on) == 1 and all(len(uses[leaf]) == 1 for leaf in on)  # noqa: E731
        readers = Counter(o for i in self._after for o in self._equations[i].operands if isinstance(o, int))
        products = {
            self._equations[tap.equation].results[0]: n
            for n, tap in enumerate(self.taps)
            if tap.use is not None and tap.step < 0 and alone(depends[tap.entry]) and tap.entry in rearranged
        }
        tied = set()
        for n, tap in enumerate(self.taps):
            e = self._equations[tap.equation]
            if tap.use is not None or tap.equation < 0 or e.primitive.name not in ("add", "add_any"):
                continue
            of = e.operands[1 - tap.operand]
            at = products.get(of) if isinstance(of, int) and of != self._output and readers[of] == 1 else None
            if at is None or e.shapes[0] != e.shapes[1] or not alone(depends[tap.entry]):
                continue
            use, (leaf,) = self.taps[at].use, depends[tap.entry]
            numbers = self._places(tap.entry, self._params[leaf], shape_of[self._params[leaf]].shape)
            if numbers is None or use is None:
                continue
            placed = use.cotangent(numbers)
            if (placed == placed[:, :1]).all() and len(np.unique(placed[:, 0])) == placed[:, 0].size:
                self.taps[at] = self.taps[at]._replace(bias=leaf)
                tied.add(n)
        self.taps = [tap for n, tap in enumerate(self.taps) if n not in tied]

    def _places(self, entry: int, leaf: int, shape: tuple[int, ...]) -> np.ndarray | None:
        """Which number of a parameter stands where in an entry; None where there is more to it."""
        if entry == leaf:
            return np.arange(int(np.prod(shape))).reshape(shape)
        made = [self._equations[i] for i in self._before if entry in self._equations[i].results]
        if not made or not isinstance(made[0].operands[0], int):
            return None
        (e,) = made
        numbers = self._places(e.operands[0], leaf, shape)
        if numbers is None:
            return None
        result = e.result_shapes[0].shape
        if e.primitive.name == "broadcast_in_dim":
            sizes = np.ones(len(result), int)
            sizes[list(e.params["broadcast_dimensions"])] = numbers.shape
            return np.broadcast_to(numbers.reshape(sizes), result)
        if e.primitive.name == "transpose":
            return numbers.transpose(e.params["permutation"])
        if e.primitive.name in ("reshape", "squeeze", "expand_dims", "copy", "convert_element_type"):
            return numbers.reshape(result)
        return None

    def _components(self, depends, rearranged, num_leaves: int) -> list[Component]:
        group = list(range(num_leaves))
        for tap in self.taps:
            merged = {group[i] for i in (*depends[tap.entry], *(() if tap.bias is None else (tap.bias,)))}
            group = [min(merged) if g in merged else g for g in group]
        components = []
        for g in sorted(set(group)):
            leaves = tuple(i for i in range(num_leaves) if group[i] == g)
            taps = tuple(n for n, tap in enumerate(self.taps) if group[min(depends[tap.entry])] == g)
            if taps:
                direct = len(taps) == 1 and self.taps[taps[0]].entry in rearranged
                components.append(Component(leaves, taps, direct))
        return components


def _use(e: Operation, operand: int) -> Use | None:
    """The product form of an operation in the parameter at `operand`."""
    # What a parameter became a complex number for (a Fourier transform, say) is left to JAX.
    if not jnp.issubdtype(e.shapes[operand].dtype, jnp.floating):
        return None
    return recognise(e.primitive.name, e.params, e.shapes, e.result_shapes, operand)


def _uses_within(scanned: Operation, entry: int) -> list[tuple]:
    """(step, operand, entry, use, zero, beside) of each use in the steps of a scan; none unless all have the form."""
    steps, length = scanned.steps, scanned.params["length"]
    if steps is None or entry in steps.out or entry in scanned.operands[len(steps.given) :] or length == 0:
        return []
    uses = []
    for i, e in enumerate(steps.operations):
        for j in (j for j, o in enumerate(e.operands) if o == entry):
            use = _use(e, j)
            if use is None:
                return []
            zero, beside = (
                jax.ShapeDtypeStruct((length, *s.shape), s.dtype) for s in (e.result_shapes[0], e.shapes[1 - j])
            )
            uses.append((i, j, entry, EveryStep.of(use, length), zero, beside))
    return uses


def _only_rearranges(e: Operation) -> bool:
    """Whether every number of the first operand stands exactly once in the result."""
    if e.primitive.name in _REARRANGE:
        return True
    same_size = e.shapes and e.shapes[0].size == e.result_shapes[0].size
    if e.primitive.name == "broadcast_in_dim":
        return bool(same_size)
    if e.primitive.name == "convert_element_type":
        return jnp.issubdtype(e.result_shapes[0].dtype, jnp.floating)
    return False
