"""Networks of other makes: one function takes those of flax, Equinox, Haiku, PyTorch, and plain functions."""

import sys
from typing import Any

import equinox as eqx
import jax
import numpy as np
from flax import linen as nn
from jaxtyping import PyTree

from ntkcollapse._checks import check_arrays
from ntkcollapse.data import Dataset, Splits
from ntkcollapse.networks.abstract_network import AbstractNetwork
from ntkcollapse.networks.frameworks.equinox_modules import of_equinox
from ntkcollapse.networks.frameworks.linen_modules import of_linen
from ntkcollapse.networks.frameworks.model import Modes
from ntkcollapse.networks.frameworks.own_network import OwnNetwork, made
from ntkcollapse.networks.frameworks.plain_functions import of_functions

__all__ = ["OwnNetwork", "of"]


def of(
    model: Any,
    x: Any,
    params: PyTree = None,
    state: PyTree = None,
    *,
    last_layer: str | None = None,
    modes: Modes | None = None,
) -> OwnNetwork:
    """A network of one's own, as this package trains, measures and compares its own.

    | from | model | params, state |
    |---|---|---|
    | flax nnx | the module | in it |
    | flax linen | the module | `params` and `{"batch_stats": ...}`, or all variables as params; drawn without |
    | Equinox | the module, of one sample | `state=` its `eqx.nn.State`, where it has one |
    | Haiku | what `hk.transform_with_state` or `hk.transform` gives | `params` and `state`; drawn without |
    | PyTorch | the module | in it |
    | functions | f(params, x) ↦ (N, C), or a pair (training, evaluation) of (params, state, x) ↦ (f, state) | both |

    The network must end with one dense layer on features (N, n), which is found by tracing it: the last one on the
    path to the output. Nothing of the model is changed, and no framework is imported that is not in use.

    Args:
        model: see above.
        x: a batch of inputs (N, ...), a `Dataset` or `Splits`; its shape decides, its first rows are tried.
        params, state: see above.
        last_layer: path of the last layer among the parameters, where it is to be that one.
        modes: keyword arguments of a call in (training, evaluation); by default those that the model's call names
            (`train`, `training`, `is_training`, `deterministic`, `use_running_average`). A third entry is training
            without dropout, for the rungs with batch statistics, where that cannot be told from the model (Haiku;
            of functions, give a third one). A function with an argument `key` draws by it.
    Raises:
        TypeError: a model of no known make, or of a framework that is not installed.
        ValueError: no last dense layer, one that is shared or another than was named, features of more than one axis,
            outputs that are not (N, C), running statistics among the parameters, a state that is missing, or an
            evaluation mode that updates its state or couples samples; with the remedy in the framework's words.
    """
    x = _batch(x)
    nnx, haiku, torch = (sys.modules.get(name) for name in ("flax.nnx", "haiku", "torch"))
    if isinstance(model, AbstractNetwork):
        raise TypeError("model: expected a network of another make, got one of this package, which it takes as it is.")
    if nnx is not None and isinstance(model, nnx.Module):
        from ntkcollapse.networks.frameworks.nnx_modules import of_nnx

        return made(of_nnx(model, modes), x, last_layer)
    if isinstance(model, nn.Module):
        return made(of_linen(model, x, params, state, modes), x, last_layer)
    if isinstance(model, eqx.Module):
        return made(of_equinox(model, state), x, last_layer)  # pyright: ignore[reportArgumentType]: it is called
    if haiku is not None and isinstance(model, haiku.Transformed | haiku.TransformedWithState):
        from ntkcollapse.networks.frameworks.haiku_functions import of_haiku

        return made(of_haiku(model, x, params, state, modes), x, last_layer)
    if torch is not None and isinstance(model, torch.nn.Module):
        from ntkcollapse.networks.frameworks.pytorch_modules import of_pytorch

        return made(of_pytorch(model, x), x, last_layer)
    if callable(model) or (isinstance(model, tuple) and len(model) in (2, 3) and all(map(callable, model))):
        return made(of_functions(model, params, state), x, last_layer)
    raise TypeError(
        "model: expected a module of flax nnx, flax linen, Equinox, Haiku (transformed) or PyTorch, a function "
        f"f(params, x), or a pair (training, evaluation) of functions; got {type(model).__name__}."
    )


def _batch(x: Any) -> Any:
    """A batch of inputs, or its shape."""
    if isinstance(x, Splits):
        x = x.train
    if isinstance(x, Dataset):
        x = x.inputs
    if not isinstance(x, jax.ShapeDtypeStruct):
        check_arrays(x=x)
        x = x if hasattr(x, "dtype") else np.asarray(x)
    if len(x.shape) < 2 or not x.shape[0]:
        raise ValueError(f"x: expected a batch of inputs, one row a sample, (N, ...); got shape {x.shape}.")
    return x
