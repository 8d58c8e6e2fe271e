"""The one-screen summaries and figures that commands end with."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ntkcollapse import plots
from ntkcollapse._table import number, table
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.commands._collapse_sections import collapse_figures
from ntkcollapse.comparison import implied_rates
from ntkcollapse.theory.rate_fit import RateFit, fit_rate
from ntkcollapse.theory.rates import collapse_rates
from ntkcollapse.trajectory import Trajectory

SHOWN = (
    "loss residual_single residual_class residual_global nc1_seleznova2023 nc1_tirer2022 nc2_seleznova2023 "
    "nc3_seleznova2023 nc4_mismatch invariant_norm invariant_alignment necessary_condition"
).split()
PARTS = {"single": "R - R_class", "class": "R_class - R_global", "global": "R_global"}


def simulation_table(run: Trajectory, seconds: float) -> str:
    """Observables at a few times, and how the integration fared."""
    indices = _few(len(run.times), 6)
    header = ["flow time t", *(number(run.times[i]) for i in indices)]
    rows = [[name, *(number(run.observables[name][i]) for i in indices)] for name in SHOWN if name in run.observables]
    steps = int(run.statistics["num_steps"])
    drift = float(np.max(np.asarray(run.observables["invariant_drift"])))
    decays = any(float(rate) for rate in jax.tree.leaves(run.equation.weight_decay))
    said = "drift of the invariant (solver error)" if not decays else "change of the invariant (moved by weight decay)"
    foot = f"{run.settings['solver']}: {steps} steps, {seconds:.2f} s with compilation; {said}: {drift:.1e}"
    return f"{table(header, rows)}\n\n{foot}"


def training_figures(run: Trajectory, out: Path) -> list[Path]:
    """Draws a training run into `figures/` of its directory; returns the files of the figure over all observables.

    There is none of a run without any observable that it shows.
    """
    settings, figures = run.settings, []
    title = (
        f"{settings['network']} on {settings['data']}, {settings['init']}, learning rate {settings['learning_rate']}"
    )
    if plots.comparison_panels({"network": run}):
        figures = plots.save(plots.comparison_figure({"network": run}, title=title), out / "figures" / "training")
    for name, figure in collapse_figures(run).items():
        plots.save(figure, out / "figures" / name)
    return figures


def rates_table(run: Trajectory) -> str:
    """Predicted rates of the three residual parts beside those fitted to the run, each from its own window."""
    kernel = run.kernel_at(0)
    uniform = isinstance(kernel, BlockKernel) and kernel.is_uniform and run.classes.is_balanced
    eigenvalues = collapsed = (float("nan"),) * 3
    if uniform and isinstance(kernel, BlockKernel):
        eigenvalues = tuple(float(x) for x in kernel.rates(run.classes))
        collapsed = tuple(float(x) for x in collapse_rates(kernel, run.classes).perpendicular)
    header = [
        "decay rate of",
        "λ(κ)",
        "at collapse",
        "fitted ± error",
        "window in t",
        "implied by Θ there",
        "fit agrees",
    ]
    # A part that vanishes on the whole run is rounding of the others, which may decay just as smoothly.
    rounding = 100 * np.finfo(float).eps * float(np.max(np.sqrt(2 * np.asarray(run.observables["loss"]))))
    rows = []
    for i, (part, said) in enumerate(PARTS.items()):
        name = f"residual_{part}"
        try:
            fit = fit_rate(np.asarray(run.times), np.asarray(run.observables[name]), floor=rounding)
        except ValueError:
            rows.append([said, number(eigenvalues[i]), number(collapsed[i]), "no exponential", "-", "-", "-"])
            continue
        implied = _implied(run, fit, i)
        close = abs(fit.rate - implied) <= max(2 * fit.uncertainty, 0.1 * abs(implied))
        rows.append(
            [
                said,
                number(eigenvalues[i]),
                number(collapsed[i]),
                f"{fit.rate:.4g} ± {fit.uncertainty:.1g}",
                f"{fit.window[0]:.3g} to {fit.window[1]:.3g}",
                number(implied),
                "yes" if close else "no",
            ]
        )
    note = (
        "λ(κ): λ_single, λ_class, λ_global. At collapse: their rates for invariant 0, outputs orthogonal to 1.\n"
        "Implied: -d ln|R_part|/dt of Θ = WWᵀ⊗K + I⊗(HᵀH + 11ᵀ) and the decay in the middle of the window.\n"
        "Fit agrees: with what is implied, within two errors of the fit or 10%; a check of window and integration."
    )
    return f"{table(header, rows)}\n{note}"


def files_line(out: Path, figures: Sequence[Path]) -> str:
    """Where the run and its figure lie."""
    said = f"\nrun     {out}/  (trajectory.nc, config.toml)"
    if figures:
        said += f"\nfigure  {figures[-1]}  (and {', '.join(file.suffix[1:] for file in figures[:-1])})"
    return said


def _implied(run: Trajectory, fit: RateFit, part: int) -> float:
    middle = int(np.argmin(np.abs(np.asarray(run.times) - (fit.window[0] + fit.window[1]) / 2)))
    return float(implied_rates(run, middle)[part])


def _few(length: int, count: int) -> list[int]:
    return sorted(set(np.linspace(0, length - 1, count).round().astype(int).tolist()))
