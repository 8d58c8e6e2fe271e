"""A traced function as one flat list of operations, those of the functions that it calls in their place."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, Var


class Operation(NamedTuple):
    """One operation; operands are numbers of values, or literals.

    steps: what a scan does at every step, where it was asked for; its operands are then those of the steps, the values
        it starts with, and those that it runs over.
    """

    primitive: Any
    params: dict[str, Any]
    operands: tuple[int | Literal, ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    results: tuple[int, ...]
    result_shapes: tuple[jax.ShapeDtypeStruct, ...]
    steps: "Steps | None" = None


class Steps(NamedTuple):
    """The body of a scan, without what is the same at every step.

    given: values from outside; carried, over: the numbers that they have within; out: new carried values, then results.
    """

    operations: list[Operation]
    given: tuple[int, ...]
    carried: tuple[int, ...]
    over: tuple[int, ...]
    out: tuple[int | Literal, ...]


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


def flatten(closed: ClosedJaxpr, *, steps: bool = False) -> FlatTrace:
    """Writes a traced function out, with what it calls; a function with derivative rules of its own stays one call.

    steps: whether the bodies of scans are written out too; what is the same at every step then stands before the scan.
    """
    operations: list[Operation] = []
    constants: dict[int, Any] = {}
    count = len(closed.jaxpr.invars)

    def new(number: int) -> list[int]:
        nonlocal count
        count += number
        return list(range(count - number, count))

    def write(closed: ClosedJaxpr, inputs: Sequence[int | Literal], into: list[Operation]) -> list[int | Literal]:
        number: dict[Var, int | Literal] = dict(zip(closed.jaxpr.invars, inputs, strict=True))
        for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            (number[var],) = (at,) = new(1)
            constants[at] = value
        for eqn in closed.jaxpr.eqns:
            operands = [v if isinstance(v, Literal) else number[v] for v in eqn.invars]
            inner = _called(eqn)
            if inner is not None:
                results = write(inner, operands, into)
            else:
                results = new(len(eqn.outvars))
                shapes, result_shapes = (tuple(like(v.aval) for v in side) for side in (eqn.invars, eqn.outvars))
                operation = Operation(eqn.primitive, eqn.params, tuple(operands), shapes, tuple(results), result_shapes)
                opened = steps and eqn.primitive.name == "scan" and not eqn.effects
                into.append(by_steps(operation, into) if opened else operation)
            number.update(zip(eqn.outvars, results, strict=True))
        return [v if isinstance(v, Literal) else number[v] for v in closed.jaxpr.outvars]

    def by_steps(scan: Operation, before: list[Operation]) -> Operation:
        constant, c = scan.params["num_consts"], scan.params["num_carry"]
        within, body = new(len(scan.operands) - constant), []
        out = write(scan.params["jaxpr"], [*scan.operands[:constant], *within], body)
        changing, operations = set(within), []
        for operation in body:
            if changing.intersection(o for o in operation.operands if isinstance(o, int)):
                changing.update(operation.results)
                operations.append(operation)
            else:
                before.append(operation)
        avals = [like(v.aval) for v in scan.params["jaxpr"].jaxpr.outvars]
        sides = [(out, avals), *((operation.operands, operation.shapes) for operation in operations)]
        shape_of = {o: shape for side in sides for o, shape in zip(*side, strict=True) if isinstance(o, int)}
        used = [*(o for operation in operations for o in operation.operands), *out]
        given = tuple(dict.fromkeys(o for o in used if isinstance(o, int) and o not in changing))
        return scan._replace(
            operands=(*given, *scan.operands[constant:]),
            shapes=(*(shape_of[o] for o in given), *scan.shapes[constant:]),
            steps=Steps(operations, given, tuple(within[:c]), tuple(within[c:]), tuple(out)),
        )

    inputs = list(range(count))
    outputs = write(closed, inputs, operations)
    return FlatTrace(operations, constants, inputs, outputs)


def bind(operation: Operation, operands: Sequence[Any]) -> list[Any]:
    """What an operation makes of these operands."""
    if operation.steps is not None:
        return scan(operation, operands, {}, {})[0]
    # JAX before 0.10 hands functions and other parameters back apart.
    bound = operation.primitive.get_bind_params(operation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    results = operation.primitive.bind(*functions, *operands, **params)
    return list(results) if operation.primitive.multiple_results else [results]


def scan(
    operation: Operation, operands: Sequence[Any], added: Mapping[int, Any], at: Mapping[int, tuple[int, int]]
) -> tuple[list[Any], dict[int, Any]]:
    """A scan by its steps, with arrays (steps, ...) added to results within.

    Args:
        added: by any numbers.
        at: for each of them, which operation of the steps, and which of its two operands is *not* wanted.

    Returns:
        The results, and for each of these numbers the other operand at every step.
    """
    steps = operation.steps
    assert steps is not None
    g, c = len(steps.given), len(steps.carried)
    given, start, over = dict(zip(steps.given, operands[:g], strict=True)), operands[g : g + c], operands[g + c :]

    def body(carried, x):
        over, added = x
        values = given | dict(zip(steps.carried, carried, strict=True)) | dict(zip(steps.over, over, strict=True))
        beside = {}
        for i, operation in enumerate(steps.operations):
            of_step = [read(o, values) for o in operation.operands]
            results = bind(operation, of_step)
            for n in (n for n, (step, _) in at.items() if step == i):
                beside[n] = of_step[1 - at[n][1]]
                results[0] = results[0] + added[n]
            values.update(zip(operation.results, results, strict=True))
        out = [read(o, values) for o in steps.out]
        return out[:c], (out[c:], beside)

    names = ("length", "reverse", "unroll", "_split_transpose")
    settings = {name: operation.params[name] for name in names if name in operation.params}
    carried, (results, beside) = jax.lax.scan(body, list(start), (list(over), dict(added)), **settings)
    return [*carried, *results], beside


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
