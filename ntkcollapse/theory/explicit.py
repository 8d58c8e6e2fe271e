"""Explicit steps of order 8 of a reduced flow, in numpy: Dormand and Prince's method.

The whole state is two matrices: V = [M, X, P_1, ..., P_G], below it a row of ones under class means and zeros, and
[W, b]ᵀ. With Eᵀ = Vᵀ [W, b]ᵀ − [I, 0]ᵀ, the residual and what W makes of the propagators,

    d V/dt = Wᵀ [−E D Γ, −λ_1 E, ..., −λ_G E],        d [W, b]ᵀ/dt = V [−E D, −E S_1(0), ..., −E S_G(0)]ᵀ,

each E its columns there, less what decays. P_g stands in an eigenbasis of S_g(0), as P_g B_g, so that S_g(0) is its
eigenvalues. An evaluation is three larger products and a small one: for matrices as small as these a call of numpy
takes longer than its multiplications, so that all goes to arrays that are there already, each in one piece, and no view
of them is made twice.

References: Hairer, Nørsett and Wanner (1993), Solving Ordinary Differential Equations I, Section II.10, and II.6 for
the polynomial of order 7 between the ends of a step. The coefficients are scipy's.
"""

import math
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import dot, multiply, subtract

from ntkcollapse.theory.outcome import Outcome

# A step's error is held below the tolerance times the first where ends of steps alone are saved, the second else:
# steps are better at their ends than they say, and worse between them.
AT_ENDS, BETWEEN = 10.0, 0.01
_TINY = np.finfo(float).tiny


class _Tableau(NamedTuple):
    """Coefficients on the rows y, k_0, ..., k_15.

    stages (15, 16): where k_1 to k_15 are taken, for y as 1, k_12 at the end; nodes: and when, in steps; errors (2, 13)
    of orders 5 and 3 on k_0 to k_12; between (4, 16) on all k.
    """

    stages: np.ndarray
    nodes: np.ndarray
    errors: np.ndarray
    between: np.ndarray


@cache
def _tableau() -> _Tableau:
    c = _coefficients()
    s = len(c.B)
    stages = np.zeros((s + 3, s + 4))
    stages[: s - 1, 1 : s + 1] = c.A[1:s, :s]
    stages[s - 1, 1 : s + 1] = c.B
    stages[s:, 1:] = c.A[s + 1 :, : s + 3]
    return _Tableau(stages, c.C[1:], np.stack([c.E5, c.E3]), c.D)


def _coefficients() -> Any:
    """scipy's module of them, alone where its file is there: `scipy.integrate` takes half a second to import."""
    name, scipy = "scipy.integrate._ivp.dop853_coefficients", find_spec("scipy")
    assert scipy is not None
    assert scipy.origin is not None
    spec = spec_from_file_location(name, Path(scipy.origin).parent.joinpath(*name.split(".")[1:]).with_suffix(".py"))
    if name in sys.modules or spec is None or spec.loader is None or not Path(str(spec.origin)).is_file():
        return import_module(name)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Order(NamedTuple):
    """Of each number of a layout its place in a problem's vector, and the other way; the row of ones has none.

    means: columns, which take squares to their means over the parts of the state.
    """

    number: np.ndarray
    inside: np.ndarray
    order: np.ndarray
    means: np.ndarray


class _Layout:
    """V over its last row and [W, b]ᵀ as one vector, and how that is made of a problem's vectors."""

    def __init__(self, problem):
        C, R = problem.targets.shape
        *_, (self.place, (G, n, _)), _, _ = problem.places
        self.C, self.R, self.G, self.n, self.q = C, R, G, n, R + G * n
        self.end = (n + 1) * self.q
        self.number, self.inside, self.order, self.means = _ordered(C, R, G, n)
        self.rest = np.zeros(len(self.number))
        self.views(self.rest)[0][n, :R] = problem.ones
        σ, self.bases = np.linalg.eigh(problem.scatter.reshape(G, n, n))
        self.weights = np.append(problem.sizes, σ)

    def views(self, y) -> tuple[Any, Any]:
        """V over its last row, (n + 1, q), and [W, b]ᵀ, (n + 1, C), of a vector or of each of several."""
        shape = (*y.shape[:-1], self.n + 1)
        return y[..., : self.end].reshape(*shape, self.q), y[..., self.end :].reshape(*shape, self.C)

    def packed(self, y):
        """A problem's vector in this layout."""
        return np.where(self.inside, self._based(y, self.bases)[self.number], self.rest)

    def unpacked(self, y):
        """A problem's vector of one in this layout, or of each of several."""
        return self._based(y[..., self.order], self.bases.swapaxes(1, 2))

    def _based(self, y, bases):
        """A problem's vector, a new one, with P_g B_g in place of P_g."""
        y, shape = y.copy(), (*y.shape[:-1], *self.bases.shape)
        y[..., self.place] = (y[..., self.place].reshape(shape) @ bases).reshape(*shape[:-3], -1)
        return y


@lru_cache(maxsize=4)
def _ordered(C: int, R: int, G: int, n: int) -> _Order:
    q, shapes = R + G * n, ((n, C), *([(n, R - C)] if R > C else []), (G, n, n), (C, n), (C,))
    counts = [math.prod(shape) for shape in shapes]
    *means, P, W, b = map(np.reshape, np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1]), shapes)
    rows = np.hstack([*means, P.swapaxes(0, 1).reshape(n, G * n)])
    number = np.concatenate([rows.ravel(), np.full(q, -1), W.T.ravel(), b])
    inside, part = number >= 0, np.repeat(np.arange(len(counts)), counts)[number]
    shares = [((part == i) & inside) / count for i, count in enumerate(counts)]
    return _Order(number, inside, np.argsort(number)[q:], np.stack(shares, axis=1))


def _field(problem, layout: _Layout, at) -> Callable:
    """The function (t, V, W, row) that writes d y/dt at the vector `at`, whose numbers may change, to parts of a row.

    Its arrays are cells of a closure, which are at hand sooner than attributes.
    """
    C, R, q = layout.C, layout.R, layout.q
    V, W = layout.views(at)
    moving, across, down, terms = V[: layout.n + problem.free], V.T, W[: layout.n], problem.terms
    decays = None if problem.decays is None else problem.decays[layout.number] * layout.inside
    # Eᵀ and what of it is multiplied to V and to [W, b]ᵀ: (q, C) each.
    E, EK, ED = (np.zeros((q, C)) for _ in range(3))
    of_M, of_P, through_M, through_P, through = E[:R], E[R:], EK[:R], EK[R:], EK.T
    labelled, labels = E.reshape(-1)[: C * C : C + 1], np.ones(C)
    minus_D = np.repeat(-layout.weights[:, None], C, axis=1)
    known, minus_ΓD, minus_rates = None, np.zeros((R, R)), np.zeros((q - R, C))

    def write(t, into_V, into_W, row) -> None:
        nonlocal known
        now = terms(t)
        if now is not known:
            known, (Γ, rates) = now, now
            minus_ΓD[:] = Γ * -layout.weights[:R]
            minus_rates.reshape(layout.G, -1)[:] = -np.reshape(rates, (-1, 1))
        dot(across, W, E)
        subtract(labelled, labels, labelled)
        multiply(E, minus_D, ED)
        dot(minus_ΓD, of_M, through_M)
        multiply(of_P, minus_rates, through_P)
        dot(down, through, into_V)
        dot(moving, ED, into_W)
        if decays is not None:
            row -= decays * at

    return write


class _Steps:
    """The rows y, k_0, ..., k_15 of one step, with room for all of it."""

    def __init__(self, problem, t: float, y):
        self.layout, self.tableau = _Layout(problem), _tableau()
        y = self.layout.packed(y)
        self.point = y.copy()
        self.rows = np.zeros((len(self.tableau.stages) + 2, len(y)))
        self.rows[0] = y
        self.field = _field(problem, self.layout, self.point)
        # The parts of each row that slopes are written to, and the row: its other numbers stay as they are.
        V, W = self.layout.views(self.rows)
        self.places = [*zip(V[:, :-1], W[:, : self.layout.n + problem.free], self.rows, strict=True)]
        self.weights, nodes = self.tableau.stages.copy(), self.tableau.nodes.tolist()
        # Of each stage its weights, the rows they are of, when it is in the step, and where its slope goes.
        self.stages = [
            (self.weights[i, : i + 2], self.rows[: i + 2], node, *self.places[i + 2]) for i, node in enumerate(nodes)
        ]
        # Start and end of the step, and its two errors.
        self.sizes = np.zeros((4, len(y)))
        self.slopes, self.errors = self.rows[1:14], self.sizes[2:]
        self.evaluations = 0
        self.begin(t)

    @property
    def y(self):
        """The state at the beginning of the next step, as a problem's vector."""
        return self.layout.unpacked(self.rows[0])

    @property
    def end(self):
        """The state at which the last one ended."""
        return self.layout.unpacked(self.point)

    def begin(self, t) -> None:
        """Takes the slope anew, as behind a corner of the vector field."""
        self.point[:] = self.rows[0]
        self.field(t, *self.places[1])
        self.evaluations += 1

    def _evaluate(self, t, h, stages: slice) -> None:
        multiply(self.tableau.stages, h, self.weights)
        self.weights[:, 0] = 1.0
        chosen, point, field = self.stages[stages], self.point, self.field
        for weights, rows, node, V, W, row in chosen:
            dot(weights, rows, point)
            field(t + node * h, V, W, row)
        self.evaluations += len(chosen)

    def attempt(self, t, h) -> None:
        """Makes a step, which ends at `point`."""
        self._evaluate(t, h, slice(12))

    def error(self, h, allowed: Callable) -> float:
        """Largest error of a part of the step, over what is allowed for parts of these mean squares; inf where none."""
        sizes = self.sizes
        sizes[0], sizes[1] = self.rows[0], self.point
        dot(self.tableau.errors, self.slopes, self.errors)
        before, after, fifth, third = dot(multiply(sizes, sizes, sizes), self.layout.means)
        allowed = 1 / np.square(allowed(before, after))
        fifth, third = fifth * allowed, third * allowed
        error = h * float((fifth / np.sqrt(fifth + 0.01 * third + _TINY)).max())
        return error if error < np.inf else np.inf

    def between(self, t, h, θ):
        """States at fractions θ of the step, (T, ·) as problems' vectors."""
        rows, end = self.rows, self.point.copy()
        self._evaluate(t, h, slice(12, 15))
        δ, begins, ends = end - rows[0], h * rows[1], h * rows[13]
        parts = [δ, begins - δ, 2 * δ - begins - ends, *(h * self.tableau.between @ rows[1:])]
        self.point[:] = end
        j, θ = np.arange(len(parts)), np.asarray(θ)[:, None]
        weights = θ ** ((j + 2) // 2) * (1 - θ) ** ((j + 1) // 2)
        return self.layout.unpacked(rows[0] + weights @ np.stack(parts))

    def accept(self) -> None:
        """Begins the next step where this one ended."""
        self.rows[0], self.rows[1] = self.point, self.rows[13]


def explicit_steps(
    problem, course, times, ends, tolerance, *, first: float, goes_on: Callable, bar
) -> tuple[Any, list]:
    """Leads a course by explicit steps for as long as `goes_on(t, steps, h)`: where it is then, and the states saved.

    problem, course, tolerance: of `extrapolation`; ends: of the intervals within which the flow is smooth; first: the
    first step's length.
    """
    lenience, until = AT_ENDS if len(times) == 2 else BETWEEN, float(times[-1])
    # Below this, an estimate of errors is rounding.
    rtol = max(float(tolerance.rtol), 100 * np.finfo(float).eps)

    def allowed(before, after):
        return lenience * (rtol * np.sqrt(np.maximum(before, after)) + tolerance.absolute)

    t, h, states, attempts, accepted, halted = float(course.t), first, [course.y], 0, 0, False
    goal = times[1] if len(times) > 1 else np.inf
    steps = _Steps(problem, t, course.y)
    for i, end in enumerate(map(float, ends)):
        if i:
            steps.begin(t)
        while t < end and not halted:
            # Rather a little longer than a small step more.
            last = 1.1 * h >= end - t
            length = end - t if last else h
            steps.attempt(t, length)
            error = steps.error(length, allowed)
            attempts += 1
            factor = 0.9 * max(error, 1e-9) ** -0.125
            if error > 1:
                h = length * max(0.2, factor)
            else:
                accepted += 1
                reached = end if last else t + length
                if reached >= goal:
                    goals = times[len(states) : np.searchsorted(times, reached, side="right")]
                    between = goals[goals < reached]
                    states += [*steps.between(t, length, (between - t) / length)] if len(between) else []
                    if len(between) < len(goals):
                        states.append(steps.end)
                    goal = times[len(states)] if len(states) < len(times) else np.inf
                steps.accept()
                bar.update(reached - t)
                # A step cut short to meet its end says little about longer ones.
                t, h = reached, max(length * min(10.0, factor), h if last else 0.0)
            fails = attempts >= tolerance.max_steps or t + h <= t
            halted = t < until and (fails or (error <= 1 and accepted % 8 == 0 and not goes_on(t, steps, h)))
        if halted:
            break
    gave_up = attempts >= tolerance.max_steps and t < until
    return course._replace(
        t=np.float64(t),
        y=states[-1] if t >= until else steps.y,
        h=np.float64(min(h, until - t)),
        steps=attempts,
        rejected=attempts - accepted,
        evaluations=steps.evaluations,
        outcome=Outcome.TOO_MANY_STEPS if gave_up else Outcome.SUCCESSFUL,
    ), states
