"""How much work a function is, counted from its operations: choices by counts are the same on every machine and day."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

from ntkcollapse._flat_trace import Operation
from ntkcollapse._platforms import constant

PRODUCTS = ("dot_general", "conv_general_dilated")
# Operations that a compiler makes part of others.
_FREE = {"broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape", "squeeze", "stop_gradient"}


class Work(NamedTuple):
    """Multiplications in products of matrices and convolutions, and numbers that all other operations make."""

    products: int
    others: int

    @property
    def total(self) -> int:
        """Both in multiplications of a product of matrices."""
        return self.products + constant("traffic") * self.others


def work(operations: Iterable[Operation]) -> Work:
    """The work of all of them; a function with a derivative rule of its own counts by what it returns."""
    products = others = 0
    for operation in operations:
        made = sum(prod(shape.shape) for shape in operation.result_shapes)
        name, params = operation.primitive.name, operation.params
        if operation.steps is not None:
            inner = work(operation.steps.operations)
            products += params["length"] * inner.products
            others += params["length"] * inner.others
        elif name in PRODUCTS:
            products += multiplications(name, params, [s.shape for s in operation.shapes], made)
        elif name not in _FREE:
            others += made
    return Work(products, others)


def multiplications(name: str, params: Any, shapes: Sequence[tuple[int, ...]], made: int) -> int:
    """Those of one of `PRODUCTS` with factors of these shapes, which makes so many numbers."""
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return made * prod(shapes[0][i] for i in contracted)
    _, channels, *window = params["dimension_numbers"].rhs_spec
    return made * prod(shapes[1][i] for i in (channels, *window))
