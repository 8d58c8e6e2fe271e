"""Does collapse go with the invariant? A sweep of small networks on real digits.

    python simulations/invariant_and_collapse.py              sixty runs, half an hour on two quiet cores
    python simulations/invariant_and_collapse.py --quick      four runs, for a look

Initial scale, weight decay, loss and label noise are varied. Writes figures and a table to simulations/figures and
simulations/results: collapse at the end against the invariant at the end, the invariant's decay under weight decay, and
collapse against the strength of the blocks. Runs are kept in simulations/runs and go on where they were stopped.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

from ntkcollapse import plots
from ntkcollapse.commands import Table, number
from ntkcollapse.comparison import CollapsePoint, collapse_points, invariant_course
from ntkcollapse.training import TrainConfig, train

HERE = Path(__file__).parent
SCALES = (0.3, 0.7, 1.0, 1.5, 2.0)
DECAYS = (0.0, 5e-4, 2e-3)
NOISES = (0.0, 0.2)
LOSSES = ("squared", "cross-entropy")
COLOURS = {
    "squared": plots.described("residual_class").colour,
    "cross-entropy": plots.described("residual_single").colour,
}
WITH = ("invariant_end", "alignment_end", "condition_end", "block_strength")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    grid = list(itertools.product(LOSSES, SCALES, DECAYS, NOISES))
    if flags.quick:
        grid = [
            ("squared", 1.0, 0.0, 0.0),
            ("squared", 1.0, 2e-3, 0.0),
            ("squared", 2.0, 0.0, 0.0),
            ("cross-entropy", 1.0, 0.0, 0.0),
        ]
    runs = {}
    for loss, scale, decay, noise in grid:
        config = TrainConfig(
            network="mlp",
            network_options=("widths=(128,64)",),
            dataset="digits",
            per_class=20,
            label_noise=noise,
            init_scale=scale,
            loss=loss,
            learning_rate=0.1 if loss == "squared" else 0.02,
            momentum=0.9,
            weight_decay=decay,
            decay_every=0,
            batch_size=0,
            epochs=500 if flags.quick else 4000,
            measure=("kappa", "last-layer"),
            measure_every=0,
            measure_log=20,
            probe_per_class=0,
        )
        name = f"{loss}, scale {scale:g}, decay {decay:g}, noise {noise:g}"
        # A run that is there is read, one that was stopped goes on.
        out = HERE / "runs" / "invariant" / f"{config.epochs} {name}".replace(",", "").replace(" ", "_")
        try:
            runs[(loss, scale, decay, noise)] = (name, train(config, out, resume=out.exists()))
        except ArithmeticError as error:
            print(f"{name}: {error}", flush=True)
            continue
        print(name, flush=True)
    points = collapse_points(runs.values())
    header = list(points[0]._fields)
    text = Table(header, [[p.name, *(number(x) for x in p[1:])] for p in points])
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "invariant_and_collapse.txt").write_text(text + "\n")
    print(text)

    print(correlations([key[0] for key in runs], points))
    print(plots.save(figure_of(runs, points), HERE / "figures" / "invariant_and_collapse")[-1])


def correlations(losses: list[str], points: list[CollapsePoint]) -> str:
    """Spearman's rank correlation of collapse at the end with what is said to go with it, over the runs of a loss."""
    rows = []
    for loss in sorted(set(losses)):
        seen = [p for own, p in zip(losses, points, strict=True) if own == loss]
        for metric in ("nc1", "nc3"):
            values = [getattr(p, metric) for p in seen]
            found = [spearmanr([getattr(p, name) for p in seen], values)[0] for name in WITH]
            rows.append([f"{loss}, {len(seen)} runs", metric, *(f"{value:+.2f}" for value in found)])
    return Table(["rank correlation", "with", *WITH], rows)


def figure_of(runs: dict, points: list[CollapsePoint]) -> Figure:
    """Collapse against block strength and alignment, and the invariant in time beside the decay of the model."""
    with plots.style():
        figure, axes = plt.subplots(2, 2, figsize=(8, 6.4), layout="constrained")
        for (loss, _, decay, noise), point in zip(runs, points, strict=True):
            colour = COLOURS[loss]
            kind: dict[str, Any] = {
                "marker": "s" if decay else "o",
                "s": 22,
                "edgecolors": colour,
                "facecolors": "none" if noise else colour,
            }
            axes[0, 0].scatter(point.block_strength, point.nc1, **kind)
            axes[0, 1].scatter(point.alignment_end, point.nc1, **kind)
            axes[1, 0].scatter(point.alignment_end, point.nc3, **kind)
        lines: dict[float, Any] = {DECAYS[1]: "--", DECAYS[2]: ":"}
        for (loss, scale, decay, noise), (_, run) in runs.items():
            if decay and not noise and scale == 1.0:
                course = invariant_course(run)
                marker = {DECAYS[1]: "s", DECAYS[2]: "D"}[decay]
                axes[1, 1].plot(
                    course.times, course.norm / course.norm[0], color=COLOURS[loss], marker=marker, markersize=3
                )
                fine = np.linspace(0, course.times[-1], 200)
                axes[1, 1].plot(fine, np.exp(-course.predicted_rate * fine), lines[decay], color=COLOURS[loss])
        axes[0, 0].set_xlabel(r"block strength $(\kappa_c-\kappa_n)/\kappa_d$ at the end")
        for ax in (axes[0, 1], axes[1, 0]):
            ax.set_xlabel(r"alignment of $W^\top W$ and $HK^{-1}H^\top$ at the end")
        for ax in axes[0]:
            ax.set(yscale="log", ylabel=r"tr $\Sigma_W$ / tr $\Sigma_B$ at the end")
        axes[1, 0].set_ylabel("NC3 at the end")
        axes[1, 1].set(
            yscale="log",
            ylim=(1e-2, 50),
            xlabel=r"flow time $t$ of the summed loss",
            ylabel=r"$\|E(t)\|/\|E(0)\|$; broken: $e^{-2\lambda t}$",
        )
        grey: dict[str, Any] = {"color": "0.4", "linestyle": "none"}
        handles = [
            *(
                Line2D([], [], color=colour, marker="o", linestyle="none", label=loss)
                for loss, colour in COLOURS.items()
            ),
            Line2D([], [], marker="o", label="no decay", **grey),
            Line2D([], [], marker="s", label="weight decay", **grey),
            Line2D([], [], marker="o", markerfacecolor="none", label="label noise: open", **grey),
            *(Line2D([], [], color="0.4", linestyle=line, label=f"decay {decay:g}") for decay, line in lines.items()),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    main()
