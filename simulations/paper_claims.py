"""The paper's claims at a laptop's size: three families of small networks on three data sets, trained into collapse.

    python simulations/paper_claims.py --quick            three families on MNIST, with and without collapse: 6 runs
    python simulations/paper_claims.py --part data        the nine models, one seed, one initialisation: 9 runs
    python simulations/paper_claims.py --part rates       seven learning rates on MNIST
    python simulations/paper_claims.py --part inits       initialisations on MNIST
    python simulations/paper_claims.py --part seeds       two more seeds on MNIST
    python simulations/paper_claims.py --part rates inits seeds --families VGG-like      the cheapest family
    python simulations/paper_claims.py                    all of it, three seeds: 594 runs, ten hours and more of a core
    python simulations/paper_claims.py --summary          tables and figures of what is there

A residual network, one in the manner of VGG (maxima, linear layers before the last) and a densely connected one, each
with batch norm and some 30 features, on 20 images a class, 14 × 14 (CIFAR-10: 16 × 16). Every run is kept in
simulations/runs/paper_claims, goes on where it was stopped, and is not made twice; the tables and figures are of all
that is there, and are written anew after every run.
"""

import argparse
import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.commands import Table, number
from ntkcollapse.networks import Initialiser, Network, network
from ntkcollapse.networks.densenet import DenseNetTrunk
from ntkcollapse.networks.vgg import VGGTrunk
from ntkcollapse.plots.style import label_decades
from ntkcollapse.training import NonFiniteLoss, TrainConfig, read_status, train

HERE = Path(__file__).parent
RUNS = HERE / "runs" / "paper_claims"


def _vgg(initialiser: Initialiser) -> Network:
    return Network(VGGTrunk((1, 1, 1), (8, 16, 32), (32,)), 10, initialiser, True, jnp.float32)


def _dense(initialiser: Initialiser) -> Network:
    # 8 channels + 2 × 8 = 24, halved; 12 + 16 = 28, halved; 14 + 16 = 30 features.
    return Network(DenseNetTrunk(2, 8, 2, 8, 0.5), 10, initialiser, True, jnp.float32)


FAMILIES: dict[str, Callable[[Initialiser], Any]] = {
    "residual": lambda initialiser: network("resnet8", 10, initialiser=initialiser, widths=(8, 16, 32)),
    "VGG-like": _vgg,
    "dense": _dense,
}
DATA = {"mnist": 14, "fashion-mnist": 14, "cifar10": 16}
NAMES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
INITS = ("lecun-normal", "uniform", "he-normal")
RATES = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
BASE = TrainConfig(
    network="resnet8",
    per_class=20,
    test_per_class=50,
    batch_size=50,
    epochs=400,
    learning_rate=0.05,
    weight_decay=5e-3,
    decay_every=240,
    recompute_statistics=True,
    measure=("train", "test", "kappa", "gamma", "last-layer"),
    measure_every=0,
    measure_log=10,
    probe_per_class=0,
)
# Starts far from balance, in which the labels can be fitted without the features: they do not collapse.
LARGE: dict[str, Any] = {"last_layer_scale": 5.0, "weight_decay": 0.0, "learning_rate": 0.005}
# Of tr Σ_W/tr Σ_B, at training accuracy 1: below, a run is said to have collapsed.
COLLAPSED = 0.05
COURSES = (
    ("nc1_tirer2022", r"tr $\Sigma_W$ / tr $\Sigma_B$", "log"),
    ("nc2_seleznova2023", "NC2", "log"),
    ("nc3_seleznova2023", "NC3", "log"),
    ("kappa_alignment", r"alignment of $\Theta^h$ with $Y^\top Y$", "linear"),
    ("invariant_alignment", r"alignment of $W^\top W$ and $HK^{-1}H^\top$", "linear"),
    ("invariant_relative", r"$\|E\|$ relative to its parts", "linear"),
)
COLOURS = dict(zip(FAMILIES, ("#0072B2", "#D55E00", "#009E73"), strict=True))


class Case(NamedTuple):
    """One run: which network, data, start, learning rate and seed; "large": the start in which nothing collapses."""

    family: str
    dataset: str
    init: str = "lecun-normal"
    rate: float = 0.05
    large: bool = False
    seed: int = 0

    @property
    def key(self) -> str:
        """What its directory is called."""
        start = "large" if self.large else f"{self.init}_{self.rate:g}"
        return f"{self.family}_{self.dataset}_{start}_{self.seed}"

    @property
    def config(self) -> TrainConfig:
        """Its settings."""
        more = LARGE if self.large else {"learning_rate": self.rate}
        own: dict[str, Any] = {"dataset": self.dataset, "image_size": DATA[self.dataset], "seed": self.seed}
        return dataclasses.replace(BASE, init=self.init, **own, **more)


def parts() -> dict[str, list[Case]]:
    """The runs by what they show; "all" has three seeds and every combination."""
    models = [Case(family, dataset) for dataset, family in itertools.product(DATA, FAMILIES)]
    mnist = [Case(family, "mnist") for family in FAMILIES]
    large = [case._replace(large=True) for case in mnist]
    return {
        "quick": mnist + large,
        "data": models,
        "rates": [case._replace(rate=rate) for rate, case in itertools.product(RATES, mnist)],
        "seeds": [case._replace(seed=seed) for seed, case in itertools.product((1, 2), mnist)],
        "inits": [case._replace(init=init) for init, case in itertools.product(INITS[1:], mnist)],
        "all": [
            case
            for seed, model in itertools.product(range(3), models)
            for case in (
                *(model._replace(init=init, rate=rate, seed=seed) for init, rate in itertools.product(INITS, RATES)),
                model._replace(large=True, seed=seed),
            )
        ],
    }


def over(case: Case) -> bool:
    """Whether its run is there, to its end or to where it diverged."""
    out = RUNS / case.key
    return out.exists() and read_status(out)["outcome"] in ("finished", "diverged")


def trained(case: Case) -> None:
    """Trains what is not trained yet; a run that diverges ends where it did."""
    out, config = RUNS / case.key, case.config
    initialiser = Initialiser(config.init, config.init_scale, config.last_layer_scale)
    try:
        train(config, out, resume=out.exists(), network=FAMILIES[case.family](initialiser))
    except NonFiniteLoss as error:
        print(f"{case.key}: {error}", flush=True)


def there() -> Iterator[tuple[Case, nc.Trajectory]]:
    """The runs that have been made, in order."""
    wanted = [*itertools.chain(*parts().values())]
    for case in sorted(dict.fromkeys(wanted), key=_order):
        if over(case):
            yield case, nc.Trajectory.load(RUNS / case.key)


def _order(case: Case) -> tuple:
    places = list(DATA).index(case.dataset), list(FAMILIES).index(case.family)
    return case.large, *places, INITS.index(case.init), case.rate, case.seed


def ends(run: nc.Trajectory) -> dict[str, tuple[float, float]]:
    """Of each observable: before training, and at the end."""
    names = {
        "train": "train_accuracy",
        "test": "test_accuracy",
        "NC1": "nc1_tirer2022",
        "NC2": "nc2_seleznova2023",
        "NC3": "nc3_seleznova2023",
        "NC4": "nc4_mismatch",
        "of Θ": "gamma_alignment",
        "of Θ^h": "kappa_alignment",
        "of E": "invariant_alignment",
        "|E|": "invariant_relative",
    }
    values = {name: np.asarray(run[key], float) for name, key in names.items()}
    d, c, n = (np.asarray(run[f"kappa_{part}"], float) for part in ("diagonal", "within", "between"))
    values["strength"] = (c - n) / d
    values["between"] = n / d
    values["sizes"] = np.array([_sizes(run, at) for at in (0, -1)])
    return {name: (float(value[0]), float(value[-1])) for name, value in values.items()}


def _sizes(run: nc.Trajectory, at: int) -> float:
    """‖WᵀW‖ / ‖H K⁻¹Hᵀ‖ at a record, K the block kernel of the three measured numbers."""
    W, H = np.asarray(run.states.W[at], float), np.asarray(run.states.H[at], float)
    kappa = nc.BlockKernel(*(float(run[f"kappa_{part}"][at]) for part in ("diagonal", "within", "between")))
    form = H @ np.linalg.solve(np.asarray(kappa.as_matrix(run.classes)), H.T)
    return float(np.linalg.norm(W.T @ W) / np.linalg.norm(form))


def collapsed(run: nc.Trajectory) -> bool:
    """Whether training accuracy is 1 at the end and tr Σ_W/tr Σ_B below `COLLAPSED`."""
    return float(run["train_accuracy"][-1]) == 1 and float(run["nc1_tirer2022"][-1]) < COLLAPSED


def tables(runs: list[tuple[Case, nc.Trajectory]]) -> str:
    """One line a run, the groups with and without collapse, and rank correlations over the runs."""
    moving = ("NC1", "NC2", "NC3", "strength", "of Θ", "of Θ^h", "of E", "|E|", "sizes")
    names = ("train", "test", "NC4", *moving)
    lines, values = [], []
    for case, run in runs:
        value = ends(run)
        values.append(value)
        start = "W × 5, no decay" if case.large else f"{case.init}, {case.rate:g}"
        cells = [f"{case.family}, {case.dataset}", start, str(case.seed)]
        for name in names:
            first, last = value[name]
            cells.append(f"{first:.2g} → {last:.2g}" if name in moving else f"{last:.3g}")
        lines.append([*cells, "yes" if collapsed(run) else "no"])
    text: list[str] = [Table(["model", "start, learning rate", "seed", *names, "collapsed"], lines)]
    lines = []
    for said, kind in (("with collapse", True), ("without", False)):
        group = [value for value, (_, run) in zip(values, runs, strict=True) if collapsed(run) == kind]
        if group:
            cells = [f"{said}, {len(group)} runs"]
            for name in ("|E|", "of E", "sizes", "of Θ^h", "of Θ", "strength", "between"):
                at_end = [value[name][1] for value in group]
                cells.append(f"{np.median(at_end):.2g} ({min(at_end):.2g} to {max(at_end):.2g})")
            lines.append(cells)
    header = ["median (range) at the end", "|E| relative", "of E", "sizes", "of Θ^h", "of Θ", "strength", "κ_n/κ_d"]
    text.append(Table(header, lines))
    if len(runs) > 3:
        lines = []
        for name in ("NC1", "NC2", "NC3"):
            line = [name]
            for other in ("strength", "of Θ^h", "of Θ", "of E", "|E|", "test"):
                ranks = spearmanr([v[name][1] for v in values], [v[other][1] for v in values])
                line.append(f"{ranks[0]:+.2f}")
            lines.append(line)
        header = [f"rank correlation, {len(runs)} runs", "strength", "of Θ^h", "of Θ", "of E", "|E|", "test accuracy"]
        text.append(Table(header, lines))
    gap = max(
        float(np.max(np.abs(np.asarray(r["gamma_alignment"]) - np.asarray(r["kappa_alignment"])))) for _, r in runs
    )
    text.append(f"largest distance of the alignments of Θ and of Θ^h at any record of any run: {number(gap)}")
    return "\n\n".join(text)


def courses(runs: list[tuple[Case, nc.Trajectory]]) -> Figure:
    """Collapse, alignments and the invariant along training: colour the family, line the data or the start."""
    with plots.style():
        figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), layout="constrained")
        shown = [(case, run) for case, run in runs if case.seed == 0 and case.init == INITS[0] and case.rate == 0.05]
        for (case, run), (ax, (name, label, scale)) in itertools.product(shown, zip(axes.flat, COURSES, strict=True)):
            # The start stands at half an epoch, where a logarithmic axis has room for it.
            ax.plot(np.maximum(run["epoch"], 0.5), run[name], color=COLOURS[case.family], **_line(case))
            ax.set(xscale="log", yscale=scale, xlabel="epoch (0 at 0.5)", ylabel=label)
        for ax in axes.flat:
            ax.axvline(BASE.decay_every, color="0.7", linewidth=0.6, zorder=0)
        for ax in axes[0]:
            label_decades(ax.yaxis)
        handles = [Line2D([], [], color=colour, label=name) for name, colour in COLOURS.items()]
        kinds = {_kind(case): _line(case) for case, _ in shown}
        handles += [Line2D([], [], color="0.3", label=kind, **line) for kind, line in kinds.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def points(runs: list[tuple[Case, nc.Trajectory]]) -> Figure:
    """Each run as a point at its end: collapse against the kernel's alignment, and against the invariant."""
    pairs = (("of Θ^h", "NC1"), ("of E", "NC3"), ("|E|", "NC1"), ("|E|", "NC3"))
    labels = {
        "of Θ^h": COURSES[3][1],
        "of E": COURSES[4][1],
        "|E|": COURSES[5][1],
        "NC1": COURSES[0][1],
        "NC3": "NC3",
    }
    markers = {"mnist": "o", "fashion-mnist": "s", "cifar10": "^"}
    with plots.style():
        figure, axes = plt.subplots(1, 4, figsize=(11, 3.4), layout="constrained")
        for ax, (x, y) in zip(axes, pairs, strict=True):
            for case, run in runs:
                value = ends(run)
                face = "white" if case.large else COLOURS[case.family]
                style: dict[str, Any] = {"color": COLOURS[case.family], "markerfacecolor": face, "markersize": 5}
                ax.plot(value[x][1], value[y][1], markers[case.dataset], **style)
            ax.set(yscale="log", xlabel=labels[x], ylabel=f"{labels[y]} at the end")
        for ax in axes:
            label_decades(ax.yaxis)
        handles = [
            Line2D([], [], linestyle="none", marker="o", color=colour, label=name) for name, colour in COLOURS.items()
        ]
        handles += [
            Line2D([], [], linestyle="none", marker=marker, color="0.4", label=NAMES[name])
            for name, marker in markers.items()
            if any(case.dataset == name for case, _ in runs)
        ]
        if any(case.large for case, _ in runs):
            open_circle: dict[str, Any] = {"marker": "o", "color": "0.4", "markerfacecolor": "white"}
            handles.append(Line2D([], [], linestyle="none", label="W × 5, no decay", **open_circle))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _kind(case: Case) -> str:
    return "MNIST, W × 5, no decay" if case.large else NAMES[case.dataset]


def _line(case: Case) -> dict[str, Any]:
    """How the courses of a run are drawn."""
    if case.large:
        return {"linestyle": ":", "linewidth": 1.3}
    return {"linestyle": {"mnist": "-", "fashion-mnist": "--", "cifar10": "-."}[case.dataset], "linewidth": 1.1}


def summary() -> str:
    """Writes tables and figures of the runs that are there, and returns the tables."""
    runs = list(there())
    if not runs:
        return "no run yet"
    text = tables(runs)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "paper_claims.txt").write_text(text + "\n")
    for name, figure in (("courses", courses(runs)), ("points", points(runs))):
        plots.save(figure, HERE / "figures" / f"paper_claims_{name}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=tuple(parts()), nargs="+", default=["all"])
    parser.add_argument("--families", choices=tuple(FAMILIES), nargs="+", default=list(FAMILIES))
    parser.add_argument("--summary", action="store_true")
    flags = parser.parse_args()
    nc.enable_cache()
    jax.config.update("jax_enable_x64", True)
    # Kernels that are measured need not be ordered as the theorem assumes.
    warnings.simplefilter("ignore", UserWarning)
    cases = [] if flags.summary else itertools.chain(*(parts()[p] for p in (["quick"] if flags.quick else flags.part)))
    for case in cases:
        if case.family in flags.families and not over(case):
            trained(case)
            print(case.key, flush=True)
            summary()
    print(summary())


if __name__ == "__main__":
    main()
