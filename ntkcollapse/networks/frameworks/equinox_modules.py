"""Networks of Equinox: modules that take one sample, without a batch axis."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from ntkcollapse.networks.frameworks.model import Mode, Model, by_path, from_path

_EVALUATE = (
    "in Equinox, eqx.nn.inference_mode(model) must reach every layer: leave `inference` to the layers' own fields, and "
    "do not pass it in calls"
)
_HAND_OVER = (
    "in Equinox, model, state = eqx.nn.make_with_state(Model)(...), then of(model, x, state=state) and "
    "recorder(step, model, state); a module takes one sample, without a batch axis"
)


def of_equinox(module: Callable, state: Any) -> Model:
    """The model of an Equinox module and of its `eqx.nn.State`, where it has one."""
    params, rest = eqx.partition(module, eqx.is_inexact_array)
    signature = inspect.signature(type(module).__call__).parameters  # pyright: ignore[reportFunctionMemberAccess]
    stateful = "state" in signature and (state is not None or signature["state"].default is inspect.Parameter.empty)
    if stateful and state is None:
        raise ValueError(f"state: expected the eqx.nn.State of the module, got none; {_HAND_OVER}.")
    # Flattened while it is valid: a State that was moved on from cannot be read any more.
    leaves, structure = ([], None) if state is None else jax.tree.flatten(state)
    names = [f"state/{i}" for i in range(len(leaves))]
    # BatchNorm names the axis that it takes the mean over.
    nodes = jax.tree.leaves(module, is_leaf=_normalises)
    axes = {name for node in nodes if _normalises(node) for name in _as_tuple(node.axis_name)}
    if len(axes) > 1:
        raise ValueError(f"network: expected one axis_name in all of its BatchNorm layers, got {sorted(axes)}.")
    axis = next(iter(axes), None)

    def apply(mode: Mode, values, moving, x, key):
        model = eqx.combine(from_path(values, params), rest)
        model = eqx.nn.inference_mode(model, mode != "training")
        if mode == "coupled" and axis is not None:
            model = _normalising(model)
        keys = None if key is None or "key" not in signature else jax.random.split(key, x.shape[0])

        def one(x, key, state):
            options = {"key": key} if key is not None else {}
            return model(x, state, **options) if stateful else (model(x, **options), None)

        before = None if structure is None else jax.tree.unflatten(structure, [moving[name] for name in names])
        mapped = (0, None if keys is None else 0, None)
        outputs, after = jax.vmap(one, in_axes=mapped, out_axes=(0, None), axis_name=axis)(x, keys, before)
        moved = moving if not stateful else dict(zip(names, jax.tree.leaves(after), strict=True))
        return outputs, moved

    def take(values, state):
        if not isinstance(values, dict):
            values = by_path(eqx.filter(values, eqx.is_inexact_array))
        if isinstance(state, eqx.nn.State):
            state = dict(zip(names, jax.tree.leaves(state), strict=True))
        return values, state

    return Model(
        framework="Equinox",
        name=type(module).__name__,
        apply=apply,
        params=by_path(params),
        state=dict(zip(names, leaves, strict=True)),
        take=take,
        restarts=True,
        evaluate=_EVALUATE,
        hand_over=_HAND_OVER,
    )


def _normalises(node: Any) -> bool:
    return isinstance(node, eqx.nn.BatchNorm)


def _normalising(model: Any) -> Any:
    """Batch normalisations in training mode, all else as it is."""

    def switched(node):
        return eqx.tree_at(lambda n: n.inference, node, False) if _normalises(node) else node

    return jax.tree.map(switched, model, is_leaf=_normalises)


def _as_tuple(names: Any) -> tuple:
    return tuple(names) if isinstance(names, tuple | list) else (names,)
