"""Whether a function treats the rows of its argument one by one, read off its traces.

The function is traced for two numbers of rows. Dimensions whose length differs between the traces in the same ratio are
the *rows* of a value; a value without any is the same for every row and every number of rows. This is held up operation
by operation: each has its rule for where the rows go, and anything without a rule, or against it, ends the proof. What
is proven needs no trial with numbers; what is not may still be so.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ntkcollapse._checks import is_traced

# Number by number: every operand has the shape of the result, up to dimensions of length one, or none.
_ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp complex conj
    convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag
    integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter not optimization_barrier or
    population_count pow real reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor""".split()
)
# Parameters that hold lengths of dimensions, which may follow the number of rows where a rule allows it.
_LENGTHS = frozenset({"shape", "new_sizes", "slice_sizes", "limit_indices", "sizes"})
# Parameters that change no value of a forward pass: rules of differentiation, placement, names of what was called.
_BESIDE = frozenset(
    """bwd call_jaxpr_thunk compiler_options_kvs ctx_mesh donated_invars effects fwd fwd_jaxpr_thunk fun in_layouts
    in_shardings inline jvp jvp_fun jvp_jaxpr_fun jvp_jaxpr_thunk keep_unused layout name num_consts out_layouts
    out_sharding out_shardings out_trees policy prevent_cse sharding sharding_mode symbolic_zeros""".split()
)
# Where a called function stands.
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class _Unproven(Exception):
    pass


def _ends_unless(condition: Any) -> None:
    if not condition:
        raise _Unproven


def apart(first: ClosedJaxpr, second: ClosedJaxpr) -> bool:
    """Whether both traces, for two numbers of rows in the last argument, are of one function applied to every row."""
    inputs = list(zip(first.jaxpr.invars, second.jaxpr.invars, strict=True))
    counts = tuple(v.aval.shape[0] for v in inputs[-1])  # pyright: ignore[reportAttributeAccessIssue]
    try:
        rows = [_rows(counts, a, b) for a, b in inputs]
        _ends_unless(rows[-1] == 0 and all(r is None for r in rows[:-1]))
        return _compare(counts, first, second) == [0]
    except (_Unproven, KeyError, AttributeError, TypeError):
        # Other versions of JAX name the parameters of their operations otherwise.
        return False


def same_numbers(first: ClosedJaxpr, second: ClosedJaxpr) -> bool:
    """Whether both traces compute with the same operations and constants, wherever they put rows."""
    return _operations(first.jaxpr) == _operations(second.jaxpr)


_MOVES = frozenset({"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "copy", "copy_p"})


def _operations(jaxpr: Jaxpr) -> tuple[list[str], list[Any]]:
    """Names of what computes, and the numbers written in it; calls are written out."""
    names, numbers = [], []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name not in _MOVES:
            names.append(eqn.primitive.name)
        numbers += [np.asarray(v.val).tolist() for v in eqn.invars if isinstance(v, Literal)]
        for value in eqn.params.values():
            for called in value if isinstance(value, tuple | list) else (value,):
                if isinstance(called, Jaxpr | ClosedJaxpr):
                    more = _operations(called.jaxpr if isinstance(called, ClosedJaxpr) else called)
                    names, numbers = names + more[0], numbers + more[1]
    return names, numbers


def _rows(counts: tuple[int, ...], a: Any, b: Any) -> int | None:
    """The dimension of rows of a value in both traces."""
    shape, other = (getattr(v.aval, "shape", ()) for v in (a, b))
    _ends_unless(len(shape) == len(other))
    differ = [i for i, pair in enumerate(zip(shape, other, strict=True)) if pair[0] != pair[1]]
    if not differ:
        return None
    _ends_unless(len(differ) == 1 and (shape[differ[0]], other[differ[0]]) == counts)
    return differ[0]


def _compare(counts: tuple[int, ...], first: Any, second: Any) -> list[int | None]:
    """Rows of the results of two jaxprs, once every operation in them is known to keep rows apart."""
    constants = [getattr(closed, "consts", ()) for closed in (first, second)]
    _ends_unless(len(constants[0]) == len(constants[1]))
    for a, b in zip(*constants, strict=True):
        _ends_unless(a is b or (not is_traced(a, b) and np.array_equal(np.asarray(a), np.asarray(b))))
    first, second = (closed.jaxpr if isinstance(closed, ClosedJaxpr) else closed for closed in (first, second))
    _ends_unless(len(first.eqns) == len(second.eqns) and len(first.invars) == len(second.invars))
    # The same value in both traces: by its place, not by its shape alone.
    place: dict[Any, Any] = dict(
        zip([*first.constvars, *first.invars], [*second.constvars, *second.invars], strict=True)
    )

    def agree(a, b) -> None:
        if isinstance(a, Literal) or isinstance(b, Literal):
            _ends_unless(isinstance(a, Literal) and isinstance(b, Literal))
            _ends_unless(np.asarray(a.val).dtype == np.asarray(b.val).dtype and np.array_equal(a.val, b.val))
        else:
            _ends_unless(place.get(a) is b)

    for one, two in zip(first.eqns, second.eqns, strict=True):
        _ends_unless(one.primitive.name == two.primitive.name and not one.effects and not two.effects)
        for a, b in zip(one.invars, two.invars, strict=True):
            agree(a, b)
        for a, b in zip(one.outvars, two.outvars, strict=True):
            place[a] = b
        _step(counts, one, two)
    for a, b in zip(first.outvars, second.outvars, strict=True):
        agree(a, b)
    return [_rows(counts, a, b) for a, b in zip(first.outvars, second.outvars, strict=True)]


def _step(counts: tuple[int, ...], one: Any, two: Any) -> None:
    """Ends the proof unless this operation keeps rows apart."""
    name = one.primitive.name
    ins = [_rows(counts, a, b) for a, b in zip(one.invars, two.invars, strict=True)]
    outs = [_rows(counts, a, b) for a, b in zip(one.outvars, two.outvars, strict=True)]
    has_rows = any(r is not None for r in (*ins, *outs))
    _ends_unless(set(one.params) == set(two.params))
    for key, value in one.params.items():
        other = two.params[key]
        if isinstance(value, Jaxpr | ClosedJaxpr):
            _compare(counts, value, other)
        elif isinstance(value, tuple | list) and value and all(isinstance(v, Jaxpr | ClosedJaxpr) for v in value):
            for a, b in zip(value, other, strict=True):
                _compare(counts, a, b)
        elif key not in _BESIDE and not (has_rows and key in _LENGTHS):
            _ends_unless(_equal(value, other))
    if not has_rows:
        return
    # Nothing that is random or counts its rows, no result without rows from a value that has them.
    rule = _elementwise if name in _ELEMENTWISE else _RULES.get(name)
    _ends_unless(rule is not None)
    assert rule is not None
    # Of the second trace: a single row in the first one would be like a dimension that all rows share.
    shapes = [getattr(v.aval, "shape", ()) for v in two.invars]
    results = [v.aval.shape for v in two.outvars]
    _ends_unless(rule(two.params, ins, outs, shapes, results))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or hasattr(a, "dtype"):
        return np.array_equal(np.asarray(a), np.asarray(b))
    return a is b or bool(a == b)


# ---- one rule an operation: (params, rows of operands, rows of results, shapes of operands, of results) ↦ apart


def _elementwise(params, ins, outs, shapes, results) -> bool:
    del params, results
    (out,) = set(outs) if len(set(outs)) == 1 else (None,)
    # Without rows: a single number, or one number for all of them.
    return out is not None and all(
        r == out or (r is None and (shape == () or shape[out] == 1)) for r, shape in zip(ins, shapes, strict=True)
    )


def _broadcast(params, ins, outs, shapes, results) -> bool:
    del results
    at = params["broadcast_dimensions"]
    if ins[0] is not None:
        return at[ins[0]] == outs[0]
    # A value of its own for each row would have to be as long as there are rows.
    return outs[0] not in at or shapes[0][at.index(outs[0])] == 1


def _bits(params, ins, outs, shapes, results) -> bool:
    """Bytes on the last dimension become one number, or one number bytes."""
    del params
    return ins[0] == outs[0] is not None and ins[0] < max(len(shapes[0]), len(results[0])) - (
        len(shapes[0]) != len(results[0])
    )


def _reshape(params, ins, outs, shapes, results) -> bool:
    return (
        params["dimensions"] is None
        and None not in (ins[0], outs[0])
        and prod(shapes[0][: ins[0]]) == prod(results[0][: outs[0]])
    )


def _without(row: int, axes) -> int | None:
    """Where a dimension stands once others are taken out; None where it is among them."""
    return None if row in axes else row - sum(int(axis) < row for axis in axes)


def _taken_out(name: str) -> Callable:
    def rule(params, ins, outs, shapes, results) -> bool:
        del shapes, results
        return all(
            r is not None and _without(r, params[name]) == out and out is not None
            for r, out in zip(ins, outs, strict=True)
        )

    return rule


def _expanded(params, ins, outs, shapes, results) -> bool:
    del shapes, results
    return outs[0] is not None and _without(outs[0], params["dimensions"]) == ins[0] is not None


def _along(name: str) -> Callable:
    """Operations along one dimension or some, for which the others are a batch."""

    def rule(params, ins, outs, shapes, results) -> bool:
        del shapes, results
        axes = params[name] if isinstance(params[name], tuple | list) else (params[name],)
        return outs[0] is not None and {*ins, *outs} == {outs[0]} and outs[0] not in axes

    return rule


def _pad(params, ins, outs, shapes, results) -> bool:
    del shapes, results
    r = ins[0]
    return r is not None and r == outs[0] and ins[1] is None and tuple(params["padding_config"][r]) == (0, 0, 0)


def _slice(params, ins, outs, shapes, results) -> bool:
    r = ins[0]
    strides = params["strides"]
    return r is not None and r == outs[0] and shapes[0][r] == results[0][r] and (strides is None or strides[r] == 1)


def _dynamic_slice(params, ins, outs, shapes, results) -> bool:
    del params
    r = ins[0]
    return r is not None and outs[0] == r and shapes[0][r] == results[0][r] and all(i is None for i in ins[1:])


def _dynamic_update_slice(params, ins, outs, shapes, results) -> bool:
    del params, results
    r = ins[0]
    return r is not None and ins[1] == r == outs[0] and shapes[0][r] == shapes[1][r] and all(i is None for i in ins[2:])


def _split(params, ins, outs, shapes, results) -> bool:
    del shapes, results
    return {*ins, *outs} == {ins[0]} and params["axis"] != ins[0]


def _dot(params, ins, outs, shapes, results) -> bool:
    del results
    (contract, batch), (left, right) = params["dimension_numbers"], ins
    if left is not None and right is not None:
        if left not in batch[0] or right not in batch[1]:
            return False
        return batch[0].index(left) == batch[1].index(right) == outs[0]
    side = 0 if left is not None else 1
    r = ins[side]
    free = [[i for i in range(len(shapes[s])) if i not in (*contract[s], *batch[s])] for s in (0, 1)]
    if r not in free[side]:
        return False
    return outs[0] == len(batch[0]) + side * len(free[0]) + free[side].index(r)


def _convolution(params, ins, outs, shapes, results) -> bool:
    del shapes, results
    numbers = params["dimension_numbers"]
    whole = params["batch_group_count"] == 1 and ins[1] is None
    return whole and ins[0] == numbers.lhs_spec[0] and outs[0] == numbers.out_spec[0]


def _window(params, ins, outs, shapes, results) -> bool:
    del shapes, results
    r = ins[0]
    if r is None or {*ins[: len(outs)], *outs} != {r} or any(i is not None for i in ins[len(outs) :]):
        return False
    dilated = [params.get(name) for name in ("base_dilation", "window_dilation")]
    return (
        params["window_dimensions"][r] == params["window_strides"][r] == 1
        and tuple(params["padding"][r]) == (0, 0)
        and all(d is None or d[r] == 1 for d in dilated)
    )


def _gather(params, ins, outs, shapes, results) -> bool:
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    (of, at), out = ins, outs[0]
    batch = [i for i in range(len(results[0])) if i not in numbers.offset_dims]
    if of is None:
        # Every row has numbers of its own, and takes from one table.
        return out in batch and batch.index(out) == at
    if at is None:
        if of in (*numbers.start_index_map, *numbers.collapsed_slice_dims, *numbers.operand_batching_dims):
            return False
        kept = [
            i for i in range(len(shapes[0])) if i not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        ]
        return sizes[of] == shapes[0][of] and numbers.offset_dims[kept.index(of)] == out
    if of not in numbers.operand_batching_dims:
        return False
    paired = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(of)]
    return paired == at and out in batch and batch.index(out) == at


def _transposed(params, ins, outs, shapes, results) -> bool:
    del shapes, results
    return outs[0] is not None and params["permutation"][outs[0]] == ins[0]


def _iota(params, ins, outs, shapes, results) -> bool:
    del ins, shapes, results
    return outs[0] != params["dimension"]


def _scan(params, ins, outs, shapes, results) -> bool:
    """What is stacked along the steps has its rows behind them; the body has been compared."""
    body = params["jaxpr"].jaxpr
    steps = [len(v.aval.shape) < len(shape) for v, shape in zip(body.invars, shapes, strict=True)]
    made = [len(v.aval.shape) < len(shape) for v, shape in zip(body.outvars, results, strict=True)]
    carried = [r for r, stacked in zip(outs, made, strict=True) if not stacked]
    # Constants come before what is carried.
    given = [r for r, stacked in zip(ins, steps, strict=True) if not stacked]
    rows = [r for r, stacked in zip((*ins, *outs), (*steps, *made), strict=True) if stacked]
    return given[len(given) - len(carried) :] == carried and 0 not in rows


def _call(params, ins, outs, shapes, results) -> bool:
    """The function called has been compared."""
    del ins, outs, shapes, results
    return any(isinstance(params.get(name), Jaxpr | ClosedJaxpr) for name in _CALLED)


def _branches(params, ins, outs, shapes, results) -> bool:
    """Which branch is the same for all rows, since its number has none; they have been compared."""
    del params, outs, shapes, results
    return ins[0] is None


def _while(params, ins, outs, shapes, results) -> bool:
    """How often is the same for all rows, since the condition is a single number; it has been compared."""
    del shapes, results
    return ins[params["cond_nconsts"] + params["body_nconsts"] :] == outs


_RULES: dict[str, Callable[..., bool]] = {
    "bitcast_convert_type": _bits,
    "broadcast_in_dim": _broadcast,
    "concatenate": _along("dimension"),
    "cond": _branches,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "expand_dims": _expanded,
    "fft": lambda params, ins, outs, shapes, results: (
        ins[0] == outs[0] is not None and ins[0] < len(shapes[0]) - len(params["fft_lengths"])
    ),
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _along("dimensions"),
    "scan": _scan,
    "slice": _slice,
    "sort": _along("dimension"),
    "split": _split,
    "squeeze": _taken_out("dimensions"),
    "transpose": _transposed,
    "while": _while,
}
_RULES |= dict.fromkeys(("argmax", "argmin"), _taken_out("axes"))
_RULES |= {f"reduce_{kind}": _taken_out("axes") for kind in ("sum", "max", "min", "prod", "and", "or", "xor")}
_RULES |= {f"cum{kind}": _along("axis") for kind in ("sum", "prod", "max", "min", "logsumexp")}
_RULES |= dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"), _window)
_RULES |= dict.fromkeys(
    (
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "checkpoint",
        "remat",
        "remat2",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "custom_lin",
    ),
    _call,
)
