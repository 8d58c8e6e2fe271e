"""The one file that calls the ODE solver."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from equinox import _errors
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree
from tqdm import tqdm

from ntkcollapse._arrays import stacked
from ntkcollapse._checks import check_choice
from ntkcollapse.choices import SOLVERS
from ntkcollapse.theory.chebyshev import RungeKuttaChebyshev
from ntkcollapse.theory.outcome import Integration, Outcome
from ntkcollapse.theory.retraction import Retracted
from ntkcollapse.theory.runge_kutta import integrate_explicitly, is_led_here

# From the cheapest to the richest; a solver says which it needs.
_LEVY_AREAS = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea)


def named_solver(solver: Any, *, noise: bool = False) -> diffrax.AbstractSolver:
    """The diffrax solver of this name, or the one given.

    Raises:
        ValueError: an unknown name, or a solver of ordinary equations alone for a flow with noise.
    """
    if isinstance(solver, diffrax.AbstractSolver):
        if noise and not isinstance(solver, diffrax.AbstractItoSolver | diffrax.AbstractStratonovichSolver):
            raise ValueError(
                f"solver: expected one for flows with noise, got {type(solver).__name__}; leave it out, or take "
                "'shark'."
            )
        return solver
    if not isinstance(solver, str):
        raise ValueError(
            f"solver: expected one of {', '.join(SOLVERS)}, or a diffrax solver as diffrax.Tsit5(), got {solver!r}."
        )
    check_choice("solver", solver, SOLVERS)
    return named_solver(SOLVERS[solver](), noise=noise)


def integrate(
    flow,
    start: PyTree,
    times: Float[Array, " T"],
    *,
    solver: diffrax.AbstractSolver,
    rtol: float | Float[Array, ""],
    atol: float | Float[Array, ""],
    max_steps: int,
    progress: bool = False,
    key: Key[Array, ""] | None = None,
    steady: float | None = None,
    by_part: bool = True,
    differentiable: bool = True,
    grid: Float[Array, " K"] | None = None,
) -> Integration:
    """Integrates a vector field `flow(t, state, args)` from times[0] to times[-1], saving at all of them.

    Steps adapt to the largest, over the parts of the state (H, W and b; or M, P, W and b), of the root mean square of
    error / (atol + rtol rms(y)), or without `by_part` of error / (atol + rtol |y|). Reverse-mode differentiable by
    checkpointing, unless `differentiable` is False: less to compile. A failure is a result, not an exception:
    `successful` is False, and the states that were not reached are infinite.

    With `steady` it stops as soon as ‖d state/dt‖ < steady · ‖state‖ (root mean squares): times after are infinite, and
    `is_steady` is True.

    With a grid, steps go from each of its times to the next, whatever their error.

    With a key, `flow.diffusion(state)` gives the standard deviation of the Brownian motion added to each entry, and
    solver must be one for additive noise. With a `Retracted` solver saved states are retracted too.
    """
    retracted = isinstance(solver, Retracted)
    if not (differentiable or progress) and key is None and steady is None and grid is None:
        pair, retract = (solver.solver, solver.retract) if retracted else (solver, None)
        if is_led_here(pair, start):
            options = {"rtol": rtol, "atol": atol, "max_steps": max_steps, "by_part": by_part}
            return integrate_explicitly(flow, start, times, solver=pair, retract=retract, **options)
    terms, step = diffrax.ODETerm(_call), None
    controller = _controller(rtol, atol, start if by_part else None)
    if key is not None:
        flat, unravel = ravel_pytree(start)
        shape = jax.ShapeDtypeStruct(flat.shape, flat.dtype)
        # Finer than any step that the tolerances below lead to.
        resolution = (times[-1] - times[0]) * 2.0**-22
        asked = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
        levy = next(area for area in _LEVY_AREAS if issubclass(area, asked))
        with _equinox_errors(_AS_NAN):
            path = diffrax.VirtualBrownianTree(times[0], times[-1], resolution, shape, key, levy_area=levy)
        noise = diffrax.ControlTerm(_diffuse, _InParts(path, unravel))
        terms, step = diffrax.MultiTerm(terms, noise), (times[-1] - times[0]) / 1000
        # An interpolant between steps has too little noise: step onto every time that is saved.
        controller = diffrax.ClipStepSizeController(controller, step_ts=times)
    if by_part:
        solver = _root_finder_by_part(solver)
    with _equinox_errors(_AS_NAN):
        solution = diffrax.diffeqsolve(
            terms,
            solver,
            t0=times[0],
            t1=times[-1],
            dt0=step,
            y0=start,
            args=flow,
            saveat=diffrax.SaveAt(ts=times, solver_state=retracted),
            stepsize_controller=controller if grid is None else diffrax.StepTo(grid),
            max_steps=max_steps,
            adjoint=diffrax.RecursiveCheckpointAdjoint() if differentiable else diffrax.ForwardMode(),
            throw=False,
            event=None if steady is None else diffrax.Event(diffrax.steady_state_event(rtol=steady, atol=0.0)),
            progress_meter=diffrax.TqdmProgressMeter() if progress else diffrax.NoProgressMeter(),
        )
    statistics = {k: jnp.asarray(v) for k, v in solution.stats.items() if k != "max_steps"}
    states = solution.ys
    if isinstance(solver, Retracted):
        # Between steps the interpolant leaves the surface by its own error.
        states = jax.vmap(solver.retract)(states)
        statistics["largest_correction"] = solution.solver_state.largest_correction  # pyright: ignore
    return Integration(states=states, statistics=statistics, outcome=_outcome(solution.result))


def integrate_by_steps(
    flow,
    start: PyTree,
    times: Float[Array, " T"],
    *,
    rtol: float,
    atol: float,
    max_steps: int,
    progress: bool = False,
    by_part: bool = True,
) -> Integration:
    """Integrates a vector field as `integrate` does, by Chebyshev steps that Python takes one by one; not under `jit`.

    For fields with convolutions, which XLA's loops on a CPU run ten times slower than straight code, and for runs of
    minutes, which can be watched and interrupted. One evaluation, one product with the Jacobian and the end of a step
    are compiled, whatever the number of stages.
    """
    terms, solver = diffrax.ODETerm(_call), RungeKuttaChebyshev(scan_kind="host")
    controller = _controller(rtol, atol, start if by_part else None)
    error_order = solver.error_order(terms)
    end, saved, count, rejected = times[-1], [start], 0, 0
    result = diffrax.RESULTS.max_steps_reached
    t0, y, state = times[0], start, solver.init(terms, times[0], times[-1], start, flow)
    t1, memory = _first_step(controller, terms, t0, end, y, flow, error_order)
    with tqdm(total=float(end - t0), disable=not progress, bar_format="{l_bar}{bar}| t = {n:.4g}/{total:.4g}") as bar:
        while len(saved) < len(times) and count < max_steps:
            t1 = jnp.minimum(t1, end)
            reached, error, dense, next_state, _ = solver.step(terms, t0, t1, y, flow, state, made_jump=False)
            kept, next_t0, next_t1, _, memory, verdict = _adapt(
                controller, t0, t1, y, reached, flow, error, error_order, memory
            )
            count, rejected = count + 1, rejected + (not kept)
            if not diffrax.is_okay(verdict):
                result = verdict
                break
            if kept:
                interpolated = solver.interpolation_cls(t0=t0, t1=t1, **dense)
                while len(saved) < len(times) and times[len(saved)] <= t1:
                    saved.append(_evaluate(interpolated, times[len(saved)]))
                bar.update(float(t1 - t0))
                y, state = reached, next_state
            t0, t1 = next_t0, next_t1
    beyond = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), start)
    whole = saved + [beyond] * (len(times) - len(saved))
    return Integration(
        states=jax.tree.map(stacked, *whole),
        statistics={
            "num_steps": jnp.asarray(count),
            "num_accepted_steps": jnp.asarray(count - rejected),
            "num_rejected_steps": jnp.asarray(rejected),
            # Of accepted steps, products with the Jacobian counted twice.
            "num_evaluations": state.evaluations,
        },
        outcome=_outcome(diffrax.RESULTS.successful if len(saved) == len(times) else result),
    )


@eqx.filter_jit
def _first_step(controller, terms, t0, end, y, flow, error_order):
    return controller.init(terms, t0, end, y, None, flow, lambda terms, t, y, args: terms.vf(t, y, args), error_order)


@eqx.filter_jit
def _adapt(controller, t0, t1, y, reached, flow, error, error_order, memory):
    return controller.adapt_step_size(t0, t1, y, reached, flow, error, error_order, memory)


@eqx.filter_jit
def _evaluate(interpolated, t):
    return interpolated.evaluate(t)


class _ByPart(diffrax.PIDController):
    """Step sizes by errors relative to the root mean square of each part of the state, not to each of its numbers.

    Weights that are near zero by chance, and biases that begin there, do not ask for more digits than the array that
    they are in. A part that is zero at the start is held to 1000 rounding units as well.
    """

    floor: PyTree = None

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        if dt0 is None:
            slope = func(terms, t0, y0, args)
            pairs = zip(jax.tree.leaves(y0), jax.tree.leaves(slope), strict=True)
            ratios = jnp.stack([jnp.where((_rms(y) > 0) & (_rms(f) > 0), _rms(y) / _rms(f), jnp.inf) for y, f in pairs])
            dt0 = jax.lax.stop_gradient(jnp.minimum(0.01 * ratios.min(), t1 - t0))
        return super().init(terms, t0, t1, y0, dt0, args, func, error_order)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        if y_error is None:
            raise ValueError(
                "solver: expected one that estimates the error of a step, got one of fixed steps. Take one of "
                f"{', '.join(SOLVERS)}, or diffrax.HalfSolver around yours; Method(step=...) takes the steps of "
                "gradient descent."
            )
        before, after = (jax.tree.map(_size, y, self.floor) for y in (y0, y1_candidate))
        return super().adapt_step_size(t0, t1, before, after, args, y_error, error_order, controller_state)


class _ChordByPart(diffrax.VeryChord):
    """Solves the equations of implicit steps until what they still move is small beside each part of the state.

    As the controller does: beside each number, weights that are near zero by chance would never be near enough.
    """

    def step(self, fn, y, args, options, state, tags):
        reached, state, aux = super().step(fn, y, args, options, state, tags)
        # y is an increment; behind it stand the state that it is added to, the arguments of the flow and the time's.
        *_, before, _, _ = args
        scale = jax.tree.map(
            lambda x, k: self.atol + self.rtol * (_rms(x) + _rms(k)) + jnp.finfo(x.dtype).tiny, before, reached
        )
        moved = jax.tree.map(lambda d, size: d / size.astype(d.dtype), state.diff, scale)
        return reached, eqx.tree_at(lambda s: s.diffsize, state, self.norm(moved)), aux


def _root_finder_by_part(solver):
    """The solver, with the root finder above where diffrax has put its own."""
    own = getattr(solver, "root_finder", None)
    # Its tolerance is no number yet: the controller's is to be taken.
    if type(own) is not diffrax.VeryChord or isinstance(own.rtol, float | int | Array):
        return solver
    ours = diffrax.with_stepsize_controller_tols(_ChordByPart)(kappa=own.kappa, linear_solver=own.linear_solver)
    return eqx.tree_at(lambda s: s.root_finder, solver, ours)


def _controller(rtol, atol, start: PyTree | None) -> diffrax.PIDController:
    """Errors by part of the state where its start is given, by number otherwise."""
    if start is None:
        return diffrax.PIDController(rtol=rtol, atol=atol, norm=_largest_part)
    rounding = jax.tree.map(lambda y: jnp.where(jnp.any(y != 0), 0.0, 1000 * jnp.finfo(y.dtype).eps), start)
    return _ByPart(rtol=rtol, atol=atol, norm=_largest_part, floor=jax.tree.map(lambda x: x / rtol, rounding))


def _rms(y: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(y)))


def _size(y: Array, floor: Array) -> Array:
    # The smallest normal number: a part that is zero, and stays zero, has no error.
    return jnp.full_like(y, _rms(y) + floor.astype(y.dtype) + jnp.finfo(y.dtype).tiny)


def _outcome(result: diffrax.RESULTS) -> Array:
    """The number of `Outcome` that diffrax's verdict means."""
    outcome = jnp.asarray(Outcome.SOLVER_FAILED)
    for verdict, meaning in (
        (diffrax.RESULTS.successful, Outcome.SUCCESSFUL),
        (diffrax.RESULTS.event_occurred, Outcome.STEADY),
        (diffrax.RESULTS.max_steps_reached, Outcome.TOO_MANY_STEPS),
        (diffrax.RESULTS.dt_min_reached, Outcome.STEP_TOO_SMALL),
    ):
        outcome = jnp.where(result == verdict, meaning, outcome)
    return outcome


def _largest_part(error: PyTree) -> Array:
    """Over the parts of a state: a mean over all of it would hide W behind many columns of H or groups in P."""
    size = jnp.stack([optx.rms_norm(part) for part in jax.tree.leaves(error)]).max()
    # A step that overflowed is a bad step: left as NaN, the controller would never find a length that it accepts.
    return jnp.where(jnp.isfinite(size), size, 1e8)


def _call(t, state, flow) -> Any:
    # Checks of a flow of one's own stay what they are.
    with _equinox_errors(_USUAL):
        return flow(t, state)


# Names of equinox that say what a check does that fails. Its own compiled form would keep what it did here for others.
_NAMES = ("EQX_ON_ERROR", "branched_error_if_impl", "branched_error_if_impl_jit")
_USUAL = {name: getattr(_errors, name, None) for name in _NAMES}
_AS_NAN = _USUAL | {"EQX_ON_ERROR": "nan", "branched_error_if_impl_jit": _USUAL["branched_error_if_impl"]}


@contextmanager
def _equinox_errors(names: Mapping[str, Any]) -> Iterator[None]:
    """Within it, checks of equinox that are traced do what these say.

    The solver's own checks, of what is checked before it is called, are callbacks into Python: programs that hold some
    are not kept in the cache of compiled programs, and cannot be compiled for other platforms.
    """
    before = {name: getattr(_errors, name, None) for name in _NAMES}
    known = None not in _USUAL.values()
    try:
        for name in _NAMES if known else ():
            setattr(_errors, name, names[name])
        yield
    finally:
        for name in _NAMES if known else ():
            setattr(_errors, name, before[name])


class _InParts(diffrax.AbstractBrownianPath):
    """One Brownian path in the parts of a state: a path of each part compiles in as many times the time."""

    t0: Any
    t1: Any
    levy_area: Any = eqx.field(static=True)
    path: diffrax.VirtualBrownianTree
    unravel: Callable = eqx.field(static=True)

    def __init__(self, path: diffrax.VirtualBrownianTree, unravel: Callable):
        self.t0, self.t1, self.levy_area = path.t0, path.t1, path.levy_area
        self.path, self.unravel = path, unravel

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        found = self.path.evaluate(t0, t1, left, use_levy)
        if not use_levy:
            return self.unravel(found)
        return type(found)(**{k: v if k == "dt" else self.unravel(v) for k, v in vars(found).items()})


def _diffuse(t, state, flow) -> lx.AbstractLinearOperator:
    del t
    return lx.DiagonalLinearOperator(flow.diffusion(state))
