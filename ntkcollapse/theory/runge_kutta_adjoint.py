"""Reverse mode through `runge_kutta`: the adjoint of the steps that were taken.

A step of length h from y has the slopes k_i = f(t + c_i h, y + h Σ_j a_ij k_j), and ends at y + h Σ_i b_i k_i.
Backwards a cotangent λ of that end goes, from the last stage to the first, with κ_i = h b_i λ at first,

    ν = f_yᵀ κ_i,   κ_j ← κ_j + h a_ij ν,   λ ← λ + ν,   and f_pᵀ κ_i is added to the cotangent of the parameters p.

What is saved within a step is a polynomial in y, its end and the k_i, and adds to their cotangents before. Steps are
held as they were: with the derivative of what they leave of the flow, to some ten rtol, not that of their lengths.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ntkcollapse._precision import exact_products
from ntkcollapse.compiled import compiled_quickly
from ntkcollapse.theory.adjoint import Record
from ntkcollapse.theory.outcome import Integration
from ntkcollapse.theory.runge_kutta import coefficients, explicit_steps, integrate_explicitly


@eqx.filter_custom_vjp
def integrate_explicitly_differentiably(problem, options) -> Integration:
    """`integrate_explicitly(*problem, **options)`, problem (flow, state, times), with derivatives in reverse mode.

    Of the states at all times, with respect to the arrays of the flow, to the state at the start and to the times; what
    the flow's functions close over is a constant. Not with `retract`. Memory: 192 states. After more than 32,768 steps
    the derivative is NaN.
    """
    return _alone(problem, options)


@compiled_quickly(below=4e3)
def _alone(problem, options):
    return integrate_explicitly(*problem, **options)


@integrate_explicitly_differentiably.def_fwd
def _forward(perturbed, problem, options):
    del perturbed
    out, record = _recorded(problem, options)
    return out, (out.states, record)


@integrate_explicitly_differentiably.def_bwd
def _backward(residuals, grad_out, perturbed, problem, options):
    del perturbed
    states, record = residuals
    # Of a call that has returned, with the digits that it computed in.
    with exact_products():
        return _pulled_back(problem, options["solver"], states, record, grad_out.states)


@compiled_quickly(below=4e3)
def _recorded(problem, options):
    return explicit_steps(*problem, **options, recorded=True)


@compiled_quickly(below=4e3)
def _pulled_back(problem, solver, states, record: Record, grad_states):
    """Cotangents of flow, start and times from those of the states, of which unused ones are None."""
    flow, start, times = problem
    arrays, static = eqx.partition(flow, eqx.is_inexact_array)
    _, unravel = ravel_pytree(start)
    grad_states = jax.tree.map(lambda x, grad: jnp.zeros_like(x) if grad is None else grad, states, grad_states)
    states, grad_states = (jax.vmap(lambda state: ravel_pytree(state)[0])(x) for x in (states, grad_states))
    reached = jnp.isfinite(states).all(1)
    grad_states = jnp.where(reached[:, None], grad_states, 0.0)
    weights, nodes = coefficients(solver, states.dtype)
    s = len(nodes)

    def speed(arrays, t, y):
        return ravel_pytree(eqx.combine(arrays, static)(t, unravel(y)))[0]

    def stages(t, h, y):
        """Slopes of a step, and the states that they are of."""

        def stage(i, carry):
            slopes, at = carry
            y_i = y + h * (weights[i] @ slopes)
            return slopes.at[i].set(speed(arrays, t + nodes[i] * h, y_i)), at.at[i].set(y_i)

        none = jnp.zeros((s, y.size), y.dtype)
        return jax.lax.fori_loop(0, s, stage, (none, none))

    def step(of, y):
        return y + of["h"] * (weights[s] @ stages(of["t"], of["h"], y)[0])

    def pull_back(of, y, carry):
        (λ, of_arrays), t, h, end = carry, of["t"], of["h"], of["end"]
        slopes, at = stages(t, h, y)
        reached = y + h * (weights[s] @ slopes)

        def saved(i, carry):
            def at_time(y, reached, k):
                between = solver.interpolation_cls(t0=t, t1=t + h, y0=y, y1=reached, k=k)
                return jnp.where(times[i] < end, between.evaluate(times[i]), reached)

            _, pull = jax.vjp(at_time, y, reached, h * slopes)
            return jax.tree.map(jnp.add, carry, pull(grad_states[i]))

        first, last = (jnp.searchsorted(times, x, side="right") for x in (t, end))
        of_y, λ, κ = jax.lax.fori_loop(first, last, saved, (jnp.zeros_like(y), λ, jnp.zeros_like(slopes)))
        κ = h * (κ + weights[s][:, None] * λ[None, :])

        def stage(i, carry):
            i = s - 1 - i
            λ, κ, of_arrays = carry
            _, pull = jax.vjp(lambda arrays, y: speed(arrays, t + nodes[i] * h, y), arrays, at[i])
            more, ν = pull(κ[i])
            κ = κ + h * weights[i][:, None] * ν[None, :]
            return λ + ν, κ, jax.tree.map(jnp.add, of_arrays, more)

        λ, _, of_arrays = jax.lax.fori_loop(0, s, stage, (λ + of_y, κ, of_arrays))
        return λ, of_arrays

    nothing: Any = jnp.zeros_like(states[0]), jax.tree.map(jnp.zeros_like, arrays)
    λ, of_arrays = record.backwards(step, pull_back, nothing)
    # d y(t_i)/d t_i = f, and an earlier begin is a longer way.
    safe = jnp.where(reached[:, None], states, 0.0)
    speeds = jax.vmap(lambda t, y: speed(arrays, t, y))(times, safe)
    of_times = (grad_states * speeds).sum(1).at[0].set(-(λ * speeds[0]).sum())
    of_start = unravel(record.known * (λ + grad_states[0]))
    of_arrays = jax.tree.map(lambda x: record.known * x, of_arrays)
    return of_arrays, of_start, (record.known * of_times).astype(times.dtype)
