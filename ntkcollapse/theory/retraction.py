"""A solver that puts every step back on the surface that the flow should not leave."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class RetractedState(NamedTuple):
    """The wrapped solver's state, and the largest correction so far, relative to the state."""

    inner: Any
    largest_correction: Float[Array, ""]


class Retracted(diffrax.AbstractWrappedSolver):
    """Any diffrax solver, with its result after each step replaced by `retract(result)`.

    A flow evaluated at retracted states, f(t, R(y)), is tangent to the surface, so that the correction of a step is of
    the size of its error; the largest one is kept in the state, and belongs in every report of such a run.

    Args:
        solver: the solver to wrap.
        retract: state → nearest state of the surface.
    """

    solver: diffrax.AbstractSolver  # pyright: ignore[reportIncompatibleVariableOverride]
    retract: Callable

    @property
    def term_structure(self):  # pyright: ignore
        return self.solver.term_structure

    @property
    def interpolation_cls(self):  # pyright: ignore
        return self.solver.interpolation_cls

    @property
    def term_compatible_contr_kwargs(self):  # pyright: ignore
        return self.solver.term_compatible_contr_kwargs

    @property
    def scan_kind(self):
        return self.solver.scan_kind  # pyright: ignore[reportAttributeAccessIssue]

    def order(self, terms):
        return self.solver.order(terms)

    def strong_order(self, terms):
        return self.solver.strong_order(terms)

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def func(self, terms, t0, y0, args):
        return self.solver.func(terms, t0, y0, args)

    def init(self, terms, t0, t1, y0, args):
        zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(y0)))
        return RetractedState(self.solver.init(terms, t0, t1, y0, args), zero)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        inner, largest = solver_state
        y1, error, dense_info, inner, result = self.solver.step(terms, t0, t1, y0, args, inner, made_jump)
        allowed = self.retract(y1)
        off, size = (
            jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))
            for tree in (jax.tree.map(jnp.subtract, y1, allowed), allowed)
        )
        largest = jnp.maximum(largest, off / jnp.where(size > 0, size, 1))
        return allowed, error, dense_info, RetractedState(inner, largest), result
