"""Exponential or algebraic? Laws of decay of trained networks, by `fit_decay`, before their learning rate drops.

    python simulations/decay_laws.py

Reads the runs that `when_the_theorem_holds.py` keeps in simulations/runs.
"""

from pathlib import Path

import numpy as np

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.commands import table
from ntkcollapse.theory import fit_decay

RUNS = Path(__file__).parent / "runs" / "when_the_theorem_holds"
NAMES = ("residual_single", "residual_class", "nc1_tirer2022", "nc2_seleznova2023", "nc3_seleznova2023")
# Run → last step: before the first excursion with batch norm, before the learning rate drops without.
LAST = {"digits_batch_norm_0": 900, "digits_batch_norm_1": 900, "digits_0": 4000}


def main() -> None:
    lines = []
    for key, last in LAST.items():
        run = nc.Trajectory.load(RUNS / key)
        steps, times = np.asarray(run["step"]), np.asarray(run.times)
        first = int(np.argmax(np.asarray(run["accuracy"]) >= 0.99))
        end = int(np.searchsorted(steps, last, side="right")) - 1
        for name in NAMES:
            fit = fit_decay(times, np.asarray(run[name], float), (times[first], times[end]))
            low, high = fit.exponent_interval
            where = f"{key}, {steps[first]} to {steps[end]}"
            exponent = f"{fit.exponent:.2f} ({low:.2f}-{high:.2f})"
            lines.append([where, plots.described(name).symbol, fit.law, exponent, f"{fit.efolds:.1f}"])
    print(table(["run, steps", "of", "law", "exponent", "e-folds"], lines))


if __name__ == "__main__":
    main()
