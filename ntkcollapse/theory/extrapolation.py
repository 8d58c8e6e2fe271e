"""Integration of the reduced flow by linearly implicit extrapolation, with its Jacobian solved in closed form.

One step of length h makes k columns. Column j goes from t to t + h in j linearly implicit Euler steps of τ = h/j,

    (1 − τ J) δ = τ f(t + i τ, y),    J the Jacobian at (t, y(t)),

and extrapolation in 1/j leaves an error of order k + 1 a step. Order and step follow from the errors of the columns.
J need not be exact for that (it makes the columns stable and their errors small), so that what costs much and matters
little is left out of it: see `_Jacobian`. Unlike that of explicit methods, the work grows little with stiffness.

Outside of JAX's transformations it runs in numpy: the matrices are small, and nothing is compiled. Under `vmap` and
`jit` the same lines are traced.

In numpy it begins with explicit steps of order 8 where these take less work: over short times, and where many digits
are asked for. In numpy, too, times that are saved are met by polynomials between the ends of steps.

References: Hairer and Wanner (1996), Solving Ordinary Differential Equations II, Section IV.9; Hairer and Ostermann
(1990), Dense output for extrapolation methods; Hairer, Nørsett and Wanner (1993), Section II.10 (the explicit method).
"""

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from ntkcollapse._arrays import one_thread
from ntkcollapse._checks import is_traced
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.theory.explicit import explicit_steps
from ntkcollapse.theory.outcome import Integration, Outcome
from ntkcollapse.theory.reduced import ReducedFlow, ReducedState, over_groups, speed, weights_of

# Columns of a step. Rounding is amplified by the largest weight in the extrapolation: 1e3 for nine columns.
FEWEST, MOST, MOST_IN_SINGLE_PRECISION = 3, 9, 5
# How often the solution of a linear system is corrected for the residual's part of the Jacobian.
CORRECTIONS = 2
# By how much a step's error may exceed the tolerance: measured to leave the final error near rtol.
LENIENCE = 2.0
# Explicit evaluations that cost as much as extrapolation over a long time at a tolerance of 1e-6, for large matrices.
AFFORDABLE = 4400.0
# Below this tolerance steps end at every saved time: differences of high order have too few digits.
INTERPOLATED = 1e-7


@cache
def _weights(most: int) -> tuple[np.ndarray, np.ndarray]:
    """w[k, j]: what column j counts in the extrapolation of columns 1 to k, and of columns 2 to k: one order lower."""

    def lagrange(k, first):
        row = np.zeros(most)
        for i in range(first, k + 1):
            row[i - 1] = np.prod([i / (i - other) for other in range(first, k + 1) if other != i])
        return row

    none = np.zeros(most)
    return np.stack([none, *(lagrange(k, 1) for k in range(1, most + 1))]), np.stack(
        [none, none, *(lagrange(k, 2) for k in range(2, most + 1))]
    )


@cache
def _between(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """What a polynomial between the ends of a step is made of, from all δ of its columns, those of column 1 first.

    Rows: the increment, and derivatives h^κ y^(κ)/κ! at the end, κ = 1, 2, ..., by backward differences of order κ that
    are extrapolated as the increment is; the column of one step, which begins with the start, has no part in them.
    """
    rows = columns * (columns + 1) // 2
    first = np.cumsum([0, *range(1, columns + 1)])
    end, derivatives = np.zeros(rows), np.zeros((columns - 1, rows))
    for j, weight in enumerate(_weights(columns)[0][columns], 1):
        end[first[j] - 1] = weight
    for κ in range(1, columns):
        js = np.arange(κ + 1, columns + 1)
        for j in js:
            weight = np.prod([j / (j - other) for other in js if other != j]) * j**κ / math.factorial(κ)
            for i in range(κ + 1):
                derivatives[κ - 1, first[j] - 1 - i] += weight * (-1) ** i * math.comb(κ, i)
    return end, derivatives


def _interpolated(columns: int, trail, θ):
    """Increments at the fractions θ of a step, by the polynomial that keeps its ends and the derivatives at its end."""
    end, derivatives = _between(columns)
    powers = (np.asarray(θ)[:, None] - 1) ** np.arange(1, len(derivatives) + 1)
    at_start = end + ((-1.0) ** np.arange(1, len(derivatives) + 1)) @ derivatives
    rest = (1 - np.asarray(θ)[:, None]) ** (len(derivatives) + 1)
    return (end + powers @ derivatives - rest * at_start) @ np.stack(trail)


@cache
def _work(most: int) -> np.ndarray:
    """Work of k columns: evaluations, solves (1.3 evaluations each), and 2 a column for what τ changes."""
    k = np.arange(most + 1)
    return k * (k - 1) / 2 + 1 + 1.3 * k * (k + 1) / 2 + 2 * k


class _Steps(NamedTuple):
    """numpy with Python's loops, or jax.numpy with loops that can be traced.

    `held` takes from numbers what derivatives they have: steps and J are chosen, not differentiated.
    """

    xp: Any
    while_loop: Callable
    fori_loop: Callable
    cond: Callable
    put: Callable
    held: Callable


def _python_while(unsettled, body, carry):
    while unsettled(carry):
        carry = body(carry)
    return carry


def _python_for(first, last, body, carry):
    for i in range(int(first), int(last)):
        carry = body(i, carry)
    return carry


def _put(rows, i, row):
    rows[i] = row
    return rows


_ON_HOST = _Steps(np, _python_while, _python_for, lambda which, yes, no: yes() if which else no(), _put, lambda x: x)
_TRACED = _Steps(
    jnp,
    jax.lax.while_loop,
    jax.lax.fori_loop,
    jax.lax.cond,
    lambda rows, i, row: rows.at[i].set(row),
    jax.lax.stop_gradient,
)


class _Problem(NamedTuple):
    """A reduced flow on vectors: its parts as arrays of one library, Γ(t) and s λ_g(t).

    sizes d and scatter S_g(0) times the loss scale s; decays: of every number of a vector, None where nothing decays.
    """

    steps: _Steps
    sizes: Any
    scatter: Any
    decay: tuple[Any, Any, Any]
    decays: Any
    free: bool
    terms: Callable
    targets: np.ndarray
    ones: np.ndarray
    places: tuple[tuple[slice, tuple[int, ...]], ...]

    def parts(self, y):
        """M, X where there is one, P, W, b of a vector, or of each of several."""
        return [y[..., place].reshape(*y.shape[:-1], *shape) for place, shape in self.places]

    def split(self, y):
        """[M, X], P, W, b of a vector."""
        *means, P, W, b = self.parts(y)
        # One group without its axis: products of plain matrices are faster.
        P = P[0] if len(P) == 1 else P
        return means[0] if len(means) == 1 else self.steps.xp.concatenate(means, axis=-1), P, W, b

    def join(self, M, *parts):
        """The vector of [M, X], P, W, b."""
        C = len(self.targets)
        means = (M,) if len(self.places) == 4 else (M[:, :C], M[:, C:])
        return self.steps.xp.concatenate([part.reshape(-1) for part in (*means, *parts)])

    def held(self) -> "_Problem":
        """The same, without derivatives."""
        held, terms = self.steps.held, self.terms
        names = ("sizes", "scatter", "decay", "decays")
        return self._replace(
            **{name: jax.tree.map(held, getattr(self, name)) for name in names}, terms=lambda t: held(terms(held(t)))
        )

    def rms(self, y):
        """Root mean square of each part."""
        pieces = [y[place] for place, _ in self.places]
        return self.steps.xp.asarray([piece @ piece / piece.size for piece in pieces]) ** 0.5

    def speed(self, t, y):
        """d y/dt."""
        M, P, W, b = self.split(y)
        Γ, rates = self.terms(t)
        options = {"free": self.free, "targets": self.targets, "ones": self.ones}
        out = self.join(*speed(M, P, W, b, Γ, rates, self.sizes, self.scatter, **options))
        return out if self.decays is None else out - self.decays * y


class _Jacobian(NamedTuple):
    """The Jacobian at one state, ready to be solved for any τ.

    With R = W M + b 1ᵀ − I, E = s R D and scatter S = Σ_g P_g S_g(0) P_gᵀ, −J maps (m, p_g, w, β) to the following;
    beside further directions M stands for [M, X], 1 for [1, 0] and I for [I, 0].

        m:    s Wᵀ(r D)Γ + wᵀ E Γ + λ_H m,             r = W m + w M + β 1ᵀ
        p_g:  s λ_g WᵀW p_g + λ_H p_g
        w:    s (r D) Mᵀ + s w S + E mᵀ + λ_W w + s W Σ_g (p_g S_g(0) P_gᵀ + P_g S_g(0) p_gᵀ)
        β:    s r d + λ_b β

    What w does to the propagators' speed is left out: it is not stiff. So p is solved first, with a matrix of rank C.
    In (m, w, β) the part through r has rank C R; in the eigenbases Q of W Wᵀ (eigenvalues a) and V of s S (σ) it falls
    into C systems of size R × R. The part through E, small once the residual is small, is added by correction.

    M, E and E Γ are held in these bases, as Vᵀ M and Qᵀ E; W as Qᵀ W and Qᵀ W V.
    """

    problem: _Problem
    Γ: Any
    rates: Any
    root: Any
    a: Any
    Q: Any
    σ: Any
    V: Any
    M: Any
    W: Any
    E: Any
    EΓ: Any
    QW: Any
    start_P: Any
    QW_P_start: Any

    @classmethod
    def at(cls, problem: _Problem, t, y) -> "_Jacobian":
        """J at a state, held: no derivative goes through it."""
        problem, y = problem.held(), problem.steps.held(y)
        linalg, d = problem.steps.xp.linalg, problem.sizes
        M, P, W, b = problem.split(y)
        Γ, rates = problem.terms(t)
        start_P = problem.scatter @ P.swapaxes(-1, -2)
        (a, Q), (σ, V) = linalg.eigh(W @ W.T), linalg.eigh(over_groups(P @ start_P))
        R = W @ M + b[:, None] * problem.ones[None, :] - problem.targets
        E, QW = Q.T @ (R * d[None, :]), Q.T @ W
        rest = (QW, start_P, (QW @ P) @ problem.scatter)
        return cls(problem, Γ, rates, d**0.5, a, Q, σ, V, V.T @ M, QW @ V, E, E @ Γ, *rest)

    def first_step(self):
        """A twentieth of the time scale of the fastest part, by a bound of the Jacobian's norm."""
        return _first_step(self.problem, self.Γ, self.rates, self.M, self.E / self.root[None, :], self.a, self.σ)

    def solver(self, τ) -> "_Solver":
        """The function δ ↦ (1 − τ J)⁻¹ δ."""
        return _Solver.at(self, τ)


def _first_step(problem: _Problem, Γ, rates, M, R, a, σ):
    """A twentieth of the time scale of the fastest part, by a bound of the Jacobian's norm.

    R: the residual times √d; a, σ: eigenvalues of W Wᵀ and of s S. Any basis of features and outputs.
    """
    xp, root = problem.steps.xp, problem.sizes**0.5
    k = xp.linalg.norm(root[:, None] * Γ * root[None, :]) + rates.max()
    h = xp.sum(xp.square(M * root[None, :])) + (problem.sizes * problem.ones).sum() + σ[-1]
    r = xp.linalg.norm(R) + xp.sqrt(xp.abs(a[-1] * σ[-1]))
    return 0.05 / (k * xp.abs(a[-1]) + h + xp.sqrt(k) * r + sum(problem.decay))


def _first_step_on_host(problem: _Problem, t, y):
    """The same at a state, in numpy."""
    M, P, W, b = problem.split(y)
    a, σ = np.linalg.eigvalsh(W @ W.T), np.linalg.eigvalsh(over_groups(P @ problem.scatter @ P.swapaxes(-1, -2)))
    R = W @ M + b[:, None] * problem.ones[None, :] - problem.targets
    Γ, rates = problem.terms(t)
    return _first_step(problem, Γ, rates, M, R * problem.sizes**0.5, a, σ)


class _Solver(NamedTuple):
    """δ ↦ (1 − τ J)⁻¹ δ: what of `_Jacobian` depends on τ.

    on_x: the factor that decay, and for w the scatter, leave of x; through_p: what p becomes of Qᵀ W p.
    """

    jacobian: _Jacobian
    τ: Any
    on_H: Any
    on_W: Any
    on_b: Any
    on_p: Any
    through_p: Any
    Γ: Any
    E: Any
    EΓ: Any
    inverse: Any

    @classmethod
    def at(cls, jacobian: _Jacobian, τ) -> "_Solver":
        problem, Γ, root = jacobian.problem, jacobian.Γ, jacobian.root
        decay_H, decay_W, decay_b = problem.decay
        ones = problem.ones
        on_H, on_b = 1 / (1 + τ * decay_H), 1 / (1 + τ * decay_b)
        on_W = 1 / (1 + τ * (decay_W + jacobian.σ))
        rates = (τ * jacobian.rates)[..., None, None]
        a = jacobian.a[:, None] if rates.ndim == 2 else jacobian.a[None, :, None]
        through_p = rates / (1 + τ * decay_H + rates * a)
        through_b = on_b * ones[:, None] * ones[None, :] if problem.free else 0.0
        through_W = jacobian.M.T @ (on_W[:, None] * jacobian.M) + through_b
        Γ = on_H * Γ
        roots = (τ * root[:, None] * root[None, :])[None]
        system = roots * (jacobian.a[:, None, None] * Γ[None] + through_W[None])
        inverse = roots * problem.steps.xp.linalg.inv(system + np.eye(len(root), dtype=root.dtype)[None])
        on_p = on_H * (1 - a * through_p)
        return cls(jacobian, τ, on_H, on_W, on_b, on_p, through_p, Γ, τ * jacobian.E, τ * jacobian.EΓ, inverse)

    def through_r(self, m, w, β):
        """The part without E: diagonal, and C systems of size R × R."""
        jacobian, ones = self.jacobian, self.jacobian.problem.ones
        m, w, β = self.on_H * m, w * self.on_W[None, :], self.on_b * β
        r = jacobian.W @ m + w @ jacobian.M + β[:, None] * ones[None, :]
        r = (r[:, None, :] @ self.inverse)[:, 0]
        m = m - jacobian.W.T @ (r @ self.Γ)
        w = w - (r @ jacobian.M.T) * self.on_W[None, :]
        return m, w, β - self.on_b * (r @ ones) if jacobian.problem.free else β

    def corrected(self, carry):
        """One correction for the part through E."""
        m, w, β, dm, dw = carry
        dm, dw, dβ = self.through_r(-(dw.T @ self.EΓ), -(self.E @ dm.T), 0 * β)
        return m + dm, w + dw, β + dβ, dm, dw

    def __call__(self, δ):
        jacobian, problem = self.jacobian, self.jacobian.problem
        Q, V, QW = jacobian.Q, jacobian.V, jacobian.QW
        m, p, w, β = problem.split(δ)
        QWp = QW @ p
        p = self.on_H * (p - QW.T @ (self.through_p * QWp))
        moved = over_groups((self.on_p * QWp) @ jacobian.start_P + jacobian.QW_P_start @ p.swapaxes(-1, -2))
        m, w, β = self.through_r(V.T @ m, (Q.T @ w - self.τ * moved) @ V, Q.T @ β)
        carry = m, w, β, m, w
        m, w, β, _, _ = problem.steps.fori_loop(0, CORRECTIONS, lambda _, carry: self.corrected(carry), carry)
        return problem.join(V @ m, p, Q @ w @ V.T, Q @ β)


class _Tolerance(NamedTuple):
    """A step's error in each part is held below LENIENCE · rtol times its root mean square, plus absolute (4,)."""

    rtol: Any
    absolute: Any
    steady: Any
    max_steps: Any


class _Course(NamedTuple):
    """Where an integration stands: time, state, next step and columns; how often it stepped, and how it ended.

    `made` is the number of columns of the step that led here.
    """

    t: Any
    y: Any
    h: Any
    columns: Any
    made: Any
    steps: Any
    rejected: Any
    evaluations: Any
    outcome: Any

    def is_before(self, goal):
        """Whether it is still to be led to that time."""
        return (self.t < goal) & (self.outcome == Outcome.SUCCESSFUL)


def _euler(problem: _Problem, solve: _Solver, τ, course: _Course, begun_alike, trail: list | None, i, carry):
    """One linearly implicit Euler step of a column: all columns begin with the same slope."""
    δ, slope = carry
    f = problem.steps.cond(begun_alike, lambda: slope, lambda: problem.speed(course.t + i * τ, course.y + δ))
    δ = δ + solve(τ * f)
    if trail is not None:
        trail.append(δ)
    return δ, problem.steps.xp.where(i == 0, f, slope)


def _columns(problem: _Problem, course: _Course, h, tolerance: _Tolerance, trail: list | None = None):
    """Makes columns of one step until they agree: h, their number, the first slope, errors by number, increment.

    In numpy, all δ of the columns are appended to `trail`.
    """
    steps, y = problem.steps, course.y
    xp, single = steps.xp, y.dtype.itemsize == 4
    most = MOST_IN_SINGLE_PRECISION if single else MOST
    whole, lower = (xp.asarray(w, y.dtype) for w in _weights(most))
    jacobian = _Jacobian.at(problem, course.t, y)
    # The first of all steps is not known yet; −h is how far there is to go.
    h = xp.where(h > 0, h, xp.minimum(jacobian.first_step(), -h))
    limit, size = xp.minimum(course.columns + 1, most), problem.rms(steps.held(y))

    def unsettled(carry):
        j, _, _, errors, _ = carry
        return (j < limit) & ~((errors[j] <= 1) & (j >= course.columns - 1))

    def column(carry):
        j, increments, slope, errors, _ = carry
        j = j + 1
        τ = h / j
        solve = jacobian.solver(steps.held(τ))
        euler = lambda i, carry: _euler(problem, solve, τ, course, (i == 0) & (j > 1), trail, i, carry)  # noqa: E731
        δ, slope = steps.fori_loop(0, j, euler, (xp.zeros_like(y), slope))
        increments = steps.put(increments, j - 1, δ)
        reached, error = whole[j] @ increments, (whole[j] - lower[j]) @ increments
        sizes = xp.maximum(size, problem.rms(steps.held(y + reached)))
        error = problem.rms(steps.held(error)) / (LENIENCE * tolerance.rtol * sizes + tolerance.absolute)
        # A step that overflowed is a bad step.
        error = xp.where(xp.isfinite(error).all(), xp.maximum(error.max(), 1e-12), 1e12)
        return j, increments, slope, steps.put(errors, j, error), reached

    begun = (xp.asarray(0), xp.zeros((most, len(y)), y.dtype), xp.zeros_like(y), xp.full(most + 1, xp.inf, y.dtype))
    j, _, slope, errors, reached = steps.while_loop(unsettled, column, (*begun, xp.zeros_like(y)))
    return h, j, slope, errors, reached


def _step(problem: _Problem, course: _Course, goal, tolerance: _Tolerance, trail: list | None = None) -> _Course:
    """One attempt towards a time that is to be met."""
    xp, y, held = problem.steps.xp, course.y, problem.steps.held
    ahead = goal - course.t
    # Two steps of half the way rather than a long one and a short one.
    h = xp.where(course.h >= ahead, ahead, xp.where(2 * course.h > ahead, ahead / 2, course.h))
    h, j, slope, errors, reached = _columns(problem, course, xp.where(course.h > 0, h, -ahead), tolerance, trail)
    kept = errors[j] <= 1
    k = np.arange(len(errors))
    most, work = len(errors) - 1, xp.asarray(_work(len(errors) - 1), h.dtype)
    lengths = h * xp.clip(0.9 * (0.5 / errors) ** xp.asarray(1 / np.maximum(k, 1), h.dtype), 0.1, 5.0)
    costs = xp.where((k >= 2) & (k <= j), work / lengths, xp.inf)
    best = xp.argmin(costs)
    more = kept & (best == j) & (j >= course.columns) & (costs[j] < 0.9 * costs[j - 1])
    columns = xp.clip(xp.where(more, j + 1, best), FEWEST, most - 1)
    after = xp.where(more, lengths[j] * work[columns] / work[j], lengths[best])
    # A step cut short to meet its goal says little about longer ones.
    after = xp.where((h >= ahead) & (course.h > ahead), xp.maximum(after, course.h), after)
    after = xp.where(kept, after, xp.minimum(after, h / 2))
    still = xp.linalg.norm(slope) < tolerance.steady * xp.linalg.norm(y)
    moved, steps = kept & ~still, course.steps + 1
    arrives = moved & (h >= ahead)
    outcome = xp.where((steps >= tolerance.max_steps) & ~arrives, Outcome.TOO_MANY_STEPS, Outcome.SUCCESSFUL)
    # Not even where a step is no number any more.
    advances = course.t + xp.where(kept, h, after) > course.t
    outcome = xp.where(~arrives & ~still & ~advances, Outcome.STEP_TOO_SMALL, outcome)
    return _Course(
        t=xp.where(arrives, goal, xp.where(moved, course.t + h, course.t)),
        y=xp.where(moved, y + reached, y),
        h=held(after),
        columns=xp.where(kept, columns, xp.minimum(columns, course.columns)),
        made=j,
        steps=steps,
        rejected=course.rejected + xp.where(kept, 0, 1),
        evaluations=course.evaluations + 1 + (j * (j - 1)) // 2,
        outcome=xp.where(still, Outcome.STEADY, outcome),
    )


def _advance(problem: _Problem, course: _Course, goal, tolerance: _Tolerance):
    """Leads to a time, and gives the state there: infinite where it was not reached."""
    xp = problem.steps.xp
    course = problem.steps.while_loop(lambda c: c.is_before(goal), lambda c: _step(problem, c, goal, tolerance), course)
    return course, xp.where(course.t >= goal, course.y, xp.inf)


def _saved(problem: _Problem, course: _Course, goals, end, tolerance: _Tolerance, *, interpolates: bool):
    """One step in numpy towards `end`, or several to the next of the times: the states at those it reached or gave up.

    Between now and `end` the flow is smooth.
    """
    if not (interpolates and course.is_before(goals[0])):
        course, state = _advance(problem, course, goals[0], tolerance)
        return course, [state]
    # A step is never longer than the last one said; the first of all says nothing.
    before, passes = course, not 0 < course.h < 0.999 * (goals[0] - course.t)
    trail: list | None = [] if passes else None
    course = _step(problem, before, end, tolerance, trail)
    between, states = goals[goals < course.t], []
    if len(between):
        states = [*(before.y + _interpolated(int(course.made), trail, (between - before.t) / (course.t - before.t)))]
    if course.t >= goals[-1]:
        states.append(course.y)
    elif course.outcome != Outcome.SUCCESSFUL:
        states += [np.full_like(course.y, np.inf)] * (len(goals) - len(states))
    return course, states


def integrate_reduced(
    flow: ReducedFlow,
    start: ReducedState,
    times: Float[Any, " T"],
    *,
    rtol: float,
    atol: float = 0.0,
    max_steps: int = 100_000,
    steady: float | None = None,
    progress: bool = False,
    explicit: bool = True,
) -> Integration:
    """Integrates a reduced flow from times[0] to times[-1], and saves it at all of them.

    Outside of JAX's transformations, and with `explicit`, it goes by Dormand and Prince's explicit method of order 8 as
    long as the rest of the way takes less work by that than by extrapolation. There steps need not end at the times
    that are saved: polynomials go between their ends, of the order of the step.

    A step's error in each part of the state (M, P, W, b) is held below about rtol times the root mean square of that
    part, plus atol: a start of any size grows with the same relative error. A part that starts at zero, as b commonly
    does, is held to 1000 rounding units as well, less than the labels, which are 0 and 1, can tell.

    Outside of JAX's transformations it runs in numpy and double precision, whatever the start's, and gives arrays of
    numpy in the start's. Under `vmap` and `jit` it runs in the precision of the start, with rtol at least 32 rounding
    units. Not differentiable; see `extrapolation_adjoint`.

    A failure is a result, not an exception: see `Integration`. What double precision cannot hold is refused before: a
    ValueError, outside of JAX's transformations. With `steady` it stops as soon as
    ‖d state/dt‖ < steady · ‖state‖.
    """
    problem, course, tolerance = _begin(flow, start, times, rtol, atol, max_steps, steady)
    times = problem.steps.xp.asarray(times, course.y.dtype)
    if problem.steps is _TRACED:
        course, states = jax.lax.scan(lambda c, goal: _advance(problem, c, goal, tolerance), course, times)
        return _integration(problem, start, course, states)
    fastest = _fastest(problem, course.y, times)
    states: list[Any] = []
    with tqdm(total=float(times[-1] - times[0]), disable=not progress, bar_format=_BAR) as bar:
        # Overflow is a bad step, which is taken again. Threads cost more than such small products.
        with np.errstate(all="ignore"), one_thread():
            # The kernel of a path has a corner at each of its times: steps end there.
            corners = np.asarray(flow.kernel.times if isinstance(flow.kernel, KernelPath) else (), float)
            ends = np.append(corners[(corners > times[0]) & (corners < times[-1])], times[-1])
            if explicit and steady is None:
                course, states = _explicitly(problem, course, times, ends, tolerance, fastest, bar)
            while len(states) < len(times):
                before, end = course.t, ends[min(np.searchsorted(ends, course.t, side="right"), len(ends) - 1)]
                options = {"interpolates": bool(tolerance.rtol >= INTERPOLATED)}
                course, reached = _saved(problem, course, times[len(states) :], end, tolerance, **options)
                states += reached
                bar.update(float(course.t - before))
    return _integration(problem, start, course, np.stack(states))


def _explicitly(
    problem: _Problem, course: _Course, times, ends, tolerance: _Tolerance, fastest: float, bar
) -> tuple[_Course, list[Any]]:
    """Explicit steps while they take less work, and the states at the times reached, in numpy.

    It begins with them in any case: few steps tell how long they can be. What extrapolation takes grows with the
    digits that are asked for; an evaluation there costs seven of these, and up to twenty-four of small matrices, where
    calls of numpy are what costs.
    """
    until, work = float(times[-1]), len(problem.targets) * len(course.y)
    affordable = AFFORDABLE * (work + 50e3) / (work + 14e3) * (1e-6 / max(float(tolerance.rtol), 1e-12)) ** 0.2

    def goes_on(t, steps, h):
        # Twelve evaluations a step of the present length, or of six over a bound of the spectral radius.
        if 12 * (until - t) / h < affordable:
            return True
        return 2 * (until - t) < affordable * 20 * _first_step_on_host(problem, t, steps.y)

    # What a method of order 8 needs at least: the bound is one.
    first = 5 * fastest * float(tolerance.rtol) ** 0.125
    return explicit_steps(problem, course, times, ends, tolerance, first=first, goes_on=goes_on, bar=bar)


def _begin(flow, start, times, rtol, atol, max_steps, steady) -> tuple[_Problem, _Course, _Tolerance]:
    """The problem, where it stands at times[0], and what a step must keep: traced, or in numpy's double precision."""
    traced = is_traced(flow, start, times)
    dtype = np.dtype(start.W.dtype if traced else np.float64)
    eps = float(np.finfo(dtype).eps)
    problem = _problem(flow, _TRACED if traced else _ON_HOST, dtype)
    xp = problem.steps.xp
    y = problem.join(*(xp.asarray(part, dtype) for part in (start.means, start.P, start.W, start.b)))
    tolerance = _Tolerance(
        rtol=xp.maximum(xp.asarray(rtol, dtype), 32 * eps),
        absolute=xp.where(problem.rms(y) == 0, 1000 * eps, 0.0) + xp.asarray(atol, dtype) + np.finfo(dtype).tiny,
        steady=xp.asarray(0.0 if steady is None else steady, dtype),
        max_steps=xp.asarray(max_steps),
    )
    none = xp.asarray(0)
    begun = xp.asarray(times, dtype)[0]
    course = _Course(begun, y, xp.zeros((), dtype), none + 4, none, none, none, none, none)
    return problem, course, tolerance


def _integration(problem: _Problem, start: ReducedState, course: _Course, states) -> Integration:
    """What an integration gives, from the vectors (T, ·) at all times."""
    counts = {
        "num_steps": course.steps,
        "num_accepted_steps": course.steps - course.rejected,
        "num_rejected_steps": course.rejected,
        "num_evaluations": course.evaluations,
    }
    counts = {name: problem.steps.xp.asarray(count) for name, count in counts.items()}
    return Integration(_state(problem, start, states), counts, problem.steps.xp.asarray(course.outcome))


def _state(problem: _Problem, start: ReducedState, y) -> ReducedState:
    """The state of a vector, or of each of several."""
    M, *X, P, W, b = (part.astype(start.W.dtype) for part in problem.parts(y))
    return jax.tree.unflatten(jax.tree.structure(start), [M, P, W, b, *X])


def _fastest(problem: _Problem, y, times) -> float:
    """The flow's fastest time scale at the start, by a bound.

    Raises:
        ValueError: double precision does not hold the flow, or not what it does in all that time.
    """
    with np.errstate(all="ignore"):
        try:
            fastest = 20 * float(_first_step_on_host(problem, times[0], y))
        except np.linalg.LinAlgError:
            fastest = 0.0
        duration = float(times[-1] - times[0])
    if not 0 < fastest < np.inf:
        raise ValueError(
            "start, kappa, weight_decay: expected numbers whose squares and products double precision holds, got some "
            "that it does not; choose units in which they are nearer to 1."
        )
    if not duration < _LONGEST * fastest:
        raise ValueError(
            f"times: expected less than {_LONGEST:g} of the flow's fastest time scales ({fastest:.3g} at the start), "
            f"more than double precision resolves, got {duration:.3g}; shorten them."
        )
    return fastest


# In units of the fastest time scale: beyond 1/ε, 1 + τ J is J, which is singular.
_LONGEST = 1e16
_BAR = "{l_bar}{bar}| t = {n:.4g}/{total:.4g}"


def _terms_of(kernel, sizes):
    """Γ and λ_g of one kernel."""
    arrays = all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(kernel))
    return (_of_arrays if arrays else _of_any)(kernel, sizes)


def _of_one(kernel, sizes):
    return kernel.direction_gram(sizes), kernel.group_rates(sizes.shape[0])


# The first takes a fifth of the time to be called.
_of_arrays, _of_any = jax.jit(_of_one), eqx.filter_jit(_of_one)


@eqx.filter_jit
def _terms_along(kernels, sizes):
    """Γ and λ_g of kernels with a leading time axis."""
    return jax.vmap(lambda kernel: (kernel.direction_gram(sizes), kernel.group_rates(sizes.shape[0])))(kernels)


def _problem(flow: ReducedFlow, steps: _Steps, dtype) -> _Problem:
    """A reduced flow as arrays of one library. Γ and λ_g are linear in the kernel, so that they are interpolated."""
    xp, decay = steps.xp, flow.weight_decay
    parts = (flow.sizes, flow.scatter, flow.scale, decay.H, decay.W, decay.b)
    sizes, scatter, scale, *decays = (xp.asarray(x, dtype) for x in parts)
    terms = _terms(flow.kernel, flow.sizes, steps, scale, dtype)
    (C,), (G, n, _), K = sizes.shape, scatter.shape, flow.kernel.num_directions
    shapes = (n, C), *([(n, K)] if K else []), (G, n, n), (C, n), (C,)
    ends = [*itertools.accumulate(map(math.prod, shapes))]
    places = tuple((slice(i, j), shape) for i, j, shape in zip([0, *ends], ends, shapes, strict=False))
    targets, ones, free = np.eye(C, C + K, dtype=dtype), np.asarray(np.arange(C + K) < C, dtype), flow.bias == "free"
    of_H, of_W, of_b = decays
    each = None
    if is_traced(decays) or any(decays):
        rates = [*[of_H] * (len(shapes) - 2), of_W, of_b if free else 0 * of_b]
        each = xp.concatenate([xp.full(math.prod(shape), rate) for shape, rate in zip(shapes, rates, strict=True)])
    scaled = scale * weights_of(sizes, K), _plain(scale * scatter)
    return _Problem(steps, *scaled, tuple(decays), each, free, terms, targets, ones, places)


def _plain(groups):
    """What is one a group; of one group without its axis."""
    return groups[0] if len(groups) == 1 else groups


def _terms(kernel, sizes, steps: _Steps, scale, dtype) -> Callable:
    """The function t ↦ Γ(t), s λ_g(t). Both are linear in the kernel, so that along a path they are interpolated."""
    if not isinstance(kernel, KernelPath):
        Γ, rates = (steps.xp.asarray(x, dtype) for x in _terms_of(kernel, sizes))
        constant = Γ, _plain(scale * rates)
        return lambda t: constant
    if steps is _TRACED:

        def traced(t):
            now = kernel.at(t)
            return now.direction_gram(sizes), _plain(scale * now.group_rates(sizes.shape[0]))

        return traced
    knots = np.asarray(kernel.times, dtype)
    grams, rates = (np.asarray(x, dtype) for x in _terms_along(kernel.kernels, sizes))
    along = grams, scale * rates

    def interpolated(t):
        i = min(max(int(np.searchsorted(knots, t, side="right")) - 1, 0), len(knots) - 2)
        weight = min(max((t - knots[i]) / (knots[i + 1] - knots[i]), 0.0), 1.0)
        Γ, rates = (x[i] + weight * (x[i + 1] - x[i]) for x in along)
        return Γ, _plain(rates)

    return interpolated
