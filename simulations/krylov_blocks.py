"""How many blocks beside the theorem does it take to follow the whole sample kernel, and the network?

    python simulations/krylov_blocks.py --setting digits
    python simulations/krylov_blocks.py --setting digits-200
    python simulations/krylov_blocks.py --setting cnn
    python simulations/krylov_blocks.py --setting mnist
    python simulations/krylov_blocks.py --figure

Trains full batch on the squared loss, measures the feature kernel at one step, and predicts from there with the
theorem's three numbers, with q Krylov blocks beside the class indicators, and with the whole kernel of N² numbers.
Errors are relative to the latter. Rungs are kept in `results/krylov_blocks/` as they are done; `--figure` draws error
against q of all settings that are there.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

from ntkcollapse import plots
from ntkcollapse.commands import table
from ntkcollapse.commands.network_runs import train_measured
from ntkcollapse.comparison import RUNGS, Ladder, climb, joined, load_ladders, save_ladders
from ntkcollapse.observable_table import described
from ntkcollapse.training import TrainConfig

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "krylov_blocks"
PARTS = ("residual_single", "residual_class")
WHOLE = "sample-frozen"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One network on one set: full-batch gradient descent, predicted from step `start` on and compared at `steps`."""

    title: str
    dataset: str
    per_class: int
    network: str
    options: tuple[str, ...]
    start: int
    steps: tuple[int, ...]
    blocks: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)
    learning_rate: float = 0.3


PERCEPTRON = ("widths=(128,128,32)",)
SETTINGS = {
    "digits": Setting("8x8 digits, 64-128-128-32-10", "digits", 60, "mlp", PERCEPTRON, 80, (320, 1280, 2560)),
    "digits-200": Setting("8x8 digits, 64-128-128-32-10", "digits", 20, "mlp", PERCEPTRON, 80, (320, 1280, 2560)),
    "cnn": Setting(
        "8x8 digits, convolutions 12-24-32", "digits", 20, "cnn", ("widths=(12,24,32)", "batch_norm=false"), 200,
        (800, 1600, 3200, 6000),
    ),
    "mnist": Setting(
        "MNIST, 784-256-256-64-10", "mnist", 30, "mlp", ("widths=(256,256,64)",), 80, (589, 1116, 2113, 4000),
        blocks=(0, 1, 2, 3, 4, 6, 8),
    ),
}  # fmt: skip


def ladder_of(name: str, seed: int) -> Ladder:
    """The theorem, the blocks and the whole kernel from the setting's start; what is there already is kept."""
    setting = SETTINGS[name]
    config = TrainConfig(
        network=setting.network,
        network_options=setting.options,
        seed=seed,
        dataset=setting.dataset,
        per_class=setting.per_class,
        learning_rate=setting.learning_rate,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        decay_every=0,
        batch_size=0,
        epochs=setting.steps[-1],
        ntk_engine="layerwise",
    )
    out = RESULTS / f"{name}_{seed}"
    out.mkdir(parents=True, exist_ok=True)
    ladder = load_ladders(out)[setting.start] if (out / "comparison.nc").exists() else None
    rungs = ["block-frozen", "class-pairs", *(f"blocks:{q}" for q in setting.blocks), WHOLE]
    missing = [rung for rung in rungs if ladder is None or rung not in ladder.rungs]
    if ladder is not None and not missing:
        return ladder
    run = train_measured(config, at={0, setting.start, *setting.steps}, networks_at=[setting.start])
    start = run.start(setting.start)
    for rung in missing:
        began = time.process_time()
        ladder = joined(ladder, climb(start, [rung], throw=True))
        print(f"{name}: {rung}, {time.process_time() - began:.1f} processor seconds", flush=True)
        save_ladders(out, {setting.start: ladder})
    assert ladder is not None
    return ladder


def errors(ladder: Ladder, part: str) -> dict[str, np.ndarray]:
    """How far each rung, and the network, are from the rung of the whole kernel, at each record after the start."""
    whole = np.asarray(ladder.rungs[WHOLE][part])[1:]
    runs = {rung: run for rung, run in ladder.rungs.items() if rung != WHOLE} | {"network": ladder.network}
    return {name: np.asarray(run[part])[1:] / whole - 1 for name, run in runs.items()}


def error_table(name: str, ladder: Ladder) -> str:
    """Errors in percent at the setting's steps."""
    setting = SETTINGS[name]
    found = {part: errors(ladder, part) for part in PARTS}
    rows = []
    for rung in found[PARTS[0]]:
        title = "the network itself" if rung == "network" else RUNGS[rung].title
        rows.append([title, *(" / ".join(f"{100 * x:+.0f}%" for x in found[part][rung]) for part in PARTS)])
    samples = ladder.network.classes.num_samples
    head = f"{setting.title}, N = {samples}, from {setting.start}, at {' / '.join(map(str, setting.steps))}"
    return table([head, *(described(part).symbol for part in PARTS)], rows)


def figure() -> None:
    """Error of each residual part at the last step, against the number of blocks."""
    there = {path.parent.name: load_ladders(path.parent) for path in sorted(RESULTS.glob("*_0/comparison.nc"))}
    fig, axes = plt.subplots(1, len(PARTS), figsize=(7.2, 3.0), sharey=True, layout="constrained")
    for ax, part in zip(axes, PARTS, strict=True):
        for i, (name, ladders) in enumerate(there.items()):
            setting = SETTINGS[name.removesuffix("_0")]
            ladder = ladders[setting.start]
            found = errors(ladder, part)
            q = [q for q in setting.blocks if f"blocks:{q}" in found]
            for column, (style, step) in enumerate(
                zip(("--", "-"), (setting.steps[1], setting.steps[-1]), strict=True)
            ):
                at = setting.steps.index(step)
                y = [abs(found[f"blocks:{k}"][at]) for k in q]
                label = f"{setting.title}, N = {ladder.network.classes.num_samples}" if column else None
                ax.plot(q, y, style, marker="o", markersize=3, color=f"C{i}", label=label)
        ax.axhline(0.05, color="0.6", linewidth=0.8)
        ax.set(yscale="log", xlabel="blocks q", title=described(part).label)
    axes[0].set_ylabel("|error| beside the whole kernel")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    plots.save(fig, HERE / "figures" / "krylov_blocks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=tuple(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of initial weights, a run each")
    parser.add_argument("--figure", action="store_true", help="error against q, of what is there")
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if flags.setting:
        for seed in flags.seeds:
            print(f"seed {seed}\n{error_table(flags.setting, ladder_of(flags.setting, seed))}\n", flush=True)
    if flags.figure:
        figure()


if __name__ == "__main__":
    main()
