"""The last dense layer of a network, found on the path to its output, and the features that it reads.

The function is traced; from its output back, a bias may have been added and axes moved, and then a matrix product of
features with a parameter must come. Anything else ends the search with what it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array

from ntkcollapse._flat_trace import FlatTrace, Operation, flatten


class Head(NamedTuple):
    """Where W and b stand among the leaves of the parameters; W is stored (C, n), or (n, C) where `by_columns`."""

    weight: int
    by_columns: bool
    bias: int | None


class _Cut(NamedTuple):
    """The head, and which value of the trace are the features: (N, n) but for the order of axes."""

    head: Head
    features: int
    contracted: int


# Operations that move numbers about, or change their type, and nothing else.
MOVES = (
    "reshape",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "copy",
    "convert_element_type",
    "copy_p",
    "transpose",
)
_SHARED = "outputs must be W h + b of one last layer, whose W nothing else depends on: untie it, or give it a copy."


def find(f: Callable, leaves: Sequence[Any], x: Any, names: Sequence[str], within: str | None = None) -> Head:
    """The last layer of f(leaves, x) ↦ (N, C).

    Args:
        f: pure.
        leaves: of the parameters, or their shapes.
        x: a batch, or its shape.
        names: of the leaves, for messages.
        within: path of the layer that it must be.
    Raises:
        ValueError: outputs that are not those of one dense layer on features of one axis, or of another one than was
            named; the message says what stands in its place.
    """
    flat = flatten(jax.make_jaxpr(f)(list(leaves), x))
    head = _cut(flat, len(leaves), [jnp.ndim(leaf) for leaf in leaves], names).head
    name = names[head.weight]
    if within is not None and not (name == within or name.startswith(within.strip("/") + "/")):
        raise ValueError(
            f"last_layer: expected the last dense layer on the path to the output, which has the weights {name!r}; got "
            f"{within!r}. Name that one, or leave it out."
        )
    return head


def features(f: Callable, head: Head, leaves: Sequence[Any], x: Any) -> Array:
    """h(x), (N, n): what the last layer of f reads.

    Raises:
        ValueError: f has another last layer here than `head`.
    """
    flat = flatten(jax.make_jaxpr(f)(list(leaves), x))
    cut = _cut(flat, len(leaves), [jnp.ndim(leaf) for leaf in leaves], None)
    if cut.head != head:
        raise ValueError(
            "network: expected the same last layer in training and in evaluation, and for every number of samples; the "
            "function has another one here."
        )
    (h,) = flat.run([*leaves, x], [cut.features])
    return jnp.moveaxis(h, cut.contracted, -1).reshape(jnp.shape(x)[0], -1)


def _cut(flat: FlatTrace, num_leaves: int, ndims: Sequence[int], names: Sequence[str] | None) -> _Cut:
    names = [f"parameter {i}" for i in range(num_leaves)] if names is None else names
    producer, (output,) = flat.producers(), flat.outputs
    on_data = {flat.inputs[-1]}
    for operation in flat.operations:
        if on_data.intersection(o for o in operation.operands if isinstance(o, int)):
            on_data.update(operation.results)
    if output not in on_data:
        raise ValueError("outputs: expected logits that depend on the inputs, got such as do not.")
    axis, bias, operation = 1, None, None
    value = output
    while True:
        operation = producer.get(value) if isinstance(value, int) else None
        if operation is None:
            raise ValueError("last layer: expected a dense layer before the outputs, got the inputs themselves.")
        name = operation.primitive.name
        if name in MOVES:
            axis, value = _before_move(operation, axis), operation.operands[0]
        elif name in ("add", "add_any"):
            added = [o for o in operation.operands if o not in on_data]
            if len(added) != 1:
                raise ValueError(
                    "last layer: expected outputs W h + b of one dense layer, got a sum of two branches that both "
                    f"depend on the inputs (a skip connection past it, say); {_AFTER}"
                )
            if bias is not None:
                raise ValueError(f"last layer: expected one bias, got two that are added; {_AFTER}")
            bias = _parameter(added[0], producer, flat, num_leaves, names, "bias", axis)[0]
            value = next(o for o in operation.operands if o is not added[0])
        elif name == "dot_general":
            break
        else:
            raise ValueError(
                f"last layer: expected outputs W h + b of a dense layer, got {_said(operation)} behind the last one; "
                f"{_AFTER}"
            )
    first = operation.operands[0] in on_data
    if first and operation.operands[1] in on_data:
        raise ValueError(
            "last layer: expected a product of features with weights, got one of two values that both depend on the "
            f"inputs (attention, or a comparison of embeddings); {_AFTER}"
        )
    (contracted, batched) = operation.params["dimension_numbers"]
    h, w = (0, 1) if first else (1, 0)
    free = [i for i in range(len(operation.shapes[h].shape)) if i not in contracted[h]]
    long = [i for i in free if operation.shapes[h].shape[i] != 1]
    if len(contracted[h]) != 1 or batched[0] or len(long) > 1:
        raise ValueError(
            f"last layer: expected features of shape (N, n), one row a sample; got {operation.shapes[h].shape}, of "
            "more than one axis a sample; flatten or pool them before the last layer."
        )
    shape = operation.shapes[w].shape
    kept = [i for i in range(len(shape)) if i not in contracted[w]]
    if len(kept) != 1:
        raise ValueError(f"last layer: expected weights of two axes, (n, C) or (C, n); got {shape}.")
    leaf, stored = _parameter(operation.operands[w], producer, flat, num_leaves, names, "weights", kept[0])
    if ndims[leaf] != 2:
        raise ValueError(
            f"last layer: expected weights of two axes, (n, C) or (C, n); {names[leaf]!r} has {ndims[leaf]}; make it a "
            "dense layer on flattened features."
        )
    if _uses(leaf, flat) > 1:
        raise ValueError(f"last layer: {names[leaf]!r} is shared with another part of the network; {_SHARED}")
    return _Cut(Head(leaf, stored == 1, bias), operation.operands[h], contracted[h][0])  # pyright: ignore


_AFTER = "let the network end with its logits, one dense layer on features (N, n); losses have their own softmax."
_KINDS = {
    "exp": "an exponential (a softmax)",
    "div": "a division (a softmax, or a normalisation)",
    "mul": "a factor (a scale or a normalisation)",
    "logistic": "a sigmoid",
    "custom_jvp_call": "a non-linearity",
    "max": "a non-linearity, or a maximum",
    "conv_general_dilated": "a convolution",
    "scan": "a loop (a recurrent layer, or a layer called in it)",
    "while": "a loop",
    "reduce_sum": "a sum or a mean over positions",
    "sub": "a difference (a log-softmax, or a centring)",
    "concatenate": "several parts, put together",
}


def _said(operation: Operation) -> str:
    name = operation.primitive.name
    return _KINDS.get(name, f"the operation {name!r}")


def _before_move(operation: Operation, axis: int) -> int:
    """Where this axis of the result was in the operand; axes of length one come and go."""
    before, after = operation.shapes[0].shape, operation.result_shapes[0].shape
    if operation.primitive.name == "transpose":
        return operation.params["permutation"][axis]
    if operation.primitive.name == "broadcast_in_dim" and axis in operation.params["broadcast_dimensions"]:
        return operation.params["broadcast_dimensions"].index(axis)
    if before == after:
        return axis
    place = sum(size != 1 for size in after[:axis])
    long = [i for i, size in enumerate(before) if size != 1]
    if [before[i] for i in long] != [size for size in after if size != 1] or place >= len(long):
        raise ValueError(
            f"last layer: expected outputs (N, C) of a dense layer, got such as are reshaped from {before} behind it; "
            f"{_AFTER}"
        )
    return long[place]


def _parameter(value, producer, flat, num_leaves, names, what: str, axis: int) -> tuple[int, int]:
    """The parameter that a value is, moved about, and where this axis of it stands."""
    while True:
        if isinstance(value, int) and value in flat.inputs[:num_leaves]:
            return flat.inputs.index(value), axis
        operation = None if isinstance(value, Literal) else producer.get(value)
        if operation is None or operation.primitive.name not in MOVES:
            got = "a constant" if operation is None else f"what {_said(operation)} makes of some"
            raise ValueError(
                f"last layer: expected its {what} to be a parameter itself, as the theory's are, got {got}; give the "
                "last layer plain weights, without a scale, a normalisation or an adapter of their own."
            )
        axis, value = _before_move(operation, axis), operation.operands[0]


def _uses(leaf: int, flat: FlatTrace) -> int:
    """How many operations read a parameter, other than by moving it about."""
    names, count = {flat.inputs[leaf]}, 0
    for operation in flat.before(flat.outputs):
        reading = sum(o in names for o in operation.operands if isinstance(o, int))
        if reading and operation.primitive.name in MOVES:
            names.update(operation.results)
        else:
            count += reading
    return count
