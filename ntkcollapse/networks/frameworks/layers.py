"""What every layer with weights of a network sees, found by tracing it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ntkcollapse._flat_trace import FlatTrace, Operation, flatten
from ntkcollapse.networks.frameworks.last_layer import MOVES

# What the weights of a layer are called below its own name.
_OF_LAYER = ("kernel", "weight", "weights", "w", "value")


class _Seen(NamedTuple):
    """A layer's name, the value in the trace that it reads, and along which axis of it samples stand."""

    name: str
    value: int
    axis: int


def layer_inputs(f: Callable, leaves: Sequence[Any], x: Any, names: Sequence[str]) -> dict[str, Array]:
    """The inputs (N, ...) of every layer of f(leaves, x) ↦ (N, C), in order, and last "output".

    A layer is a product or a convolution of something that depends on x with a parameter; it has the parameter's name,
    and that of a second call "name#2". Layers within loops are not seen, nor such whose samples are mixed with
    positions in an unknown order.

    Args:
        f: pure.
        leaves: of the parameters.
        x: a batch.
        names: of the leaves.
    """
    N = jnp.shape(x)[0]
    flat = flatten(jax.make_jaxpr(f)(list(leaves), x))
    like = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    more = jax.ShapeDtypeStruct((N + 1, *jnp.shape(x)[1:]), jnp.result_type(x))
    seen = _seen(flat, flatten(jax.make_jaxpr(f)(like, more)), N, names)
    values = flat.run([*leaves, x], [*(one.value for one in seen), *flat.outputs])
    found: dict[str, Array] = {}
    for (name, _, axis), value in zip(seen, values, strict=False):
        rows = jnp.moveaxis(value, axis, 0)
        found[_free(name, found)] = rows.reshape(N, -1, *rows.shape[1:]) if rows.shape[0] != N else rows
    return {**found, _free("output", found): values[-1]}


def _seen(flat: FlatTrace, longer: FlatTrace, N: int, names: Sequence[str]) -> list[_Seen]:
    on_data, parameter = {flat.inputs[-1]}, dict(zip(flat.inputs[:-1], names, strict=True))
    producer, seen = flat.producers(), []
    for operation, other in zip(flat.operations, longer.operations, strict=True):
        operands = [o for o in operation.operands if isinstance(o, int)]
        if operation.primitive.name in MOVES and len(operands) == 1 and operands[0] in parameter:
            parameter[operation.results[0]] = parameter[operands[0]]
        if on_data.intersection(operands):
            on_data.update(operation.results)
        if operation.primitive.name not in ("dot_general", "conv_general_dilated"):
            continue
        first, second = operation.operands[:2]
        for i, (value, weights) in enumerate(((first, second), (second, first))):
            if value in on_data and weights in parameter:
                assert isinstance(value, int)
                assert isinstance(weights, int)
                axis = _axis_of_samples(operation, other, i, N, producer.get(value))
                if axis is not None:
                    seen.append(_Seen(_layer(parameter[weights]), value, axis))
    return seen


def _axis_of_samples(
    operation: Operation, longer: Operation, operand: int, N: int, before: Operation | None
) -> int | None:
    """The one axis that grows with the number of samples; with positions within each sample where those stand there."""
    shape, grown = operation.shapes[operand].shape, longer.shapes[operand].shape
    axes = [i for i, (size, more) in enumerate(zip(shape, grown, strict=True)) if size != more]
    if len(axes) != 1:
        return None
    (axis,) = axes
    if shape[axis] == N:
        return axis
    merged = before is not None and before.primitive.name == "reshape" and before.shapes[0].shape[0] == N
    return 0 if merged and axis == 0 else None


def _layer(parameter: str) -> str:
    """The name of a layer, of the path of its weights."""
    for separator in "/.":
        layer, _, last = parameter.rpartition(separator)
        if layer and last in _OF_LAYER:
            return layer
    return parameter


def _free(name: str, taken: dict[str, Array]) -> str:
    numbered, count = name, 1
    while numbered in taken:
        count += 1
        numbered = f"{name}#{count}"
    return numbered
