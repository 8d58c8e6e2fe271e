"""`ntkcollapse rates`: the three decay rates of a run beside their predictions."""

from pathlib import Path

import numpy as np

from ntkcollapse import plots
from ntkcollapse._table import number, table, with_error
from ntkcollapse.commands._measured import measured_again
from ntkcollapse.commands.settings import RatesConfig
from ntkcollapse.comparison import MeasuredRate, measured_rates, within_class_spectrum
from ntkcollapse.comparison.rates import without_eigenvalues
from ntkcollapse.theory.rate_fit import RateVerdict
from ntkcollapse.theory.rates import SpectrumDecay
from ntkcollapse.trajectory import Trajectory

SAID = {"single": "R - R_class", "class": "R_class - R_global", "global": "R_global"}


def rates_command(config: RatesConfig) -> None:
    """Does what `RatesConfig` says."""
    if config.run is None:
        raise ValueError("run: expected the directory of a run, as `simulate`, `train` and `compare` leave one.")
    path = Path(config.run)
    run = Trajectory.load(path)
    found = measured_rates(run, tolerance=config.tolerance)
    decay = None
    if config.spectrum:
        decay = spectrum_of(path, run, found["single"])
    folder = path / "figures" if config.out is None else Path(config.out)
    files = plots.save(plots.rates_figure(run, found, decay, title=str(path)), folder / "rates")
    print(rates_table(run, found))
    if decay is not None:
        print(f"\n{spectrum_table(decay[1])}")
    print(f"\nfigure  {files[-1]}  (and pdf)")


def rates_table(run: Trajectory, found: dict[str, MeasuredRate]) -> str:
    """Fit, both predictions and both verdicts, one line a part; below them, why a fit or a prediction is missing."""
    header = [
        "decay rate of",
        "fitted ± error",
        "e-folds",
        "window in t",
        "λ(γ)",
        "ratio",
        "implied",
        "ratio",
        "agrees",
    ]
    rows = []
    for part, rate in found.items():
        fit = rate.fit
        if fit is None:
            predictions = [number(rate.eigenvalue), "-", number(rate.implied), "-"]
            rows.append([SAID[part], "no exponential", "-", "-", *predictions, "-"])
            continue
        rows.append(
            [
                SAID[part],
                with_error(fit.rate, fit.uncertainty),
                f"{fit.efolds:.1f}",
                f"{fit.window[0]:.3g} to {fit.window[1]:.3g}",
                number(rate.eigenvalue),
                _ratio(rate.verdicts.get("eigenvalue")),
                number(rate.implied),
                _ratio(rate.verdicts.get("implied")),
                _agreement(rate),
            ]
        )
    note = (
        "Rates are of norms, per flow time of ½‖R‖²; predictions from the record where the window begins, the first\n"
        "one where no exponential was found.\n"
        "λ(γ): eigenvalues of the block-structured output kernel, the rates of lazy training.\n"
        "Implied: -d ln|R_part|/dt of Θ = WWᵀ⊗K + I⊗(HᵀH + 11ᵀ), the rate of that moment in feature learning.\n"
        "Ratio: fitted / predicted. Agrees: within two errors of the fit (noise and drift), or 10%."
    )
    if run.on_a_probe:
        note += (
            f"\nMeasured on {run.classes.num_samples} of {run.training_classes.num_samples} training samples: λ(γ) is "
            "for all of them; implied rates need the\nfeatures of all: train with --probe-per-class 0."
        )
    return "\n".join([table(header, rows), *_reasons(run, found), note])


def _reasons(run: Trajectory, found: dict[str, MeasuredRate]) -> list[str]:
    """Why an exponential or an eigenvalue is missing from the table; parts with one reason share a line."""
    said: dict[str, list[str]] = {}
    for part, rate in found.items():
        if rate.fit is None:
            said.setdefault(f"no exponential: {rate.reason}", []).append(SAID[part])
        if why := without_eigenvalues(run, rate.record):
            said.setdefault(f"no λ(γ): {why}.", []).append(SAID[part])
    return [f"{', '.join(parts)}: {reason}" for reason, parts in said.items()]


def spectrum_of(path: Path, run: Trajectory, single: MeasuredRate) -> tuple[np.ndarray, SpectrumDecay]:
    """Times, and the predicted decay of R_single from the start of its window on, by the network made again there.

    Raises:
        ValueError: as `measured_again`; a run of the theory.
    """
    if run.on_a_probe:
        raise ValueError(
            f"spectrum: expected a run measured on all of its {run.training_classes.num_samples} training samples, got "
            f"a probe of {run.classes.num_samples}, whose R_single is another; train with --probe-per-class 0."
        )
    step = int(np.asarray(run["step"])[single.record]) if "step" in run.observables else 0
    measured = measured_again(path, [step], at=[0])
    i = measured.steps.index(step)
    times = np.asarray(run.times)[single.record :]
    return times, within_class_spectrum(measured.networks[i], times - times[0])


def spectrum_table(decay: SpectrumDecay) -> str:
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
    return table(["within-class spectrum of the output kernel", "rate"], rows)


def _ratio(verdict: RateVerdict | None) -> str:
    return "-" if verdict is None else f"{verdict.ratio:.3g}"


def _agreement(rate: MeasuredRate) -> str:
    names = {"eigenvalue": "λ(γ)", "implied": "Θ"}
    agreeing = [names[name] for name, verdict in rate.verdicts.items() if verdict.agrees]
    return ", ".join(agreeing) if agreeing else ("neither" if rate.verdicts else "-")
