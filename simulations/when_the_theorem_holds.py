"""When does the theorem begin to hold? Its predictions from a dozen starts along trainings that end in collapse.

    python simulations/when_the_theorem_holds.py              every setting and seed, an hour on one core
    python simulations/when_the_theorem_holds.py --quick      one setting, one seed
    python simulations/when_the_theorem_holds.py --settings resnet8-digits --seeds 0

From each start the theorem is integrated under the kernel's three numbers as measured there and frozen, along their
measured path, and with their proportions frozen but the size of κ_d as measured, and compared with the network at steps
log-spaced since the start. Beside the errors stands how far the kernel is one of blocks at the start, and how fast the
residual of class means falls there, as the theorem has it, by the whole feature kernel, with batch statistics that
move, as they do in training, with the decay of all weights on top, and as measured. Writes tables (medians over seeds,
and their range) to simulations/results and a figure to simulations/figures. Runs and comparisons are kept in
simulations/runs and simulations/results and not made twice.
"""

import argparse
import dataclasses
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from kept_runs import over_seeds
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

import ntkcollapse as nc
from ntkcollapse import ntk, plots
from ntkcollapse.commands import Table
from ntkcollapse.comparison import MeasuredRun, MeasuredStart, gaps
from ntkcollapse.plots.style import label_decades
from ntkcollapse.training import preset, train

HERE = Path(__file__).parent
BASE = dataclasses.replace(
    preset("collapse"), test_per_class=None, measure=("kappa", "last-layer"), measure_log=16, keep_states=True
)
PERCEPTRON = "widths=(128,128,32)"
NORMALISED: dict[str, Any] = {
    "network_options": ("batch_norm=true", PERCEPTRON),
    "learning_rate": 0.05,
    "weight_decay": 0.01,
    "epochs": 3000,
    "decay_every": 2000,
}
PLAIN: dict[str, Any] = {
    "network_options": (PERCEPTRON,),
    "learning_rate": 0.2,
    "weight_decay": 5e-4,
    "epochs": 6000,
    "decay_every": 4000,
}
MNIST: dict[str, Any] = {"dataset": "mnist", "image_size": 14}
FASHION: dict[str, Any] = {"dataset": "fashion-mnist", "image_size": 14}
CIFAR: dict[str, Any] = {"dataset": "cifar10", "image_size": 16}
RESNET: dict[str, Any] = {
    "network": "resnet8",
    "network_options": ("widths=(8,16,32)",),
    "learning_rate": 0.05,
    "weight_decay": 0.005,
    "epochs": 1500,
    "decay_every": 1000,
    "per_class": 10,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": PLAIN,
    "digits, batch norm": NORMALISED,
    "mnist": PLAIN | MNIST,
    "mnist, batch norm": NORMALISED | MNIST,
    "fashion-mnist": PLAIN | FASHION,
    "fashion-mnist, batch norm": NORMALISED | FASHION,
    "cifar10": PLAIN | CIFAR,
    "cifar10, batch norm": NORMALISED | CIFAR,
    "resnet8, digits": RESNET,
}
STARTS, RECORDS = 12, 8
# The runs on digits were made with nine starts.
FEWER_STARTS = {"digits": 9, "digits, batch norm": 9}
NAMES = ("residual_single", "residual_class", "nc1_tirer2022", "nc2_seleznova2023", "nc3_seleznova2023")
THEORIES = {"frozen": "κ as at the start", "path": "κ as measured", "clock": "κ as at the start, with the κ_d measured"}
BLOCKS = {
    "strength": r"block strength $(\kappa_c-\kappa_n)/\kappa_d$",
    "alignment": r"alignment of the feature kernel with $Y^\top Y$",
    "outside": "share of the feature kernel outside blocks",
}


def compared(last: int, starts_wanted: int) -> dict[int, list[int]]:
    """Start → the steps that its predictions are compared at: log-spaced since the start."""
    starts = np.unique(np.rint(np.geomspace(4, 0.7 * last, starts_wanted)).astype(int))
    return {
        int(s): [int(s), *(int(s) + np.unique(np.rint(np.geomspace(1, last - s, RECORDS)).astype(int))).tolist()]
        for s in starts
    }


def key_of(name: str, seed: int) -> str:
    """What the files of a run are called."""
    return f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"


def trained(name: str, seed: int) -> tuple[dict[int, list[int]], MeasuredRun]:
    """The steps compared, and the run with its networks at the starts; read where it is there already."""
    config = dataclasses.replace(BASE, seed=seed, **SETTINGS[name])
    steps = compared(config.epochs, FEWER_STARTS.get(name, STARTS))
    config = dataclasses.replace(config, measure_steps=tuple(sorted(set(itertools.chain(*steps.values())))))
    out = HERE / "runs" / "when_the_theorem_holds" / key_of(name, seed)
    run, networks = train(config, out, resume=out.exists(), keep_networks_at=sorted(steps))
    return steps, MeasuredRun.of(run, networks, config.build_splits().train)


def class_rates(name: str, seed: int) -> dict[int, dict[str, float]]:
    """Start → −d ln‖R_class − R_global‖/dt there, by what moves the features; read where it is there already."""
    file = HERE / "results" / "when_the_theorem_holds" / f"{key_of(name, seed)}_rates.json"
    if not file.exists():
        steps, run = trained(name, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({start: _class_rates(run.start(start)) for start in steps}))
    return {int(start): rates for start, rates in json.loads(file.read_text()).items()}


def _class_rates(start: MeasuredStart) -> dict[str, float]:
    """By −WᵀRK with the kernel's three numbers; by all of Θ^h; as training has it; and over the network's next step."""
    network, state, classes = start.network, start.state, start.classes
    R = state.logits - classes.Y
    force = -(state.W.T @ R)

    def moved(features: Any, decay: float = 0.0) -> Any:
        def columns(params: Any) -> Any:
            return features(params, network.inputs).T

        gradient = jax.vjp(columns, network.params)[1](force)[0]
        step = jax.tree.map(lambda g, p: g - decay * p if p.ndim > 1 else g, gradient, network.params)
        return jax.jvp(columns, (network.params,), (step,))[1]

    moves = {"theorem": force @ start.block_kernel.as_matrix(classes), "feature kernel": moved(network.features)}
    if network.coupled is not None:
        moves["statistics move"] = moved(network.coupled)
    moves["weights decay too"] = moved(network.coupled or network.features, start.weight_decay)
    W = -R @ state.H.T - start.weight_decay * state.W
    b = -R.sum(1)
    part, rates = classes.parts(R)[1], {}
    for name, H in moves.items():
        change = classes.parts(state.W @ H + W @ state.H + b[:, None])[1]
        rates[name] = -float(np.sum(part * change) / np.sum(part * part))
    norms, times = np.asarray(start.network_run["residual_class"]), np.asarray(start.times)
    rates["measured"] = -float(np.log(norms[1] / norms[0]) / (times[1] - times[0]))
    return rates


def comparisons(name: str, seed: int) -> list[dict[str, Any]]:
    """One row a start: blocks there, and each theory's horizons and errors; read where it is there already."""
    file = HERE / "results" / "when_the_theorem_holds" / f"{key_of(name, seed)}.json"
    if file.exists():
        return json.loads(file.read_text())
    steps, measured = trained(name, seed)
    rows = []
    for start, at in steps.items():
        rows.append({"setting": name, "seed": seed, "start": start} | _from(measured.at_steps(at), start))
        print(f"{name}, seed {seed}, from step {start}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    return rows


def _from(run: MeasuredRun, step: int) -> dict[str, Any]:
    network = run.networks[0]
    p = 0.0 if network.coupled is not None else max(network.degree()[0], 0.0)
    start = run.start(step, homogeneity=p)
    blocks = ntk.block_statistics(*network.as_trained, start.classes.labels, residual="exact")
    kernel, measured = blocks.kernel, start.network_run
    row: dict[str, Any] = {
        "strength": float((kernel.within - kernel.between) / kernel.diagonal),
        "between": float(kernel.between / kernel.within),
        "alignment": float(measured["kappa_alignment"][0]),
        "outside": float(blocks.residual),
        "off_output": float(blocks.off_output),
        "accuracy": float(measured["accuracy"][0]),
        "growth": float(measured["kappa_diagonal"][-1] / measured["kappa_diagonal"][0]),
        "homogeneity": p,
        "last": int(measured["step"][-1]),
    }
    for theory in THEORIES:
        try:
            row[theory] = _errors(start, theory)
        except (nc.SimulationError, ValueError) as error:
            row[theory] = {"failed": str(error).splitlines()[0]}
    return row


def _errors(start: MeasuredStart, theory: str) -> dict[str, Any]:
    """Of each observable: until how many steps after the start it is within 10%, and log₁₀(theory / network) by step.

    "doubled": when the run has doubled its steps, or at its end if that is before; "end": at its end.
    """
    kernel: Any = start.block_kernel
    if theory == "path":
        kernel = start.block_path
    elif theory == "clock":
        size = np.asarray(start.network_run["kappa_diagonal"]) / float(start.network_run["kappa_diagonal"][0])
        first: Any = start.block_kernel
        kernel = nc.KernelPath(
            start.times, diagonal=first.diagonal * size, within=first.within * size, between=first.between * size
        )
    flow = nc.Flow(kernel, start.classes, **start.flow_options)
    method = nc.Method(rtol=1e-5)
    predicted = nc.simulate(start.state, flow, times=start.times, method=method, columns=False)
    steps = np.asarray(start.network_run["step"], int)
    since = steps - steps[0]
    errors = {}
    for name, gap in gaps(start.network_run, predicted, NAMES).items():
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.log10(gap.theory / gap.network)
        held = 0 if np.isnan(gap.horizon) else int(since[np.searchsorted(np.asarray(start.times), gap.horizon)])
        doubled = float(np.interp(np.log(min(steps[0], since[-1])), np.log(since[1:]), error[1:]))
        course = {"since": since.tolist(), "error": error.tolist(), "network": gap.network.tolist()}
        errors[name] = {"held": held, "doubled": doubled, "end": float(error[-1]), **course}
    return errors


def by_start(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """("setting, start", its rows, one a seed), in order."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (list(SETTINGS).index(row["setting"]), row["start"], row["seed"])):
        groups.setdefault((row["setting"], row["start"]), []).append(row)
    return [(f"{name}, {start}", group) for (name, start), group in groups.items()]


def blocks_table(rows: list[dict[str, Any]]) -> str:
    """The kernel at each start, and by how much κ_d grows from there to the end."""
    lines = []
    for place, group in by_start(rows):
        lines.append([place, *(over_seeds([row[key] for row in group], 3) for key in (*BLOCKS, "growth"))])
    return Table(["from step", "strength", "alignment", "outside", "κ_d grows by"], lines)


def errors_table(rows: list[dict[str, Any]], theory: str, key: str) -> str:
    """Of each observable and start: steps held within 10%, or the theory over the network at one moment."""
    lines = []
    for place, group in by_start(rows):
        line = [place]
        for name in NAMES:
            values = np.array([row[theory][name][key] for row in group if name in row[theory]])
            if key == "held":
                line.append(over_seeds(values, 4) if values.size else "-")
            else:
                line.append(f"x{over_seeds(10**values)}" if values.size else "-")
        lines.append(line)
    return Table(["from step", *(plots.described(name).symbol for name in NAMES)], lines)


def correlations(rows: list[dict[str, Any]], theory: str) -> str:
    """Spearman's rank correlation of |log₁₀ error| at 2 starts with blocks, over the starts of each seed."""
    lines = []
    for name, key in itertools.product(dict.fromkeys(row["setting"] for row in rows), BLOCKS):
        group = [row for row in rows if row["setting"] == name and "failed" not in row[theory]]
        line = [name, key]
        for observable in NAMES:
            ranks: list[Any] = []
            for seed in dict.fromkeys(row["seed"] for row in group):
                run = [row for row in group if row["seed"] == seed]
                error = [abs(row[theory][observable]["doubled"]) for row in run]
                ranks.append(spearmanr([row[key] for row in run], error)[0])
            low, middle, high = (f"{r:+.2f}" for r in (min(ranks), np.median(ranks), max(ranks)))
            line.append(middle if low == high else f"{middle} ({low} to {high})")
        lines.append(line)
    return Table(["|log10 error| at 2 starts", "with", *(plots.described(name).symbol for name in NAMES)], lines)


def overview(rows: list[dict[str, Any]]) -> str:
    """One line a setting: how far it collapses and its blocks form, and the theorem under its frozen kernel.

    Of each observable the rank correlation of its error when steps have doubled with block strength, and for how many
    steps it holds within 10%: the median over starts and seeds, and the longest.
    """
    lines = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        group = [row for row in rows if row["setting"] == name and "failed" not in row["frozen"]]
        runs = [[row for row in group if row["seed"] == seed] for seed in dict.fromkeys(row["seed"] for row in group)]
        line = [f"{name}, {len(runs)} seed{'s' * (len(runs) > 1)}"]
        line += [over_seeds([run[0]["frozen"][key]["network"][-1] for run in runs]) for key in NAMES[2:]]
        line += [over_seeds([max(row["strength"] for row in run) for run in runs])]
        for observable in NAMES:
            ranks = [
                spearmanr([row["strength"] for row in run], [abs(row["frozen"][observable]["doubled"]) for row in run])
                for run in runs
            ]
            held = [row["frozen"][observable]["held"] for row in group]
            line.append(f"{np.median([rank[0] for rank in ranks]):+.2f}; {np.median(held):.0f}, {max(held)}")
        lines.append(line)
    symbols = [plots.described(name).symbol for name in NAMES]
    header = ["setting", *(f"{symbol}, end" for symbol in symbols[2:]), "strongest blocks", *symbols]
    return Table(header, lines)


def rates_table(names: list[str], seeds: list[int]) -> str:
    """The rate of R_class - R_global at each start."""
    columns = ("theorem", "feature kernel", "statistics move", "weights decay too", "measured")
    lines = []
    for name in names:
        rates = [class_rates(name, seed) for seed in seeds]
        for start in rates[0]:
            there = [rate[start] for rate in rates]
            lines.append(
                [f"{name}, {start}"]
                + [over_seeds([rate[c] for rate in there], 3) if c in there[0] else "" for c in columns]
            )
    return Table(["rate of R_class-R_global at step", *columns], lines)


def decades_axis(ax: Axes, factors: list[float]) -> None:
    """Log axis of a ratio: a decade about 1 at least."""
    low, high = np.log10(min(0.32, *factors)), np.log10(max(3.2, *factors))
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    ax.set_yscale("log")
    ax.set_ylim(10**low, 10**high)
    label_decades(ax.yaxis)


def figure_of(rows: list[dict[str, Any]]) -> Figure:
    """The theorem over the network against how far blocks have formed at the start: one panel an observable."""
    colours = dict(
        zip(
            SETTINGS,
            ("#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8B4513", "#000000", "#999999"),
            strict=True,
        )
    )
    seeds = dict(zip(sorted({row["seed"] for row in rows}), "o^sDv", strict=False))

    def look(setting: str) -> dict[str, Any]:
        filled = "batch norm" in setting or "resnet" in setting
        return {"color": colours[setting], "markerfacecolor": colours[setting] if filled else "white"}

    with plots.style():
        figure, axes = plt.subplots(2, 4, figsize=(10, 6), sharex=True, layout="constrained")
        for (line, when), (column, name) in itertools.product(enumerate(("doubled", "end")), enumerate(NAMES[1:])):
            ax = axes[line, column]
            ax.axhspan(1 / 1.1, 1.1, color="0.85", linewidth=0)
            ax.axhline(1, color="black", linewidth=0.6)
            for setting, seed in dict.fromkeys((row["setting"], row["seed"]) for row in rows):
                run = [row for row in rows if (row["setting"], row["seed"]) == (setting, seed)]
                run = [row for row in run if "failed" not in row["frozen"]]
                ax.plot(
                    [row["strength"] for row in run],
                    [10 ** row["frozen"][name][when] for row in run],
                    seeds[seed] + "-",
                    linewidth=0.5,
                    markersize=4.5,
                    markeredgewidth=0.9,
                    **look(setting),
                )
            decades_axis(ax, [10 ** row["frozen"][name][when] for row in rows if "failed" not in row["frozen"]])
            if line == 0:
                ax.set_title(plots.described(name).label)
        for ax in axes[1]:
            ax.set_xlabel(BLOCKS["strength"])
        axes[0, 0].set_ylabel("theorem / network\nwhen steps have doubled")
        axes[1, 0].set_ylabel("theorem / network\nat the end of training")
        handles = [
            Line2D([], [], linestyle="none", marker="o", label=name, **look(name))
            for name in dict.fromkeys(row["setting"] for row in rows)
        ]
        handles += [
            Line2D([], [], linestyle="none", marker=marker, color="0.4", label=f"seed {seed}")
            for seed, marker in seeds.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags = parser.parse_args()
    nc.enable_cache()
    jax.config.update("jax_enable_x64", True)
    # Kernels that are measured need not be ordered as the theorem assumes.
    warnings.simplefilter("ignore", UserWarning)
    names, seeds = (["digits"], [0]) if flags.quick else (flags.settings, flags.seeds)
    rows = list(itertools.chain(*(comparisons(name, seed) for seed in seeds for name in names)))
    moments = {"held": "steps within 10%", "doubled": "x, when steps have doubled", "end": "x, at the end of training"}
    said = "median over seeds (range); of observables: rank correlation of the error with block strength; steps held"
    parts = [said, overview(rows), blocks_table(rows)]
    for (theory, said), (key, when) in itertools.product(THEORIES.items(), moments.items()):
        parts += [f"{said}: {when}", errors_table(rows, theory, key)]
    parts += [rates_table(names, seeds), f"rank correlations, {THEORIES['frozen']}", correlations(rows, "frozen")]
    text = "\n\n".join(parts)
    (HERE / "results" / "when_the_theorem_holds.txt").write_text(text + "\n")
    print(text)
    print(plots.save(figure_of(rows), HERE / "figures" / "when_the_theorem_holds")[-1])


if __name__ == "__main__":
    main()
