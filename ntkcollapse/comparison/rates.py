"""The three rates of a measured run: fitted with an uncertainty, beside what its kernels predict where a fit begins."""

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.comparison._memory import pairs, require_memory
from ntkcollapse.comparison.network_at import NetworkAt
from ntkcollapse.comparison.start import check_clock
from ntkcollapse.observable_table import group
from ntkcollapse.sample_kernel import GroupedKernel
from ntkcollapse.theory.rate_fit import NoExponential, RateFit, RateVerdict, compare_rates, fit_rate
from ntkcollapse.theory.rates import Rates, SpectrumDecay, instantaneous_rates, lazy_rates, within_class_decay
from ntkcollapse.trajectory import Trajectory

PARTS = tuple(name.removeprefix("residual_") for name in group("Residual parts"))
GAMMA = tuple(group("Output kernel"))


class MeasuredRate(NamedTuple):
    """One part of the residual: its decay rate, and what is predicted for it from the record where the window begins.

    fit: None where no stretch of the run decays exponentially, and `reason` says why;
    eigenvalue: λ of the output kernel γ there, the rate of the lazy regime, for the m and N of the training set even
        where γ was measured on a part of it, without what weight decay adds; NaN without γ, or for unequal classes;
    implied: −d ln‖part‖/dt of Θ = WWᵀ ⊗ K + I ⊗ (HᵀH + 11ᵀ) there, the instantaneous rate in feature learning; NaN
        without states, or with those of a part of the training set, of which HᵀH is a part too, and for models of the
        theory with constraints, noise or relative rates, which follow another equation;
    both NaN for another loss than the squared one;
    verdicts: of either prediction, by name, where both it and the fit are numbers.
    """

    part: str
    fit: RateFit | None
    reason: str
    record: int
    eigenvalue: float
    implied: float
    verdicts: dict[str, RateVerdict]


def measured_rates(
    run: Trajectory,
    windows: Mapping[str, tuple[float, float]] | None = None,
    *,
    standard_errors: float = 2.0,
    relative: float = 0.1,
    **options,
) -> dict[str, MeasuredRate]:
    """Fitted and predicted decay rates of R − R_class, R_class − R_global and R_global.

    Args:
        run: measured, simulated or linearised, in flow time.
        windows: part → first and last time; chosen from the data for parts that are not named.
        standard_errors, relative: what counts as agreement, see `compare_rates`.
        options: of `fit_rate`.
    Returns:
        For each of "single", "class", "global".
    Raises:
        ValueError: a run that is not in flow time, one without its residual parts, a window for another part, a named
            window too short to fit, or options that `fit_rate` refuses.
    References:
        Seleznova et al. (2023), Section 4.1 and Table 1 (lazy rates); the implied ones are derived here.
    """
    check_clock(run)
    for part in windows or {}:
        check_choice("windows", part, PARTS)
    missing = [part for part in PARTS if f"residual_{part}" not in run.observables]
    if missing:
        raise ValueError(f"run: expected the residual parts among its observables, got none for {missing}.")
    times = np.asarray(run.times)
    norms = {part: np.asarray(run.observables[f"residual_{part}"], dtype=float) for part in PARTS}
    # Parts are orthogonal: none is known better than rounding of the whole residual.
    size = np.nan_to_num(np.sqrt(sum(np.square(y) for y in norms.values()))).max()
    precision = np.asarray(run.observables["residual_single"]).dtype
    floor = 100 * float(np.finfo(precision if precision.kind == "f" else float).eps) * float(size)
    found = {}
    for i, part in enumerate(PARTS):
        fit, reason, window = None, "", (windows or {}).get(part)
        if window is None and not np.isfinite(norms[part]).all():
            reason = f"norms: expected finite numbers, got others at {np.sum(~np.isfinite(norms[part]))} records."
        else:
            try:
                fit = fit_rate(times, norms[part], window, **{"floor": floor, **options})
            except NoExponential as error:
                reason = str(error)
        record = 0 if fit is None else int(np.argmin(np.abs(times - fit.window[0])))
        predicted = {"eigenvalue": _eigenvalue(run, record, i), "implied": _implied(run, record, i)}
        verdicts = {}
        if fit is not None:
            for name, rate in predicted.items():
                if math.isfinite(rate):
                    options_ = {"standard_errors": standard_errors, "relative": relative}
                    verdicts[name] = compare_rates({part: rate}, {part: fit}, **options_)[part]
        found[part] = MeasuredRate(part, fit, reason, record, **predicted, verdicts=verdicts)
    return found


def within_class_spectrum(
    network: NetworkAt, times: Float[Array, " T"] | Float[np.ndarray, " T"], *, groups: int = 32
) -> SpectrumDecay:
    """The decay of R_single that the measured output kernel predicts from this moment on: a sum of exponentials.

    The output kernel, averaged over outputs, is diagonalised within classes; where its eigenvalues spread, the rate of
    R_single falls in time from their residual-weighted mean to the smallest.

    Args:
        network: at the moment; times are flow time since then.
        groups: of eigenvalues, each with one rate.
    Raises:
        MemoryError: N² numbers do not fit.
        ValueError: a number of groups that the classes do not allow.
    """
    classes = network.classes
    N = classes.num_samples
    require_memory("within-class spectrum", pairs(N))
    groups = min(groups, N - classes.num_classes)
    grouped = GroupedKernel.from_matrix(network.output_kernel(outputs="mean"), classes, groups=groups)
    return within_class_decay(jnp.asarray(times), network.last_layer.residual(classes), grouped, classes)


def without_eigenvalues(run: Trajectory, record: int) -> str:
    """Why the lazy regime has no rates λ(γ) at this record; empty where it has."""
    if not run.equation.is_squared:
        return "they are those of the squared loss"
    if not run.training_classes.is_balanced:
        return "they are known in closed form for classes of equal size only"
    if any(name not in run.observables for name in GAMMA):
        return "no output kernel γ was measured in this run"
    diagonal, within = (float(run.observables[name][record]) for name in GAMMA[:2])
    if not diagonal > within:
        return f"γ_d = {diagonal:.3g} is not above γ_c = {within:.3g} at that record"
    return ""


def _eigenvalue(run: Trajectory, record: int, part: int) -> float:
    if without_eigenvalues(run, record):
        return math.nan
    diagonal, within, between = (float(run.observables[name][record]) for name in GAMMA)
    with warnings.catch_warnings():
        # A measured kernel may be ordered otherwise than the theorem assumes; its eigenvalues are what they are.
        warnings.simplefilter("ignore", UserWarning)
        gamma = BlockKernel(diagonal, within, between)
        return float(lazy_rates(gamma, run.training_classes)[part])


def implied_rates(run: Trajectory, record: int) -> Rates:
    """`instantaneous_rates` at a record of a run, with the loss scale, decay and bias of its equation.

    Of a network, measured on all of its training set, only the decay of W is known; what its own decay does to the
    features is left out.
    """
    equation = run.equation
    return instantaneous_rates(
        run.last_layer(record),
        run.kernel_at(record),
        run.classes,
        scale=equation.loss.scale,
        decay=equation.weight_decay,
        bias=equation.bias,
    )


def _implied(run: Trajectory, record: int, part: int) -> float:
    if run.kernel is None or not run.has_columns:
        return math.nan
    if not run.equation.is_squared or run.on_a_probe or not run.equation.plain:
        return math.nan
    return float(implied_rates(run, record)[part])
