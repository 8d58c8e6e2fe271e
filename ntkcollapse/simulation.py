"""The theory as a producer of trajectories: from a start and a kernel to everything that is observed.

Solvers of diffrax are imported where they are used: the default of reduced flows needs none.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntkcollapse._arrays import as_array, as_arrays, module_of
from ntkcollapse._checks import check_increasing, check_number, check_positive, check_shape, is_traced
from ntkcollapse._platforms import device_named, has_double, moved, platform, runs_on
from ntkcollapse._precision import Precision, exact_products
from ntkcollapse._safe import norm
from ntkcollapse.classes import Classes, as_classes
from ntkcollapse.collapse import ClassStatistics
from ntkcollapse.compiled import compiled_quickly, pulled_back_quickly
from ntkcollapse.equation import Equation
from ntkcollapse.kernel_path import KernelFunction, KernelPath
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.losses import Loss, SquaredError
from ntkcollapse.observable_table import metrics
from ntkcollapse.observables import (
    Observables,
    collapse_observables,
    column_observables,
    invariant_observables,
    kernel_observables,
    observe,
    residual_observables,
)
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.theory.constraints import Constraint, Unconstrained
from ntkcollapse.theory.extrapolation import integrate_reduced
from ntkcollapse.theory.extrapolation_adjoint import integrate_differentiably
from ntkcollapse.theory.flow import AbstractFlow, Flow, as_kernel, check_bias
from ntkcollapse.theory.invariant import feature_gram, reduced_feature_gram
from ntkcollapse.theory.method import Method
from ntkcollapse.theory.outcome import Integration, Outcome
from ntkcollapse.theory.reduced import (
    ReducedFlow,
    ReducedStart,
    ReducedState,
    mean_size,
    spectral_radius,
    split_columns,
)
from ntkcollapse.trajectory import Trajectory
from ntkcollapse.weight_decay import WeightDecay

_DEFAULT = Method()


class SimulationError(RuntimeError):
    """An integration that did not reach its last time; `trajectory` holds what it has (None if nothing)."""

    def __init__(self, message: str, trajectory: Trajectory | None):
        super().__init__(message)
        self.trajectory = trajectory


def simulate(
    start: LastLayer | ReducedStart | Any,
    kappa: SampleKernel | KernelPath | AbstractFlow | Any,
    classes: Classes | Sequence[int] | None = None,
    times: Float[Array, " T"] | Float[np.ndarray, " T"] | Sequence[float] | None = None,
    *,
    method: Method | str = _DEFAULT,
    reduced: bool | None = None,
    columns: bool = True,
    observed: bool = True,
    steady: float | None = None,
    progress: bool = False,
    throw: bool = True,
    key: Key[Array, ""] | None = None,
    device: Any = None,
    precision: Precision | None = None,
) -> Trajectory:
    r"""Integrates the gradient flow of the last layer, and observes it.

        Ḣ = −Wᵀ G K − λ_H H,   Ẇ = −G Hᵀ − λ_W W,   ḃ = −G 1 − λ_b b,   G = ∂loss/∂(W H + b 1ᵀ)

    `simulate(start, kappa, classes, times)` is the theorem: squared error under the feature kernel kappa, no decay, a
    bias that moves. For another loss, decay or bias, give `Flow(kappa, classes, loss=..., weight_decay=..., bias=...)`,
    a model of `theory.models`, or a flow of your own (see `theory.AbstractFlow`) in place of kappa.

    Squared error under a reducible kernel (block kernels, kernels in groups, and paths of them) is integrated in class
    means and propagators of the deviations: exact, at a cost that the number of samples does not enter, with every
    column of H recovered from the start's. Anything else is integrated in all of H.

    `method=Method(step=η)` takes steps of gradient descent instead, with `momentum=β` heavy ball, reduced as exactly:

        v ← β v + d y/dt,    y ← y + η v,    at times 0, h, 2h, … after times[0], h = η/(1 − β)

    Compiles once for each shape; works under `vmap` over kernels and starts and under `grad` (reverse mode). Memory:
    T (n C + G n² + C n) numbers for a reduced run, T N n for a full one.

    Args:
        start: the state at times[0], or its arrays (H, W, b); a `ReducedStart` where single columns do not matter.
            Half precision is taken to single.
        kappa: feature kernel, constant, a `KernelPath`, a function of t, or three numbers (diagonal, within, between);
            or a flow, which brings its classes. A flow with a constraint is put back on it after every step, and
            statistics["largest_correction"] says from how far.
        classes: behind the columns of H, or a list of their sizes; may be left out beside a flow.
        times: flow times to save at, increasing, (T,); in units of the flow's loss, ½‖R‖² unless scaled.
        method: solver, tolerances and the largest number of steps; or the name of the solver alone.
        reduced: None uses the reduction wherever it is exact; False forces the full flow; True insists on it.
        columns: whether to observe what needs all columns: accuracy, nc4_mismatch.
        observed: whether to observe at all; without, the trajectory has states alone and its observation is not
            compiled.
        steady: stop as soon as the state's relative speed ‖d state/dt‖ / ‖state‖ is below it, in 1/flow time; times
            after are left out, and `statistics["steady"]` is True. Algebraic decays (‖E‖ = 0 with 1ᵀW ≠ 0) get there
            late. Under `vmap` and `grad` nothing is left out: what was not reached is infinite.
        progress: whether to draw a progress bar.
        throw: whether a failed integration raises; otherwise what was reached is returned, and
            `statistics["successful"]` is False.
        key: of the noise, for models that have some.
        device: where it runs, a device or the name of a platform. None: beside an accelerator a single run of small
            matrices goes to the CPU, since each of its operations takes less time than starting it there; large ones
            run on the accelerator, as does all that is under `jit`, `vmap` or `grad`. Double precision goes to the CPU
            where the accelerator has none (TPU), with a warning.
        precision: digits of products of matrices on accelerators, as in `empirical_ntk`.

    Raises:
        ValueError: shapes that disagree, a kernel that is not positive definite, times that do not increase, a path of
            kernels that does not cover the times, an `atol` above the size of the start, numbers that double precision
            does not hold, `reduced=True` where it is not exact, times between discrete steps, or a solver that
            estimates no errors.
        TypeError: a kernel, classes or a start of another kind, a flow of which a part is of another kind, or no times.
        SimulationError: the solver failed; the trajectory until then is its attribute.

    Warns:
        UserWarning: n < C − 1 features, in which C class means cannot be a simplex. The paper assumes n > C, and where
        that does not hold the run's `settings` note it; the equation itself is integrated for every n.

    References:
        Seleznova et al. (2023), Section 5.2 (dynamics and invariant).

    >>> import jax, numpy as np
    >>> classes = Classes.balanced(num_classes=3, per_class=4)
    >>> from ntkcollapse import BlockKernel
    >>> kappa = BlockKernel(diagonal=3.0, within=2.0, between=0.6)
    >>> H, W = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(5, 12), (3, 5)]))
    >>> run = simulate(LastLayer(H=H, W=W, b=np.zeros(3)), kappa, classes, np.linspace(0.0, 5.0, 11))
    >>> bool(run["loss"][-1] < 1e-3 * run["loss"][0])
    True
    """
    with _evaluated(kappa, start, times, key):
        flow, start = _flow_of(kappa, classes), _as_start(start)
        method = Method(solver=method) if isinstance(method, str) else method
        if not isinstance(method, Method):
            raise TypeError(f"method: expected a Method or the name of a solver, got {type(method).__name__}.")
        options = {"reduced": reduced, "columns": columns, "observed": observed, "steady": steady, "progress": progress}
        where = _device_of(flow, start, times, method, reduced, device)
        with exact_products(precision), nullcontext() if where is None else jax.default_device(where):
            if where is not None:
                flow, start, times, key = moved((flow, start, times, key), where)
            return _simulate(flow, start, times, method, throw=throw, key=key, **options)


def _evaluated(*arguments: Any) -> AbstractContextManager:
    """Within it, what is known is computed, also where a function around `simulate` is being traced.

    Not what functions of one's own may hold, of which nobody knows whether it is traced.
    """
    own = any(not _of_this_package(x) if isinstance(x, AbstractFlow) else callable(x) for x in arguments)
    within = is_traced(jax.device_put(0.0))
    # Only there: it takes programs apart into their operations, each of which is compiled.
    return jax.ensure_compile_time_eval() if within and not own and not is_traced(arguments) else nullcontext()


def _device_of(flow: AbstractFlow, start: Any, times: Any, method: Method, reduced: bool | None, asked: Any) -> Any:
    """The device that a run is moved to; None for where JAX computes anyway."""
    traced = is_traced(flow, start, times)
    if asked is not None:
        if traced:
            raise ValueError(
                "device: expected none under `jit`, `vmap` and `grad`, whose own device it runs on; call these within "
                "`jax.default_device(device)`."
            )
        return device_named(asked)
    if platform() == "cpu":
        return None
    double = any(x.dtype == np.float64 for x in jax.tree.leaves((start, flow)) if eqx.is_array(x))
    # The default method runs on the host: what is observed of it stays there.
    on_host = (
        method.solver is None
        and method.step is None
        and getattr(flow.kernel, "reducible", False)
        and reduced is not False
    )
    chosen = runs_on(platform(), batched=traced, double=double, work=0.0 if on_host else _work(flow, start))
    if chosen != "cpu":
        return None
    if double and not has_double(platform()):
        remedy = "; call it within `jax.default_device('cpu')`" if traced else ": it runs on the CPU"
        _warn_once("double", f"simulate: {platform()} has no double precision{remedy}.", frames=4)
    return None if traced else device_named("cpu")


def _work(flow: AbstractFlow, start: Any) -> float:
    """Multiplications in one evaluation of the flow, about."""
    features = max((x.shape[0] for x in jax.tree.leaves(start) if eqx.is_array(x) and x.ndim), default=1)
    state = sum(x.size for x in jax.tree.leaves(start) if eqx.is_array(x))
    kernel = max((x.size for x in jax.tree.leaves(flow.kernel) if eqx.is_array(x)), default=0)
    return 2.0 * state * flow.classes.num_classes + float(features) * kernel


def _simulate(
    flow: AbstractFlow,
    start: Any,
    times: Any,
    method: Method,
    *,
    reduced: bool | None,
    columns: bool,
    observed: bool,
    steady: float | None,
    progress: bool,
    throw: bool,
    key: Key[Array, ""] | None,
) -> Trajectory:
    """`simulate`, where it runs."""
    start = _in_single_precision(start)
    layer = _layer_of(flow, start)
    if times is None:
        raise TypeError("times: expected the flow times to save at, got none; simulate(start, kappa, classes, times).")
    check_increasing("times", times)
    if steady is not None:
        check_number("steady", steady)
        check_positive("steady", steady)
    grid = None if method.step is None else _times_of_steps(times, method, flow)
    # Times that differ must still do so in the precision of the state.
    times = jnp.asarray(times, dtype=layer.W.dtype)
    check_increasing(f"times in {times.dtype}", times)
    if grid is not None:
        grid = jnp.asarray(grid, times.dtype)
        check_increasing(f"times of steps in {times.dtype}", grid)
    _check_start(start, layer, flow, key)
    _check_absolute(method.atol, start)
    check_bias(flow.bias, layer.b)
    _check_kernel(flow.kernel, flow.classes, times)
    _warn_single_precision(layer.W)
    is_reduced = _reduces(flow, start, reduced)
    flow = _in_precision_of(layer.W, flow)
    own = type(flow) is not Flow or not _of_this_package(flow)
    hidden = own and _checked_speed(flow, start, times[0])
    options = (times, method, progress, steady, grid)
    if is_reduced:
        assert isinstance(flow, Flow)
        parts = _reduced_run(flow, start, options, columns=columns, observed=observed)
    else:
        parts = _full_run(flow, start, options, key=key, observed=observed, own=own, hidden=hidden)
    run = Trajectory(
        times,
        parts.observables,
        flow.classes,
        states=parts.states,
        kernel=parts.kernel,
        deviations=parts.deviations,
        statistics=parts.out.statistics | {"successful": parts.out.successful, "steady": parts.out.is_steady},
        equation=_equation_of(flow, method),
        settings={
            "flow": "reduced" if is_reduced else "full",
            "model": type(flow).__name__,
            "kernel": type(flow.kernel).__name__,
            "solver": parts.solver,
        }
        | ({"rtol": method.rtol, "atol": method.atol} if method.step is None else _steps_of(method))
        | _note_of_dimension(layer.W),
    )
    return run if is_traced(parts.out.states) else _deliver(run, parts.out, throw)


class _Parts(NamedTuple):
    """What an integration makes of a trajectory."""

    out: Integration
    states: LastLayer | ReducedState
    observables: Observables
    kernel: SampleKernel | KernelPath
    deviations: Array | None
    solver: str


def _reduced_run(flow: Flow, start: Any, options, *, columns: bool, observed: bool) -> _Parts:
    """Integrates class means and propagators, and observes them."""
    times, method, progress, steady, grid = options
    kernel, classes = flow.kernel, flow.classes
    assert not isinstance(kernel, KernelFunction)
    first, deviations = kernel.at(times[0]), None
    groups = first.group_rates(classes.num_classes).shape[0]
    columns_of = None
    if isinstance(start, LastLayer):
        means, deviations = split_columns(start.H, classes)
        # Where one rate makes them enough, what is observed of columns is known class by class: no N in it.
        alike = groups == 1 and not kernel.num_directions
        by_class = classes.columns_or_squares(deviations) if alike else None
        squares = by_class if by_class is not None and _are_squares(by_class) else None
        start = ReducedStart.of_parts(means, deviations, start, first, classes, squares)
        columns_of = (deviations, classes) if by_class is None else as_array(by_class)
    check_shape("scatter", start.scatter, (groups, None, None), f"one scatter for each of {groups} groups of rates")
    _check_directions(start.X, kernel.num_directions)
    reduced = ReducedFlow(
        kernel,
        as_array(np.asarray(classes.sizes, times.dtype)),
        start.scatter,
        scale=flow.loss.scale,
        weight_decay=flow.weight_decay,
        bias=flow.bias,
    )
    if method.solver is None and grid is None:
        solver, out = "Extrapolation", _extrapolate((reduced, start.state, times), method, steady, progress)
    else:
        from ntkcollapse.theory.chebyshev import RungeKuttaChebyshev

        chosen = RungeKuttaChebyshev(spectral_radius) if method.solver == "chebyshev" else method.solver
        solver = _solver_of(method, chosen)
        options = ((method.rtol, method.atol), method.max_steps, progress, None, steady, grid)
        out = _solve(reduced, start.state, times, solver, *options)
        solver = type(solver).__name__
    observables: Observables = {}
    if observed:
        at_once = platform() != "cpu" or is_traced(reduced, columns_of, out.states, times)
        observed_at = _in_chunks(_observe_reduced, reduced, columns_of, metrics(along_runs=True), at_once)
        observables, weight_gram, gram = observed_at(out.states, times)
        observables |= _drift(weight_gram, gram)
    if observed and columns and deviations is not None:
        observables |= _in_chunks(_observe_columns, kernel, deviations, classes)(out.states, times)
    deviations = None if deviations is None else as_array(deviations)
    return _Parts(out, as_arrays(out.states), observables, kernel, deviations, solver)


def _check_directions(X: Array | None, num_directions: int) -> None:
    """Raises ValueError where a start has other directions than the kernel."""
    got = 0 if X is None else X.shape[1]
    if got != num_directions:
        raise ValueError(
            f"X: expected features along the {num_directions} further directions of the kernel, got {got}; "
            "ReducedStart.of(start, kernel, classes) makes them of all columns."
        )


def _full_run(
    flow: AbstractFlow, start: Any, options, *, key: Key[Array, ""] | None, observed: bool, own: bool, hidden: bool
) -> _Parts:
    """Integrates the state of the flow as it is, and observes its last layer.

    own: whether functions of it are not this package's; hidden: whether its speed holds numbers that are traced.
    """
    from ntkcollapse.theory.retraction import Retracted

    times, method, progress, steady, grid = options
    default = "tsit5" if key is None else "shark"
    solver = _solver_of(method, default if method.solver is None else method.solver, noise=key is not None)
    if not isinstance(flow.constraint, Unconstrained):
        solver = Retracted(solver, flow.retract)
    tolerances = (method.rtol, method.atol)
    # Adjoints of ours, here and below, would take what functions close over for constants.
    solve = _solve_with_checkpoints if hidden else _solve
    out = solve(flow, start, times, solver, tolerances, method.max_steps, progress, key, steady, grid)
    layers = jax.vmap(flow.last_layer)(out.states)
    kernel = flow.kernel
    if isinstance(kernel, KernelFunction) or type(flow).kernel_at is not AbstractFlow.kernel_at:
        kernel = KernelPath.through(times, jax.vmap(flow.kernel_at)(times, out.states))
    observables: Observables = {}
    if observed:
        # Functions that its speed does not call, as the value of a loss, may hold such numbers too.
        observe_all = _observe_full if own else pulled_back_quickly(_observe_full)
        observables = observe_all(flow, out.states, times, metrics(along_runs=True))
    return _Parts(out, layers, observables, kernel, None, type(solver).__name__)


def _solver_of(method: Method, solver: Any, *, noise: bool = False) -> Any:
    """The solver of this name, or discrete steps."""
    if method.step is None:
        from ntkcollapse.theory.integrate import named_solver

        return named_solver(solver, noise=noise)
    from ntkcollapse.theory.steps import Descent

    return Descent(jnp.asarray(method.step, float), jnp.asarray(method.momentum, float))


def _steps_of(method: Method) -> dict[str, Any]:
    """What discrete steps leave in the settings of a run."""
    assert method.step is not None
    return {"step": float(method.step), "momentum": float(method.momentum)}


def _times_of_steps(times: Any, method: Method, flow: AbstractFlow) -> np.ndarray:
    """The times of all steps until the last, those that are saved among them.

    Raises:
        ValueError: a time between two steps, more steps than allowed, or a flow with noise.
    """
    if is_traced(times):
        raise ValueError("times: expected numbers beside Method(step=...), got traced ones: they count the steps.")
    if flow.noise is not None:
        raise ValueError(
            f"step: expected a flow without noise beside Method(step={method.step}), got {type(flow).__name__} with "
            f"noise; take steps of a solver, Method(solver='shark'), or the flow without noise, noise=None."
        )
    length, times = method.time_of_a_step, np.asarray(times, dtype=float)
    since = (times - times[0]) / length
    counts = np.round(since)
    # Single precision, in which times may have been made, has seven digits.
    between = np.abs(since - counts) > 1e-6 * np.maximum(counts, 1)
    if between.any() or (np.diff(counts) == 0).any():
        off = times[np.argmax(between)] if between.any() else times[1]
        raise ValueError(
            f"times: expected multiples of {length:.6g} after the first (of step/(1 - momentum), the time of a step), "
            f"got {off:.6g}: between two steps there is nothing. Take times[0] + {length:.6g} * np.arange(...)."
        )
    if counts[-1] > method.max_steps:
        raise ValueError(
            f"times: expected at most max_steps = {method.max_steps} steps until the last, got {int(counts[-1])}; take "
            "a longer step, or raise max_steps."
        )
    grid = times[0] + length * np.arange(int(counts[-1]) + 1)
    # As they were given, to the last digit: a path of kernels may end there.
    grid[counts.astype(int)] = times
    return grid


def _flow_of(kappa: Any, classes: Classes | Sequence[int] | None) -> AbstractFlow:
    """The theorem's flow under a kernel, or the flow given."""
    if isinstance(kappa, AbstractFlow):
        _check_parts(kappa)
        if classes is not None and kappa.classes != as_classes(classes):
            raise ValueError("classes: expected the classes that the flow was built for; leave them out.")
        return kappa
    if classes is None:
        as_kernel(kappa)
        raise TypeError("classes: expected the classes behind the columns of H, got none beside a kernel.")
    return Flow(kappa, as_classes(classes))


def _as_start(start: Any) -> Any:
    """The start itself, or the last layer of its three arrays."""
    if type(start) in (list, tuple) and len(start) == 3 and not any(isinstance(x, eqx.Module) for x in start):
        return LastLayer(*start)
    return start


def _layer_of(flow: AbstractFlow, start: Any) -> LastLayer | ReducedStart:
    """The last layer at the start, in whose precision all is computed.

    Raises:
        TypeError: a start that is no state of this flow.
    """
    # The models take longer to import than a run of the theorem takes.
    if type(flow) is not Flow or not isinstance(start, LastLayer | ReducedStart):
        from ntkcollapse.theory.models.deep_linear import DeepLastLayer, DeepLinearFlow

        deep = isinstance(start, DeepLastLayer)
        if deep and not isinstance(flow, DeepLinearFlow):
            raise ValueError("start: a DeepLastLayer needs the model `deep_linear`; give a LastLayer for this flow.")
        if isinstance(flow, DeepLinearFlow) and not deep:
            raise ValueError(f"start: expected a DeepLastLayer for this model, got a {type(start).__name__}.")
    if isinstance(start, ReducedStart):
        return start
    name, same = type(flow).__name__, type(flow).last_layer is Flow.last_layer
    if same and not isinstance(start, LastLayer):
        raise TypeError(
            f"start: expected a LastLayer or the arrays (H, W, b), got {type(start).__name__}; "
            "LastLayer(H=..., W=..., b=...) makes one."
        )
    read: Any = flow.last_layer
    try:
        layer = read(start)
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise TypeError(
            f"start: expected a state of which {name}.last_layer gives H, W and b, got {type(start).__name__}: {error}"
        ) from error
    if not isinstance(layer, LastLayer):
        raise TypeError(
            f"{name}.last_layer: expected a LastLayer, LastLayer(H=..., W=..., b=...), got {type(layer).__name__} of a "
            f"{type(start).__name__}."
        )
    return layer


def _check_parts(flow: AbstractFlow) -> None:
    """Raises TypeError where a part of a flow of one's own is of another kind, and ValueError for an unknown bias."""
    kinds = {
        "kernel": (SampleKernel, KernelPath, KernelFunction),
        "classes": (Classes,),
        "loss": (Loss,),
        "weight_decay": (WeightDecay,),
        "constraint": (Constraint,),
    }
    for name, kind in kinds.items():
        part = getattr(flow, name)
        if not isinstance(part, kind):
            raise TypeError(
                f"{type(flow).__name__}.{name}: expected a {' or '.join(k.__name__ for k in kind)}, got "
                f"{type(part).__name__}; a subclass of ntkcollapse.Flow makes it of what is meant plainly."
            )
    if flow.noise is not None and not hasattr(flow, "diffusion"):
        raise TypeError(
            f"{type(flow).__name__}.diffusion: expected a method `diffusion(state)` beside noise, got none; it gives "
            "the standard deviation of the noise on each entry, a pytree like the state."
        )


def _of_this_package(flow: AbstractFlow) -> bool:
    """Whether the flow and its parts are of this package's kinds, which hold in arrays all that they are."""
    parts = (flow, flow.kernel, flow.loss, flow.constraint)
    own = all(type(part).__module__.partition(".")[0] == "ntkcollapse" for part in parts)
    return own and not isinstance(flow.kernel, KernelFunction)


def _checked_speed(flow: AbstractFlow, start: Any, t: Any) -> bool:
    """Whether functions of the flow hold values that are traced, of which no array of the flow tells.

    Raises:
        TypeError: a flow of one's own that gives something else than a pytree like the state.
    """
    program, speed = jax.make_jaxpr(lambda state, t: flow(t, state), return_shape=True)(start, t)
    wanted, got = ([(x.shape, str(x.dtype)) for x in jax.tree.leaves(tree)] for tree in (start, speed))
    if jax.tree.structure(speed) != jax.tree.structure(start) or wanted != got:
        raise TypeError(
            f"{type(flow).__name__}: expected d state/dt as a pytree like the state, with {wanted} in "
            f"{jax.tree.structure(start)}; got {got} in {jax.tree.structure(speed)}."
        )
    return is_traced(program.consts)


def _in_single_precision(start: Any) -> Any:
    """The state, in single precision where it is in half, in which nothing is integrated."""
    half = [x for x in jax.tree.leaves(start) if eqx.is_inexact_array(x) and x.dtype.itemsize < 4]
    return jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, start) if half else start


def _note_of_dimension(W: Array) -> dict[str, str]:
    """A note where there are no more features than classes; metrics of collapse warn where a simplex has no room."""
    C, n = W.shape
    if n > C:
        return {}
    why = "is enough" if n >= C - 1 else "is what collapse needs"
    return {"note": f"n = {n} features for C = {C} classes: the paper assumes n > C; n ≥ C − 1 = {C - 1} {why}"}


def _equation_of(flow: AbstractFlow, method: Method) -> Equation:
    """What the trajectory of a flow obeys; discrete steps do not obey the flow."""
    plain = type(flow) is Flow and flow.is_plain and method.step is None
    return Equation(loss=flow.loss, weight_decay=flow.weight_decay, bias=flow.bias, plain=plain)


def _reduces(flow: AbstractFlow, start: Any, reduced: bool | None) -> bool:
    """Whether the flow is integrated in class means: by default wherever that is known to be exact.

    A subclass of `Flow`, of a loss or of a kernel may mean another equation: none of them is reduced.

    Raises:
        ValueError: a reduction that was asked for and is not exact, or a `ReducedStart` that cannot be reduced.
    """
    plain = type(flow) is Flow and flow.is_plain
    exact = plain and flow.kernel.reducible and type(flow.loss) is SquaredError
    if reduced and not exact:
        more = "" if plain else ", with a constraint, noise, relative rates or a vector field of its own"
        raise ValueError(
            f"reduced: the reduction is exact for squared error under a reducible kernel, got "
            f"{type(flow.loss).__name__} and {type(flow.kernel).__name__}{more}; use reduced=None or False."
        )
    is_reduced = exact if reduced is None else reduced
    if isinstance(start, ReducedStart) and not is_reduced:
        raise ValueError("start: a ReducedStart has no columns to integrate in full; give a LastLayer.")
    return is_reduced


def _check_start(start: Any, layer: Any, flow: AbstractFlow, key: Key[Array, ""] | None) -> None:
    """Raises ValueError where a start does not fit the flow."""
    if isinstance(start, ReducedStart):
        check_shape("M", start.M, (None, flow.classes.num_classes), "(n, C) for classes")
    else:
        layer.check(flow.classes)
    if (flow.noise is None) != (key is None):
        expected, got, remedy = (
            ("a key of random numbers for a flow with noise", "none", "give key=jax.random.key(0)")
            if key is None
            else ("none for a flow without noise", "a key", "leave it out")
        )
        raise ValueError(f"key: expected {expected}, got {got}; {remedy}.")
    if not isinstance(flow.constraint, Unconstrained):
        if not isinstance(start, LastLayer):
            raise ValueError("start: a model with a constraint is integrated in full; give a LastLayer.")
        flow.constraint.check(start, flow.classes)


def _check_absolute(atol: float, start: Any) -> None:
    """Raises ValueError where an absolute tolerance is above all that there is at the start."""
    parts = (
        []
        if atol == 0 or is_traced(start)
        else [np.asarray(x) for x in jax.tree.leaves(eqx.filter(start, eqx.is_inexact_array))]
    )
    largest = max((float(np.sqrt(np.mean(np.square(x)))) for x in parts if x.size), default=0.0)
    if 0 < largest <= atol:
        raise ValueError(
            f"atol: expected less than the size of the start, {largest:.3g} (root mean square of its largest part), "
            f"got {atol:g}: any step would pass; 0 leaves it all to rtol."
        )


def _deliver(run: Trajectory, out: Integration, throw: bool) -> Trajectory:
    """The run, cut at the last time that was reached where the solver failed."""
    finite = np.logical_and.reduce(
        [np.isfinite(np.asarray(x)).all(axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(run.states)]
    )
    if bool(out.successful) and finite.all():
        return run
    reached = len(finite) if finite.all() else int(np.argmin(finite))
    kept = None
    if reached:
        kept = eqx.tree_at(
            lambda r: (r.times, r.observables, r.states),
            run,
            jax.tree.map(lambda x: x[:reached], (run.times, run.observables, run.states)),
        )
        if bool(out.is_steady):
            return kept
        kept = eqx.tree_at(lambda r: r.statistics["successful"], kept, jnp.asarray(False))
    if kept is not None and not throw:
        return kept
    why = Outcome(int(out.outcome)).reason if not bool(out.successful) else "the state is no longer finite."
    where = f"t = {float(run.times[reached - 1]):.6g}" if reached else "the start"
    raise SimulationError(
        f"simulate: the solver stopped after {where} of {float(run.times[-1]):.6g} ({reached} of {len(finite)} times "
        f"saved): {why} Shorten `times`, raise `max_steps`, or name another solver; the part that was "
        "reached is the `trajectory` attribute of this error.",
        kept,
    )


def _extrapolate(problem, method: Method, steady: float | None, progress: bool) -> Integration:
    """Integrates a reduced flow by the default method."""
    options = {"rtol": method.rtol, "atol": method.atol, "max_steps": method.max_steps, "steady": steady}
    if is_traced(problem):
        return integrate_differentiably(problem, _held(options))
    return integrate_reduced(*problem, **options, progress=progress)


def _solve(*problem) -> Integration:
    """From flow, start, times and how it is integrated; for reverse mode where anything is traced."""
    return _solve_differentiably(*problem) if is_traced(problem) else _solve_alone(*problem)


def _solve_differentiably(*problem) -> Integration:
    """By the adjoint of explicit steps where these are all that is asked for, by checkpoints of diffrax's otherwise."""
    from ntkcollapse.theory.runge_kutta import is_led_here
    from ntkcollapse.theory.runge_kutta_adjoint import integrate_explicitly_differentiably

    flow, start, times, solver, (rtol, atol), max_steps, progress, *special = problem
    if progress or any(x is not None for x in special) or not is_led_here(solver, start):
        return _solve_with_checkpoints(*problem)
    options = {"solver": solver, "rtol": rtol, "atol": atol, "max_steps": max_steps}
    return integrate_explicitly_differentiably((flow, start, times), _held(options))


def _held(options: dict[str, Any]) -> dict[str, Any]:
    """How something is integrated is not differentiated."""
    return {name: jax.lax.stop_gradient(x) if is_traced(x) else x for name, x in options.items()}


# Steps number in the hundreds: from a few thousand numbers on they take longer than to be compiled.
@compiled_quickly(below=4e3)
def _solve_alone(*problem) -> Integration:
    return _integrated(*problem, differentiable=False)


@eqx.filter_jit
def _solve_with_checkpoints(*problem) -> Integration:
    return _integrated(*problem, differentiable=True)


def _integrated(flow, start, times, solver, tolerances, max_steps, progress, key, steady, grid, *, differentiable):
    from ntkcollapse.theory.integrate import integrate

    rtol, atol = tolerances
    options = {"rtol": rtol, "atol": atol, "max_steps": max_steps, "progress": progress, "key": key, "steady": steady}
    return integrate(flow, start, times, solver=solver, differentiable=differentiable, grid=grid, **options)


# Times that are observed together: a run of another number of times needs no other program. States of so many numbers
# a time take longer to be observed than a program for fewer times to be compiled.
_CHUNK, _LARGE = 64, 2**15


def _in_chunks(function, *parts):
    """The function of (states, times) that observes them by chunks of one length, filled up with the last time.

    Where states are large the length is the power of two that holds all times, if that is less.
    """

    def observed(states, times):
        if is_traced(parts, states, times):
            return pulled_back_quickly(function)(*parts, states, times)
        host = jax.tree.map(np.asarray, (states, times))
        chunks, length = [], _CHUNK
        if sum(x.size for x in jax.tree.leaves(host)) > _LARGE * len(times):
            length = min(_CHUNK, 1 << (len(times) - 1).bit_length())
        for first in range(0, len(times), length):
            count = min(length, len(times) - first)

            def filled(x, first=first, count=count):
                return np.concatenate(
                    [x[first : first + count], np.repeat(x[first + count - 1 :][:1], length - count, 0)]
                )

            out = function(*parts, *jax.tree.map(filled, host))
            chunks.append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], out))
        return jax.tree.map(lambda *x: as_array(np.concatenate(x)), *chunks)

    return observed


@compiled_quickly()
def _observe_reduced(flow: ReducedFlow, columns_of, entries, at_once: bool, states: ReducedState, times):
    """Everything that class means and scatter tell; what is known of columns adds the scatter class by class.

    columns_of: `Classes.columns_or_squares` where one rate makes these enough; else deviations and classes, whose
    static sizes compile for each of them anew. at_once: all times in one batch, which an accelerator needs; one after
    the other is traced and loaded in less time. Gives the observables, WᵀW and H K⁻¹ Hᵀ.
    """
    spread = None if columns_of is None else _class_spread(flow.kernel, columns_of)
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(flow.scatter))
    start_root = vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :]

    def at(inputs):
        t, state = inputs
        kernel = flow.kernel.at(t)
        scatter = state.scatter(flow.scatter)
        square_deviations = jnp.zeros_like(state.M) if spread is None else spread(kernel, state)
        deviations = jnp.concatenate(list(state.P @ start_root), axis=1)
        within = scatter.sum(0)
        if state.X is not None:
            along = state.X * jnp.sqrt(flow.sizes.mean())
            deviations, within = jnp.concatenate([along, deviations], axis=1), within + along @ along.T
        statistics = ClassStatistics(
            sizes=flow.sizes, means=state.M, scatter=within, square_deviations=square_deviations
        )
        gram = reduced_feature_gram(state.means, scatter, kernel, flow.sizes)
        observables = residual_observables(statistics, deviations, state.W, state.b)
        observables["loss"] = flow.scale * observables["loss"]
        determined = [entry for entry in entries if spread is not None or not entry.needs_columns]
        observables |= collapse_observables(statistics, state.W, state.b, determined)
        observables |= invariant_observables(state.W, gram, state.M.mean(1)) | kernel_observables(kernel)
        return observables, state.W.T @ state.W, gram

    if at_once and (spread is None or states.P.shape[1] == 1):
        return jax.vmap(at)((times, states))
    # Groups of rates mix the columns of a class: one time after the other, so that no (T, n, N) array is made.
    return jax.lax.map(at, (times, states))


def _class_spread(kernel, columns_of):
    """The function (kernel, state) ↦ (n, C) of each class's squared deviations, feature by feature."""

    def by_propagator(by_class):
        def spread(_, state):
            P = state.P[0] if state.X is None else jnp.concatenate([state.P[0], state.X], axis=1)
            if not _are_squares(by_class):
                return jnp.square(jnp.einsum("ij,cjr->cir", P, by_class)).sum(2).T
            # Rounding may leave −1e-30 where a class has no spread along a feature.
            return jnp.maximum(jnp.einsum("ij,cjk,ik->ic", P, by_class, P), 0)

        return spread

    if not isinstance(columns_of, tuple):
        return by_propagator(columns_of)
    (deviations, classes), first = columns_of, kernel.at(0.0)
    if first.group_rates(classes.num_classes).shape[0] == 1:
        # What the propagator acts on, and the further directions: (n + K, N).
        V = jnp.asarray(first.directions(classes)) * mean_size(classes) ** 0.5
        acted_on = jnp.concatenate([first.split(deviations, classes)[0], V.T])
        return by_propagator(classes.columns_or_squares(acted_on))
    return lambda kernel, state: classes.sums(
        jnp.square(state.columns(kernel, deviations, classes) - classes.expand(state.M))
    )


def _are_squares(by_class) -> bool:
    """Which of both `Classes.columns_or_squares` has given."""
    return by_class.shape[1] == by_class.shape[2]


@eqx.filter_jit
def _observe_columns(kappa, deviations, classes: Classes, states: ReducedState, times) -> Observables:
    def at(inputs):
        t, state = inputs
        H = state.columns(kappa.at(t), deviations, classes)
        return column_observables(LastLayer(H=H, W=state.W, b=state.b), classes)

    # One time after the other: all columns at all times would not fit where classes are large.
    return jax.lax.map(at, (times, states))


@compiled_quickly(below=3e6)
def _observe_full(flow: AbstractFlow, states: Any, times, entries) -> Observables:
    def at(inputs):
        t, state = inputs
        kernel, state = flow.kernel_at(t, state), flow.last_layer(state)
        gram = feature_gram(state.H, kernel, flow.classes)
        observables = observe(state, flow.classes, kernel, flow.loss, gram=gram, metrics=entries)
        return observables, state.W.T @ state.W, gram

    observables, weight_gram, gram = jax.lax.map(at, (times, states))
    return observables | _drift(weight_gram, gram)


def _drift(weight_gram: Float[Array, "T n n"], gram: Float[Array, "T n n"]) -> Observables:
    """‖I(t) − I(0)‖ over ‖WᵀW‖ + ‖H K⁻¹ Hᵀ‖: rounding and solver error alone, where I is conserved."""
    xp: Any = module_of(weight_gram, gram)
    weight_gram, gram = map(xp.asarray, (weight_gram, gram))
    norms: Any = _norms if xp is np else jax.vmap(norm)
    # A run that failed has numbers that are not finite behind its end.
    with np.errstate(all="ignore"):
        invariants = weight_gram - gram
        size = norms(weight_gram) + norms(gram)
        moved = norms(invariants - invariants[:1])
        return {"invariant_drift": as_array(moved / xp.where(size > 0, size, 1))}


def _norms(matrices: Float[np.ndarray, "T n n"]) -> Float[np.ndarray, " T"]:
    """`norm` of each, on the host."""
    sizes = np.abs(matrices).max((1, 2))
    scaled = matrices / np.where(sizes > 0, sizes, 1)[:, None, None]
    return sizes * np.linalg.norm(scaled, axis=(1, 2))


def _check_kernel(kappa: SampleKernel | KernelPath | KernelFunction, classes: Classes, times: Array) -> None:
    if not isinstance(kappa, KernelPath):
        first = kappa.at(times[0])
        # What is known is checked, also where starts and times are traced.
        with _evaluated(first):
            first.check(classes)
        return
    with _evaluated(kappa):
        for i in range(kappa.times.shape[0]):
            kappa.at(kappa.times[i]).check(classes)
    if is_traced(kappa.times, times):
        return
    if float(times[0]) < float(kappa.times[0]) or float(times[-1]) > float(kappa.times[-1]):
        raise ValueError(
            f"times: expected times within those of the kernel path, {float(kappa.times[0]):.6g} to "
            f"{float(kappa.times[-1]):.6g}; got {float(times[0]):.6g} to {float(times[-1]):.6g}."
        )


def _in_precision_of(W: Array, tree):
    """The floating-point numbers of a pytree in the precision of the state."""
    return jax.tree.map(lambda x: x.astype(W.dtype) if eqx.is_inexact_array(x) else x, tree)


_warned: set[str] = set()


def _warn_single_precision(W: Array) -> None:
    if W.dtype != jnp.float64:
        _warn_once(
            "float32",
            f"simulate: the start is {W.dtype}; rates that differ by 10⁴ and residuals of 10⁻⁸ need float64. Set "
            "jax.config.update('jax_enable_x64', True) before making arrays.",
            frames=5,
        )


def _warn_once(what: str, message: str, *, frames: int) -> None:
    """Warns the first time, at the line that called `simulate`, so many frames up."""
    if what not in _warned:
        _warned.add(what)
        warnings.warn(message, stacklevel=frames)
