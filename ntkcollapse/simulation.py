"""The theory as a producer of trajectories: from a start and a kernel to everything that is observed."""

import warnings
from collections.abc import Mapping

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ntkcollapse._checks import check_increasing, check_positive, check_shape, is_traced
from ntkcollapse._safe import norm
from ntkcollapse.classes import Classes
from ntkcollapse.collapse import ClassStatistics
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.losses import Loss, SquaredError
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
from ntkcollapse.theory.chebyshev import RungeKuttaChebyshev
from ntkcollapse.theory.constraints import Unconstrained
from ntkcollapse.theory.flow import AbstractFlow, Flow, WeightDecay, check_bias
from ntkcollapse.theory.integrate import Integration, integrate, named_solver
from ntkcollapse.theory.invariant import feature_gram, reduced_feature_gram
from ntkcollapse.theory.models.deep_linear import DeepLastLayer, DeepLinearFlow
from ntkcollapse.theory.reduced import ReducedFlow, ReducedStart, ReducedState, spectral_radius
from ntkcollapse.theory.retraction import Retracted
from ntkcollapse.trajectory import Trajectory


class SimulationError(RuntimeError):
    """An integration that did not reach its last time; `trajectory` holds what it has (None if nothing)."""

    def __init__(self, message: str, trajectory: Trajectory | None):
        super().__init__(message)
        self.trajectory = trajectory


def simulate(
    start: LastLayer | ReducedStart | DeepLastLayer,
    kappa: SampleKernel | KernelPath | AbstractFlow,
    classes: Classes,
    times: Float[Array, " T"] | Float[np.ndarray, " T"],
    *,
    loss: Loss | None = None,
    weight_decay: float | Mapping[str, float] = 0.0,
    bias: str = "free",
    reduced: bool | None = None,
    columns: bool = True,
    observed: bool = True,
    solver: str | diffrax.AbstractSolver | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_steps: int = 100_000,
    steady: float | None = None,
    progress: bool = False,
    throw: bool = True,
    key: Key[Array, ""] | None = None,
) -> Trajectory:
    r"""Integrates the gradient flow of the last layer, and observes it.

        Ḣ = −Wᵀ G K − λ_H H,   Ẇ = −G Hᵀ − λ_W W,   ḃ = −G 1 − λ_b b,   G = ∂loss/∂(W H + b 1ᵀ)

    Squared error under a reducible kernel (block kernels, kernels in groups, and paths of them) is integrated in class
    means and propagators of the deviations: exact, at a cost that the number of samples does not enter, with every
    column of H recovered from the start's. Anything else is integrated in all of H.

    Compiles once for each shape; works under `vmap` over kernels and starts and under `grad` (reverse mode). Memory:
    T (n C + G n² + C n) numbers for a reduced run, T N n for a full one.

    Args:
        start: the state at times[0]; a `ReducedStart` where single columns do not matter.
        kappa: feature kernel, constant or a `KernelPath`; or a model of `theory.models`, which brings its own loss,
            weight decay and bias, and may have constraints and noise (then it is integrated in full; every step is put
            back on the constraint, and statistics["largest_correction"] says from how far).
        classes: behind the columns of H.
        times: flow times to save at, increasing, (T,); in units of the given loss, ½‖R‖² unless scaled.
        loss: `SquaredError()` by default; `CrossEntropy()` runs in full.
        weight_decay: one rate for H, W and b, or {"H": ..., "W": ..., "b": ...}.
        bias: "free", "frozen" or "absent" (zero).
        reduced: None uses the reduction wherever it is exact; False forces the full flow; True insists on it.
        columns: whether to observe what needs all columns: accuracy, nc4_mismatch.
        observed: whether to observe at all; without, the trajectory has states alone and its observation is not
            compiled.
        solver: None for the default (stabilised explicit for reduced runs, Tsit5 for full ones), a name of
            `theory.integrate.SOLVERS`, or any diffrax solver.
        rtol, atol: of the solver, per step.
        max_steps: after which it gives up.
        steady: stop as soon as the state's relative speed ‖d state/dt‖ / ‖state‖ is below it, in 1/flow time; times
            after are left out, and `statistics["steady"]` is True. Algebraic decays (‖E‖ = 0 with 1ᵀW ≠ 0) get there
            late. Under `vmap` and `grad` nothing is left out: what was not reached is infinite.
        progress: whether to draw a progress bar.
        throw: whether a failed integration raises; otherwise what was reached is returned, and
            `statistics["successful"]` is False.
        key: of the noise, for models that have some.

    Raises:
        ValueError: shapes that disagree, a kernel that is not positive definite, times that do not increase, a path of
            kernels that does not cover the times, unknown names, or `reduced=True` where it is not exact.
        SimulationError: the solver failed; the trajectory until then is its attribute.

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
    model = kappa if isinstance(kappa, AbstractFlow) else None
    if isinstance(kappa, AbstractFlow):
        _check_model(kappa, start, classes, loss, weight_decay, bias, key)
        kernel, loss, decay, bias = kappa.kernel, kappa.loss, kappa.decay, kappa.bias
    else:
        kernel = kappa
        loss = SquaredError() if loss is None else loss
        decay = WeightDecay.of(weight_decay)
    check_increasing("times", times)
    check_positive("rtol", rtol)
    check_positive("atol", atol)
    check_positive("steady", [] if steady is None else steady)
    check_bias(bias, start.b)
    times = jnp.asarray(times, dtype=start.W.dtype)
    _check_kernel(kernel, classes, times)
    _warn_single_precision(start.W)

    exact = kernel.reducible and isinstance(loss, SquaredError) and (model is None or model.is_plain)
    reduced = exact if reduced is None else reduced
    if isinstance(start, ReducedStart) and not reduced:
        raise ValueError("start: a ReducedStart has no columns to integrate in full; give a LastLayer.")
    if reduced and not exact:
        more = "" if model is None or model.is_plain else ", with a constraint, noise or relative rates"
        raise ValueError(
            f"reduced: the reduction is exact for squared error under a reducible kernel, got {type(loss).__name__} "
            f"and {type(kernel).__name__}{more}; use reduced=None or False."
        )
    if not isinstance(start, ReducedStart):
        (start if isinstance(start, LastLayer) else start.last_layer).check(classes)
    else:
        check_shape("M", start.M, (None, classes.num_classes), "(n, C) for classes")

    kernel, decay = _in_precision_of(start.W, (kernel, decay))
    first = kernel.at(times[0])
    deviations, states = None, {}
    if reduced:
        if isinstance(start, DeepLastLayer):
            raise ValueError("start: a DeepLastLayer needs the model `deep_linear`.")
        if isinstance(start, LastLayer):
            deviations = classes.deviations(start.H)
            start = ReducedStart.of(start, first, classes)
        groups = first.group_rates(classes.num_classes).shape[0]
        check_shape("scatter", start.scatter, (groups, None, None), f"one scatter for each of {groups} groups of rates")
        flow = ReducedFlow(
            kernel, classes.weights.astype(times.dtype), start.scatter, scale=loss.scale, decay=decay, bias=bias
        )
        solver = RungeKuttaChebyshev(spectral_radius) if solver in (None, "chebyshev") else solver
        method = named_solver(solver)
        out = _solve(flow, start.state, times, method, rtol, atol, max_steps, progress, None, steady)
        states = {name: getattr(out.states, name) for name in ("M", "P", "W", "b")}
        # Classes have static sizes: only deviations, whose columns they name, may compile for each of them anew.
        columns_of = None if deviations is None else (deviations, classes)
        observables = _observe_reduced(flow, out.states, times, columns_of) if observed else {}
        if observed and columns and deviations is not None:
            observables |= _observe_columns(kernel, out.states, times, deviations, classes)
    else:
        default = "tsit5" if key is None else diffrax.ShARK()
        method = named_solver(default if solver is None else solver)
        flow = Flow(kernel, classes, loss, decay, bias) if model is None else model
        if isinstance(flow, Flow) and not isinstance(flow.constraint, Unconstrained):
            method = Retracted(method, flow.retract)
        out = _solve(flow, start, times, method, rtol, atol, max_steps, progress, key, steady)
        layers = jax.vmap(flow.last_layer)(out.states)
        states = {name: getattr(layers, name) for name in ("H", "W", "b")}
        observables = _observe_full(flow, layers, times) if observed else {}
    settings = {
        "producer": "theory",
        "flow": "reduced" if reduced else "full",
        "loss": type(loss).__name__,
        "kernel": type(kernel).__name__,
        "bias": bias,
        "plain": model is None or model.is_plain,
        "solver": type(method).__name__,
        **{k: float(v) for k, v in (("rtol", rtol), ("atol", atol), ("scale", loss.scale)) if not is_traced(v)},
    }
    if not is_traced(decay):
        settings["weight_decay"] = {name: float(getattr(decay, name)) for name in "HWb"}
    run = Trajectory(
        times,
        observables,
        classes,
        states=states,
        kernel=kernel,
        deviations=deviations,
        statistics=out.statistics | {"successful": out.successful, "steady": out.is_steady},
        settings=settings,
    )
    return run if is_traced(out.states) else _deliver(run, out, throw)


def _check_model(model: AbstractFlow, start, classes, loss, weight_decay, bias, key) -> None:
    if loss is not None or bias != "free" or isinstance(weight_decay, Mapping) or weight_decay != 0.0:
        raise ValueError("loss, weight_decay, bias: expected none of them beside a model, which has its own.")
    if model.classes != classes:
        raise ValueError("classes: expected the classes that the model was built for; pass model.classes.")
    if isinstance(start, DeepLastLayer) != isinstance(model, DeepLinearFlow):
        wanted = "DeepLastLayer" if isinstance(model, DeepLinearFlow) else "LastLayer"
        raise ValueError(f"start: expected a {wanted} for this model, got a {type(start).__name__}.")
    if (model.noise is None) != (key is None):
        raise ValueError("key: expected a key for a model with noise, and none for a model without.")
    if not isinstance(model.constraint, Unconstrained):
        if not isinstance(start, LastLayer):
            raise ValueError("start: a model with a constraint is integrated in full; give a LastLayer.")
        model.constraint.check(start, classes)


def _deliver(run: Trajectory, out: Integration, throw: bool) -> Trajectory:
    """The run, cut at the last time that was reached where the solver failed."""
    finite = np.logical_and.reduce(
        [np.isfinite(np.asarray(x)).all(axis=tuple(range(1, x.ndim))) for x in run.states.values()]
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
    why = diffrax.RESULTS[out.result] if not bool(out.successful) else "the state is no longer finite"
    where = f"t = {float(run.times[reached - 1]):.6g}" if reached else "the start"
    raise SimulationError(
        f"simulate: the solver stopped after {where} of {float(run.times[-1]):.6g} ({reached} of {len(finite)} times "
        f"saved): {str(why).strip()} Shorten `times`, raise `max_steps`, or name another solver; the part that was "
        "reached is the `trajectory` attribute of this error.",
        kept,
    )


@eqx.filter_jit
def _solve(flow, start, times, solver, rtol, atol, max_steps, progress, key, steady) -> Integration:
    options = {"rtol": rtol, "atol": atol, "max_steps": max_steps, "progress": progress, "key": key, "steady": steady}
    return integrate(flow, start, times, solver=solver, **options)


@eqx.filter_jit
def _observe_reduced(flow: ReducedFlow, states: ReducedState, times, columns_of) -> Observables:
    """Everything that class means and scatter tell; deviations and their classes add the scatter class by class."""
    spread = None if columns_of is None else _class_spread(*columns_of)
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(flow.scatter))
    start_root = vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :]

    def at(inputs):
        t, state = inputs
        kernel = flow.kernel.at(t)
        scatter = state.scatter(flow.scatter)
        square_deviations = jnp.zeros_like(state.M) if spread is None else spread(kernel, state.P)
        statistics = ClassStatistics(
            sizes=flow.sizes, means=state.M, scatter=scatter.sum(0), square_deviations=square_deviations
        )
        gram = reduced_feature_gram(state.M, scatter, kernel, flow.sizes)
        deviations = jnp.concatenate(list(state.P @ start_root), axis=1)
        seen = residual_observables(statistics, deviations, state.W, state.b)
        seen["loss"] = flow.scale * seen["loss"]
        seen |= collapse_observables(statistics, state.W, state.b)
        seen |= invariant_observables(state.W, gram, state.M.mean(1)) | kernel_observables(kernel)
        if spread is None:
            del seen["nc1_seleznova2023"]
        return seen, state.W.T @ state.W, gram

    if spread is None or states.P.shape[1] == 1:
        observables, weight_gram, gram = jax.vmap(at)((times, states))
    else:
        # Groups of rates mix the columns of a class: one time after the other, so that no (T, n, N) array is made.
        observables, weight_gram, gram = jax.lax.map(at, (times, states))
    return observables | _drift(weight_gram, gram)


def _class_spread(deviations, classes):
    """The function (kernel, P) ↦ (n, C) of each class's squared deviations, feature by feature."""
    by_class = jnp.split(deviations, np.cumsum(classes.sizes)[:-1], axis=1)
    start = jnp.stack([X @ X.T for X in by_class])

    def spread(kernel, P):
        if P.shape[0] == 1:
            # Rounding may leave −1e-30 where a class has no spread along a feature.
            return jnp.maximum(jnp.einsum("ij,cjk,ik->ic", P[0], start, P[0]), 0)
        now = jnp.einsum("gij,gjk->ik", P, kernel.split(deviations, classes))
        return classes.sums(jnp.square(now))

    return spread


@eqx.filter_jit
def _observe_columns(kappa, states: ReducedState, times, deviations, classes: Classes) -> Observables:
    def at(inputs):
        t, state = inputs
        groups = kappa.at(t).split(deviations, classes)
        H = classes.expand(state.M) + jnp.einsum("gij,gjk->ik", state.P, groups)
        return column_observables(LastLayer(H=H, W=state.W, b=state.b), classes)

    # One time after the other: all columns at all times would not fit where classes are large.
    return jax.lax.map(at, (times, states))


@eqx.filter_jit
def _observe_full(flow: AbstractFlow, states: LastLayer, times) -> Observables:
    def at(inputs):
        t, state = inputs
        kernel = flow.kernel.at(t)
        gram = feature_gram(state.H, kernel, flow.classes)
        seen = observe(state, flow.classes, kernel, flow.loss, gram=gram)
        return seen, state.W.T @ state.W, gram

    observables, weight_gram, gram = jax.lax.map(at, (times, states))
    return observables | _drift(weight_gram, gram)


def _drift(weight_gram: Float[Array, "T n n"], gram: Float[Array, "T n n"]) -> Observables:
    """‖I(t) − I(0)‖ over ‖WᵀW‖ + ‖H K⁻¹ Hᵀ‖: rounding and solver error alone, where I is conserved."""
    invariants = weight_gram - gram
    norms = jax.vmap(norm)
    size = norms(weight_gram) + norms(gram)
    moved = norms(invariants - invariants[:1])
    return {"invariant_drift": moved / jnp.where(size > 0, size, 1)}


def _check_kernel(kappa: SampleKernel | KernelPath, classes: Classes, times: Array) -> None:
    if not isinstance(kappa, KernelPath):
        kappa.at(times[0]).check(classes)
        return
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
    if W.dtype == jnp.float64 or "float32" in _warned:
        return
    _warned.add("float32")
    warnings.warn(
        f"simulate: the start is {W.dtype}; rates that differ by 10⁴ and residuals of 10⁻⁸ need float64. Set "
        "jax.config.update('jax_enable_x64', True) before making arrays.",
        stacklevel=3,
    )
