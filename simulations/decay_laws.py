"""Exponential or algebraic? Laws of decay of trained networks in their terminal phase, by `fit_decay`.

    python simulations/decay_laws.py              trains eight networks, some five minutes of processor time
    python simulations/decay_laws.py --kept       of the runs that when_the_theorem_holds.py keeps in simulations/runs

A perceptron on 200 digits by full-batch gradient descent at one learning rate, without momentum, so that steps are flow
time: squared loss with and without weight decay, cross-entropy, batch norm; two seeds. The window is from
training accuracy 0.99 to the end, or to the first excursion. Runs are kept in simulations/runs/decay_laws and not made
twice.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.commands import Table
from ntkcollapse.plots.style import label_decades
from ntkcollapse.theory import fit_decay
from ntkcollapse.training import TrainConfig, read_status, train

HERE = Path(__file__).parent
NAMES = ("loss", "residual_single", "residual_class", "nc1_tirer2022", "nc2_seleznova2023", "nc3_seleznova2023")
PLAIN: dict[str, Any] = {"learning_rate": 0.3, "weight_decay": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "squared loss": PLAIN,
    "squared loss, decay 5e-4": PLAIN | {"weight_decay": 5e-4},
    "cross-entropy": PLAIN | {"loss": "cross-entropy"},
    "squared loss, batch norm": PLAIN | {"learning_rate": 0.1},
}
STEPS = 20000
# A residual that rises by this factor above its least is an excursion, where a window ends.
EXCURSION = 3.0
# Of the training set, from which on a window begins: a digit or two may stay on the wrong side under decay.
ACCURACY = 0.99


def trained(name: str, seed: int) -> nc.Trajectory:
    """The run, read where it is there already."""
    options = ("widths=(128,128,32)", f"batch_norm={str('batch norm' in name).lower()}")
    config = TrainConfig(
        network="mlp",
        network_options=options,
        dataset="digits",
        per_class=20,
        momentum=0.0,
        nesterov=False,
        decay_every=0,
        batch_size=0,
        epochs=STEPS,
        measure=("train", "last-layer"),
        measure_log=60,
        probe_per_class=0,
        recompute_statistics=True,
        seed=seed,
        **SETTINGS[name],
    )
    out = HERE / "runs" / "decay_laws" / f"{name} {seed}".replace(",", "").replace(" ", "_")
    if out.exists() and read_status(out)["outcome"] == "finished":
        return nc.Trajectory.load(out)
    return train(config, out, resume=out.exists())


def window_of(run: nc.Trajectory, accuracy: float, last: float = np.inf) -> tuple[int, int]:
    """First and last record: from this training accuracy on, to the last step or before the first excursion."""
    norm = np.asarray(run["loss"], float)
    reached = np.asarray(run["accuracy"], float) >= accuracy
    if not reached.any():
        raise ValueError(
            f"accuracy: expected a run that reaches {accuracy:g}, got one that ends at {run['accuracy'][-1]:g}."
        )
    first = int(np.argmax(reached))
    out = norm[first:] > EXCURSION * np.minimum.accumulate(norm[first:])
    end = first + int(np.argmax(out)) - 1 if out.any() else len(norm) - 1
    return first, min(end, int(np.searchsorted(np.asarray(run["step"]), last, side="right")) - 1)


def laws(where: str, run: nc.Trajectory, accuracy: float, last: float = np.inf) -> list[list[str]]:
    """One line an observable; none where the window has too few records or nothing falls in it."""
    first, end = window_of(run, accuracy, last)
    steps, times, lines = np.asarray(run["step"]), np.asarray(run.times), []
    for name in NAMES:
        entry = plots.described(name)
        if name not in run.observables or (entry.needs_squared_loss and not run.equation.is_squared):
            continue
        values = np.asarray(run[name], float)[first : end + 1]
        slopes = f"{_slope(times[first : end + 1], values, 0):.2f} → {_slope(times[first : end + 1], values, 1):.2f}"
        from_to = f"{values[0]:.2g} → {values[-1]:.2g}"
        cells = [f"{where}, {steps[first]} to {steps[end]}", entry.symbol, from_to, slopes]
        try:
            fit = fit_decay(times, np.asarray(run[name], float), (times[first], times[end]))
        except ValueError as error:
            lines.append([*cells, "rises" if "fall" in str(error) else "too few records", "", ""])
            continue
        low, high = fit.exponent_interval
        power = f"{fit.exponent:.2f} ({low:.2f}-{high:.2f})" if np.isfinite(high) and low < 20 else "-"
        lines.append([*cells, fit.law, power, f"{fit.efolds:.1f}"])
    return lines


def _slope(times: np.ndarray, values: np.ndarray, half: int) -> float:
    """−d ln(value)/d ln(t) in the first or second half of the records: the same in both for a power of t."""
    part = slice(None, len(times) // 2 + 1) if half == 0 else slice(len(times) // 2, None)
    return -float(np.polyfit(np.log(times[part]), np.log(values[part]), 1)[0])


def figure_of(runs: dict[tuple[str, int], nc.Trajectory]) -> Figure:
    """Each observable over flow time since the window began, doubly logarithmic: powers are straight."""
    colours = dict(zip(SETTINGS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True))
    with plots.style():
        figure, axes = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained")
        for ax, name in zip(axes, (NAMES[0], *NAMES[3:]), strict=True):
            for (setting, seed), run in runs.items():
                if name not in run.observables:
                    continue
                first, end = window_of(run, ACCURACY)
                times, values = np.asarray(run.times)[first : end + 1], np.asarray(run[name], float)[first : end + 1]
                label = setting if seed == 0 else None
                ax.plot(times, values, color=colours[setting], linestyle="-:"[seed], linewidth=1.1, label=label)
            ax.set(
                xscale="log",
                yscale="log",
                xlabel=r"flow time $t$",
                title="loss, summed" if name == "loss" else plots.described(name).label,
            )
            label_decades(ax.yaxis)
        figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=len(SETTINGS))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    flags = parser.parse_args()
    nc.enable_cache()
    jax.config.update("jax_enable_x64", True)
    header = ["run, steps", "of", "from → to", "-dln/dln t, halves", "law", "exponent p of t^-p", "e-folds"]
    lines, name = [], "decay_laws"
    if flags.kept:
        name = "decay_laws_kept"
        for folder in sorted((HERE / "runs" / "when_the_theorem_holds").iterdir()):
            run = nc.Trajectory.load(folder)
            lines += laws(folder.name, run, ACCURACY, float(run.settings["decay_every"]))
    else:
        runs = {}
        for seed, setting in itertools.product(flags.seeds, SETTINGS):
            runs[setting, seed] = trained(setting, seed)
            print(setting, seed, flush=True)
        for (setting, seed), run in sorted(
            runs.items(), key=lambda item: (list(SETTINGS).index(item[0][0]), item[0][1])
        ):
            lines += laws(f"{setting}, seed {seed}", run, ACCURACY)
        print(plots.save(figure_of(runs), HERE / "figures" / "decay_laws")[-1])
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{name}.txt").write_text(Table(header, lines) + "\n")
    print(Table(header, lines))


if __name__ == "__main__":
    main()
