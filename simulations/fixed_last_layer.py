"""A last layer that is fixed to a simplex, with and without dot regression, and the layer-peeled budgets.

    python simulations/fixed_last_layer.py
    python simulations/fixed_last_layer.py --seeds 0 --epochs-divided-by 10      a quick look

A tanh perceptron on MNIST at 14 × 14 (features after a ReLU cannot reach vertices with negative entries), without a
bias in the last layer, full batch; balanced classes, and classes of which
the second half has a twentieth of the samples. What is trained and under which loss is said in METHODS. Test images are
balanced. Leaves a figure in simulations/figures.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
from kept_runs import band, flags_of, kept, table_of
from matplotlib.figure import Figure

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.theory.models.layer_peeled import minority_cosine
from ntkcollapse.training import TrainConfig

BASE = TrainConfig(
    network="mlp", network_options=("widths=(128,64)", "activation=tanh"), dataset="mnist", image_size=14,
    per_class=100, test_per_class=100, bias=False, learning_rate=0.5, weight_decay=2e-4, epochs=700, decay_every=500,
    batch_size=0, measure=("train", "test", "last-layer"), measure_log=8, probe_per_class=0,
)  # fmt: skip
CROSS_ENTROPY: dict[str, Any] = {"loss": "cross-entropy", "learning_rate": 0.1, "weight_decay": 2e-3}
SIMPLEX = {"last_layer": "simplex-etf"}
METHODS: dict[str, dict[str, Any]] = {
    "trained, squared": {},
    "simplex, squared": SIMPLEX,
    "simplex, dot regression": SIMPLEX
    | {"loss": "dot-regression", "feature_budget": 1.0, "learning_rate": 0.05, "weight_decay": 2e-3},
    "trained, cross-entropy": CROSS_ENTROPY,
    "simplex, cross-entropy": CROSS_ENTROPY | SIMPLEX | {"feature_budget": 100.0},
    "budgets, cross-entropy": CROSS_ENTROPY | {"feature_budget": 100.0, "weight_budget": 1.0},
}
SIZES: dict[str, dict[str, Any]] = {
    "balanced": {},
    "step 20": {"imbalance": 20.0, "imbalance_kind": "step", "balanced": False, "probe_per_class": 5},
}
COLOURS = dict(zip(METHODS, ("black", "tab:red", "tab:orange", "tab:blue", "tab:green", "tab:purple"), strict=True))


def run_of(flags: argparse.Namespace, method: str, sizes: str, seed: int) -> nc.Trajectory:
    """One training."""
    config = dataclasses.replace(BASE, seed=seed, **METHODS[method], **SIZES[sizes])
    config = dataclasses.replace(config, epochs=config.epochs // flags.epochs_divided_by)
    return kept(flags, "fixed_last_layer", f"{method}, {sizes}", config)


def figure_of(runs: dict[str, dict[str, Sequence[nc.Trajectory]]]) -> Figure:
    """Test accuracy, NC1 and NC2 along training; one row for balanced, one for unequal classes."""
    names = ("test_accuracy", "nc1_tirer2022", "nc2_seleznova2023")
    with plots.style():
        figure, axes = plt.subplots(len(runs), 3, figsize=(10, 2.7 * len(runs)), sharex=True, layout="constrained")
        for row, (sizes, groups) in zip(axes, runs.items(), strict=True):
            for ax, name in zip(row, names, strict=True):
                for method, group in groups.items():
                    band(ax, group, name, color=COLOURS[method], label=method)
                ax.set(title=f"{plots.described(name).symbol}, {sizes}", xscale="log")
                ax.set_yscale("linear" if name == "test_accuracy" else "log")
        for ax in axes[-1]:
            ax.set_xlabel("step + 1")
        axes[0, 0].legend(fontsize=7)
    return figure


def main() -> None:
    flags = flags_of(__doc__)
    runs: dict[str, dict[str, Sequence[nc.Trajectory]]] = {
        sizes: {
            m: [run_of(flags, m, sizes, s) for s in flags.seeds] for m in METHODS if not flags.only or m in flags.only
        }
        for sizes in SIZES
    }
    last = {
        "training accuracy": "train_accuracy", "test accuracy": "test_accuracy", "NC1": "nc1_tirer2022",
        "NC2": "nc2_seleznova2023", "NC3": "nc3_seleznova2023",
    }  # fmt: skip
    columns: dict[str, Any] = {what: (lambda run, key=key: run[key][-1]) for what, key in last.items()}
    columns["cosine of minority rows"] = lambda run: minority_cosine(jnp.asarray(run.states.W[-1]), 5)
    for sizes, groups in runs.items():
        print(f"\n{sizes}\n\n{table_of(groups, columns, 'last layer, loss')}")
    print(plots.save(figure_of(runs), flags.out / "fixed_last_layer"))


if __name__ == "__main__":
    main()
