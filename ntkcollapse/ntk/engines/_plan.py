"""How each parameter of a function is treated, layer by layer, and what that takes."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from ntkcollapse.ntk._problem import Problem
from ntkcollapse.ntk._trace import Component, Traced
from ntkcollapse.ntk._uses import Use, WithBias
from ntkcollapse.ntk.engines._contract import Outputs, kernel_shape
from ntkcollapse.ntk.engines._factors import Layer, grams_are_cheaper, is_formed
from ntkcollapse.ntk.engines._tiling import Counted


@dataclasses.dataclass(frozen=True)
class Product:
    """A parameter whose gradients are products: its number, those of the tap and of its bias, numbers of its input."""

    leaf: int
    tap: int
    bias: int | None
    beside: int
    use: Use

    @property
    def leaves(self) -> list[int]:
        """Numbers of the parameter and of its bias."""
        return [leaf for leaf in (self.leaf, self.bias) if leaf is not None]

    @cached_property
    def whole(self) -> Use:
        """The use of parameter and bias together."""
        return self.use if self.bias is None else WithBias.of(self.use)

    @cached_property
    def layer(self) -> Layer:
        """What its gradients cost."""
        use = self.whole
        return Layer(use.groups, use.positions, use.inputs, use.outputs, self.beside)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How each parameter is treated, and how many bytes a sample takes.

    rest: numbers of the parameters that are in no product, in groups whose gradients are there at once.
    forward: bytes of the forward pass; backward: of all cotangents and of the gradients of one group of the rest, for
        each output; between: of cotangents that stand between the layers on the way back, for each output, as XLA was
        seen to hold them; patches: of the input of one layer as its products need it; gradient: of one layer, for each
        output, where its sums over samples are made from it; forth, back: work of a forward pass, and of the way back
        from each output.
    """

    products: tuple[Product, ...]
    rest: tuple[tuple[int, ...], ...]
    forward: int
    backward: int
    between: int
    patches: int
    gradient: int
    forth: int
    back: int

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

    def explicit(self, problem: Problem) -> int:
        """Numbers of the gradient of one output that are in no product."""
        leaves = jax.tree.leaves(problem.params)
        return sum(leaves[i].size for group in self.rest for i in group)

    def counted(self, problem: Problem) -> Counted:
        """What of it costs time and memory."""
        layers = Counter(product.layer for product in self.products)
        sizes = self.explicit(problem), self.forth, self.back, self.forward, self.backward + self.between
        return Counted(tuple(layers.items()), *sizes, problem.dtype.itemsize)

    def at_once(self, problem: Problem, n: int, outputs: Outputs) -> int:
        """Bytes for a kernel of n samples with themselves or others by one program, which may hold all layers."""
        K = problem.num_outputs
        numbers = K * self.explicit(problem)
        for use in (product.whole for product in self.products):
            numbers += use.groups * use.positions * use.inputs
            if not grams_are_cheaper(use, n, n, K, outputs):
                numbers += K * use.groups * use.inputs * use.outputs
        kernel = int(np.prod(kernel_shape(outputs, n, n, K)))
        return 2 * n * (self.forward + K * self.backward) + (2 * n * numbers + 3 * kernel) * problem.dtype.itemsize


@eqx.filter_jit
def plan_of(problem: Problem, x: jax.ShapeDtypeStruct) -> Plan:
    """The plan for samples like x, (1, ...)."""
    # Under jit only so that f is traced once, not at every call: nothing is computed.
    traced = Traced(problem.f, problem.params, x)
    item = problem.dtype.itemsize
    uses = [tap.use for tap in traced.taps if tap.use is not None]
    patches = max((u.groups * u.positions * u.inputs for u in uses), default=0)
    inputs = sum(tap.beside.size for tap in traced.taps if tap.beside is not None)
    cotangents = sum(tap.like.size for tap in traced.taps)
    leaves = jax.tree.leaves(problem.params)
    products = []
    for component in traced.components:
        (tap, *_) = component.taps
        use, beside = traced.taps[tap].use, traced.taps[tap].beside
        if use is not None and beside is not None and is_product(traced, component):
            bias = traced.taps[tap].bias
            (leaf,) = (leaf for leaf in component.leaves if leaf != bias)
            products.append(Product(leaf, tap, bias, beside.size, use))
    rest = [tuple(leaf for component in group for leaf in component.leaves) for group in rest_of(traced, leaves)]
    formed = max((u.groups * u.inputs * u.outputs for u in uses if is_formed(u)), default=0)
    explicit = max((sum(leaves[i].size for i in group) for group in rest), default=0)
    # Of the forward pass: inputs of the layers, and about twice as much that the way back needs.
    between = 4 * max((tap.like.size for tap in traced.taps), default=0)
    numbers = (3 * inputs, cotangents + explicit, between, patches, formed)
    return Plan(tuple(products), tuple(rest), *(n * item for n in numbers), *(work.total for work in traced.work))


def is_product(traced: Traced, component: Component) -> bool:
    """Whether gradients in the component are a product of input and cotangent."""
    return component.direct and traced.taps[component.taps[0]].use is not None


def rest_of(traced: Traced, leaves: Sequence[Array]) -> list[list[Component]]:
    """The components that are no product, from the outputs on, in groups.

    A group has no more numbers a sample than its largest parameter or all cotangents have, whichever is more.
    """
    room = sum(tap.like.size for tap in traced.taps)
    groups: list[list[Component]] = []
    sizes: list[int] = []
    for component in reversed(traced.components):
        if is_product(traced, component):
            continue
        size = sum(leaves[i].size for i in component.leaves)
        if groups and sizes[-1] + size <= room:
            groups[-1].append(component)
            sizes[-1] += size
        else:
            groups.append([component])
            sizes.append(size)
    return groups
