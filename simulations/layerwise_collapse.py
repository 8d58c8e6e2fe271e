"""Where in a network collapse happens, and what of it is left on test data.

    python simulations/layerwise_collapse.py                                    MLP on real 8×8 digits, a minute
    python simulations/layerwise_collapse.py --dataset mnist --data FOLDER      on MNIST
    python simulations/layerwise_collapse.py --network resnet20 --dataset cifar10 --data FOLDER --setting full

Four runs of one network: with weight decay and without, and the same two on random labels. Every layer is measured on
training and test data along training. Two figures are left in simulations/figures/: the collapse profile over depth at
the end, and the last layer's NC1 along training, on training data, weak and strong on test data.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

from ntkcollapse import plots
from ntkcollapse.collapse import LayerProfile
from ntkcollapse.plots.collapse import collapse_profile_figure
from ntkcollapse.training import Moment, TrainConfig, train
from ntkcollapse.training.layer_measurements import LayerCollapse
from ntkcollapse.trajectory import Trajectory

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    """per_class, test_per_class: samples trained on, tested on; measured: of them, in every layer."""

    per_class: int
    test_per_class: int
    measured: int
    epochs: int
    measurements: int


SETTINGS = {"small": Setting(60, 40, 40, 300, 9), "full": Setting(700, 150, 150, 400, 15)}
NETWORKS = {
    "mlp": {"network_options": ("widths=(128, 128, 128, 128, 64)",), "learning_rate": 0.3, "momentum": 0.9},
    "resnet20": {"learning_rate": 0.3, "momentum": 0.9},
}
# What fits real labels shrinks the network to zero on random ones: they get a tenth of the decay.
RUNS = {
    "weight decay": {"weight_decay": 1e-3},
    "no decay": {"weight_decay": 0.0},
    "random labels, weight decay": {"weight_decay": 1e-4, "random_labels": True},
    "random labels, no decay": {"weight_decay": 0.0, "random_labels": True},
}


def run(flags: argparse.Namespace, name: str) -> tuple[Trajectory, LayerProfile]:
    """One training, and the profile at its end."""
    setting = SETTINGS[flags.setting]
    config = TrainConfig(
        network=flags.network,
        dataset=flags.dataset,
        data_path=flags.data,
        per_class=setting.per_class,
        test_per_class=setting.test_per_class,
        epochs=flags.epochs or setting.epochs,
        decay_every=max((flags.epochs or setting.epochs) // 2, 1),
        measure=("train", "test"),
        measure_every=0,
        measure_log=setting.measurements,
        seed=flags.seed,
        **NETWORKS[flags.network],
        **RUNS[name],
    )
    layers = LayerCollapse(setting.measured, setting.test_per_class)
    last: list[LayerProfile] = []

    def measure(moment: Moment) -> dict[str, np.ndarray]:
        profile = layers.profile(moment)
        last[:] = [profile]
        return {f"train_{k}": v for k, v in profile.train.items()} | {f"test_{k}": v for k, v in profile.test.items()}

    trajectory = train(config, measurements={"layers": measure}, progress=True)
    return trajectory, last[0]


def along_training(runs: dict[str, Trajectory], features: int) -> plt.Figure:
    """Train, weak and strong NC1 of the last layer's features, one panel a run."""
    lines = (("train_nc1_tirer2022", "training", "-"), ("test_weak_nc1_tirer2022", "weak, test", "--"))
    lines += (("test_strong_nc1_tirer2022", "strong, test", ":"),)
    with plots.style():
        figure, axes = plt.subplots(
            1, len(runs), figsize=(2.7 * len(runs), 2.8), sharey=True, squeeze=False, constrained_layout=True
        )
        for ax, (name, trajectory) in zip(axes[0], runs.items(), strict=True):
            epochs = np.asarray(trajectory["epoch"])
            for key, label, line in lines:
                ax.plot(epochs, np.asarray(trajectory[key])[:, features], line, color="black", label=label)
            ax.set_xscale("symlog", linthresh=1)
            ax.set_yscale("log")
            ax.set_title(name, loc="left")
            ax.set_xlabel("epoch")
        axes[0, 0].set_ylabel(r"NC1 of features, $\mathrm{tr}\,\Sigma_W/\mathrm{tr}\,\Sigma_B$")
        axes[0, 0].legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="small")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="mlp")
    parser.add_argument("--dataset", default="digits", help="digits, mnist, fashion-mnist, cifar10")
    parser.add_argument("--data", default=None, help="file or folder of the data set")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--only", choices=tuple(RUNS), nargs="*", default=None, help="some of the runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "figures")
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", False)
    print(asdict(SETTINGS[flags.setting]))
    found = {name: run(flags, name) for name in flags.only or RUNS}
    profiles = {name: profile for name, (_, profile) in found.items()}
    trajectories = {name: trajectory for name, (trajectory, _) in found.items()}
    for name, (trajectory, profile) in found.items():
        i = profile.layers.index("last_layer")
        print(
            f"{name}: train accuracy {float(trajectory['train_accuracy'][-1]):.3f}, "
            f"test {float(trajectory['test_accuracy'][-1]):.3f}; NC1 of features "
            f"{profile.train['nc1_tirer2022'][i]:.3g} train, {profile.test['weak_nc1_tirer2022'][i]:.3g} weak, "
            f"{profile.test['strong_nc1_tirer2022'][i]:.3g} strong; depth {profile.ncc_depth(0.01)} "
            f"of {len(profile.layers)}"
        )
    label = f"{flags.network}_{flags.dataset}_{flags.setting}"
    title = f"{flags.network} on {flags.dataset}, {flags.setting} setting"
    print(plots.save(collapse_profile_figure(profiles, title=title), flags.out / f"layerwise_{label}"))
    features = next(iter(profiles.values())).layers.index("last_layer")
    print(plots.save(along_training(trajectories, features), flags.out / f"test_collapse_{label}"))


if __name__ == "__main__":
    main()
