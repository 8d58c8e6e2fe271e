"""Networks of Haiku."""

from collections.abc import Callable
from typing import Any

import haiku as hk  # pyright: ignore[reportMissingImports]: an extra
import jax
import jax.numpy as jnp

from ntkcollapse.networks.frameworks.model import (
    MODES,
    Mode,
    Model,
    Modes,
    as_frameworks_compute,
    mode_arguments,
    parameters_of,
)

_EVALUATE = (
    "in Haiku, give the transformed function an argument is_training, pass it to hk.BatchNorm, and draw with "
    "hk.dropout where it is true only; an argument of another name: modes=({'name': True}, {'name': False}), with a "
    "third entry for batch statistics without dropout"
)
_HAND_OVER = (
    "in Haiku, params, state = f.init(key, x, ...) of f = hk.transform_with_state(...), then of(f, x, params, state) "
    "and recorder(step, params, state)"
)


def of_haiku(transformed: Any, x: Any, params: Any, state: Any, modes: Modes | None) -> Model:
    """The model of what `hk.transform_with_state` or `hk.transform` gives; weights are drawn where none are given."""
    stateful = isinstance(transformed, hk.TransformedWithState)
    random = "rng" in parameters_of(transformed.apply)
    like = jax.ShapeDtypeStruct((2, *jnp.shape(x)[1:]), jnp.result_type(x))

    def initial(key, x, **arguments):
        with as_frameworks_compute():
            made = transformed.init(key, x, **arguments)
        return made if stateful else (made, {})

    named = () if modes is not None else _mode_of(initial, like)
    arguments = mode_arguments(named, modes)

    def begin(key):
        return initial(key, jnp.zeros(like.shape, like.dtype), **arguments["training"])

    drawn = params is None
    if drawn:
        params, state = jax.eval_shape(begin, jax.random.key(0))
    elif stateful and state is None:
        raise ValueError(f"state: expected the state of the transformed function, got none; {_HAND_OVER}.")

    def apply(mode: Mode, params, state, x, key):
        before = (params, state) if stateful else (params,)
        made = transformed.apply(*before, *((key,) if random else ()), x, **arguments[mode])
        return made if stateful else (made, state)

    def take(params, state):
        return params, state if stateful else {}

    return Model(
        framework="Haiku",
        name="a transformed function",
        apply=apply,
        params=params,
        state=state if stateful else {},
        begin=begin if drawn else None,
        take=take,
        restarts=True,
        evaluate=_EVALUATE,
        hand_over=_HAND_OVER,
    )


def _mode_of(initial: Callable, x: jax.ShapeDtypeStruct) -> tuple[str, ...]:
    """The argument that says the mode, of which a transformed function's signature tells nothing: none, or one."""
    key = jax.random.key(0)
    for name in ("is_training", *(other for other in MODES if other != "is_training")):
        try:
            jax.eval_shape(lambda x, name=name: initial(key, x, **{name: MODES[name]}), x)
        except TypeError as error:
            if "unexpected keyword" not in str(error):
                return (name,)
            continue
        # What else it says is said where it is called.
        except Exception:
            return (name,)
        return (name,)
    return ()
