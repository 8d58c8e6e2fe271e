"""What weight decay makes of a homogeneous network: the identities of its critical points, and the form of W.

    python simulations/weight_decay_identities.py
    python simulations/weight_decay_identities.py --seeds 0 --epochs-divided-by 10      a quick look

A ReLU perceptron without biases on MNIST at 14 × 14 under the squared loss, full batch, with weight decay and without
(Rangamani & Banburski-Fahey 2022). Measured along training: λ‖w_c‖² = ⟨(y − f)_c f_c⟩ (no assumption), equal norms of
layers, and how far W is from ε (μ_c − μ_G)/(λ (C − 1)), which needs symmetric outputs. Leaves a figure in
simulations/figures.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import matplotlib.pyplot as plt
from kept_runs import band, flags_of, kept, table_of
from matplotlib.figure import Figure

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.networks import Network
from ntkcollapse.training import TrainConfig

BASE = TrainConfig(
    dataset="mnist", image_size=14, per_class=30, test_per_class=100, bias=False, learning_rate=0.5, epochs=6000,
    decay_every=4500, batch_size=0, measure=("train", "test", "last-layer", "quasi-interpolation"), measure_log=12,
    probe_per_class=0,
)  # fmt: skip
DECAYS: dict[str, dict[str, Any]] = {
    "no decay": {"weight_decay": 0.0},
    "decay 1e-4": {"weight_decay": 1e-4},
    "decay 5e-4": {"weight_decay": 5e-4},
    "decay 5e-4, bias": {"weight_decay": 5e-4, "bias": True},
}
COLOURS = dict(zip(DECAYS, ("black", "tab:blue", "tab:red", "tab:orange"), strict=True))
PANELS = (
    "weight_identity_gap", "layer_imbalance", "symmetric_weights_gap", "symmetry_residual", "nc1_tirer2022",
    "nc2_seleznova2023", "nc3_seleznova2023", "test_accuracy",
)  # fmt: skip


class Homogeneous(nn.Module):
    """ReLU layers without biases: of degree one in each."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width, use_bias=False, param_dtype=jnp.float32)(x))
        return x


def run_of(flags: argparse.Namespace, name: str, seed: int) -> nc.Trajectory:
    """One training."""
    config = dataclasses.replace(BASE, seed=seed, epochs=BASE.epochs // flags.epochs_divided_by, **DECAYS[name])
    network = Network(Homogeneous((128, 64)), 10, use_bias=config.bias)
    return kept(flags, "weight_decay_identities", name, config, network=network)


def figure_of(runs: dict[str, Sequence[nc.Trajectory]]) -> Figure:
    """One panel a quantity."""
    with plots.style():
        figure, axes = plt.subplots(2, 4, figsize=(12, 5.2), sharex=True, layout="constrained")
        for ax, name in zip(axes.flat, PANELS, strict=True):
            for setting, group in runs.items():
                band(ax, group, name, color=COLOURS[setting], label=setting)
            ax.set(title=plots.described(name).symbol, xscale="log")
            ax.set_yscale("linear" if name == "test_accuracy" else "log")
        for ax in axes[1]:
            ax.set_xlabel("step + 1")
        axes[0, 0].legend(fontsize=7)
    return figure


def main() -> None:
    flags = flags_of(__doc__)
    runs: dict[str, Sequence[nc.Trajectory]] = {
        name: [run_of(flags, name, s) for s in flags.seeds] for name in DECAYS if not flags.only or name in flags.only
    }
    keys = ("train_accuracy", "epsilon", *PANELS)
    columns = {plots.described(key).symbol: (lambda run, key=key: run[key][-1]) for key in keys}
    print(table_of(runs, columns, "at the end"))
    print(plots.save(figure_of(runs), flags.out / "weight_decay_identities"))


if __name__ == "__main__":
    main()
