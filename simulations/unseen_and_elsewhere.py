"""What collapse is worth beyond the training set: for classes that were not trained on, and for images from elsewhere.

    python simulations/unseen_and_elsewhere.py
    python simulations/unseen_and_elsewhere.py --only digits --seeds 0 --epochs-divided-by 10      a quick look

Unseen classes: a network is trained on six classes of ten; of the other four, collapse about their own means (CDNV) and
the error of the nearest centre of 1 or 5 examples a class, along training (Galanti, György & Hutter 2022).
Elsewhere: a network is trained on all of MNIST's or of Fashion-MNIST's classes, and the other set's images are to be
told from its test images by where their features fall. Figures in simulations/figures.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from kept_runs import band, beside, flags_of, kept, logarithmic, table_of
from matplotlib.figure import Figure

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.data import Splits, load
from ntkcollapse.training import OutOfDistribution, TrainConfig, UnseenClasses

SEEN, UNSEEN = (0, 1, 2, 3, 4, 5), (6, 7, 8, 9)
BASE = TrainConfig(
    network="mlp", network_options=("batch_norm=true", "widths=(128,64)"), dataset="digits", per_class=60,
    test_per_class=50, learning_rate=0.05, weight_decay=0.01, epochs=2400, decay_every=1600, batch_size=0,
    measure=("train", "test"), measure_log=10, keep_states=False, recompute_statistics=True,
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {},
    "MNIST": {"dataset": "mnist", "image_size": 14, "per_class": 100},
    "CIFAR-10": {
        "dataset": "cifar10", "image_size": 16, "per_class": 100, "network": "cnn", "network_options": (),
        "batch_size": 120, "epochs": 150, "decay_every": 100, "standardised": True,
    },
}  # fmt: skip
PAIRS = {
    "MNIST, from Fashion-MNIST": ("mnist", "fashion-mnist"),
    "Fashion-MNIST, from MNIST": ("fashion-mnist", "mnist"),
}


def unseen_run(flags: argparse.Namespace, name: str, seed: int) -> nc.Trajectory:
    """One training on six classes, measured on the other four."""
    config = dataclasses.replace(BASE, seed=seed, **SETTINGS[name])
    config = dataclasses.replace(config, epochs=config.epochs // flags.epochs_divided_by)
    splits = config.build_splits()
    seen = Splits(*(part.of_classes(SEEN) for part in splits))
    # Never trained on, so that both parts are held out.
    measurement = UnseenClasses(splits.test.of_classes(UNSEEN))
    return kept(flags, "unseen", name, config, splits=seen, measurements={"unseen": measurement})


def elsewhere_run(flags: argparse.Namespace, name: str, seed: int) -> nc.Trajectory:
    """One training on one set, measured on the test images of the other."""
    inside, outside = PAIRS[name]
    config = dataclasses.replace(
        BASE, dataset=inside, image_size=14, seed=seed, epochs=BASE.epochs // flags.epochs_divided_by
    )
    other = load(outside, size=14, per_class=1, test_per_class=60).test
    return kept(
        flags, "elsewhere", name, config,
        measurements={"elsewhere": OutOfDistribution(other), "test-collapse": nc.training.HeldOutCollapse()},
    )  # fmt: skip


def unseen_figure(runs: Mapping[str, Sequence[nc.Trajectory]]) -> Figure:
    """CDNV of what was trained on, its test part and unseen classes; few-shot error. One column a data set."""
    with plots.style():
        figure, axes = plt.subplots(
            2, len(runs), figsize=(3 * len(runs) + 1.5, 4.8), sharex="col", squeeze=False, layout="constrained"
        )
        parts = {
            "train": ("black", "trained classes, training images"),
            "test": ("tab:blue", "trained classes, test images"),
            "unseen": ("tab:red", "unseen classes"),
        }  # fmt: skip
        for column, (name, group) in zip(axes.T, runs.items(), strict=True):
            for part, (colour, label) in parts.items():
                band(column[0], group, f"{part}_mean_cdnv_galanti2022", color=colour, label=label)
            for index, shots in enumerate(group[0].names["shots"]):
                label = f"{shots} {'example' if shots == '1' else 'examples'} a class"
                look = {"color": "tab:red", "linestyle": ("--", "-")[index], "label": label}
                band(column[1], group, "unseen_few_shot_error", index=index, **look)
            column[1].axhline(1 - 1 / len(UNSEEN), color="grey", linestyle=":", linewidth=0.9, label="by chance")
            column[0].set(title=name, xscale="log")
            logarithmic(column[0])
            column[1].set(xlabel="step + 1", ylim=(0, None))
        axes[0, 0].set_ylabel("variance / distance² (CDNV)")
        axes[1, 0].set_ylabel("error on unseen classes")
        beside(axes[0, -1])
        beside(axes[1, -1])
    return figure


def elsewhere_figure(runs: Mapping[str, Sequence[nc.Trajectory]]) -> Figure:
    """Areas under the curve along training, and collapse and NC5 below."""
    scores = {
        "auroc_simplex_distance": "tab:blue", "auroc_simplex_angle": "tab:green", "auroc_neco": "tab:red",
        "auroc_softmax": "black",
    }  # fmt: skip
    with plots.style():
        figure, axes = plt.subplots(
            2, len(runs), figsize=(3.4 * len(runs) + 2, 4.8), sharex=True, squeeze=False, layout="constrained"
        )
        for column, (name, group) in zip(axes.T, runs.items(), strict=True):
            for score, colour in scores.items():
                band(column[0], group, score, color=colour, label=plots.described(score).label)
            band(column[1], group, "train_nc1_tirer2022", color="purple", label=r"NC1 tr$\,\Sigma_W$/tr$\,\Sigma_B$")
            band(column[1], group, "nc5_ammar2024", color="black", label="NC5")
            band(column[1], group, "nc5_centred", color="tab:blue", label="NC5, centred")
            column[0].axhline(0.5, color="grey", linestyle=":", linewidth=0.9, label="by chance")
            column[0].set(title=name, xscale="log", ylim=(None, 1.01))
            column[1].set(xlabel="step + 1")
            logarithmic(column[1])
        axes[0, 0].set_ylabel("area under the ROC curve")
        axes[1, 0].set_ylabel("collapse, and NC5")
        beside(axes[0, -1])
        beside(axes[1, -1])
    return figure


def main() -> None:
    flags = flags_of(__doc__)
    names = flags.only or [*SETTINGS, *PAIRS]
    unseen = {name: [unseen_run(flags, name, s) for s in flags.seeds] for name in SETTINGS if name in names}
    if unseen:
        columns = {
            f"{what}, {when}": (lambda run, key=key, at=(at, index): run[key][at])
            for what, key, index in (
                ("CDNV training", "train_mean_cdnv_galanti2022", ...),
                ("CDNV unseen", "unseen_mean_cdnv_galanti2022", ...),
                ("1-shot error", "unseen_few_shot_error", 0),
                ("5-shot error", "unseen_few_shot_error", 1),
            )
            for when, at in (("start", 0), ("end", -1))
        }  # fmt: skip
        least = {"least 5-shot error": lambda run: run["unseen_few_shot_error"][:, 1].min()}
        print(
            table_of(
                unseen, {"test accuracy": lambda run: run["test_accuracy"][-1]} | columns | least, "trained on six of"
            )
        )
        print(plots.save(unseen_figure(unseen), flags.out / "unseen_classes"))
    elsewhere = {name: [elsewhere_run(flags, name, s) for s in flags.seeds] for name in PAIRS if name in names}
    if elsewhere:
        keys = {
            "test accuracy": "test_accuracy", "NC1": "train_nc1_tirer2022", "distance": "auroc_simplex_distance",
            "angle": "auroc_simplex_angle", "NECO": "auroc_neco", "softmax": "auroc_softmax", "NC5": "nc5_ammar2024",
            "NC5, centred": "nc5_centred",
        }  # fmt: skip
        columns = {
            f"{what}, {when}": (lambda run, key=key, at=at: run[key][at])
            for what, key in keys.items()
            for when, at in (("start", 0), ("end", -1))
            if when == "end" or "AUROC" in plots.described(key).symbol
        }
        print(table_of(elsewhere, columns, "trained on, to be told"))
        print(plots.save(elsewhere_figure(elsewhere), flags.out / "elsewhere"))


if __name__ == "__main__":
    main()
