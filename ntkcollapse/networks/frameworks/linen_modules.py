"""Networks of flax linen."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ntkcollapse.networks.frameworks.model import (
    Mode,
    Model,
    Modes,
    as_frameworks_compute,
    mode_arguments,
    parameters_of,
)

_EVALUATE = (
    "pass the module's evaluation arguments, modes=({'train': True}, {'train': False}), and let its BatchNorm and "
    "Dropout follow them (use_running_average=not train, deterministic=not train)"
)
_HAND_OVER = (
    "in linen, params=variables['params'] and state={'batch_stats': variables['batch_stats']}, or both as "
    "params=variables"
)
# Collections that a pass writes for whoever looks at them, and that nothing later reads.
_WRITTEN = ("intermediates", "perturbations")


def of_linen(module: nn.Module, x: Any, params: Any, state: Any, modes: Modes | None) -> Model:
    """The model of a linen module; its weights are drawn where none are given."""
    arguments = mode_arguments(parameters_of(type(module).__call__), modes)
    like = jax.ShapeDtypeStruct((2, *jnp.shape(x)[1:]), jnp.result_type(x))

    def begin(key):
        weights, dropout = jax.random.split(key)
        with as_frameworks_compute():
            keys = {"params": weights, "dropout": dropout}
            made = module.init(keys, jnp.zeros(like.shape, like.dtype), **arguments["evaluation"])
        return _parted(made, None)

    drawn = params is None
    params, state = jax.eval_shape(begin, jax.random.key(0)) if drawn else _parted(params, state)
    collections = tuple(state)

    def apply(mode: Mode, params, state, x, key):
        variables, options = {"params": params, **state}, arguments[mode]
        keys = None if key is None else {"dropout": key}
        with nn.intercept_methods(_without_dropout if mode == "coupled" else _as_it_is):
            outputs, moved = module.apply(variables, x, **options, rngs=keys, mutable=[*collections, *_WRITTEN])  # pyright: ignore[reportGeneralTypeIssues]
        return outputs, {name: moved.get(name, state[name]) for name in collections}

    def take(params, state):
        params, state = _parted(params, state)
        if state and set(state) != set(collections) and collections == ("batch_stats",):
            state = {"batch_stats": state}
        return params, state or (None if collections else {})

    return Model(
        framework="flax linen",
        name=type(module).__name__,
        apply=apply,
        params=params,
        state=state,
        begin=begin if drawn else None,
        take=take,
        evaluate=_EVALUATE,
        hand_over=_HAND_OVER,
    )


def _parted(params: Any, state: Any) -> tuple[Any, dict[str, Any]]:
    """(params, other collections), of parameters or of all variables."""
    params = _plain(params)
    if isinstance(params, dict) and "params" in params:
        state = {name: value for name, value in params.items() if name != "params"} | (state or {})
        params = params["params"]
    state = {name: value for name, value in _plain(state or {}).items() if name not in _WRITTEN}
    return params, state


def _plain(tree: Any) -> Any:
    """Frozen dictionaries of earlier versions as dictionaries."""
    return {name: _plain(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree


def _as_it_is(run, args, kwargs, context):
    return run(*args, **kwargs)


def _without_dropout(run, args, kwargs, context):
    return args[0] if isinstance(context.module, nn.Dropout) else run(*args, **kwargs)
