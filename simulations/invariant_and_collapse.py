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

import jax
import matplotlib.pyplot as plt
import numpy as np

from ntkcollapse import plots
from ntkcollapse._table import number, table
from ntkcollapse.comparison import collapse_points, invariant_course
from ntkcollapse.losses import Clock
from ntkcollapse.training import TrainConfig, train

HERE = Path(__file__).parent
SCALES = (0.3, 0.7, 1.0, 1.5, 2.0)
DECAYS = (0.0, 5e-4, 2e-3)
NOISES = (0.0, 0.2)
LOSSES = ("squared", "cross-entropy")


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
    text = table(header, [[p.name, *(number(x) for x in p[1:])] for p in points])
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "invariant_and_collapse.txt").write_text(text + "\n")
    print(text)

    with plots.style():
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.5), constrained_layout=True)
        for (loss, _, decay, noise), point in zip(runs, points, strict=True):
            colour = plots.COLOURS["residual_class"] if loss == "squared" else plots.COLOURS["residual_single"]
            kind = {"color": colour, "marker": "o" if decay == 0 else "s", "s": 22}
            if noise:
                kind |= {"facecolors": "none", "edgecolors": colour}
                del kind["color"]
            axes[0].scatter(point.alignment_end, point.nc1, **kind)
            axes[1].scatter(point.block_strength, point.nc1, **kind)
        for loss, scale, decay, noise in runs:
            if decay and not noise and scale == 1.0:
                run = runs[(loss, scale, decay, noise)][1]
                clock = Clock(1.0, run.settings["scale"], 0.9)
                course = invariant_course(run, decay=clock.decay_rate(decay))
                colour = plots.COLOURS["residual_class"] if loss == "squared" else plots.COLOURS["residual_single"]
                axes[2].semilogy(course.times, course.norm / course.norm[0], "o-", color=colour, markersize=3)
                line = np.exp(-course.predicted_rate * course.times)
                axes[2].semilogy(course.times, np.maximum(line, 1e-4), "--", color=colour)
        axes[0].set_xlabel(r"alignment of $W^\top W$ and $HK^{-1}H^\top$ at the end")
        axes[1].set_xlabel(r"block strength $(\kappa_c-\kappa_n)/\kappa_d$ at the end")
        axes[2].set_xlabel("flow time $t$")
        axes[2].set_ylabel(r"$\|E(t)\|/\|E(0)\|$; dashed: $e^{-2\lambda t}$")
        for ax in axes[:2]:
            ax.set_yscale("log")
            ax.set_ylabel("NC1 at the end")
        figure.suptitle("red: squared loss, blue: cross-entropy; squares: weight decay; open: label noise")
    print(plots.save(figure, HERE / "figures" / "invariant_and_collapse")[-1])


if __name__ == "__main__":
    main()
