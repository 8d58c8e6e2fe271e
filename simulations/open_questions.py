"""Questions that the theory leaves open: attention, recurrence, cross-entropy, and unequal classes.

    python simulations/open_questions.py
    python simulations/open_questions.py --only architectures --seeds 0 --epochs-divided-by 20      a quick look

Architectures: do blocks form in the feature kernel of a vision transformer and of a gated recurrent unit, under the
squared loss and under cross-entropy, as they do in a perceptron? 200 of the 8 × 8 digits, all with the same optimiser.
Imbalance: a perceptron on digits whose classes differ by a factor of 10 at most, exponentially or by a step. The time
at which each contrast of class means has fallen to 1/e, against what the eigenvalues of D^½ Γ D^½ predict, with Γ of
the output kernel frozen at the start and along training. Tables, and a figure each in simulations/figures.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from kept_runs import band, flags_of, kept, markdown, over_seeds, table_of
from matplotlib.figure import Figure
from scipy.integrate import cumulative_trapezoid
from scipy.stats import spearmanr

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.theory import contrast_norms, lazy_contrasts
from ntkcollapse.training import TrainConfig

BASE = TrainConfig(
    dataset="digits", per_class=20, test_per_class=40, optimizer="adam", learning_rate=2e-3, weight_decay=2e-4,
    epochs=800, decay_every=600, batch_size=0, measure=("train", "test", "kappa", "last-layer"), measure_log=7,
    probe_per_class=8, keep_states=False,
)  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "perceptron": {"network": "mlp", "network_options": ("widths=(128,64)",)},
    "GRU": {"network": "gru", "network_options": ("width=64",)},
    "transformer": {"network": "vision-transformer", "network_options": ("width=32", "depth=2", "patch=2")},
}
LOSSES: dict[str, dict[str, Any]] = {"squared": {}, "cross-entropy": {"loss": "cross-entropy", "weight_decay": 1e-3}}
UNEQUAL = TrainConfig(
    network="mlp", network_options=("widths=(128,64)",), dataset="digits", per_class=40, test_per_class=40,
    balanced=False, imbalance=10.0, learning_rate=0.2, weight_decay=0.0, epochs=3000, decay_every=0, batch_size=0,
    measure=("train", "test", "kappa", "gamma", "last-layer"), measure_log=24, probe_per_class=0,
)  # fmt: skip


def architecture_run(flags: argparse.Namespace, network: str, loss: str, seed: int) -> nc.Trajectory:
    """One training of one network under one loss."""
    config = dataclasses.replace(BASE, seed=seed, **NETWORKS[network], **LOSSES[loss])
    config = dataclasses.replace(config, epochs=config.epochs // flags.epochs_divided_by)
    return kept(flags, "open_questions", f"{network}, {loss}", config)


def strength(run: nc.Trajectory) -> np.ndarray:
    """(κ_c − κ_n)/κ_d along the run."""
    d, c, n = (np.asarray(run[f"kappa_{part}"]) for part in ("diagonal", "within", "between"))
    return (c - n) / d


def architectures_figure(runs: dict[str, Sequence[nc.Trajectory]]) -> Figure:
    """Block strength, alignment, NC1 and NC2 along training; colour a network, dashed for cross-entropy."""
    colours = dict(zip(NETWORKS, ("black", "tab:red", "tab:blue"), strict=True))
    with plots.style():
        figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
        for name, group in runs.items():
            network, loss = name.split(", ")
            look: dict[str, Any] = {
                "color": colours[network],
                "linestyle": "-" if loss == "squared" else "--",
                "label": name,
            }
            values = np.stack([strength(run) for run in group])
            axes[0].plot(np.asarray(group[0]["step"]) + 1, np.median(values, axis=0), **look)
            axes[0].fill_between(
                np.asarray(group[0]["step"]) + 1, values.min(0), values.max(0), color=colours[network], alpha=0.2, lw=0
            )
            for ax, key in zip(axes[1:], ("kappa_alignment", "nc1_tirer2022", "nc2_seleznova2023"), strict=True):
                band(ax, group, key, **look)
        for ax, title in zip(axes, ("block strength", "alignment of the feature kernel", "NC1", "NC2"), strict=True):
            ax.set(title=title, xlabel="step + 1", xscale="log")
        for ax in axes[2:]:
            ax.set_yscale("log")
        axes[0].legend(fontsize=7)
    return figure


class Learning(NamedTuple):
    """Flow times at which each contrast has fallen to 1/e: measured, and predicted with Γ frozen and with Γ(t)."""

    measured: np.ndarray
    frozen: np.ndarray
    along: np.ndarray
    times: np.ndarray
    norms: np.ndarray


def unequal_run(flags: argparse.Namespace, kind: str, seed: int) -> nc.Trajectory:
    """One training on unequal classes."""
    epochs = UNEQUAL.epochs // flags.epochs_divided_by
    config = dataclasses.replace(UNEQUAL, seed=seed, imbalance_kind=kind, epochs=epochs)
    return kept(flags, "open_questions", f"imbalance, {kind}", config)


def learning(run: nc.Trajectory) -> Learning:
    """Contrasts of D^½ Γ D^½ at the start, their course, and their times; NaN where 1/e is not reached."""
    times, classes = np.asarray(run.times), run.classes
    gammas = [
        nc.BlockKernel(*(float(run[f"gamma_{part}"][t]) for part in ("diagonal", "within", "between")))
        for t in range(len(times))
    ]
    start = lazy_contrasts(gammas[0], classes)
    residuals = np.stack(
        [
            np.asarray(W) @ np.asarray(classes.means(H)) + np.asarray(b)[:, None] - np.eye(classes.num_classes)
            for W, H, b in zip(run.states.W, run.states.H, run.states.b, strict=True)
        ]
    )
    norms = np.asarray(contrast_norms(residuals, classes, start.directions))
    # Γ changes along training, and so do the rates of the contrasts that it had at the start.
    root, U = np.sqrt(np.asarray(classes.weights)), np.asarray(start.directions)
    rates = np.stack(
        [
            np.einsum("ck,cd,dk->k", U, root[:, None] * np.asarray(g.class_gram(classes.weights)) * root[None], U)
            for g in gammas
        ]
    )
    exponents = cumulative_trapezoid(rates, times, axis=0, initial=0)
    falls = np.log(norms[0][None] / norms)

    def first(course: np.ndarray) -> np.ndarray:
        reached = [np.flatnonzero(c >= 1) for c in course.T]
        return np.array(
            [
                np.interp(1, course[i[0] - 1 : i[0] + 1, k], times[i[0] - 1 : i[0] + 1]) if len(i) else np.nan
                for k, i in enumerate(reached)
            ]
        )

    return Learning(first(falls), 1 / np.asarray(start.rates), first(exponents), times, norms)


def imbalance_figure(found: Mapping[str, Sequence[Learning]]) -> Figure:
    """Contrasts of the first seed along training, and measured against predicted times of all seeds."""
    with plots.style():
        figure, axes = plt.subplots(len(found), 2, figsize=(7.6, 3 * len(found)), squeeze=False, layout="constrained")
        for (left, right), (kind, group) in zip(axes, found.items(), strict=True):
            colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, group[0].norms.shape[1]))
            for k, colour in enumerate(colours):
                left.plot(group[0].times[1:], (group[0].norms[:, k] / group[0].norms[0, k])[1:], color=colour)
            left.axhline(np.exp(-1), color="black", linewidth=0.6)
            left.set(xscale="log", yscale="log", title=f"contrasts, {kind}, slow to fast", ylabel="norm over that at 0")
            for one in group:
                right.scatter(one.frozen, one.measured, marker="s", s=16, facecolors="none", edgecolors=colours)
                right.scatter(one.along, one.measured, marker="o", s=16, color=colours)
            ends = [np.nanmin([one.measured for one in group]), np.nanmax([one.frozen for one in group])]
            right.plot(ends, ends, color="black", linewidth=0.6)
            right.set(xscale="log", yscale="log", title="squares: Γ frozen, dots: Γ along training")
            right.set(ylabel="measured time to 1/e")
        axes[-1, 0].set_xlabel("flow time")
        axes[-1, 1].set_xlabel("predicted time to 1/e")
    return figure


def main() -> None:
    flags = flags_of(__doc__)
    if not flags.only or "architectures" in flags.only:
        runs: dict[str, Sequence[nc.Trajectory]] = {
            f"{network}, {loss}": [architecture_run(flags, network, loss, s) for s in flags.seeds]
            for network in NETWORKS
            for loss in LOSSES
        }
        columns: dict[str, Any] = {
            "train accuracy": lambda run: run["train_accuracy"][-1],
            "test": lambda run: run["test_accuracy"][-1],
            "blocks, start": lambda run: strength(run)[0],
            "blocks, end": lambda run: strength(run)[-1],
            "κ_n/κ_d, start": lambda run: run["kappa_between"][0] / run["kappa_diagonal"][0],
            "κ_n/κ_d, end": lambda run: run["kappa_between"][-1] / run["kappa_diagonal"][-1],
            "alignment, start": lambda run: run["kappa_alignment"][0],
            "alignment, end": lambda run: run["kappa_alignment"][-1],
            **{
                plots.described(key).symbol: (lambda run, key=key: run[key][-1])
                for key in ("nc1_tirer2022", "nc2_seleznova2023", "nc3_seleznova2023")
            },
        }
        print(table_of(runs, columns, "network, loss"))
        print(plots.save(architectures_figure(runs), flags.out / "open_questions_architectures"))
    if not flags.only or "imbalance" in flags.only:
        kinds = ("exponential", "step")
        unequal = {kind: [unequal_run(flags, kind, s) for s in flags.seeds] for kind in kinds}
        found = {kind: [learning(run) for run in group] for kind, group in unequal.items()}
        rows = []
        for kind, group in found.items():
            for what in ("frozen", "along"):
                ratios = [one.measured / getattr(one, what) for one in group]
                ranks = [
                    float(np.asarray(spearmanr(one.measured, getattr(one, what), nan_policy="omit"))[0])
                    for one in group
                ]
                rows.append(
                    [
                        kind, what, over_seeds(ranks), over_seeds([float(np.nanmedian(r)) for r in ratios]),
                        over_seeds([float(np.nanmin(r)) for r in ratios]),
                        over_seeds([float(np.nanmax(r)) for r in ratios]),
                        over_seeds([float(np.isfinite(one.measured).mean()) for one in group]),
                    ]
                )  # fmt: skip
        header = [
            "sizes",
            "Γ",
            "rank correlation",
            "measured/predicted, median",
            "least",
            "largest",
            "share that got there",
        ]
        print(markdown(header, rows))
        columns = {
            "slowest contrast, measured": lambda run: np.nanmax(learning(run).measured),
            "fastest": lambda run: np.nanmin(learning(run).measured),
            "train accuracy": lambda run: run["train_accuracy"][-1],
            "test accuracy": lambda run: run["test_accuracy"][-1],
            "NC1": lambda run: run["nc1_tirer2022"][-1],
            "blocks, start": lambda run: strength(run)[0],
            "blocks, end": lambda run: strength(run)[-1],
        }
        print(table_of(unequal, columns, "sizes"))
        print(plots.save(imbalance_figure(found), flags.out / "open_questions_imbalance"))


if __name__ == "__main__":
    main()
