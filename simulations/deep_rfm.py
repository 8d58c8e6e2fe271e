"""A network without gradient descent that collapses: deep recursive feature machines on real images.

    python simulations/deep_rfm.py                                   real 8×8 digits, seconds
    python simulations/deep_rfm.py --dataset mnist --data FOLDER     MNIST, n = 500
    python simulations/deep_rfm.py --dataset mnist --data FOLDER --samples 2000

Each layer fits a kernel regression, takes its AGOP M, and passes on random features of M^½ x. The ratio of within- to
between-class scatter falls by a near-constant factor in every layer; the figure shows which step does it.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.collapse import LayerProfile
from ntkcollapse.data import load

HERE = Path(__file__).parent


def profile_of(flags: argparse.Namespace) -> LayerProfile:
    """Every step of every layer, on training and test data."""
    splits = load(flags.dataset, path=flags.data, per_class=flags.samples // 10, test_per_class=30)
    train, test = (part.inputs.reshape(len(part.inputs), -1).astype(np.float64) for part in splits)
    labels = splits.train.labels
    machine = nc.collapse.deep_rfm(
        train,
        np.eye(10)[labels],
        key=jax.random.key(flags.seed),
        depth=flags.depth,
        width=flags.width,
    )
    return nc.collapse.layer_profile(machine.activations, train, labels, (test, splits.test.labels))


def steps_figure(profile: LayerProfile) -> plt.Figure:
    """NC1 before and after M^½ in every layer, on training data and (weak, strong) on test data."""
    names = np.array(profile.layers)
    inputs = np.flatnonzero(~np.char.startswith(names, "metric"))
    metrics = np.flatnonzero(np.char.startswith(names, "metric"))
    with plots.style():
        figure, ax = plt.subplots(figsize=(4.6, 3.4), constrained_layout=True)
        depth = np.arange(1, inputs.size + 1)
        for values, label, line in (
            (profile.train["nc1_tirer2022"], "training", "o-"),
            (profile.test["weak_nc1_tirer2022"], "weak, test", "s--"),
            (profile.test["strong_nc1_tirer2022"], "strong, test", "^:"),
        ):
            ax.plot(depth, values[inputs], line, color="black", markersize=4, label=label)
        values = profile.train["nc1_tirer2022"]
        ax.plot(
            depth[:-1] + 0.5, values[metrics], "v", color="tab:red", markersize=4, label=r"training, after $M^{1/2}$"
        )
        ax.set_yscale("log")
        ax.set_xlabel("layer (input of)")
        ax.set_ylabel(r"$\mathrm{tr}\,\Sigma_W/\mathrm{tr}\,\Sigma_B$")
        ax.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="digits, mnist, fashion-mnist, cifar10")
    parser.add_argument("--data", default=None, help="file or folder of the data set")
    parser.add_argument("--samples", type=int, default=500, help="training images")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "figures")
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    profile = profile_of(flags)
    nc1 = dict(zip(profile.layers, profile.train["nc1_tirer2022"], strict=True))
    inputs = np.array([nc1[f"input {i}"] for i in range(1, flags.depth + 1)])
    print("NC1 at layer inputs:", " ".join(f"{v:.3g}" for v in inputs))
    print("factor a layer:", " ".join(f"{v:.3f}" for v in inputs[1:] / inputs[:-1]))
    print(plots.save(steps_figure(profile), flags.out / f"deep_rfm_{flags.dataset}_{flags.samples}"))


if __name__ == "__main__":
    main()
