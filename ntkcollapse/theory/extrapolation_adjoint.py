"""Reverse mode through `extrapolation`: the adjoint of the steps that were taken.

Column c of a step of length h is δ ← δ + S τ f(t + i τ, y + δ), i = 0, ..., c − 1, τ = h/c, S = (1 − τ J)⁻¹, and the
step is y + Σ_c w_c δ_c. Backwards, a cotangent μ of δ goes

    ν = τ Sᵀ μ,   μ ← μ + f_yᵀ ν,   with f_yᵀ ν added to the cotangent of y, and f_pᵀ ν to that of the parameters p.

Steps, their columns and J are held as they were. The method keeps its order whatever matrix stands for J, so that this
is the same method on the variational equations, with the error that the tolerance leaves: not the derivative of the
computed numbers to rounding, but that of the flow to some ten rtol.

What is kept of the forward pass: see `adjoint`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ntkcollapse._precision import exact_products
from ntkcollapse.compiled import compiled_quickly
from ntkcollapse.theory.adjoint import Record
from ntkcollapse.theory.extrapolation import (
    _TRACED,
    MOST,
    MOST_IN_SINGLE_PRECISION,
    _begin,
    _integration,
    _Jacobian,
    _problem,
    _state,
    _step,
    _weights,
    integrate_reduced,
)
from ntkcollapse.theory.outcome import Integration


@eqx.filter_custom_vjp
def integrate_differentiably(problem, options) -> Integration:
    """`integrate_reduced(*problem, **options)`, problem (flow, state, times), with derivatives in reverse mode.

    Of the states at all times, with respect to the arrays of the flow, to the state at the start and to the times.
    Memory: 192 states. After more than 32,768 steps the derivative is NaN.
    """
    return integrate_reduced(*problem, **options)


@integrate_differentiably.def_fwd
def _forward(perturbed, problem, options):
    del perturbed
    out, states, record = _recorded(problem, options)
    return out, (states, record)


@integrate_differentiably.def_bwd
def _backward(residuals, grad_out, perturbed, problem, options):
    del perturbed, options
    states, record = residuals
    # Of a call that has returned, with the digits that it computed in.
    with exact_products():
        return _pulled_back(problem, states, record, grad_out.states)


@compiled_quickly(below=4e3)
def _recorded(problem, options):
    """The integration, its states as vectors (T, ·), and the record of its steps."""
    flow, start, times = problem
    problem, course, tolerance = _begin(flow, start, times, **options)

    def advance(carry, goal_and_number):
        goal, i = goal_and_number

        def step(carry):
            course, record = carry
            after = _step(problem, course, goal, tolerance)
            # The saved time at which it ends, or −1.
            arrives = jnp.where(after.t >= goal, i, -1)
            numbers = {"t": course.t, "h": after.t - course.t, "columns": after.made, "arrives": arrives}
            return after, record.with_step(after.t > course.t, course.y, **numbers)

        course, record = jax.lax.while_loop(lambda carry: carry[0].is_before(goal), step, carry)
        return (course, record), jnp.where(course.t >= goal, course.y, jnp.inf)

    goals = jnp.asarray(times, course.y.dtype), jnp.arange(len(times))
    kinds = {"t": course.y.dtype, "h": course.y.dtype, "columns": jnp.int32, "arrives": jnp.int32}
    (course, record), states = jax.lax.scan(advance, (course, Record.empty(course.y, **kinds)), goals)
    return _integration(problem, start, course, states), states, record


class _Adjoint(NamedTuple):
    """The steps of one flow, forwards and backwards, on vectors; `arrays` are the parameters p of its vector field."""

    arrays: Any
    static: Any
    dtype: Any

    def problem(self, arrays):
        return _problem(eqx.combine(arrays, self.static), _TRACED, self.dtype)

    def speed(self, arrays, t, y):
        """f."""
        return self.problem(arrays).speed(t, y)

    @property
    def weights(self):
        """w[k, c − 1]: what column c of k counts."""
        return jnp.asarray(_weights(MOST_IN_SINGLE_PRECISION if self.dtype.itemsize == 4 else MOST)[0], self.dtype)

    def column(self, t, y, solve, τ, c):
        """δ after each of the c steps of a column, behind zeros at the start: (most + 1, ·)."""
        problem = self.problem(self.arrays)

        def euler(i, all_δ):
            δ = all_δ[i]
            return all_δ.at[i + 1].set(δ + solve(τ * problem.speed(t + i.astype(y.dtype) * τ, y + δ)))

        return jax.lax.fori_loop(0, c, euler, jnp.zeros((self.weights.shape[1] + 1, len(y)), y.dtype))

    def step(self, t, y, h, columns):
        """y at the end of a step."""
        jacobian = _Jacobian.at(self.problem(self.arrays), t, y)

        def add(c, reached):
            τ = h / c.astype(h.dtype)
            δ = self.column(t, y, jacobian.solver(_TRACED.held(τ)), τ, c)[c]
            return reached + self.weights[columns, c - 1] * δ

        return jax.lax.fori_loop(1, columns + 1, add, y)

    def step_pulled_back(self, t, y, h, columns, at_end, of_arrays):
        """Cotangent of y from that of the step's end; those of the parameters are added up."""
        jacobian = _Jacobian.at(self.problem(self.arrays), t, y)

        def add(c, carry):
            τ = h / c.astype(h.dtype)
            solve = jacobian.solver(_TRACED.held(τ))
            all_δ = self.column(t, y, solve, τ, c)
            transposed = jax.linear_transpose(solve, y)

            def euler(i, carry):
                i = c - 1 - i
                μ, at_start, of_arrays = carry
                (ν,) = transposed(μ)
                _, pull_back = jax.vjp(
                    lambda arrays, y: self.speed(arrays, t + i.astype(y.dtype) * τ, y), self.arrays, y + all_δ[i]
                )
                more, through_f = pull_back(τ * ν)
                return μ + through_f, at_start + through_f, jax.tree.map(jnp.add, of_arrays, more)

            μ = self.weights[columns, c - 1] * at_end
            _, at_start, of_arrays = jax.lax.fori_loop(0, c, euler, (μ, *carry))
            return at_start, of_arrays

        return jax.lax.fori_loop(1, columns + 1, add, (at_end, of_arrays))


@compiled_quickly(below=4e3)
def _pulled_back(problem, states, record: Record, grad_states):
    """Cotangents of flow, start and times from those of the states, of which unused ones are None."""
    flow, start, times = problem
    arrays, static = eqx.partition(flow, eqx.is_inexact_array)
    dtype = states.dtype
    adjoint = _Adjoint(arrays, static, dtype)
    whole = adjoint.problem(arrays)
    parts = [
        jnp.zeros((len(states), *shape), dtype) if part is None else part.astype(dtype)
        for part, (_, shape) in zip(_parts(grad_states), whole.places, strict=True)
    ]
    grad_states = jnp.concatenate([part.reshape(len(states), -1) for part in parts], axis=1)
    reached = jnp.isfinite(states).all(1)
    grad_states = jnp.where(reached[:, None], grad_states, 0.0)

    def step(of, y):
        return adjoint.step(of["t"], y, of["h"], of["columns"])

    def pull_back(of, y, carry):
        λ, of_arrays = carry
        λ = λ + jnp.where(of["arrives"] >= 0, grad_states[of["arrives"]], 0.0)
        return adjoint.step_pulled_back(of["t"], y, of["h"], of["columns"], λ, of_arrays)

    nothing = jnp.zeros_like(states[0]), jax.tree.map(jnp.zeros_like, arrays)
    λ, of_arrays = record.backwards(step, pull_back, nothing)
    # d y(t_i)/d t_i = f, and an earlier begin is a longer way.
    safe = jnp.where(reached[:, None], states, 0.0)
    speeds = jax.vmap(lambda t, y: whole.speed(t, y))(jnp.asarray(times, dtype), safe)
    of_times = (grad_states * speeds).sum(1).at[0].set(-(λ * speeds[0]).sum())
    λ = λ + grad_states[0]
    of_start = _state(whole, start, record.known * λ)
    of_arrays = jax.tree.map(lambda x: record.known * x, of_arrays)
    return of_arrays, of_start, (record.known * of_times).astype(times.dtype)


def _parts(state) -> list[Any]:
    """M, X where there is one, P, W and b, in the order of a vector."""
    return [state.M, *([] if state.X is None else [state.X]), state.P, state.W, state.b]
