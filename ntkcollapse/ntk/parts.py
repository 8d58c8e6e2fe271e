"""Parts of the empirical NTK: its diagonal, and the kernel of each layer."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntkcollapse._checks import check_choice, check_finite, check_whole
from ntkcollapse._platforms import behind
from ntkcollapse._precision import Precision, in_precision
from ntkcollapse.ntk._memory import budget, evened, fit
from ntkcollapse.ntk._problem import Problem, named_leaves, prepare
from ntkcollapse.ntk._samples import one_array
from ntkcollapse.ntk.engines import OUTPUTS, Outputs, contract, kernel_shape, mirror
from ntkcollapse.ntk.engines._contract import EXACT
from ntkcollapse.ntk.engines.jacobian import jacobians


@in_precision
def ntk_diagonal(
    f: Callable,
    params: PyTree,
    x: Any,
    *,
    outputs: Outputs = "mean",
    parameters: Any = None,
    in_axes: Any = 0,
    memory: int | float | None = None,
    precision: Precision | None = None,
) -> Float[Array, "N ..."]:
    r"""The empirical NTK of each sample with itself, Θ_ks(x_i, x_i), in time linear in N.

    Exact: the diagonal of `empirical_ntk` over samples, by the Jacobian of a chunk of samples at a time (no engine is
    chosen). Its mean over samples is the mean squared norm of gradients.

    Args:
        f, params, x, parameters, in_axes, memory, precision: as in `empirical_ntk`.
        outputs: "full" (N, K, K), "diagonal" (N, K) for k = s, "mean" (N,) for its mean over k.
    Raises:
        ValueError, TypeError: as `empirical_ntk`.
    """
    check_choice("outputs", outputs, OUTPUTS)
    f, samples = one_array(f, {"x": x}, in_axes)
    problem, x = prepare(f, params, samples, parameters), samples["x"]
    chunk = _chunk(problem, len(x), memory)
    # The last chunk overlaps the one before, so that one shape is compiled.
    starts = [min(i, len(x) - chunk) for i in range(0, len(x), chunk)]
    n, _, *rest = kernel_shape(outputs, len(x), 1, problem.num_outputs)
    out = np.zeros((n, *rest), problem.dtype)
    for i, part in behind((i, _diagonal(problem, jnp.asarray(x[i : i + chunk]), outputs)) for i in starts):
        out[i : i + chunk] = part
    check_finite("gradients of f", out)
    return jnp.asarray(out)


@in_precision
def layer_ntks(
    f: Callable,
    params: PyTree,
    x1: Any,
    x2: Any = None,
    *,
    depth: int | None = None,
    outputs: Outputs = "mean",
    parameters: Any = None,
    in_axes: Any = 0,
    memory: int | float | None = None,
    precision: Precision | None = None,
) -> dict[str, Float[Array, "A B ..."]]:
    r"""The empirical NTK of each layer, in one pass; their sum is `empirical_ntk`.

    $$\Theta_{ks}(x, x') = \sum_l \Theta^{(l)}_{ks}(x, x'), \qquad
      \Theta^{(l)}_{ks}(x, x') = \langle \nabla_{\theta_l} f_k(x), \nabla_{\theta_l} f_s(x') \rangle$$

    Exact, by the Jacobian of a chunk of samples at a time (no engine is chosen).

    Args:
        f, params, x1, x2, outputs, parameters, in_axes, memory, precision: as in `empirical_ntk`.
        depth: how many levels of the parameters' paths name a layer: with 1, "Dense_0/kernel" and "Dense_0/bias" are
            the layer "Dense_0". Without it each array is a layer by itself.
    Returns:
        Kernels by path, in the order of the parameters, in the shape that `empirical_ntk` has for `outputs`.
    Raises:
        ValueError, TypeError: as `empirical_ntk`, or a depth below 1.
    """
    check_choice("outputs", outputs, OUTPUTS)
    if depth is not None:
        check_whole("depth", depth)
    f, samples = one_array(f, {"x1": x1} if x2 is None else {"x1": x1, "x2": x2}, in_axes)
    problem = prepare(f, params, samples, parameters)
    x1, x2 = samples["x1"], samples.get("x2")
    names = ["/".join(name.split("/")[:depth]) for name in named_leaves(problem.params)]
    layers = list(dict.fromkeys(names))
    of = tuple(layers.index(name) for name in names)
    columns = x1 if x2 is None else x2
    A, B = len(x1), len(columns)
    chunk = _chunk(problem, max(A, B), memory)
    out = [np.zeros(kernel_shape(outputs, A, B, problem.num_outputs), problem.dtype) for _ in layers]

    def gradients(x, i):
        return _gradients(problem, jnp.asarray(x[i : i + chunk]))

    def sent():
        for i in range(0, A, chunk):
            g = gradients(x1, i)
            for j in range(0 if x2 is not None else i, B, chunk):
                h = g if x2 is None and i == j else gradients(columns, j)
                yield i, j, _of_layers(g, h, of, outputs)

    for i, j, tiles in behind(sent()):
        for total, tile in zip(out, tiles, strict=True):
            total[i : i + chunk, j : j + chunk] = tile
            if x2 is None and i != j:
                total[j : j + chunk, i : i + chunk] = mirror(np.asarray(tile))
    check_finite("gradients of f", out)
    share = problem.num_outputs if outputs == "mean" else 1
    return {name: jnp.asarray(total / share) for name, total in zip(layers, out, strict=True)}


def _chunk(problem: Problem, n: int, memory: int | float | None) -> int:
    """Samples whose Jacobians fit, of both sides and twice each, as in the engine of that name."""
    each = 4 * problem.num_outputs * problem.num_params * problem.dtype.itemsize
    return evened(n, fit(budget(memory), each, n))


@eqx.filter_jit
def _gradients(problem: Problem, x: Array) -> list[Float[Array, "n K size"]]:
    return jacobians(problem, x, 0, problem.num_outputs)


@eqx.filter_jit
def _diagonal(problem: Problem, x: Array, outputs: Outputs) -> Array:
    equation = "nkp,nsp->nks" if outputs == "full" else "nkp,nkp->nk"
    parts = [jnp.einsum(equation, g, g, precision=EXACT) for g in jacobians(problem, x, 0, problem.num_outputs)]
    total = sum(parts[1:], start=parts[0])
    return total.mean(1) if outputs == "mean" else total


@eqx.filter_jit
def _of_layers(g: list[Array], h: list[Array], of: tuple[int, ...], outputs: Outputs) -> list[Array]:
    totals: dict[int, Array] = {}
    for layer, a, b in zip(of, g, h, strict=True):
        part = contract(a, b, outputs)
        totals[layer] = totals[layer] + part if layer in totals else part
    return [totals[layer] for layer in sorted(totals)]
