"""Inputs and outputs of the layers of a flax network, as pure functions of a batch."""

from collections.abc import Callable, Container
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
from jaxtyping import Array, PyTree

from ntkcollapse._checks import check_choice

Activations = Callable[[Any], dict[str, Array]]


class Tap(NamedTuple):
    """One call of a layer with weights: what went in, what came out (before any non-linearity that follows)."""

    input: Array
    output: Array


def record_layers(module: nn.Module, variables: PyTree, x: Any, *, every: bool = False, **call: Any):
    """Runs a flax module and keeps the input and output of every layer that has a `kernel`, in order of their calls.

    Args:
        module: any flax.linen module, whatever it is made of; recurrent or scanned parts show what is traced.
        variables: parameters and other collections.
        x: a batch, (N, ...).
        every: whether to keep every submodule that maps an array to an array, with weights or not (blocks,
            normalisations), in the order in which they end.
        call: what else the module's call needs, ``train=False`` for example.
    Returns:
        The module's output, and a dictionary of `Tap` by path ("trunk/linear_0"; a layer that is called again appears
        as "trunk/linear_0#2").
    """
    taps: dict[str, Tap] = {}

    def keep(run, args, kwargs, context):
        output = run(*args, **kwargs)
        layer = context.module
        arrays = context.method_name == "__call__" and all(hasattr(v, "shape") for v in (*args[:1], output))
        if arrays and args and (every or layer.has_variable("params", "kernel")):
            path = "/".join(layer.path) or type(layer).__name__
            taps[_free(path, taps)] = Tap(args[0], output)
        return output

    with nn.intercept_methods(keep):
        output = module.apply(variables, x, **call)
    return output, taps


def flax_activations(module: nn.Module, variables: PyTree, *, at: str = "inputs", **call: Any) -> Activations:
    """The activations of every layer of a flax network, compiled, as a function of a batch.

    Args:
        module, variables, call: as in `record_layers`.
        at: "inputs": what each layer with weights sees, so that its predecessor's normalisation and non-linearity are
            included, and last the network's "output" ("output#2" where a layer is called so); "outputs": what each
            layer with weights gives, before them; "modules": what every submodule gives, blocks and normalisations too.
    Returns:
        x ↦ {name: array (N, ...)} in the order of the network.
    Raises:
        ValueError: an unknown `at`.
    """
    check_choice("at", at, ("inputs", "outputs", "modules"))

    def activations(x):
        numbered = _run(module, variables, x, at, call)
        return {key.split(" ", 1)[1]: numbered[key] for key in sorted(numbered)}

    return activations


def _free(name: str, taken: Container[str]) -> str:
    """The name, or with the first number behind it that is free: "name#2"."""
    numbered, count = name, 1
    while numbered in taken:
        count += 1
        numbered = f"{name}#{count}"
    return numbered


@eqx.filter_jit
def _run(module, variables, x, at: str, call) -> dict[str, Any]:
    output, taps = record_layers(module, variables, x, every=at == "modules", **call)
    if at == "inputs":
        arrays: dict[str, Any] = {name: tap.input for name, tap in taps.items()}
        arrays[_free("output", arrays)] = output
    else:
        arrays = {name: tap.output for name, tap in taps.items()}
    # What leaves jit is sorted by name, and depth is the order of the calls: so names begin with their number.
    return {f"{i:06d} {name}": value for i, (name, value) in enumerate(arrays.items())}
