"""What of the gap to the theory is the optimiser's? Each optimiser beside the gradient flow of its own network.

    python simulations/ladder/optimiser.py
    python simulations/ladder/optimiser.py --only descent momentum --flow-time 0.02

The network of `ladder.py` on real 8×8 digits, from the same initial weights, trained to the same flow time by gradient
descent at three step sizes, with momentum in both forms, by mini-batches, with weight decay and under a schedule; and
rung 6 from its first state, the gradient flow of the same loss. What separates the two is the optimiser alone: if the
clock is right, it goes to 0 with the step. Prints a table; the figure is left in figures/.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

from ntkcollapse import Trajectory, plots
from ntkcollapse.clock import Clock
from ntkcollapse.commands import Table, number, percent
from ntkcollapse.commands.network_runs import train_measured
from ntkcollapse.comparison import climb, gaps
from ntkcollapse.training import TrainConfig, log_spaced

HERE = Path(__file__).parent
PARTS = {
    "residual_single": r"$\|R - R_{\mathrm{class}}\|$",
    "residual_class": r"$\|R_{\mathrm{class}} - R_{\mathrm{global}}\|$",
    "residual_global": r"$\|R_{\mathrm{global}}\|$",
    "nc1_seleznova2023": "NC1",
}
PLAIN = TrainConfig(
    network="mlp",
    network_options=("widths=(256,256,64)",),
    dataset="digits",
    per_class=30,
    learning_rate=0.1,
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    decay_every=0,
    batch_size=0,
    epochs=1,
)
# Name → (what it is called, settings that differ). With momentum β a learning rate of (1 − β) η has the clock of η.
OPTIMISERS = {
    "edge": ("gradient descent, 0.3", {"learning_rate": 0.3}),
    "descent": ("gradient descent, 0.1", {}),
    "small": ("gradient descent, 0.05", {"learning_rate": 0.05}),
    "heavy-ball": ("heavy ball 0.9, 0.01", {"learning_rate": 0.01, "momentum": 0.9}),
    "momentum": ("Nesterov 0.9, 0.01", {"learning_rate": 0.01, "momentum": 0.9, "nesterov": True}),
    "batches": ("batches of 60, 0.1", {"batch_size": 60}),
    "small-batches": ("batches of 60, 0.01", {"batch_size": 60, "learning_rate": 0.01}),
    "decay": ("weight decay 1e-3, 0.1", {"weight_decay": 1e-3}),
    "schedule": ("0.1, then 0.01 for as many steps", {"decay_factor": 0.1}),
}


def settings(name: str, flow_time: float) -> TrainConfig:
    """Trained to this flow time; with the schedule, as many steps at the full rate as at a tenth of it."""
    config = dataclasses.replace(PLAIN, **OPTIMISERS[name][1])
    N, C = 300, 10
    step = config.learning_rate / ((1 - config.momentum) * N * C)
    steps = round(flow_time / step)
    per_epoch = N // config.batch_size if config.batch_size else 1
    if name == "schedule":
        half = round(steps / (1 + config.decay_factor))
        return dataclasses.replace(config, decay_every=half, epochs=2 * half)
    return dataclasses.replace(config, epochs=-(-steps // per_epoch))


def compared(config: TrainConfig, records: int) -> tuple[Trajectory, Trajectory]:
    """The run, and the gradient flow from its first state at the same times."""
    per_epoch = 300 // config.batch_size if config.batch_size else 1
    at = [step for step in log_spaced(config.epochs * per_epoch, records) if step]
    run = train_measured(config, at=[0, *at], networks_at=[0])
    ladder = climb(run.start(0), ["network-flow"], throw=True)
    return ladder.network, ladder.rungs["network-flow"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(OPTIMISERS), default=tuple(OPTIMISERS))
    parser.add_argument("--flow-time", type=float, default=0.2, help="to train to; 0.2 is 6,000 steps of 0.1")
    parser.add_argument("--records", type=int, default=20)
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows, pairs = [], {}
    for name in flags.only:
        began = time.perf_counter()
        said = OPTIMISERS[name][0]
        run, flow = pairs[said] = compared(settings(name, flags.flow_time), flags.records)
        stable = float(Clock.of_loss("mean", run.classes, learning_rate=0.1).time(1)) / 0.1
        found = gaps(run, flow, list(PARTS))
        # Of the run from the flow, not of the prediction from the network.
        off = {part: float(run[part][-1] / flow[part][-1]) - 1 for part in found}
        ends = [number(float(flow[part][-1])) for part in PARTS]
        top = float(flow.statistics["eigenvalue_largest"]) * stable * OPTIMISERS[name][1].get("learning_rate", 0.1)
        pairs_of = [f"{end} {percent(off[part])}" for end, part in zip(ends, PARTS, strict=True)]
        rows.append([said, number(float(run.times[-1])), f"{top:.2f}", *pairs_of])
        print(f"{said}: {time.perf_counter() - began:.0f} s", flush=True)
    head = ("optimiser", "flow time", "step x top eigenvalue", "R_single", "R_class", "R_global", "NC1")
    print(Table(head, rows), "\n\nEach: the gradient flow, and how far the run is from it.")
    with plots.style():
        figure, axes = plt.subplots(1, len(PARTS), figsize=(11.5, 3.2), layout="constrained")
        for ax, (part, label) in zip(axes, PARTS.items(), strict=True):
            for i, (said, (run, flow)) in enumerate(pairs.items()):
                off = np.abs(np.asarray(run[part]) / np.asarray(flow[part]) - 1)[1:]
                line = ".-" if i < 7 else ".--"
                ax.plot(run.times[1:], off, line, color=f"C{i % 7}", label=said)
            ax.set(xscale="log", yscale="log", xlabel=r"flow time $t$ (loss $\frac{1}{2}\|R\|^2$)", title=label)
        axes[0].set_ylabel("|run / gradient flow − 1|")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        figure.suptitle("8×8 digits, N = 300: MLP 256-256-64, each optimiser beside the gradient flow of its network")
        print(plots.save(figure, HERE / "figures" / "optimiser_digits"))


if __name__ == "__main__":
    main()
