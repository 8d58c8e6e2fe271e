"""What label noise and overlap of classes do to blocks, under the squared loss and under cross-entropy.

    python simulations/noise_and_overlap.py
    python simulations/noise_and_overlap.py --only noise --seeds 0 --epochs-divided-by 10      a quick look

A perceptron with batch norm on 200 samples. Noise: digits of which 0, 2 or 6 of the 20 a class bear a wrong label, each
of another class, so that classes stay equal. Overlap: a mixture of ten Gaussians in 64 dimensions whose means are drawn
together. Collapse, blocks of the feature kernel and the invariant at the end and along training, three seeds. Runs are
kept in simulations/runs/noise_and_overlap and not made twice.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from kept_runs import band, flags_of, kept, table_of
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.data import Dataset, Splits
from ntkcollapse.plots.style import label_decades
from ntkcollapse.training import TrainConfig

BASE = TrainConfig(
    network="mlp", network_options=("batch_norm=true", "widths=(128,128,32)"), dataset="digits", per_class=20,
    test_per_class=40, learning_rate=0.05, weight_decay=0.01, epochs=2000, decay_every=900, batch_size=0,
    measure=("train", "test", "kappa", "last-layer"), measure_every=0, measure_log=20, probe_per_class=0,
    recompute_statistics=True,
)  # fmt: skip
# Rates drop before decay has shrunk the weights so far that steps become too large for them.
LOSSES: dict[str, dict[str, Any]] = {
    "squared": {},
    "cross-entropy": {"loss": "cross-entropy", "learning_rate": 0.03, "weight_decay": 0.005, "decay_every": 1400},
}
# Of the 20 labels a class; and distances of means in units of the deviation within a class.
WRONG, DISTANCES = (0, 2, 6), (8, 5, 3)
STUDIES = {
    "noise": tuple(f"{100 * wrong // 20}% wrong labels" for wrong in WRONG),
    "overlap": tuple(f"means {distance} apart" for distance in DISTANCES),
}
COURSES = {
    "nc1_tirer2022": r"tr $\Sigma_W$ / tr $\Sigma_B$",
    "nc2_seleznova2023": "NC2",
    "strength": r"$(\kappa_c-\kappa_n)/\kappa_d$",
    "kappa_alignment": r"alignment of $\Theta^h$ with $Y^\top Y$",
    "invariant_alignment": r"alignment of $W^\top W$ and $HK^{-1}H^\top$",
}


def mislabelled(splits: Splits, wrong: int) -> Splits:
    """The first `wrong` training samples of class c labelled c + 1, c + 2, ..., so that classes stay equal."""
    train = splits.train
    labels, C = np.array(train.labels), train.classes.num_classes
    for c in range(C):
        rows = np.flatnonzero(train.labels == c)[:wrong]
        labels[rows] = (c + 1 + np.arange(len(rows))) % C
    return splits._replace(train=Dataset.of(train.inputs, labels, name=f"{train.name}-{wrong}-wrong"))


def trained(flags: argparse.Namespace, loss: str, case: str, seed: int) -> nc.Trajectory:
    """One run, with the strength of its blocks among its observables."""
    config = dataclasses.replace(BASE, seed=seed, **LOSSES[loss])
    parts: dict[str, Any] = {}
    if case in STUDIES["noise"]:
        parts["splits"] = mislabelled(config.build_splits(), WRONG[STUDIES["noise"].index(case)])
    else:
        distance = DISTANCES[STUDIES["overlap"].index(case)]
        config = dataclasses.replace(config, dataset="gaussian-mixture", dataset_options=(f"separation={distance}",))
    divided = {name: getattr(config, name) // flags.epochs_divided_by for name in ("epochs", "decay_every")}
    run = kept(flags, "noise_and_overlap", f"{loss}, {case}", dataclasses.replace(config, **divided), **parts)
    d, c, n = (np.asarray(run[f"kappa_{part}"]) for part in ("diagonal", "within", "between"))
    return run.replaced(observables=run.observables | {"strength": (c - n) / d, "between": n / d})


def at(record: int, name: str) -> Callable[[nc.Trajectory], float]:
    """The number of a run at a record."""
    return lambda run: float(run[name][record])


COLUMNS: dict[str, Callable[[nc.Trajectory], float]] = {
    "train": at(-1, "train_accuracy"),
    "test": at(-1, "test_accuracy"),
    "NC1, start": at(0, "nc1_tirer2022"),
    "NC1": at(-1, "nc1_tirer2022"),
    "NC2": at(-1, "nc2_seleznova2023"),
    "NC3": at(-1, "nc3_seleznova2023"),
    "(κ_c − κ_n)/κ_d, start": at(0, "strength"),
    "(κ_c − κ_n)/κ_d": at(-1, "strength"),
    "κ_n/κ_d": at(-1, "between"),
    "of Θ^h": at(-1, "kappa_alignment"),
    "of E's parts": at(-1, "invariant_alignment"),
    "relative size of E": at(-1, "invariant_relative"),
}


def figure_of(runs: Mapping[tuple[str, str], Sequence[nc.Trajectory]]) -> Figure:
    """Courses of collapse, blocks and invariant: a row a study, darker the harder the data, dashed cross-entropy."""
    shades = ("#86b8dd", "#2f7ab8", "#08306b")
    studies = [study for study, cases in STUDIES.items() if any(case in cases for _, case in runs)]
    with plots.style():
        size = (12, 2.75 * len(studies))
        figure, axes = plt.subplots(len(studies), len(COURSES), figsize=size, layout="constrained", squeeze=False)
        for row, study in zip(axes, studies, strict=True):
            for ax, (name, label) in zip(row, COURSES.items(), strict=True):
                for loss, (case, shade) in itertools.product(LOSSES, zip(STUDIES[study], shades, strict=True)):
                    band(ax, runs[loss, case], name, color=shade, linestyle="-" if loss == "squared" else "--")
                scale = "log" if name.startswith("nc") else "linear"
                ax.set(xscale="log", yscale=scale, xlabel="step + 1", title=label)
                if scale == "log":
                    label_decades(ax.yaxis)
            handles = [Line2D([], [], color=c, label=case) for case, c in zip(STUDIES[study], shades, strict=True)]
            handles += [Line2D([], [], color="0.4", label="squared")]
            handles += [Line2D([], [], color="0.4", linestyle="--", label="cross-entropy")]
            row[0].legend(handles=handles, fontsize=6.5, loc="lower left")
    return figure


def main() -> None:
    flags = flags_of(__doc__)
    runs = {
        (loss, case): [trained(flags, loss, case, seed) for seed in flags.seeds]
        for study, cases in STUDIES.items()
        if flags.only is None or study in flags.only
        for loss, case in itertools.product(LOSSES, cases)
    }
    for study, cases in STUDIES.items():
        of_study = {f"{case}, {loss}": group for (loss, case), group in runs.items() if case in cases}
        if of_study:
            print(f"\n{table_of(of_study, COLUMNS, study)}")
    print(plots.save(figure_of(runs), flags.out / "noise_and_overlap")[-1])


if __name__ == "__main__":
    main()
