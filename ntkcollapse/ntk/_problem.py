"""What every kernel computation starts from: a pure f, the parameters it is differentiated in, and samples."""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ntkcollapse._checks import check_finite, is_traced


class Restricted(eqx.Module):
    """(params, x) ↦ f(params with the frozen ones put back, x): f as a function of the chosen parameters alone.

    A pytree that carries f's own arrays, so that compiled code is found again for the same f and new values.
    """

    f: Callable
    frozen: PyTree

    def __call__(self, params: PyTree, x: Array) -> Any:
        return self.f(eqx.combine(params, self.frozen), x)


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
        """Precision of the kernel."""
        return jnp.result_type(*jax.tree.leaves(self.params))


def prepare(f: Callable, params: PyTree, samples: dict[str, Any], parameters: Any = None) -> Problem:
    """Checks f, parameters and each named set of samples, and keeps the parameters the kernel is asked for.

    Raises:
        ValueError: an f that is not (N, K), samples that do not fit together, numbers that are not finite, outputs
            of one sample that depend on another sample, or no parameter chosen.
    """
    if not callable(f):
        raise TypeError(f"f: expected a function f(params, x) -> (N, K), got {type(f).__name__}.")
    chosen, frozen = _partition(params, parameters)
    for name, x in samples.items():
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
    check_finite("params", params)
    restricted = Restricted(f, frozen)
    x = next(iter(samples.values()))
    num_outputs = _check_outputs(restricted, chosen, x)
    if not is_traced(chosen, frozen, x, eqx.filter(f, eqx.is_array)):
        _check_uncoupled(restricted, chosen, x)
    return Problem(restricted, chosen, num_outputs)


def one_like(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of a single sample, (1, ...)."""
    return jax.ShapeDtypeStruct((1, *np.shape(x)[1:]), jnp.result_type(x))


def _partition(params: PyTree, parameters: Any) -> tuple[PyTree, PyTree]:
    """(chosen, frozen): two trees of one structure, each None where the other has the array."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf, params)
    floating = jax.tree.map(eqx.is_inexact_array, params)
    if parameters is None:
        wanted = floating
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
    wanted = jax.tree.map(lambda keep, ok: keep and ok, wanted, floating)
    if not any(jax.tree.leaves(wanted)):
        raise ValueError(
            "parameters: expected at least one floating-point array to differentiate in, got none; "
            "the kernel is a sum over the chosen parameters."
        )
    return eqx.partition(params, wanted)


def _by_path(params: PyTree, paths: Iterable[str]) -> PyTree:
    """True on every leaf whose path, 'trunk/Dense_0/kernel', is or begins with one of `paths`."""
    names = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params)
    for path in paths:
        if not any(_within(name, path) for name in jax.tree.leaves(names)):
            some = ", ".join(map(repr, jax.tree.leaves(names)[:8]))
            raise ValueError(f"parameters: no parameter under the path {path!r}; the first ones are {some}.")
    return jax.tree.map(lambda name: any(_within(name, path) for path in paths), names)


def _within(name: str, path: str) -> bool:
    path = path.strip("/")
    return name == path or name.startswith(path + "/")


def _check_outputs(f: Restricted, params: PyTree, x: Any) -> int:
    """K, where f maps one sample to (1, K) and two to (2, K)."""
    for n in (1, 2):
        out = _shape_of_outputs(f, params, jax.ShapeDtypeStruct((n, *np.shape(x)[1:]), jnp.result_type(x)))
        if not isinstance(out, jax.ShapeDtypeStruct) or len(out.shape) != 2 or out.shape[0] != n:
            got = getattr(out, "shape", type(out).__name__)
            raise ValueError(
                f"f: expected outputs of shape (N, K), one row a sample, got {got} for N = {n}; "
                "flatten each sample's outputs, and return nothing beside them."
            )
        if not jnp.issubdtype(out.dtype, jnp.floating):
            raise ValueError(f"f: expected real floating-point outputs, got {out.dtype}.")
    return int(out.shape[1])  # pyright: ignore


@eqx.filter_jit
def _shape_of_outputs(f: Restricted, params: PyTree, x: jax.ShapeDtypeStruct):
    # Under jit only so that f is traced once, not at every call: nothing is computed.
    return eqx.filter_eval_shape(f, params, x)


@eqx.filter_jit
def _outputs(f, params, x):
    return f(params, x)


def _check_uncoupled(f: Restricted, params: PyTree, x: Any) -> None:
    """One sample's outputs must not move when its neighbour in the batch does."""
    first = np.asarray(x[:1])
    second = np.asarray(x[-1:])
    if np.issubdtype(first.dtype, np.floating):
        other = -2 * second + 1
    else:
        # Integers (tokens) may not leave their range: another sample, or values of the same one in reverse order.
        other = second[:, ::-1] if np.array_equal(first, second) else first
    a, b = (np.asarray(_outputs(f, params, jnp.asarray(np.concatenate([first, z]))))[0] for z in (second, other))
    check_finite("f(params, x)", a)
    # The same compiled code ran twice, so that only a real dependence shows; rounding has no part in it.
    if np.abs(a - b).max() > 1e-5 * max(np.abs(a).max(), np.finfo(a.dtype).tiny):
        raise ValueError(
            f"f: the outputs of one sample change by {np.abs(a - b).max():.2g} with another sample of its batch, so a "
            "kernel between samples has no meaning; use the network in evaluation mode (batch normalisation with "
            "running averages: train=False, use_running_average=True)."
        )
