"""Questions that the theory leaves open: attention, recurrence, cross-entropy, and unequal classes.

    python simulations/open_questions.py
    python simulations/open_questions.py --only perceptron --seeds 0 --epochs-divided-by 20      a quick look

Architectures: do blocks form in the feature kernel of a vision transformer and of a gated recurrent unit, under the
squared loss and under cross-entropy, as they do in a perceptron? 200 of the 8 × 8 digits, all with the same optimiser.
Imbalance: a perceptron on digits whose classes differ by a factor of 10 at most, exponentially or by a step. The time
at which each contrast of class means has fallen to 1/e under plain gradient descent, against what the eigenvalues of
D^½ Γ D^½ predict: with the output kernel's three numbers frozen at the start, with them along training, and with its
mean for every pair of classes at the start. Tables, and a figure each in simulations/figures.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from kept_runs import band, beside, flags_of, kept, logarithmic, markdown, over_seeds, table_of
from matplotlib.figure import Figure
from scipy.integrate import cumulative_trapezoid
from scipy.stats import spearmanr

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.theory import contrast_norms, lazy_contrasts
from ntkcollapse.training import TrainConfig

BASE = TrainConfig(
    dataset="digits", per_class=20, test_per_class=40, optimizer="adam", learning_rate=2e-3, weight_decay=5e-4,
    epochs=1000, decay_every=750, batch_size=0, measure=("train", "test", "kappa", "last-layer"), measure_log=9,
    probe_per_class=8,
)  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "perceptron": {"network": "mlp", "network_options": ("widths=(128,64)",)},
    "GRU": {"network": "gru", "network_options": ("width=64",)},
    "transformer": {"network": "vision-transformer", "network_options": ("width=32", "depth=2", "patch=2")},
}
LOSSES: dict[str, dict[str, Any]] = {"squared": {}, "cross-entropy": {"loss": "cross-entropy", "weight_decay": 1e-3}}
UNEQUAL = TrainConfig(
    network="mlp", network_options=("widths=(128,64)",), dataset="digits", per_class=40, test_per_class=40,
    balanced=False, imbalance=10.0, learning_rate=0.5, momentum=0.0, nesterov=False, weight_decay=0.0, epochs=6000,
    decay_every=0, batch_size=0, measure=("train", "test", "kappa", "gamma", "last-layer"), measure_log=32,
    probe_per_class=0,
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


def directions(run: nc.Trajectory) -> float:
    """Participation ratio (Σλ)²/Σλ² of the class means about their mean, at the end: C − 1 for a simplex."""
    M = np.asarray(run.classes.means(run.states.H[-1]))
    values = np.linalg.svd(M - M.mean(1, keepdims=True), compute_uv=False) ** 2
    return float(values.sum() ** 2 / np.sum(values**2))


def architectures_figure(runs: dict[str, Sequence[nc.Trajectory]]) -> Figure:
    """Block strength, alignment, NC1 and NC2 along training; colour a network, dashed for cross-entropy."""
    colours = dict(zip(NETWORKS, ("black", "tab:red", "tab:blue"), strict=True))
    with plots.style():
        figure, axes = plt.subplots(1, 4, figsize=(13.5, 3), layout="constrained")
        for name, group in runs.items():
            network, loss = name.split(", ")
            look: dict[str, Any] = {
                "color": colours[network], "linestyle": "-" if loss == "squared" else "--", "label": name,
            }  # fmt: skip
            values, steps = np.stack([strength(run) for run in group]), np.asarray(group[0]["step"]) + 1
            axes[0].plot(steps, np.median(values, axis=0), **look)
            axes[0].fill_between(steps, values.min(0), values.max(0), color=colours[network], alpha=0.2, lw=0)
            for ax, key in zip(axes[1:], ("kappa_alignment", "nc1_tirer2022", "nc2_seleznova2023"), strict=True):
                band(ax, group, key, **look)
        titles = (
            r"block strength $(\kappa_c - \kappa_n)/\kappa_d$", "alignment of the feature kernel",
            r"NC1, tr$\,\Sigma_W$/tr$\,\Sigma_B$", "NC2",
        )  # fmt: skip
        for ax, title in zip(axes, titles, strict=True):
            ax.set(title=title, xlabel="step + 1", xscale="log")
        for ax in axes[2:]:
            logarithmic(ax)
        beside(axes[-1])
    return figure


class Learning(NamedTuple):
    """Flow times at which each contrast has fallen to 1/e, measured and predicted, by what is known of Γ; a course."""

    measured: dict[str, np.ndarray]
    predicted: dict[str, np.ndarray]
    times: np.ndarray
    norms: np.ndarray


# What a prediction knows of the output kernel's class means.
KNOWN = {"three numbers at the start": "s", "three numbers along training": "o", "all class pairs at the start": "^"}


def unequal_run(flags: argparse.Namespace, kind: str, seed: int) -> nc.Trajectory:
    """One training on unequal classes."""
    epochs = UNEQUAL.epochs // flags.epochs_divided_by
    config = dataclasses.replace(UNEQUAL, seed=seed, imbalance_kind=kind, epochs=epochs)
    return kept(flags, "open_questions", f"imbalance, {kind}", config)


def to_a_fraction(course: np.ndarray, times: np.ndarray) -> np.ndarray:
    """When each column of −ln(norm/norm at 0) passes 1; NaN where it does not."""
    reached = [np.flatnonzero(c >= 1) for c in course.T]
    return np.array(
        [
            np.interp(1, course[i[0] - 1 : i[0] + 1, k], times[i[0] - 1 : i[0] + 1]) if len(i) else np.nan
            for k, i in enumerate(reached)
        ]
    )


def learning(run: nc.Trajectory) -> Learning:
    """Contrasts of D^½ Γ D^½ at the start, their course, and their times; NaN where 1/e is not reached."""
    times, classes = np.asarray(run.times), run.classes
    sizes, root = np.asarray(classes.weights), np.sqrt(np.asarray(classes.weights))
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
    # Γ changes along training, and so do the rates of the contrasts that it had at the start.
    U = np.asarray(start.directions)
    rates = np.stack(
        [
            np.einsum("ck,cd,dk->k", U, root[:, None] * np.asarray(g.class_gram(classes.weights)) * root[None], U)
            for g in gammas
        ]
    )
    # Entries of pairs differ: means over i ≠ j, and what a sample has with itself.
    gram = np.asarray(run["gamma_class_pairs"][0]) + np.diag(float(gammas[0].lambda_single) / sizes)
    pair_rates, V = np.linalg.eigh(root[:, None] * gram * root[None])
    norms, pair_norms = (np.asarray(contrast_norms(residuals, classes, directions)) for directions in (U, V))
    falls, pair_falls = (to_a_fraction(np.log(n[0][None] / n), times) for n in (norms, pair_norms))
    predicted = (
        1 / np.asarray(start.rates),
        to_a_fraction(cumulative_trapezoid(rates, times, axis=0, initial=0), times),
        1 / pair_rates,
    )
    measured = (falls, falls, pair_falls)
    return Learning(dict(zip(KNOWN, measured, strict=True)), dict(zip(KNOWN, predicted, strict=True)), times, norms)


def imbalance_figure(found: Mapping[str, Sequence[Learning]]) -> Figure:
    """Contrasts of the first seed along training, and measured against predicted times of all seeds."""
    with plots.style():
        figure, axes = plt.subplots(
            2, len(found), figsize=(4.2 * len(found), 6.4), squeeze=False, sharey="row", layout="constrained"
        )
        for (course, points), (kind, group) in zip(axes.T, found.items(), strict=True):
            norms, times = group[0].norms, group[0].times
            colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, norms.shape[1]))
            for k, colour in enumerate(colours):
                course.plot(times[1:], (norms[:, k] / norms[0, k])[1:], color=colour)
            course.axhline(np.exp(-1), color="black", linewidth=0.6, linestyle=":")
            course.set(xscale="log", yscale="log", title=f"class sizes: {kind}", xlabel="flow time")
            for one in group:
                for what, marker in KNOWN.items():
                    look: dict[str, Any] = (
                        {"facecolors": "none", "edgecolors": colours} if marker == "s" else {"color": colours}
                    )
                    points.scatter(one.predicted[what], one.measured[what], marker=marker, s=18, linewidths=0.8, **look)
            every = np.concatenate([np.concatenate([*one.measured.values(), *one.predicted.values()]) for one in group])
            ends = np.array([np.nanmin(every), np.nanmax(every)])
            points.plot(ends, ends, color="black", linewidth=0.6)
            points.set(xscale="log", yscale="log", xlabel="predicted time to 1/e")
        axes[0, 0].set_ylabel("contrast of class means over that at 0\n(dark: predicted slow, bright: fast)")
        axes[1, 0].set_ylabel("measured time to 1/e")
        for what, marker in KNOWN.items():
            face = "none" if marker == "s" else "grey"
            axes[1, 0].scatter([], [], marker=marker, s=18, facecolors=face, edgecolors="grey", label=what)
        axes[1, 0].legend(fontsize=7)
    return figure


def main() -> None:
    flags = flags_of(__doc__)
    networks = [name for name in NETWORKS if not flags.only or name in flags.only or "architectures" in flags.only]
    if networks:
        runs: dict[str, Sequence[nc.Trajectory]] = {
            f"{network}, {loss}": [architecture_run(flags, network, loss, s) for s in flags.seeds]
            for network in networks
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
            "directions of means": directions,
        }
        print(table_of(runs, columns, "network, loss"))
        print(plots.save(architectures_figure(runs), flags.out / "open_questions_architectures"))
    if not flags.only or "imbalance" in flags.only:
        kinds = ("exponential", "step")
        unequal = {kind: [unequal_run(flags, kind, s) for s in flags.seeds] for kind in kinds}
        found = {kind: [learning(run) for run in group] for kind, group in unequal.items()}
        rows = []
        for kind, group in found.items():
            for what in KNOWN:
                pairs = [(one.measured[what], one.predicted[what]) for one in group]
                ratios = [measured / predicted for measured, predicted in pairs]
                ranks = [float(np.asarray(spearmanr(*pair, nan_policy="omit"))[0]) for pair in pairs]
                rows.append(
                    [
                        kind, what, over_seeds(ranks), over_seeds([float(np.nanmedian(r)) for r in ratios]),
                        over_seeds([float(np.nanmin(r)) for r in ratios]),
                        over_seeds([float(np.nanmax(r)) for r in ratios]),
                        over_seeds([float(np.isfinite(measured).mean()) for measured, _ in pairs]),
                    ]
                )  # fmt: skip
        header = [
            "sizes", "known of Γ", "rank correlation", "measured/predicted, median", "least", "largest",
            "share that got there",
        ]  # fmt: skip
        print(markdown(header, rows))
        columns = {
            "slowest contrast, measured": lambda run: np.nanmax(learning(run).measured["three numbers at the start"]),
            "fastest": lambda run: np.nanmin(learning(run).measured["three numbers at the start"]),
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
