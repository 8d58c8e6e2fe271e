"""Discrete steps: gradient descent of a model, as a solver that takes steps of one length."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Descent(diffrax.AbstractSolver):
    """Gradient descent with heavy-ball momentum along a vector field f, v(0) = 0.

        v ← β v + f(t, y),    y ← y + η v

    A step moves a linear image of the state as the image of f does: what reduces the flow exactly reduces the steps.

    Args:
        step_length: η.
        momentum: β in [0, 1).
    """

    term_structure = diffrax.ODETerm  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]
    interpolation_cls = diffrax.LocalLinearInterpolation  # pyright: ignore

    step_length: Float[Array, ""]
    momentum: Float[Array, ""]

    def order(self, terms) -> int:
        del terms
        return 1

    def init(self, terms, t0, t1, y0, args) -> Any:
        del terms, t0, t1, args
        return jax.tree.map(jnp.zeros_like, y0)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        # The times t0 and t1 only place the step: their difference has their rounding, η has not.
        del t1, made_jump
        force = terms.vf(t0, y0, args)
        v = jax.tree.map(lambda v, f: self.momentum.astype(f.dtype) * v + f, solver_state, force)
        y1 = jax.tree.map(lambda y, v: y + self.step_length.astype(y.dtype) * v, y0, v)
        return y1, None, {"y0": y0, "y1": y1}, v, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)
