"""What block statistics cost on paper: operations, bytes and starts of kernels, counted in their own programs."""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import PyTree

from ntkcollapse._checks import check_choice, check_whole
from ntkcollapse._platforms import PLATFORMS, as_on
from ntkcollapse._precision import exact_products
from ntkcollapse.classes import Classes
from ntkcollapse.ntk._grouping import group
from ntkcollapse.ntk._problem import prepare
from ntkcollapse.ntk._work import PRODUCTS, multiplications
from ntkcollapse.ntk.engines import get_engine
from ntkcollapse.ntk.engines._engine import Batch, Sums


class Cost(NamedTuple):
    """What a computation does on a device.

    operations: additions and multiplications of matrix products and convolutions; bytes: read and written by what is
    not fused into something else, each array once a use; launches: kernels that are started; programs: compiled calls;
    batches: of samples; fetched: bytes that the host gets back.
    """

    operations: float
    bytes: float
    launches: float
    programs: int
    batches: int
    fetched: float

    def seconds(self, *, flops: float, bandwidth: float, launch: float) -> dict[str, float]:
        """The least time that each of these alone allows, on a device of so many operations and bytes a second."""
        return {
            "operations": self.operations / flops,
            "bytes": self.bytes / bandwidth,
            "launches": self.launches * launch,
        }


def block_statistics_cost(
    f: Callable,
    params: PyTree,
    x: Any,
    num_samples: int,
    num_classes: int,
    *,
    memory: int | float,
    platform: str = "cuda",
    engine: str = "layerwise",
) -> Cost:
    """What `block_statistics(f, params, x, labels, output_pairs=False)` costs, without running it.

    The programs of one batch are traced as they are on that platform, and counted operation by operation: products of
    matrices and convolutions, reductions, gathers and scatters are each a kernel that reads and writes its arrays;
    element by element work is taken to be fused into these.

    Args:
        f, params: as in `block_statistics`.
        x: one sample or more, of which only the shape is used: (n, ...).
        num_samples, num_classes: of classes as equal as can be.
        memory: bytes for intermediate arrays, as in `block_statistics`: on an accelerator it takes a quarter of what is
            free.
        platform: "cuda", "tpu" or "cpu", whose choices are taken.
        engine: "layerwise" or "jacobian".
    Raises:
        ValueError: an unknown platform or engine, numbers of samples or classes below one, or as `block_statistics`.
    """
    check_choice("platform", platform, PLATFORMS)
    check_choice("engine", engine, ("layerwise", "jacobian"))
    check_whole("num_samples", num_samples, num_classes)
    one = jax.ShapeDtypeStruct((1, *np.shape(x)[1:]), jnp.result_type(x))
    # A function of its own: what is traced here must not be taken for what runs.
    problem = prepare(lambda params, x: f(params, x), params, {"x": np.asarray(x)[:1]})
    classes = Classes(tuple(len(part) for part in np.array_split(np.arange(num_samples), num_classes)))
    with as_on(platform):
        chosen = get_engine(engine)
        chunks = chosen.sum_chunks(problem, one, num_classes, int(memory))
        grouping = group(np.arange(num_samples), classes, chunks.samples)
        size = grouping.members[: grouping.per_batch].size
        sums = eqx.filter_eval_shape(Sums.zeros, problem, chunks.outputs, num_classes, 0, output_pairs=False)
        arrays, static = eqx.partition(problem, eqx.is_array)

        def add(arrays, sums, x, first):
            mask = jnp.ones(size, problem.dtype)
            batch = Batch(x, jnp.zeros(grouping.per_batch, int), mask, mask[:, None][:, :0], split=len(grouping) > 1)
            return chosen.add(eqx.combine(arrays, static), sums, batch, first)

        x = jax.ShapeDtypeStruct((size, *one.shape[1:]), one.dtype)
        with exact_products():
            traced = jax.make_jaxpr(add)(arrays, sums, x, jnp.zeros((), int))
    turns = -(-problem.num_outputs // chunks.outputs)
    number = turns * len(grouping)
    operations, moved, launches = _counted(traced.jaxpr)
    programs = sum(eqn.primitive.name in _CALLS for eqn in traced.jaxpr.eqns)
    fetched = turns * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(sums))
    return Cost(number * operations, number * moved, number * launches, number * programs, number, fetched)


_CALLS = frozenset({"pjit", "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2"})
# What a compiler makes a kernel of, or keeps in memory; all else is done on the way from one of these to the next.
_KERNELS = frozenset(
    """dot_general conv_general_dilated reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin
    gather scatter scatter-add dynamic_update_slice concatenate sort cumsum reduce_window_sum reduce_window_max
    select_and_scatter_add fft""".split()
)


def _counted(jaxpr: Jaxpr, times: float = 1.0) -> tuple[float, float, float]:
    """(operations, bytes, launches) of a trace; loops whose number of turns it does not say count as one turn."""
    operations = moved = launches = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in _KERNELS:
            operations += times * _operations(eqn)
            moved += times * sum(_bytes(v.aval) for v in (*eqn.invars, *eqn.outvars))
            launches += times
            continue
        inner = [_counted(part, times * (eqn.params["length"] if name == "scan" else 1)) for part in _parts(eqn)]
        if name == "cond":
            inner = [max(inner)]
        operations, moved, launches = (
            total + sum(part[i] for part in inner) for i, total in enumerate((operations, moved, launches))
        )
    return operations, moved, launches


def _operations(eqn: Any) -> float:
    """Additions and multiplications of a product of matrices or a convolution."""
    name, shapes = eqn.primitive.name, [v.aval.shape for v in eqn.invars]
    if name not in PRODUCTS:
        return 0.0
    return 2.0 * multiplications(name, eqn.params, shapes, prod(eqn.outvars[0].aval.shape))


def _bytes(aval: Any) -> float:
    return float(prod(aval.shape) * aval.dtype.itemsize) if hasattr(aval, "shape") else 0.0


def _parts(eqn: Any) -> Iterator[Jaxpr]:
    """Traces of the functions that an operation calls."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield part.jaxpr if isinstance(part, ClosedJaxpr) else part
