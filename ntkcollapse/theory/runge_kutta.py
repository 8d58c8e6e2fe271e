"""Explicit Runge-Kutta steps of any vector field, forward in time, as one small loop.

A solver of diffrax is a table of coefficients and a polynomial between the ends of a step; what leads it is general,
and made for derivatives. Where none are asked for this loop does the same, and is traced and compiled in less than half
of the time: the state is one vector, all stages are one piece of code.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ntkcollapse.theory.adjoint import Record
from ntkcollapse.theory.outcome import Integration, Outcome

# Of the length that the error of a step asks for; how much shorter or longer than the last one a step may be.
SAFETY, SHORTER, LONGER = 0.9, 0.2, 10.0


class _Course(NamedTuple):
    """Where an integration stands: time, state, slope, next step; states saved and how many; steps, rejected ones.

    corrected: the largest correction of a step, relative to the state. record: of the steps, where one is kept.
    """

    t: Any
    y: Any
    slope: Any
    h: Any
    states: Any
    saved: Any
    steps: Any
    rejected: Any
    corrected: Any
    record: Any


def is_led_here(solver: Any, start: PyTree) -> bool:
    """Whether the loop below takes this solver's steps: an explicit pair of diffrax's own, a state of one precision."""
    leaves = jax.tree.leaves(start)
    return (
        isinstance(solver, diffrax.AbstractERK)
        and type(solver).__module__.startswith("diffrax.")
        and isinstance(solver.tableau, diffrax.ButcherTableau)
        and solver.tableau.b_error is not None
        and len({jnp.result_type(x) for x in leaves}) == 1
        and all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves)
    )


def coefficients(solver: diffrax.AbstractERK, dtype) -> tuple[Array, Array]:
    """Weights of slopes where each stage is taken, the end of the step last; and the stages' times."""
    table = solver.tableau
    assert isinstance(table, diffrax.ButcherTableau)
    s = table.num_stages
    weights = np.zeros((s + 1, s))
    for i, row in enumerate([*table.a_lower, table.b_sol], 1):
        weights[i, : len(row)] = row
    return jnp.asarray(weights, dtype), jnp.asarray([0.0, *table.c], dtype)


def integrate_explicitly(flow, start: PyTree, times: Float[Array, " T"], **options: Any) -> Integration:
    """Integrates d state/dt = `flow(t, state)` from times[0] to times[-1], saving at all of them; not differentiable.

    Step sizes, errors, what failures leave, and what `retract` does to the end of a step and to what is saved: those of
    `integrate`. Options: those of `explicit_steps`.
    """
    return explicit_steps(flow, start, times, **options)[0]


def explicit_steps(
    flow,
    start: PyTree,
    times: Float[Array, " T"],
    *,
    solver: diffrax.AbstractERK,
    rtol: float | Float[Array, ""],
    atol: float | Float[Array, ""],
    max_steps: int,
    by_part: bool = True,
    retract: Callable | None = None,
    recorded: bool = False,
) -> tuple[Integration, Record | None]:
    """The integration, and the record of its steps where one is kept: begin t, length h and `end` of each."""
    y, unravel = ravel_pytree(start)
    dtype, table = y.dtype, solver.tableau
    assert isinstance(table, diffrax.ButcherTableau)
    (weights, nodes), error, s = coefficients(solver, dtype), jnp.asarray(table.b_error, dtype), table.num_stages
    order = solver.order(diffrax.ODETerm(lambda t, y, args: y)) or 1
    ends = itertools.accumulate((x.size for x in jax.tree.leaves(start)), initial=0)
    parts = [slice(i, j) for i, j in itertools.pairwise(ends) if j > i]
    limits = jnp.finfo(dtype)

    def slope(t, y):
        return ravel_pytree(flow(t, unravel(y)))[0]

    def rms(*vectors):
        """Root mean square of each part of each vector."""
        squares = jnp.square(jnp.stack(vectors))
        return jnp.sqrt(jnp.stack([squares[:, part].mean(1) for part in parts], axis=1))

    begun = slope(times[0], y)
    sizes, speeds = rms(y, begun)
    # A part that begins at zero is held to 1000 rounding units as well.
    floor = jnp.where(sizes > 0, 0.0, 1000 * limits.eps / rtol) + limits.tiny

    def error_of(before, after, missing):
        if by_part:
            *ends, missing = rms(before, after, missing)
            ratio = missing / (atol + rtol * (jnp.maximum(*ends) + floor))
        else:
            ratio = rms(missing / (atol + rtol * jnp.maximum(jnp.abs(before), jnp.abs(after))))
        # A step that overflowed is a bad step: left as NaN, no length would ever be good.
        return jnp.where(jnp.isfinite(ratio).all(), ratio.max(), 1e8)

    def step(course: _Course) -> _Course:
        t, y, h = course.t, course.y, jnp.minimum(course.h, times[-1] - course.t)
        first = course.slope if table.fsal else slope(t, y)
        slopes = jnp.zeros((s, y.size), dtype).at[0].set(first)

        def stage(i, carry):
            slopes, _ = carry
            # One slope after the other: a product with all rows, of which most are zero yet, takes longer.
            at = jax.lax.fori_loop(0, i, lambda j, at: at + h * weights[i, j] * slopes[j], y)
            return slopes.at[i].set(slope(t + nodes[i] * h, at)), at

        slopes, reached = jax.lax.fori_loop(1, s, stage, (slopes, y))
        if not table.ssal:
            reached = y + h * (weights[s] @ slopes)
        # What is saved goes by where the step ended before it was put back.
        between = solver.interpolation_cls(t0=t, t1=t + h, y0=y, y1=reached, k=h * slopes)
        corrected, on_surface = course.corrected, reached
        if retract is not None:
            on_surface = ravel_pytree(retract(unravel(reached)))[0]
            norm = jnp.linalg.norm(on_surface)
            off = jnp.linalg.norm(reached - on_surface) / jnp.where(norm > 0, norm, 1)
            corrected = jnp.maximum(corrected, off)
        size = error_of(y, on_surface, h * (error @ slopes))
        kept = size <= 1
        factor = SAFETY * jnp.maximum(size, 1e-10) ** (-1 / order)
        factor = jnp.clip(factor, jnp.where(kept, 1.0, SHORTER), jnp.where(kept, LONGER, SAFETY))
        end = jnp.where(h < times[-1] - t, t + h, times[-1])

        def save(i, states):
            return states.at[i].set(jnp.where(times[i] < end, between.evaluate(times[i]), reached))

        saved = jnp.where(kept, (times <= end).sum(), course.saved)
        return _Course(
            t=jnp.where(kept, end, t),
            y=jnp.where(kept, on_surface, y),
            slope=jnp.where(kept, slopes[-1], first),
            h=h * factor,
            states=jax.lax.fori_loop(course.saved, saved, save, course.states),
            saved=saved,
            steps=course.steps + 1,
            rejected=course.rejected + jnp.where(kept, 0, 1),
            corrected=jnp.where(kept, corrected, course.corrected),
            record=course.record.with_step(kept, y, t=t, h=h, end=end) if recorded else None,
        )

    def goes_on(course: _Course):
        return (course.saved < len(times)) & (course.steps < max_steps) & (course.t + course.h > course.t)

    ratios = jnp.where((sizes > 0) & (speeds > 0), sizes / speeds, jnp.inf)
    states = jnp.full((len(times), y.size), jnp.inf, dtype).at[0].set(y)
    h = jnp.minimum(0.01 * ratios.min(), times[-1] - times[0])
    none = jnp.asarray(0)
    record = Record.empty(y, t=times.dtype, h=h.dtype, end=times.dtype) if recorded else None
    course = _Course(times[0], y, begun, h, states, none + 1, none, none, jnp.zeros((), dtype), record)
    course = jax.lax.while_loop(goes_on, step, course)
    stopped = jnp.where(course.steps < max_steps, Outcome.STEP_TOO_SMALL, Outcome.TOO_MANY_STEPS)
    states = jax.vmap(unravel)(course.states)
    statistics = {
        "num_steps": course.steps,
        "num_accepted_steps": course.steps - course.rejected,
        "num_rejected_steps": course.rejected,
    }
    if retract is not None:
        states, statistics = jax.vmap(retract)(states), statistics | {"largest_correction": course.corrected}
    outcome = jnp.where(course.saved == len(times), Outcome.SUCCESSFUL, stopped)
    return Integration(states=states, statistics=statistics, outcome=outcome), course.record
