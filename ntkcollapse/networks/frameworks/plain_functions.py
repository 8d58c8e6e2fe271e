"""Networks that are pure functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntkcollapse.networks.frameworks.model import Mode, Model, by_path, parameters_of

_EVALUATE = (
    "give a pair (training, evaluation) of functions (params, state, x) ↦ (outputs, state), the second of which uses "
    "running averages and draws nothing, and a third with batch statistics that draws nothing, where the first draws"
)
_HAND_OVER = (
    "functions take what is trained as params and, in a pair, what a pass updates (running statistics) as state: "
    "of((training, evaluation), x, params, state)"
)
# How a function that draws random numbers calls its key.
_KEYS = ("key", "rng")
# What running statistics are called where they stand among parameters.
_STATISTICS = ("batch_stats", "running_mean", "running_var", "moving_mean", "moving_variance", "num_batches_tracked")


def of_functions(functions: Callable | tuple[Callable, ...], params: Any, state: Any) -> Model:
    """Model of f(params, x) ↦ outputs, or of a pair (training, evaluation) of (params, state, x) ↦ (outputs, state).

    A third function is training without dropout. One with an argument `key` or `rng` is given a key of random numbers.
    """
    if params is None:
        raise ValueError("params: expected the parameters of the function, got none; of(f, x, params).")
    for name in by_path(params):
        if wrong := [part for part in name.split("/") if part in _STATISTICS]:
            raise ValueError(
                f"params: expected what is trained, got running statistics among them ({name!r}); "
                f"{_HAND_OVER if wrong[0] != 'batch_stats' else 'take variables[' + repr('params') + '] as params'}."
            )
    given = functions if isinstance(functions, tuple) else (_without_state(functions),) * 2
    by_mode = {"training": given[0], "evaluation": given[1], "coupled": given[2] if len(given) == 3 else given[0]}
    keyed = {mode: next((name for name in _KEYS if name in parameters_of(f)), None) for mode, f in by_mode.items()}
    if state is not None and not isinstance(functions, tuple):
        raise ValueError(f"state: expected none for one function f(params, x), got one; {_EVALUATE}.")
    params = jax.tree.map(jnp.asarray, params)
    state = {} if state is None else jax.tree.map(jnp.asarray, state)

    def apply(mode: Mode, params, state, x, key):
        name = keyed[mode]
        return by_mode[mode](params, state, x, **({} if name is None else {name: key}))

    def take(params, state):
        return params, state

    named = functions[1] if isinstance(functions, tuple) else functions
    return Model(
        framework="functions",
        name=getattr(named, "__name__", type(named).__name__),
        apply=apply,
        params=params,
        state=state,
        take=take,
        evaluate=_EVALUATE,
        hand_over=_HAND_OVER,
    )


def _without_state(f: Callable) -> Callable:
    return lambda params, state, x: (f(params, x), state)
