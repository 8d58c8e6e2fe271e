"""Starts, descent and exact matrices that tests of models share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

from ntkcollapse import Classes, LastLayer
from tests.cases import random_state


def simplex(C: int) -> np.ndarray:
    return np.eye(C) - 1 / C


def scaled_start(n: int, classes: Classes, size: float, seed: int = 0, bias: bool = False) -> LastLayer:
    state = random_state(n, classes, seed)
    return LastLayer(H=size * state.H, W=size * state.W, b=size * state.b if bias else 0 * state.b)


def descend(objective, start, *, tries: int = 1):
    """Least value and its arguments by L-BFGS from random starts: knows nothing of the model but its objective."""
    flat, unravel = ravel_pytree(start)
    both = jax.jit(jax.value_and_grad(lambda x: objective(unravel(x))))
    best = None
    for seed in range(tries):
        x0 = np.random.default_rng(seed).normal(size=flat.shape)
        out = minimize(
            lambda x: tuple(np.asarray(v) for v in both(x)),
            x0,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-11},
        )
        best = out if best is None or out.fun < best.fun else best
    assert best is not None
    return best.fun, unravel(jnp.asarray(best.x))


def penalised(flow, state: LastLayer):
    """What a flow with K = I and weight decay descends."""
    decay, f = flow.weight_decay, state.logits if flow.bias == "free" else state.W @ state.H
    squares = decay.H * jnp.sum(state.H**2) + decay.W * jnp.sum(state.W**2) + decay.b * jnp.sum(state.b**2)
    return flow.loss.value(f, flow.classes.Y) + squares / 2
