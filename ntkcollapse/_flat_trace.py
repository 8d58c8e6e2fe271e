"""A traced function as one flat list of operations, those of the functions that it calls in their place."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, Var


class Operation(NamedTuple):
    """One operation; operands are numbers of values, or literals."""

    primitive: Any
    params: dict[str, Any]
    operands: tuple[int | Literal, ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    results: tuple[int, ...]
    result_shapes: tuple[jax.ShapeDtypeStruct, ...]


class FlatTrace(NamedTuple):
    """Operations in order, and the numbers of the values that go in, stand fixed, and come out."""

    operations: list[Operation]
    constants: dict[int, Any]
    inputs: list[int]
    outputs: list[int | Literal]

    def producers(self) -> dict[int, Operation]:
        """Number of a value → the operation that it comes from."""
        return {number: operation for operation in self.operations for number in operation.results}

    def before(self, wanted: Iterable[int | Literal]) -> list[Operation]:
        """The operations that these values need, in order."""
        needed, steps = {number for number in wanted if isinstance(number, int)}, []
        for operation in reversed(self.operations):
            if needed.intersection(operation.results):
                needed.update(o for o in operation.operands if isinstance(o, int))
                steps.append(operation)
        return steps[::-1]

    def run(self, inputs: Sequence[Any], wanted: Sequence[int | Literal]) -> list[Any]:
        """The wanted values, for these inputs."""
        values = dict(self.constants) | dict(zip(self.inputs, inputs, strict=True))
        for operation in self.before(wanted):
            results = bind(operation, [read(o, values) for o in operation.operands])
            values.update(zip(operation.results, results, strict=True))
        return [read(number, values) for number in wanted]


def flatten(closed: ClosedJaxpr) -> FlatTrace:
    """Writes a traced function out, with what it calls; a function with derivative rules of its own stays one call."""
    operations: list[Operation] = []
    constants: dict[int, Any] = {}
    count = len(closed.jaxpr.invars)

    def write(closed: ClosedJaxpr, inputs: Sequence[int | Literal]) -> list[int | Literal]:
        nonlocal count
        number: dict[Var, int | Literal] = dict(zip(closed.jaxpr.invars, inputs, strict=True))
        for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            number[var] = count
            constants[count] = value
            count += 1
        for eqn in closed.jaxpr.eqns:
            operands = [v if isinstance(v, Literal) else number[v] for v in eqn.invars]
            inner = _called(eqn)
            if inner is not None:
                results = write(inner, operands)
            else:
                results = list(range(count, count + len(eqn.outvars)))
                count += len(results)
                shapes, result_shapes = (tuple(like(v.aval) for v in side) for side in (eqn.invars, eqn.outvars))
                operations.append(
                    Operation(eqn.primitive, eqn.params, tuple(operands), shapes, tuple(results), result_shapes)
                )
            number.update(zip(eqn.outvars, results, strict=True))
        return [v if isinstance(v, Literal) else number[v] for v in closed.jaxpr.outvars]

    inputs = list(range(count))
    return FlatTrace(operations, constants, inputs, write(closed, inputs))


def bind(operation: Operation, operands: Sequence[Any]) -> list[Any]:
    """What an operation makes of these operands."""
    # JAX before 0.10 hands functions and other parameters back apart.
    bound = operation.primitive.get_bind_params(operation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    results = operation.primitive.bind(*functions, *operands, **params)
    return list(results) if operation.primitive.multiple_results else [results]


def read(operand: int | Literal, values: Mapping[int, Any]) -> Any:
    """The value of an operand."""
    return operand.val if isinstance(operand, Literal) else values[operand]


def like(aval: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of a value in a trace."""
    return jax.ShapeDtypeStruct(getattr(aval, "shape", ()), getattr(aval, "dtype", np.dtype(bool)))


def _called(eqn) -> ClosedJaxpr | None:
    """The function behind a call that may be written out in its place; a custom derivative rule may not."""
    if eqn.primitive.name in ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"):
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, [])
    return None
