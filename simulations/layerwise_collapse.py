"""Where in a network collapse happens, and what of it is left on test data.

    python simulations/layerwise_collapse.py                                    MLP on real 8×8 digits, a minute
    python simulations/layerwise_collapse.py --dataset mnist --data FOLDER      on MNIST
    python simulations/layerwise_collapse.py --network resnet20 --dataset cifar10 --data FOLDER --epochs 30
    python simulations/layerwise_collapse.py --network resnet20 --dataset cifar10 --data FOLDER --setting full

Four runs of one network: with weight decay and without, and the same two on random labels. Every layer is measured on
training and test data along training. Two figures are left in simulations/figures/: the collapse profile over depth at
the end, and the last layer's NC1 along training, on training data and, weak and strong, on test data.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import jax

from ntkcollapse import Trajectory, plots
from ntkcollapse.training import LayerCollapse, TrainConfig, saved_profile, train

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    """per_class, test_per_class: samples trained on, tested on; measured: of each, in every layer."""

    per_class: int
    test_per_class: int
    measured: int
    epochs: int
    measurements: int


SETTINGS = {"small": Setting(60, 40, 40, 300, 9), "full": Setting(700, 150, 150, 400, 15)}
NETWORKS = {
    "mlp": {"network_options": ("widths=(128, 128, 128, 128, 64)",), "learning_rate": 0.3, "momentum": 0.9},
    "resnet20": {"learning_rate": 0.05, "momentum": 0.9, "batch_size": 60},
}
DECAYS = {"mlp": 1e-3, "resnet20": 5e-3}
# Times the network's decay, labels at random or not. What fits real labels shrinks the network to zero on random ones:
# they get a tenth of the decay.
RUNS = {
    "weight decay": (1.0, False),
    "no decay": (0.0, False),
    "random labels, weight decay": (0.1, True),
    "random labels, no decay": (0.0, True),
}


def run(flags: argparse.Namespace, name: str) -> Trajectory:
    """One training, measured on the way; it goes on where it was stopped."""
    setting, (decay, random_labels) = SETTINGS[flags.setting], RUNS[name]
    config = TrainConfig(
        network=flags.network,
        dataset=flags.dataset,
        data_path=flags.data,
        per_class=setting.per_class,
        test_per_class=setting.test_per_class,
        epochs=flags.epochs or setting.epochs,
        decay_every=max((flags.epochs or setting.epochs) // 2, 1),
        measure=("train", "test", "test-collapse"),
        measure_every=0,
        measure_log=setting.measurements,
        seed=flags.seed,
        **NETWORKS[flags.network],
        weight_decay=decay * DECAYS[flags.network],
        random_labels=random_labels,
    )
    layers = LayerCollapse(setting.measured, setting.test_per_class)
    out = HERE / "runs" / f"{label(flags)}_{config.epochs}_{flags.seed}_{name.replace(', ', '_').replace(' ', '-')}"
    return train(config, out, resume=out.exists(), measurements={"layers": layers}, progress=True)


def label(flags: argparse.Namespace) -> str:
    """What files of this study are called."""
    return f"{flags.network}_{flags.dataset}_{flags.setting}"


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
    profiles = {name: saved_profile(trajectory) for name, trajectory in found.items()}
    for name, trajectory in found.items():
        end = {key: float(value[-1]) for key, value in trajectory.observables.items() if value.ndim == 1}
        print(
            f"{name}: train accuracy {end['train_accuracy']:.3f}, test {end['test_accuracy']:.3f}; NC1 of features "
            f"{end['train_nc1_tirer2022']:.3g} train, {end['weak_nc1_tirer2022']:.3g} weak, "
            f"{end['strong_nc1_tirer2022']:.3g} strong, {end['test_nc1_tirer2022']:.3g} about test means; class means "
            f"classify 99 % after {profiles[name].ncc_depth(0.01)} of {len(profiles[name].layers) - 1} layers"
        )
        nc1 = profiles[name].train["nc1_tirer2022"]
        print("  input and after each layer, train:", " ".join(f"{v:.3g}" for v in nc1))
    title = f"{flags.network} on {flags.dataset}, {flags.setting} setting"
    print(plots.save(plots.collapse_profile_figure(profiles, title=title), flags.out / f"layerwise_{label(flags)}"))
    print(plots.save(plots.held_out_figure(found, title=title), flags.out / f"test_collapse_{label(flags)}"))


if __name__ == "__main__":
    main()
