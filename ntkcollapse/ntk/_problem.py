"""What every kernel computation starts from: a pure f, the parameters it is differentiated in, and samples."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, PyTree

from ntkcollapse._checks import check_finite, check_unmasked, is_traced
from ntkcollapse._precision import exact_products
from ntkcollapse.ntk import _rows
from ntkcollapse.ntk._trace import trace


class Restricted(eqx.Module):
    """(params, x) ↦ f(params with the frozen ones put back, x): f as a function of the chosen parameters alone.

    A pytree that carries f's own arrays, so that compiled code is found again for the same f and new values.
    """

    f: Callable
    frozen: PyTree

    def __call__(self, params: PyTree, x: Array) -> Any:
        # Passes back take over the precision of the passes that they undo.
        with exact_products():
            return self.f(eqx.combine(params, self.frozen), x)


class Merged(eqx.Module):
    """(state, x) ↦ f(the flax nnx module of that state, x): f as a function of arrays alone.

    nnx modules are mutable and compared by the values in them, so that JAX cannot find compiled code by them.
    """

    f: Callable
    graph: Any = eqx.field(static=True)

    def __call__(self, state: PyTree, x: Array) -> Any:
        return self.f(sys.modules["flax.nnx"].merge(self.graph, state), x)


class Problem(eqx.Module):
    """f restricted to `params`, with K outputs a sample."""

    f: Restricted
    params: PyTree
    num_outputs: int = eqx.field(static=True)

    @property
    def num_params(self) -> int:
        """P, how many numbers the kernel is a sum over."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def dtype(self):
        """Precision of the kernel, float32 at least: sums over parameters in half precision would lose most of them."""
        widest = max((leaf.dtype for leaf in jax.tree.leaves(self.params)), key=lambda dtype: dtype.itemsize)
        return widest if widest.itemsize >= 4 else jnp.dtype(jnp.float32)


def prepare(f: Callable, params: PyTree, samples: dict[str, Any], parameters: Any = None) -> Problem:
    """Checks f, parameters and each named set of samples, and keeps the parameters the kernel is asked for.

    Raises:
        ValueError: an f that is not (N, K), samples that do not fit together, numbers that are not finite, outputs
            of one sample that depend on another sample, or no parameter chosen.
    """
    if not callable(f):
        raise TypeError(f"f: expected a function f(params, x) -> (N, K), got {type(f).__name__}.")
    check_unmasked("params", params)
    params, graph = _without_modules(params)
    if graph is not None:
        f = Merged(f, graph)
    chosen, frozen = _partition(params, parameters)
    for name, x in samples.items():
        if not hasattr(x, "dtype"):
            raise TypeError(f"{name}: expected an array, got {type(x).__name__}; np.asarray makes one of it.")
        shape = np.shape(x)
        if len(shape) < 2 or shape[0] < 1:
            raise ValueError(
                f"{name}: expected at least one sample, one row a sample, (N, ...); got shape {shape}; "
                "give a single sample as x[None]."
            )
        check_finite(name, x)
        first = next(iter(samples))
        if shape[1:] != np.shape(samples[first])[1:]:
            raise ValueError(
                f"{name}: expected samples of shape {np.shape(samples[first])[1:]} as in {first}, got {shape[1:]}."
            )
    check_finite("params", chosen)
    restricted = Restricted(f, frozen)
    x = next(iter(samples.values()))
    num_outputs, apart = _describe(restricted, chosen, one_like(x))
    if not apart and not is_traced(chosen, frozen, x, eqx.filter(f, eqx.is_array)):
        _check_uncoupled(restricted, chosen, x)
    return Problem(restricted, chosen, num_outputs)


def one_like(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of a single sample, (1, ...)."""
    return jax.ShapeDtypeStruct((1, *np.shape(x)[1:]), jnp.result_type(x))


def _without_modules(params: PyTree) -> tuple[PyTree, Any]:
    """(params, None), or where it has flax nnx modules in it their (state, graph definition), each array once."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return params, None
    is_module = lambda node: isinstance(node, nnx.Module)  # noqa: E731
    if not any(is_module(node) for node in jax.tree.leaves(params, is_leaf=is_module)):
        return params, None
    graph, state = nnx.split(params)
    return state, graph


def parameters_alone(f: Callable, params: PyTree) -> tuple[Callable, PyTree]:
    """f as a function of its parameters, and these: what else stands in `params`, f has in itself."""
    params, graph = _without_modules(params)
    if graph is not None:
        f = Merged(f, graph)
    chosen, frozen = eqx.partition(*_trained(params))
    return (Restricted(f, frozen) if jax.tree.leaves(frozen) else f), chosen


def _trained(params: PyTree) -> tuple[PyTree, PyTree]:
    """(params with data as JAX's arrays, True on every leaf that is a parameter)."""
    # Python's own numbers are settings: f may count with them, or ask whether they are zero.
    is_data = lambda leaf: eqx.is_array_like(leaf) and type(leaf) not in (bool, int, float, complex)  # noqa: E731
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_data(leaf) else leaf, params)
    return params, jax.tree.map(lambda leaf, state: eqx.is_inexact_array(leaf) and not state, params, _is_state(params))


def _partition(params: PyTree, parameters: Any) -> tuple[PyTree, PyTree]:
    """(chosen, frozen): two trees of one structure, each None where the other has the array."""
    params, trained = _trained(params)
    if parameters is None:
        wanted = trained
    elif isinstance(parameters, str):
        wanted = _by_path(params, [parameters])
    elif isinstance(parameters, list | tuple | set) and all(isinstance(p, str) for p in parameters):
        wanted = _by_path(params, parameters)
    else:
        try:
            mask = jax.tree.map(lambda keep, part: jax.tree.map(lambda _: bool(keep), part), parameters, params)
        except ValueError as error:
            raise ValueError(
                "parameters: expected a path such as 'trunk/Dense_0', several paths, or a pytree of True and False "
                f"shaped like params or like its upper levels; got a tree that does not fit: {error}"
            ) from error
        wanted = mask
    wanted = jax.tree.map(lambda keep, ok: keep and ok, wanted, trained)
    for path, leaf in jax.tree.leaves_with_path(eqx.filter(params, wanted)):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"params: expected real numbers to differentiate in, got {leaf.dtype} at {jax.tree_util.keystr(path)}; "
                "hold its real and imaginary part apart, or leave it out by `parameters`."
            )
    if not any(jax.tree.leaves(wanted)):
        raise ValueError(
            "parameters: expected at least one floating-point array to differentiate in, got none; the kernel is a sum "
            "over the chosen parameters. Python's own numbers are none (jnp.asarray makes arrays of them), nor are "
            "running statistics (give them as params by themselves if they are meant)."
        )
    return eqx.partition(params, wanted)


# What flax calls the variables beside "params" that are updated in a forward pass, never trained.
_STATE = ("batch_stats", "cache", "intermediates", "perturbations")


def _is_state(params: PyTree) -> PyTree:
    """True on every leaf that a forward pass updates and training does not: running statistics, keys, counts.

    Those are: collections such as "batch_stats" beside "params" (in flax's variables, or as fields of an object),
    variables of flax nnx that are no `nnx.Param` where there is any beside them, and `equinox.nn.State`.
    """
    nnx = sys.modules.get("flax.nnx")
    variable, trained = ((), ()) if nnx is None else (nnx.Variable, nnx.Param)
    kinds = (eqx.nn.State, variable)
    nodes = jax.tree.leaves_with_path(params, is_leaf=lambda node: isinstance(node, kinds))
    beside_params = "params" in {_name(path[:1]) for path, _ in nodes}
    beside_trained = any(isinstance(node, trained) for _, node in nodes)

    def is_state(path, node):
        if isinstance(node, variable):
            return beside_trained and not isinstance(node, trained)
        return isinstance(node, eqx.nn.State) or (beside_params and _name(path[:1]) in _STATE)

    return jax.tree.map_with_path(
        lambda path, node: jax.tree.map(lambda _: is_state(path, node), node),
        params,
        is_leaf=lambda node: isinstance(node, kinds),
    )


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(params: PyTree) -> list[str]:
    """The path of each array, 'trunk/Dense_0/kernel', in the order of `jax.tree.leaves`."""
    return [_name(path) for path, _ in jax.tree.leaves_with_path(params)]


def _by_path(params: PyTree, paths: Iterable[str]) -> PyTree:
    """True on every leaf whose path, 'trunk/Dense_0/kernel', is or begins with one of `paths`."""
    names = jax.tree.map_with_path(lambda path, _: _name(path), params)
    for path in paths:
        if not any(_within(name, path) for name in jax.tree.leaves(names)):
            some = ", ".join(map(repr, jax.tree.leaves(names)[:8]))
            raise ValueError(f"parameters: no parameter under the path {path!r}; the first ones are {some}.")
    return jax.tree.map(lambda name: any(_within(name, path) for path in paths), names)


def _within(name: str, path: str) -> bool:
    path = path.strip("/")
    return name == path or name.startswith(path + "/")


@eqx.filter_jit
def _describe(f: Restricted, params: PyTree, x: jax.ShapeDtypeStruct) -> tuple[int, bool]:
    """(K, whether its traces prove that f treats samples one by one), where f maps n samples to (n, K).

    Under jit only so that this is done once for every f, not at every call: nothing is computed.
    """
    one, three = (_traced_for(f, params, x, n) for n in (1, 3))
    apart = _rows.apart(one, three)
    if not apart:
        # A single row may be written otherwise than several.
        two = _traced_for(f, params, x, 2)
        apart = _rows.apart(two, three) and _rows.same_numbers(one, two)
    return int(one.out_avals[0].shape[1]), apart


def _traced_for(f: Restricted, params: PyTree, x: jax.ShapeDtypeStruct, n: int) -> ClosedJaxpr:
    try:
        closed, out = trace(f, params, jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype))
    except Exception as error:
        # By name: flax need not be there.
        if type(error).__name__ != "TraceContextError":
            raise
        raise ValueError(
            "f: expected a pure function, it changes the state of a flax nnx module that it closes over (running "
            f"statistics, or the count of a random stream); {_EVALUATION}, or give the module itself as params."
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct) or len(out.shape) != 2 or out.shape[0] != n:
        got = getattr(out, "shape", type(out).__name__)
        raise ValueError(
            f"f: expected outputs of shape (N, K), one row a sample, got {got} for N = {n}; "
            "flatten each sample's outputs, and return nothing beside them."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"f: expected real floating-point outputs, got {out.dtype}.")
    return closed


_EVALUATION = (
    "use the network in evaluation mode (batch normalisation with running averages: train=False, "
    "use_running_average=True; no dropout; model.eval() of a flax nnx module)"
)


@eqx.filter_jit
def _outputs(f, params, x):
    return f(params, x)


def _check_uncoupled(f: Restricted, params: PyTree, x: Any) -> None:
    """Outputs of a sample must not depend on the other samples of its batch, nor on its place or their number.

    For what the traces of f do not prove. Three rows of a batch: the outer ones stay while the others change (one
    compiled function ran twice, so that only a real dependence shows), and are asked for alone, as the engines do.
    """
    batch, other = _different_rows(x)
    together = _seen(f, params, batch)
    check_finite("f(params, x)", together[:1])
    # Where outputs start at zero, by a last layer of zeros or by units that cancel, nothing or only rounding shows.
    beside = _moved(params)
    elsewhere = _seen(f, beside, batch)
    if np.isfinite(elsewhere[0]).all():
        params, together = beside, elsewhere
    # Rows that were made up may be none that f is defined for.
    defined = np.isfinite(together).min(axis=1)
    size = max(np.abs(together[defined]).max(initial=0), np.finfo(float).tiny)
    eps = float(jnp.finfo(_outputs_dtype(f, params, x)).eps)
    for kept in (i for i in (0, 2) if defined[i]):
        others = np.stack([batch[i] if i == kept else other for i in range(3)])
        alone = _seen(f, params, batch[kept : kept + 1])[0]
        among_others = _seen(f, params, others)[kept]
        for found, why, tolerance in (
            (among_others, "with other samples of its batch", min(256 * eps, 0.1)),
            # Other code for another size of batch: rounding, and factors rounded on an accelerator, have a part in it.
            (alone, "with its place in a batch and the size of that", eps**0.25),
        ):
            change = np.abs(found - together[kept]).max()
            # Written so that a number which is not finite fails.
            if not change <= tolerance * size:
                raise ValueError(
                    f"f: the outputs of one sample change by {change:.2g} {why}, so a kernel between samples has no "
                    f"meaning; {_EVALUATION}."
                )


def _different_rows(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Three samples, and one that differs from each of them where x has any such.

    Where x has too few, the same numbers in other places, or parts of them: nothing that leaves the range of x, where f
    may not be defined.
    """
    found: list[np.ndarray] = []

    def more(row):
        if len(found) < 4 and not any(np.array_equal(row, old) for old in found):
            found.append(row)

    for i in np.unique(np.linspace(0, np.shape(x)[0] - 1, 12).round().astype(int)):
        more(np.asarray(x[i]))
    flat = found[0].reshape(-1)
    more(flat[::-1].reshape(found[0].shape))
    more(np.roll(flat, 1).reshape(found[0].shape))
    if np.issubdtype(flat.dtype, np.floating):
        for part in (0.5, 0.75, 0.625):
            more((part * found[0]).astype(flat.dtype))
    *rows, other = found if len(found) > 1 else found * 2
    return np.stack([rows[i % len(rows)] for i in range(3)]), other


def _moved(params: PyTree) -> PyTree:
    """Every parameter a tenth of its size away, in no direction that a network would know of."""

    def moved(leaf):
        # On the host: a program for the shapes of all parameters would take longer than this.
        values = np.asarray(leaf).astype(np.float64)
        size = np.sqrt(np.mean(np.square(values))) if values.size else 0.0
        wave = np.cos(np.arange(leaf.size, dtype=np.float64) ** 2).reshape(leaf.shape)
        return jnp.asarray((values + 0.1 * (size or 1.0) * wave).astype(leaf.dtype))

    return jax.tree.map(moved, params)


def _seen(f: Restricted, params: PyTree, rows: np.ndarray) -> np.ndarray:
    return np.asarray(_outputs(f, params, jnp.asarray(rows))).astype(float)


def _outputs_dtype(f: Restricted, params: PyTree, x: Any):
    return trace(f, params, one_like(x))[1].dtype
