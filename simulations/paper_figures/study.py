"""The runs behind the figures: the paper's sweep of learning rates, at its own size or at that of a laptop."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from ntkcollapse.training import TrainConfig, combinations, sweep
from ntkcollapse.trajectory import Trajectory

HERE = Path(__file__).parent

# Laptop: 300 steps on 600 real images in batches of 60, measured at log-spaced steps on 4 images a class. The paper's
# 180,000 steps are far from this: what shows is the beginning of collapse. Rates of 0.2 and more throw this network out
# to a dead state within three steps at this batch size.
_LAPTOP: dict[str, Any] = {
    "per_class": 60,
    "test_per_class": 50,
    "batch_size": 60,
    "epochs": 30,
    "decay_every": 15,
    "measure_every": 0,
    "measure_log": 8,
    "probe_per_class": 4,
}
_LAPTOP_RATES = [0.02, 0.05, 0.1]
# Paper: its architectures for each set, its initialisations, 400 epochs; its probe is the last batch, 12 a class.
_PAPER_RATES = [float(x) for x in np.logspace(-3, 0, 7).round(6)]
_INITIALISERS = ["lecun-normal", "uniform", "he-normal"]


def settings(setting: str, network: str, dataset: str) -> tuple[TrainConfig, dict[str, list]]:
    """Base settings and grid of a study."""
    base: dict[str, Any] = {"network": network, "dataset": dataset, "measure": _MEASURED}
    if setting == "laptop":
        return TrainConfig(**base, **_LAPTOP), {"learning_rate": _LAPTOP_RATES}
    return TrainConfig(**base), {"init": _INITIALISERS, "learning_rate": _PAPER_RATES}


_MEASURED = ("batch", "train", "test", "kappa", "gamma", "last-layer", "parameters")


def arguments(description: str) -> argparse.Namespace:
    """Flags that all figures share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--setting", choices=("laptop", "paper"), default="laptop")
    parser.add_argument("--network", default="resnet20", help="resnet20, vgg11, vgg16, densenet40, mlp, ...")
    parser.add_argument("--dataset", default="mnist", help="mnist, fashion-mnist, cifar10")
    return parser.parse_args()


def runs(flags: argparse.Namespace) -> dict[str, Trajectory]:
    """Trains what is not trained yet, and returns the trajectories by name; those that diverged end where they did."""
    base, grid = settings(flags.setting, flags.network, flags.dataset)
    out = HERE / "runs" / name(flags)
    sweep(base, grid, out, progress=True, on_run=lambda run, outcome: print(f"{run}: {outcome}", flush=True))
    found = {run: out / run for run in combinations(base, grid)}
    return {run: Trajectory.load(path) for run, path in found.items() if (path / "trajectory.nc").exists()}


def name(flags: argparse.Namespace) -> str:
    """What files of this study are called."""
    return f"{flags.setting}_{flags.network}_{flags.dataset}"


def learning_rate_colours(figure: Figure, axes: list[Axes], trajectories: dict[str, Trajectory]) -> dict[str, Any]:
    """A colour for each run by its learning rate, and the bar that says which."""
    rates = {run: trajectory.settings["learning_rate"] for run, trajectory in trajectories.items()}
    norm = LogNorm(min(rates.values()), max(rates.values()) * (1 + 1e-9))
    # Without its last part, a yellow that does not show on white.
    mapping = ScalarMappable(norm, ListedColormap(colormaps["viridis"](np.linspace(0, 0.88, 256))))
    figure.colorbar(mapping, ax=axes, label="learning rate", shrink=0.8)
    return {run: mapping.to_rgba(rate) for run, rate in rates.items()}


def draw(ax: Axes, trajectories: dict[str, Trajectory], colours: dict, key: str, *, log: bool, label: str) -> None:
    """One observable along epochs, a line a run."""
    for run, trajectory in trajectories.items():
        x, y = np.asarray(trajectory["epoch"]), np.asarray(trajectory[key])
        ax.plot(x, y, ".-", color=colours[run], linewidth=1, markersize=3)
    ax.set_yscale("log" if log else "linear")
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(left=0)
    ax.set_xlabel("epoch")
    ax.set_ylabel(label)
