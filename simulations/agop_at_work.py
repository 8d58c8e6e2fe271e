"""Which directions a function uses: learnt by a kernel machine on a known function, and along a convolutional network.

    python simulations/agop_at_work.py
    python simulations/agop_at_work.py --seeds 0 --epochs-divided-by 10      a quick look

Low-rank regression: y = x_1 x_2 of normal x in 20 dimensions. A Laplace kernel in the plain metric, and one whose
metric is learnt from its own AGOP (recursive feature machine): R² on new points, and how the AGOP of each correlates
with the expected gradient outer product of x_1 x_2 itself. Then a convolutional network on MNIST at 14 × 14: the AGOP
of what each layer sees, at the start and the end of training: how many directions it has (participation ratio), the
share of the first C − 1, its correlation with WᵀW, and collapse of the layer's input. Leaves two figures in
simulations/figures.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from kept_runs import flags_of, kept, markdown, over_seeds
from matplotlib.figure import Figure

import ntkcollapse as nc
from ntkcollapse import collapse, plots
from ntkcollapse.training import FeatureAnsatz, LayerCollapse, Moment, TrainConfig

DIMENSION, SAMPLES = 20, (100, 200, 400)
CONFIG = TrainConfig(
    network="cnn", network_options=("widths=(16,32,64)",), dataset="mnist", image_size=14, per_class=60,
    test_per_class=60, learning_rate=0.05, weight_decay=0.01, epochs=80, decay_every=60, batch_size=120,
    measure=("train", "test"), measure_log=2, keep_states=False,
)  # fmt: skip


def product(x: Any) -> Any:
    """The target: of 20 directions two matter, and only together."""
    return x[:, :1] * x[:, 1:2]


def regression(seed: int, samples: int) -> dict[str, float]:
    """R² on 1,000 new points without and with a learnt metric, and correlations of their AGOP with the EGOP."""
    rng = np.random.default_rng(seed)
    x, new = rng.normal(size=(samples, DIMENSION)), rng.normal(size=(1000, DIMENSION))
    expected = collapse.egop(
        product, lambda key, B: jax.random.normal(key, (B, DIMENSION)), key=jax.random.key(seed), samples=3200
    )
    machine = collapse.recursive_feature_machine(x, product(x), bandwidth=10.0, iterations=5)
    plain = collapse.kernel_regression(x, product(x), bandwidth=10.0, ridge=1e-3)
    found: dict[str, float] = {"standard error": float(expected.standard_error.max())}
    for name, predictor in (("plain", plain), ("learnt", machine.predictor)):
        found[f"R² {name}"] = float(collapse.r_squared(predictor(new), product(new)))
        found[f"EGOP {name}"] = float(collapse.ansatz_correlation(predictor.agop(), expected.matrix))
    return found


class Directions:
    """Of the AGOP of each layer: participation ratio (Σλ)²/Σλ², and the share of the first C − 1 eigenvalues."""

    def __call__(self, moment: Moment) -> Mapping[str, Any]:
        x = moment.splits.train.balanced(20).inputs
        found = collapse.layer_agops(moment.network.module, moment.variables._asdict(), x, train=False)
        values = [np.maximum(np.linalg.eigvalsh(np.asarray(G, np.float64))[::-1], 0) for G in found.values()]
        return {
            "directions": np.array([v.sum() ** 2 / (v**2).sum() for v in values]),
            "leading_share": np.array(
                [v[: moment.splits.train.classes.num_classes - 1].sum() / v.sum() for v in values]
            ),
        }


def run_of(flags: argparse.Namespace, seed: int) -> nc.Trajectory:
    """One training, measured in every layer."""
    config = dataclasses.replace(CONFIG, seed=seed, epochs=max(CONFIG.epochs // flags.epochs_divided_by, 2))
    measurements = {"layers": LayerCollapse(40, 0), "ansatz": FeatureAnsatz(10), "directions": Directions()}
    return kept(flags, "agop_at_work", "cnn on MNIST", config, measurements=measurements)


def regression_figure(found: Mapping[int, Sequence[dict[str, float]]]) -> Figure:
    """R² and correlation with the EGOP against the number of samples."""
    with plots.style():
        figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
        for ax, what, label in (
            (axes[0], "R²", "R² on new points"),
            (axes[1], "EGOP", "correlation of the AGOP with the EGOP of $x_1x_2$"),
        ):
            for name, look in (("plain", "s--"), ("learnt", "o-")):
                values = np.array([[row[f"{what} {name}"] for row in rows] for rows in found.values()])
                middle = np.median(values, axis=1)
                ax.errorbar(
                    list(found), middle, [middle - values.min(1), values.max(1) - middle], fmt=look, capsize=2,
                    label=f"{name} metric", color="black" if name == "plain" else "tab:red",
                )  # fmt: skip
            ax.set(xscale="log", xlabel="samples", ylabel=label)
        axes[0].legend()
    return figure


def depth_figure(runs: Sequence[nc.Trajectory]) -> Figure:
    """Along depth, at the start and the end."""
    panels = {
        "directions": "directions of the AGOP", "leading_share": "share of the first C − 1",
        "ansatz_correlation": r"correlation of $W^\top W$ with the AGOP",
        "layers_nc1_tirer2022": "NC1 of the layer's input",
    }  # fmt: skip
    with plots.style():
        figure, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
        for ax, (key, label) in zip(axes, panels.items(), strict=True):
            for at, look, when in ((0, "s--", "start"), (-1, "o-", "end")):
                values = np.stack([np.asarray(run[key][at])[: len(runs[0].names["ansatz"])] for run in runs])
                middle = np.median(values, axis=0)
                ax.errorbar(
                    np.arange(1, len(middle) + 1), middle, [middle - values.min(0), values.max(0) - middle], fmt=look,
                    capsize=2, color="black" if at == 0 else "tab:red", label=when,
                )  # fmt: skip
            ax.set(xlabel="layer", title=label, xticks=np.arange(1, len(middle) + 1))
        axes[0].set_yscale("log")
        axes[3].set_yscale("log")
        axes[0].legend()
    return figure


def main() -> None:
    flags = flags_of(__doc__)
    if not flags.only or "regression" in flags.only:
        jax.config.update("jax_enable_x64", True)
        found = {samples: [regression(seed, samples) for seed in flags.seeds] for samples in SAMPLES}
        names = ("R² plain", "R² learnt", "EGOP plain", "EGOP learnt", "standard error")
        rows = [[str(n), *(over_seeds([row[name] for row in rows], 3) for name in names)] for n, rows in found.items()]
        print(markdown(["samples", *names], rows))
        print(plots.save(regression_figure(found), flags.out / "low_rank_regression"))
        jax.config.update("jax_enable_x64", False)
    if not flags.only or "depth" in flags.only:
        runs = [run_of(flags, seed) for seed in flags.seeds]
        keys = ("directions", "leading_share", "ansatz_correlation", "ansatz_root_correlation", "layers_nc1_tirer2022")
        rows = [
            [layer, *(over_seeds([float(run[key][at][i]) for run in runs], 3) for key in keys for at in (0, -1))]
            for i, layer in enumerate(runs[0].names["ansatz"])
        ]
        print(markdown(["layer", *(f"{key}, {when}" for key in keys for when in ("start", "end"))], rows))
        print("test accuracy", over_seeds([float(run["test_accuracy"][-1]) for run in runs], 3))
        print(plots.save(depth_figure(runs), flags.out / "agop_along_depth"))


if __name__ == "__main__":
    main()
