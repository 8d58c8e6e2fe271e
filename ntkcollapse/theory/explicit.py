"""Explicit steps of order 8 of a reduced flow, in numpy: Dormand and Prince's method.

The whole state is two matrices: V = [M, X, P_1, ..., P_G], below it a row of ones under class means and zeros, and
[W, b]. With E = [W, b] V − [I, 0], the residual and what W makes of the propagators,

    d V/dt = Wᵀ [−E D Γ, −λ_1 E, ..., −λ_G E],        d [W, b]/dt = [−E D, −E S_1(0), ..., −E S_G(0)] Vᵀ,

each E its columns there, less what decays. P_g stands in an eigenbasis of S_g(0), as P_g B_g, so that S_g(0) is its
eigenvalues. An evaluation is three larger products and a small one, into arrays that are there already: for matrices as
small as these a call of numpy takes longer than its multiplications.

References: Hairer, Nørsett and Wanner (1993), Solving Ordinary Differential Equations I, Section II.10, and II.6 for
the polynomial of order 7 between the ends of a step. The coefficients are scipy's.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ntkcollapse.theory.outcome import Outcome

# A step's error is held below the tolerance times the first where ends of steps alone are saved, the second else:
# steps are better at their ends than they say, and worse between them.
AT_ENDS, BETWEEN = 3.0, 0.01


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
    from scipy.integrate import DOP853

    s = DOP853.n_stages
    stages = np.zeros((s + 3, s + 4))
    stages[: s - 1, 1 : s + 1] = DOP853.A[1:]
    stages[s - 1, 1 : s + 1] = DOP853.B
    stages[s:, 1:] = DOP853.A_EXTRA[:, : s + 3]
    nodes = np.concatenate([DOP853.C[1:s], [1.0], DOP853.C_EXTRA])
    return _Tableau(stages, nodes, np.stack([DOP853.E5, DOP853.E3]), DOP853.D)


class _Layout:
    """V over its last row and [W, b] as one vector, and how that is made of a problem's vectors."""

    def __init__(self, problem):
        C, R = problem.targets.shape
        *_, (_, (G, n, _)), _, _ = problem.places
        self.C, self.R, self.G, self.n, self.q = C, R, G, n, R + G * n
        self.end = (n + 1) * self.q
        counts = [place.stop - place.start for place, _ in problem.places]
        number = np.zeros(self.end + C * (n + 1), int)
        V, W = self.views(number)
        V[n] = -1
        *means, P, W[:, :n], W[:, n] = problem.parts(np.arange(sum(counts)))
        V[:n, :R], V[:n, R:] = np.concatenate(means, axis=1), P.swapaxes(0, 1).reshape(n, G * n)
        # Of each number its place in a problem's vector, and the other way; the last row has none.
        self.number, self.inside = number, number >= 0
        self.order = np.argsort(number)[self.q :]
        part = np.repeat(np.arange(len(counts)), counts)[number]
        self.means = np.stack([((part == i) & self.inside) / count for i, count in enumerate(counts)])
        self.rest = np.zeros(len(number))
        self.views(self.rest)[0][n, :R] = problem.ones
        σ, self.bases = np.linalg.eigh(problem.scatter.reshape(G, n, n))
        self.weights, self.place = np.append(problem.sizes, σ), problem.places[-3][0]

    def views(self, y) -> tuple[Any, Any]:
        """V over its last row, (n + 1, q), and [W, b], (C, n + 1)."""
        return y[: self.end].reshape(self.n + 1, self.q), y[self.end :].reshape(self.C, self.n + 1)

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

    def squares(self, *vectors):
        """Mean square of each part, (parts, vectors)."""
        return self.means @ np.square(np.stack(vectors, axis=1))


class _Field:
    """d y/dt at one vector, `at`, whose numbers may change, written to others."""

    def __init__(self, problem, layout: _Layout, at):
        C, R, G, n, q = layout.C, layout.R, layout.G, layout.n, layout.q
        V, W = layout.views(at)
        self.terms, self.at, self.layout = problem.terms, at, layout
        self.V, self.W, self.down = V, W, W[:, :n].T
        # Columns of [W, b] that move.
        self.moving = n + 1 if problem.free else n
        self.up = V[: self.moving].T
        self.decays = None if problem.decays is None else problem.decays[layout.number] * layout.inside
        E, self.EK, self.ED = (np.zeros((C, q)) for _ in range(3))
        self.E, self.labelled = E, E.reshape(-1)[: (C - 1) * (q + 1) + 1 : q + 1]
        self.of_M, self.of_P = E[:, :R], E[:, R:].reshape(C, G, n)
        self.through_M, self.through_P = self.EK[:, :R], self.EK[:, R:].reshape(C, G, n)
        self.of_D, self.minus_D = self.ED[:, :R], -layout.weights

    def into(self, y) -> tuple[Any, Any]:
        """The parts of a vector that are written: its other numbers stay as they are."""
        V, W = self.layout.views(y)
        return V[: self.layout.n], W[:, : self.moving]

    def __call__(self, t, V, W, whole) -> None:
        """Writes d y/dt at time t to the parts V and W of `whole`."""
        Γ, rates = self.terms(t)
        np.matmul(self.W, self.V, out=self.E)
        np.subtract(self.labelled, 1.0, out=self.labelled)
        np.multiply(self.E, self.minus_D, out=self.ED)
        np.matmul(self.of_D, Γ, out=self.through_M)
        np.multiply(self.of_P, -rates[..., None], out=self.through_P)
        np.matmul(self.down, self.EK, out=V)
        np.matmul(self.ED, self.up, out=W)
        if self.decays is not None:
            whole -= self.decays * self.at


class _Steps:
    """The rows y, k_0, ..., k_15 of one step, with room for all of it."""

    def __init__(self, problem, t: float, y):
        self.layout, self.tableau = _Layout(problem), _tableau()
        y = self.layout.packed(y)
        self.point = y.copy()
        self.rows = np.zeros((len(self.tableau.stages) + 2, len(y)))
        self.rows[0] = y
        self.field = _Field(problem, self.layout, self.point)
        self.places = [(*self.field.into(row), row) for row in self.rows]
        self.evaluations = 0
        self.begin(t)

    @property
    def y(self):
        """The state that was reached, as a problem's vector."""
        return self.layout.unpacked(self.rows[0])

    def begin(self, t) -> None:
        """Takes the slope anew, as behind a corner of the vector field."""
        self.point[:] = self.rows[0]
        self.field(t, *self.places[1])
        self.evaluations += 1

    def _evaluate(self, t, h, stages: range) -> None:
        weights = h * self.tableau.stages
        weights[:, 0] = 1.0
        for i in stages:
            np.dot(weights[i, : i + 2], self.rows[: i + 2], out=self.point)
            self.field(t + self.tableau.nodes[i] * h, *self.places[i + 2])
        self.evaluations += len(stages)

    def attempt(self, t, h) -> None:
        """Makes a step, which ends at `point`."""
        self._evaluate(t, h, range(12))

    def error(self, h, allowed: Callable) -> float:
        """Largest error of a part of the step, over what is allowed for parts of these mean squares; inf where none."""
        before, after = self.layout.squares(self.rows[0], self.point).T
        fifth, third = self.layout.squares(*(self.tableau.errors @ self.rows[1:14])).T / allowed(before, after) ** 2
        error = h * (fifth / np.sqrt(fifth + 0.01 * third + np.finfo(float).tiny)).max()
        return float(error) if np.isfinite(error) else np.inf

    def between(self, t, h, θ):
        """States at fractions θ of the step, (T, ·) as problems' vectors."""
        rows, end = self.rows, self.point.copy()
        self._evaluate(t, h, range(12, 15))
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
    steps = _Steps(problem, t, course.y)
    for i, end in enumerate(map(float, ends)):
        if i:
            steps.begin(t)
        while t < end and not halted:
            last = h >= end - t
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
                goals = times[len(states) : np.searchsorted(times, reached, side="right")]
                between = goals[goals < reached]
                if len(between):
                    states += [*steps.between(t, length, (between - t) / length)]
                steps.accept()
                bar.update(reached - t)
                # A step cut short to meet its end says little about longer ones.
                t, h = reached, max(length * min(10.0, factor), h if last else 0.0)
                if len(between) < len(goals):
                    states.append(steps.y)
            fails = attempts >= tolerance.max_steps or t + h <= t
            halted = t < until and (fails or (error <= 1 and accepted % 8 == 0 and not goes_on(t, steps, h)))
        if halted:
            break
    gave_up = attempts >= tolerance.max_steps and t < until
    return course._replace(
        t=np.float64(t),
        y=steps.y,
        h=np.float64(min(h, until - t)),
        steps=attempts,
        rejected=attempts - accepted,
        evaluations=steps.evaluations,
        outcome=Outcome.TOO_MANY_STEPS if gave_up else Outcome.SUCCESSFUL,
    ), states
