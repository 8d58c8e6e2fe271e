"""`ntkcollapse rates`: the three decay rates of a run beside their predictions."""

from pathlib import Path

import numpy as np

from ntkcollapse import plots
from ntkcollapse._table import Table, number, with_error
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.captions import time_axis
from ntkcollapse.commands._verdicts import moved_line
from ntkcollapse.commands.network_runs import load_network_run, measured_run
from ntkcollapse.commands.settings import RatesConfig
from ntkcollapse.comparison import MeasuredRate, measured_rates, within_class_spectrum
from ntkcollapse.comparison.rates import without_eigenvalues
from ntkcollapse.observable_table import described
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.theory.rate_fit import RateVerdict
from ntkcollapse.theory.rates import SpectrumDecay, collapse_rates
from ntkcollapse.trajectory import Trajectory


def rates_command(config: RatesConfig) -> None:
    """Does what `RatesConfig` says."""
    if config.run is None:
        raise ValueError("run: expected the directory of a run, as `simulate`, `train` and `compare` leave one.")
    if not 0 < config.tolerance < 1:
        raise ValueError(f"tolerance: expected a relative change above 0 and below 1, got {config.tolerance:g}.")
    path, directory = Path(config.run), RunDirectory(config.run)
    version = directory.version(directory.trajectory)
    run = Trajectory.load(path)
    rates = measured_rates(run, tolerance=config.tolerance)
    decay = None
    if config.spectrum:
        decay = spectrum_of(path, run, rates["single"])
    file = directory.figure("rates") if config.out is None else Path(config.out) / "rates"
    figure = plots.rates_figure(run, rates, decay, title=str(path))
    directory.check_version(version)
    files = plots.save(figure, file)
    print(rates_table(run, rates))
    if said := moved_line(run):
        print(f"\n{said}")
    if decay is not None:
        print(f"\n{spectrum_table(decay[1])}")
    print(f"\nfigure  {files[-1]}  (and pdf)")


def rates_table(run: Trajectory, rates: dict[str, MeasuredRate]) -> Table:
    """Tabulates the fit of each part beside its predictions, with verdicts; below it, why one of them is missing.

    The columns λ(κ) and "at collapse" are there where a constant κ of three numbers and equal classes give them, those
    of λ(γ) where γ was measured.
    """
    known = _of_constant_kernel(run)
    lazy = any(np.isfinite(rate.eigenvalue) for rate in rates.values()) or not known
    header = ["decay rate of", *known, "fitted ± error", "e-folds", "window in t"]
    header += ["λ(γ)", "ratio"] * lazy + ["implied", "ratio", "agrees"]
    rows = []
    for i, (part, rate) in enumerate(rates.items()):
        fit, verdicts = rate.fit, rate.verdicts
        row = [_of(part), *(number(values[i]) for values in known.values())]
        if fit is None:
            row += ["no exponential", "-", "-"]
        else:
            row.append(with_error(fit.rate, fit.uncertainty))
            row += [f"{fit.efolds:.1f}", f"{fit.window[0]:.3g} to {fit.window[1]:.3g}"]
        row += [number(rate.eigenvalue), _ratio(verdicts.get("eigenvalue"))] * lazy
        rows.append([*row, number(rate.implied), _ratio(verdicts.get("implied")), _agreement(rate)])
    note = (
        f"Rates are of norms, per {time_axis(run).meaning}; predictions from the record where the window begins, the\n"
        "first one where no exponential was found.\n"
    )
    if known:
        note += (
            "λ(κ): λ_single, λ_class, λ_global of κ. At collapse: the rates for invariant 0, outputs orthogonal to 1.\n"
        )
    if lazy:
        note += "λ(γ): eigenvalues of the block-structured output kernel, the rates of lazy training.\n"
    note += (
        "Implied: -d ln|R_part|/dt of Θ = WWᵀ⊗K + I⊗(HᵀH + 11ᵀ), the rate of that moment in feature learning.\n"
        "Ratio: fitted / predicted. Agrees: within two errors of the fit (noise and drift), or 10%."
    )
    if run.on_a_probe:
        note += (
            f"\nMeasured on {run.classes.num_samples} of {run.training_classes.num_samples} training samples: λ(γ) is "
            "for all of them; implied rates need the\nfeatures of all: train with --probe-per-class 0."
        )
    return Table(header, rows, "\n".join([*_reasons(run, rates, lazy=lazy), note]))


def _of(part: str) -> str:
    """R - R_class, of which `residual_single` is the norm; and so on."""
    return described(f"residual_{part}").meaning.removeprefix("norm of ")


def _of_constant_kernel(run: Trajectory) -> dict[str, tuple[float, ...]]:
    """Rates of the three parts that a constant κ of three numbers gives; empty for other kernels, and of networks."""
    kernel, classes = run.kernel, run.classes
    if not (isinstance(kernel, BlockKernel) and kernel.is_uniform and classes.is_balanced and run.equation.is_squared):
        return {}
    rates = {"λ(κ)": kernel.rates(classes), "at collapse": collapse_rates(kernel, classes).perpendicular}
    return {name: tuple(float(rate) for rate in values) for name, values in rates.items()}


def _reasons(run: Trajectory, rates: dict[str, MeasuredRate], *, lazy: bool) -> list[str]:
    """Why an exponential or an eigenvalue is missing from the table; parts with one reason share a line."""
    reasons: dict[str, list[str]] = {}
    for part, rate in rates.items():
        if rate.fit is None:
            reasons.setdefault(f"no exponential: {rate.reason}", []).append(_of(part))
        if lazy and (why := without_eigenvalues(run, rate.record)):
            reasons.setdefault(f"no λ(γ): {why}.", []).append(_of(part))
    return [f"{', '.join(parts)}: {reason}" for reason, parts in reasons.items()]


def spectrum_of(path: Path, run: Trajectory, single: MeasuredRate) -> tuple[np.ndarray, SpectrumDecay]:
    """Times, and the predicted decay of R_single from the start of its window on, by the network there.

    Raises:
        ValueError: as `measured_run`; a run of the theory.
    """
    if run.on_a_probe:
        raise ValueError(
            f"spectrum: expected a run measured on all of its {run.training_classes.num_samples} training samples, got "
            f"a probe of {run.classes.num_samples}, whose R_single is another; train with --probe-per-class 0."
        )
    step = int(np.asarray(run["step"])[single.record]) if "step" in run.observables else 0
    measured = measured_run(path, load_network_run(path), at=[step], networks_at=[step])
    times = np.asarray(run.times)[single.record :]
    return times, within_class_spectrum(measured.networks[measured.record(step)], times - times[0])


def spectrum_table(decay: SpectrumDecay) -> Table:
    """The single rate that the theorem has, and the spread that was measured."""
    rates, power = np.asarray(decay.rates), np.square(np.asarray(decay.amplitudes))
    share = np.cumsum(power) / power.sum()
    rows = [
        ["mean over within-class deviations: the single rate γ_d - γ_c", number(rates.mean())],
        ["mean weighted by the residual: rate of R_single at once", number(decay.rate[0])],
        ["rate of R_single at the last time", number(decay.rate[-1])],
        ["smallest and largest group", f"{number(rates.min())} to {number(rates.max())}"],
        ["half of |R_single|² decays slower than", number(rates[int(np.searchsorted(share, 0.5))])],
    ]
    return Table(["within-class spectrum of the output kernel", "rate"], rows)


def _ratio(verdict: RateVerdict | None) -> str:
    return "-" if verdict is None else f"{verdict.ratio:.3g}"


def _agreement(rate: MeasuredRate) -> str:
    names = {"eigenvalue": "λ(γ)", "implied": "Θ"}
    agreeing = [names[name] for name, verdict in rate.verdicts.items() if verdict.agrees]
    return ", ".join(agreeing) if agreeing else ("neither" if rate.verdicts else "-")
