"""What weight decay makes of a homogeneous network: the identities of its critical points, and the form of W.

    python simulations/weight_decay_identities.py
    python simulations/weight_decay_identities.py --only MNIST --seeds 0 --epochs-divided-by 10      a quick look

A ReLU perceptron without biases on MNIST and on CIFAR-10 under the squared loss, full batch, with weight decay and
without (Rangamani & Banburski-Fahey 2022). Measured along training: λ‖w_c‖² = ⟨(y − f)_c f_c⟩ (no assumption), equal
norms of layers, and how far W is from ε (μ_c − μ_G)/(λ (C − 1)), which needs symmetric outputs. Leaves a figure a data
set in simulations/figures.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import matplotlib.pyplot as plt
from kept_runs import band, beside, flags_of, kept, logarithmic, table_of
from matplotlib.figure import Figure

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.networks import Network
from ntkcollapse.training import TrainConfig

BASE = TrainConfig(
    dataset="mnist", image_size=14, per_class=30, test_per_class=100, bias=False, learning_rate=0.5, epochs=4000,
    decay_every=3000, batch_size=0, measure=("train", "test", "last-layer", "quasi-interpolation"), measure_log=16,
    probe_per_class=0, keep_states=False,
)  # fmt: skip
# Inputs of CIFAR-10 are larger, steps smaller, and decay larger for it: as far in units of 1/(rate × decay).
DATA: dict[str, dict[str, Any]] = {
    "MNIST": {},
    "CIFAR-10": {"dataset": "cifar10", "image_size": 16, "standardised": True, "learning_rate": 0.1},
}
DECAYS: dict[str, dict[str, dict[str, Any]]] = {
    "MNIST": {
        "no decay": {"weight_decay": 0.0},
        "decay 2e-4": {"weight_decay": 2e-4},
        "decay 5e-4": {"weight_decay": 5e-4},
        "decay 5e-4, bias": {"weight_decay": 5e-4, "bias": True},
    },
    "CIFAR-10": {"no decay": {"weight_decay": 0.0}, "decay 2e-3": {"weight_decay": 2e-3}},
}
COLOURS = ("black", "tab:blue", "tab:red", "tab:orange")
PANELS = {
    "weight_identity_gap": r"gap of $\lambda\|w_c\|^2 = \langle (y - f)_c f_c\rangle$",
    "layer_imbalance": "imbalance of layers' norms",
    "symmetry_residual": "asymmetry of outputs",
    "symmetric_weights_gap": r"gap of $w_c = \epsilon(\mu_c - \mu_G)/\lambda(C - 1)$",
    "nc1_tirer2022": r"NC1, tr$\,\Sigma_W$/tr$\,\Sigma_B$",
    "nc2_seleznova2023": "NC2",
    "nc3_seleznova2023": "NC3",
    "test_accuracy": "test accuracy",
}


class Homogeneous(nn.Module):
    """ReLU layers without biases: of degree one in each."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width, use_bias=False, param_dtype=jnp.float32)(x))
        return x


def run_of(flags: argparse.Namespace, data: str, name: str, seed: int) -> nc.Trajectory:
    """One training."""
    epochs = BASE.epochs // flags.epochs_divided_by
    config = dataclasses.replace(BASE, seed=seed, epochs=epochs, **(DATA[data] | DECAYS[data][name]))
    network = Network(Homogeneous((128, 64)), 10, use_bias=config.bias)
    return kept(flags, "weight_decay_identities", f"{data}, {name}", config, network=network)


def figure_of(runs: Mapping[str, Sequence[nc.Trajectory]]) -> Figure:
    """One panel a quantity."""
    with plots.style():
        figure, axes = plt.subplots(2, 4, figsize=(12, 4.8), sharex=True, layout="constrained")
        for ax, (name, title) in zip(axes.flat, PANELS.items(), strict=True):
            for (setting, group), colour in zip(runs.items(), COLOURS, strict=False):
                band(ax, group, name, color=colour, label=setting)
            ax.set(title=title, xscale="log")
            if name != "test_accuracy":
                logarithmic(ax)
        for ax in axes[1]:
            ax.set_xlabel("step + 1")
        beside(axes[0, -1])
    return figure


def main() -> None:
    flags = flags_of(__doc__)
    keys = ("train_accuracy", "epsilon", *PANELS)
    columns = {plots.described(key).symbol: (lambda run, key=key: run[key][-1]) for key in keys}
    for data in flags.only or DATA:
        runs = {name: [run_of(flags, data, name, s) for s in flags.seeds] for name in DECAYS[data]}
        print(table_of(runs, columns, f"{data}, at the end"))
        where = flags.out / f"weight_decay_identities_{data.lower().replace('-', '')}"
        print(plots.save(figure_of(runs), where))


if __name__ == "__main__":
    main()
