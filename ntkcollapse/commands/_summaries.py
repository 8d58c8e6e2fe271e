"""The one-screen summaries and figures that commands end with."""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ntkcollapse import plots
from ntkcollapse._table import Table, number
from ntkcollapse.captions import shown, time_axis
from ntkcollapse.commands._collapse_sections import collapse_figures
from ntkcollapse.observable_table import described
from ntkcollapse.phases import blocks_of
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import Progressing
from ntkcollapse.trajectory import Trajectory


def simulation_table(run: Trajectory, seconds: float) -> Table:
    """Observables at a few times, and how the integration fared."""
    indices = _few(len(run.times), 6)
    header = [time_axis(run).symbol, *(number(run.times[i]) for i in indices)]
    rows = [[name, *(number(run[name][i]) for i in indices)] for name in shown(run, "simulate")]
    steps = int(run.statistics["num_steps"])
    drift = float(np.max(np.asarray(run.observables["invariant_drift"])))
    decays = any(float(rate) for rate in jax.tree.leaves(run.equation.weight_decay))
    meaning = (
        "drift of the invariant (solver error)" if not decays else "change of the invariant (moved by weight decay)"
    )
    foot = f"{run.settings['solver']}: {steps} steps, {seconds:.2f} s with compilation; {meaning}: {drift:.1e}"
    if "residual_class" in shown(run, "simulate"):
        foot += f"\nresidual_class: {described('residual_class').meaning}"
    return Table(header, rows, f"\n{foot}")


def overview_table(run: Trajectory) -> Table:
    """Collapse, blocks and invariant of a network at the start, half of the way to blocks, and the end."""
    indices, blocks = plots.pictured(run), blocks_of(run)
    assert blocks is not None
    names = [*shown(run, "overview")]
    rows = [[described(name).symbol, *(number(run[name][i]) for i in indices)] for name in names]
    rows += [["κ_c/κ_d", *(number(blocks.within[i]) for i in indices)]]
    rows += [["κ_n/κ_d", *(number(blocks.between[i]) for i in indices)]]
    return Table(["epoch", *(number(run["epoch"][i]) for i in indices)], rows)


def progress() -> Progressing:
    """How a run in training says how far it has come: a bar in a terminal, a line now and then elsewhere."""
    return "bar" if sys.stderr.isatty() else "lines"


def training_figures(run: Trajectory, out: Path) -> list[Path]:
    """Draws a training run into `figures/` of its directory; returns the files of the figure over all observables.

    There is none of a run without any observable that it shows.
    """
    settings, figures = run.settings, []
    title = (
        f"{settings['network']} on {settings['data']}, {settings['init']}, learning rate {settings['learning_rate']}"
    )
    for name, figure in collapse_figures(run).items():
        plots.save(figure, RunDirectory(out).figure(name))
    # Last: where it is there, all are.
    if plots.comparison_panels({"network": run}):
        figures = plots.save(
            plots.comparison_figure({"network": run}, title=title), RunDirectory(out).figure("training")
        )
    return figures


def files_line(out: Path, figures: Sequence[Path]) -> str:
    """Where the run and its figure lie."""
    directory = RunDirectory(out)
    lines = f"\nrun     {out}/  ({directory.trajectory.name}, {directory.settings.name})"
    if figures:
        lines += f"\nfigure  {figures[-1]}  (and {', '.join(file.suffix[1:] for file in figures[:-1])})"
    return lines


def _few(length: int, count: int) -> list[int]:
    return sorted(set(np.linspace(0, length - 1, count).round().astype(int).tolist()))
