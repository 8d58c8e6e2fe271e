"""The invariant along training, and what it has to do with collapse over many runs."""

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ntkcollapse._checks import check_positive
from ntkcollapse.observable_table import group, shown_in
from ntkcollapse.theory.rate_fit import NoExponential, RateFit, fit_rate
from ntkcollapse.trajectory import Trajectory


class InvariantCourse(NamedTuple):
    r"""E ∝ WᵀW − H K⁻¹ Hᵀ of one run in time.

    norm, relative: ‖WᵀW − H K⁻¹Hᵀ‖, and the same over ‖WᵀW‖ + ‖H K⁻¹Hᵀ‖;
    alignment: of the two matrices, 1 where E ∝ WᵀW;
    condition: distance from the form that collapse needs, over the same sizes;
    predicted_rate: 2λ, the rate of ‖E‖ where H and W decay alike at λ under a constant kernel; 0 without decay; NaN
        where no such law is known;
    fit: of an exponential to ‖E‖, None where none is found or ‖E‖ is not finite throughout.
    """

    times: Float[np.ndarray, " T"]
    norm: Float[np.ndarray, " T"]
    relative: Float[np.ndarray, " T"]
    alignment: Float[np.ndarray, " T"]
    condition: Float[np.ndarray, " T"]
    predicted_rate: float
    fit: RateFit | None


class CollapsePoint(NamedTuple):
    """One run of a sweep as one point: the invariant at the start and at the end, and the collapse it led to.

    nc1: tr Σ_W / tr Σ_B, blind to the size of the features, on which the initialisation has a hand; nc2, nc3 as in
        Seleznova et al. (2023);
    block_strength: (κ_c − κ_n) / κ_d at the end; NaN for runs without κ.
    """

    name: str
    invariant_start: float
    invariant_end: float
    alignment_end: float
    condition_end: float
    nc1: float
    nc2: float
    nc3: float
    accuracy: float
    block_strength: float


def invariant_course(run: Trajectory, *, decay: float | None = None) -> InvariantCourse:
    r"""The invariant along a run, beside its exponential decay E(t) = E(0) e^{−2λt} where H and W decay alike.

    In the theory that is exact for a constant kernel. In a network the kernel moves, features have no decay of their
    own, and steps are finite: the fitted rate says how far that carries.

    Args:
        run: with the invariant among its observables.
        decay: λ, per flow time (`Clock.decay_rate`). None: what the run's equation says, which for a network is the
            penalty on its weights, and is no one number where H and W decay at rates of their own, the model has
            constraints, noise or relative rates, or the run is not in flow time.
    Raises:
        ValueError: a run that was measured without a kernel, or a negative decay.
    References:
        Seleznova et al. (2023), Section 5.2 and equation (26); the decay is derived here.
    """
    _check(run, group("Invariant", "points"))
    if decay is None:
        decay = _named_decay(run)
    else:
        check_positive("decay", decay, zero=True)
    observables = run.observables
    norm, relative = (np.asarray(observables[name]) for name in ("invariant_norm", "invariant_relative"))
    times = np.asarray(run.times)
    fit = None
    if np.isfinite(norm).all():
        # ‖E‖ is a difference, and known no better than rounding of the two matrices, of which it is this share.
        size = np.max(norm[relative > 0] / relative[relative > 0], initial=0.0)
        with suppress(NoExponential):
            fit = fit_rate(times, norm, floor=100 * float(np.finfo(norm.dtype).eps) * float(size))
    return InvariantCourse(
        times=times,
        norm=norm.astype(float),
        relative=relative,
        alignment=np.asarray(observables["invariant_alignment"]),
        condition=np.asarray(observables["necessary_condition"]),
        predicted_rate=2 * decay,
        fit=fit,
    )


def collapse_points(runs: Iterable[tuple[str, Trajectory]]) -> list[CollapsePoint]:
    """The runs of a sweep, one point each: the paper's claim is that collapse goes with E → 0 or E ∝ WᵀW.

    Invariants are relative to ‖WᵀW‖ + ‖H K⁻¹Hᵀ‖, so that runs of different size can stand on one axis.

    Raises:
        ValueError: a run without one of the observables that a point has, such as one measured without a kernel.
    References:
        Seleznova et al. (2023), Section 5.3 and Figure 2.
    """
    points = []
    for name, run in runs:
        _check(run, shown_in("points"), f" {name}")
        observables = run.observables
        κ = [float(observables[name][-1]) if name in observables else math.nan for name in group("Feature kernel")]
        points.append(
            CollapsePoint(
                name=name,
                invariant_start=float(observables["invariant_relative"][0]),
                invariant_end=float(observables["invariant_relative"][-1]),
                alignment_end=float(observables["invariant_alignment"][-1]),
                condition_end=float(observables["necessary_condition"][-1]),
                nc1=float(observables["nc1_tirer2022"][-1]),
                nc2=float(observables["nc2_seleznova2023"][-1]),
                nc3=float(observables["nc3_seleznova2023"][-1]),
                accuracy=float(observables["accuracy"][-1]),
                block_strength=(κ[1] - κ[2]) / κ[0],
            )
        )
    return points


def _named_decay(run: Trajectory) -> float:
    """λ of H and W alike by the equation; NaN where the invariant has no law for it."""
    equation = run.equation
    if not equation.in_flow_time or not equation.plain:
        return math.nan
    rates = equation.weight_decay
    if equation.of_network:
        return float(rates.W)
    return float(rates.H) if float(rates.H) == float(rates.W) else math.nan


def _check(run: Trajectory, names: Iterable[str], which: str = "") -> None:
    missing = [name for name in names if name not in run.observables]
    if "invariant_norm" in missing:
        raise ValueError(
            f"run{which}: expected one measured with kernels, got one without the invariant; measure κ on the way."
        )
    if missing:
        raise ValueError(
            f"run{which}: expected {', '.join(names)} among its observables, got none for {missing}; measure collapse "
            "and κ on the way, or call `simulate` with columns=True, from a start with columns."
        )
