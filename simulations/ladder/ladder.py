"""Which assumption of the theory owns the gap to a trained network, on real images?

    python simulations/ladder/ladder.py --setting digits
    python simulations/ladder/ladder.py --setting mnist
    python simulations/ladder/ladder.py --setting fashion-mnist --batch-norm
    python simulations/ladder/ladder.py --setting resnet20-mnist --skip network-flow features-coupled

Trains full batch on the squared loss, measures on the whole training set, climbs the ladder from one state, and writes
tables (`results/NAME.md`), the comparison and figures. RESULTS.md is written from these by hand. Data sets are found
where `ntkcollapse.data.search_path` says, NTKCOLLAPSE_DATA among them.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax

from ntkcollapse import plots
from ntkcollapse.commands._ladder_tables import attributions, ladder_tables
from ntkcollapse.commands._measured import MeasuredRun, digits_run, trained_run
from ntkcollapse.commands.rates import rates_table
from ntkcollapse.comparison import RUNGS, available_rungs, climb, measured_rates, save_ladders
from ntkcollapse.training import TrainConfig, log_spaced

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Setting:
    """One network on one set: full-batch gradient descent, predicted from step `start` on."""

    dataset: str
    network: str
    per_class: int
    learning_rate: float
    steps: int
    start: int
    records: int = 20
    options: tuple[str, ...] = ()


SETTINGS = {
    "digits": Setting("digits", "mlp", 30, 0.3, 10240, 80, records=16),
    "mnist": Setting("mnist", "mlp", 30, 0.3, 4000, 80, records=14, options=("widths=(256,256,64)",)),
    "fashion-mnist": Setting("fashion-mnist", "mlp", 30, 0.3, 4000, 80, records=14, options=("widths=(256,256,64)",)),
    # Sixty images, which it fits in some hundred steps; Θ^h of all pairs of 64 features is an array of 118 MB.
    "resnet20-mnist": Setting("mnist", "resnet20", 6, 0.2, 200, 30, records=16),
    "resnet20-fashion-mnist": Setting("fashion-mnist", "resnet20", 6, 0.2, 200, 30, records=16),
}


def measured(setting: Setting, batch_norm: bool, keep_all: bool) -> MeasuredRun:
    """The run with its networks."""
    if setting.dataset == "digits":
        return digits_run(
            per_class=setting.per_class,
            widths=(256, 256, 64),
            learning_rate=setting.learning_rate,
            steps=setting.steps,
            measurements=setting.records,
            seed=0,
            starts=(setting.start,),
            keep_all=keep_all,
        )
    config = TrainConfig(
        network=setting.network,
        network_options=(*setting.options, *(("batch_norm=True",) if batch_norm else ())),
        dataset=setting.dataset,
        per_class=setting.per_class,
        learning_rate=setting.learning_rate,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        decay_every=0,
        batch_size=0,
        epochs=setting.steps,
        ntk_engine="layerwise",
    )
    at = {0, setting.start, *log_spaced(setting.steps, setting.records)}
    return trained_run(config, sorted(at), (setting.start,), keep_all=keep_all)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="digits")
    parser.add_argument("--batch-norm", action="store_true", help="of the multilayer perceptron")
    parser.add_argument("--path", action="store_true", help="the sample kernel's path too: a kernel at every record")
    parser.add_argument("--steps", type=int, help="fewer or more optimiser steps than the setting has")
    parser.add_argument("--records", type=int, help="fewer or more measurements of the network's kernels on the way")
    parser.add_argument("--per-class", type=int, help="fewer or more images a class")
    parser.add_argument("--skip", nargs="*", default=(), choices=tuple(RUNGS), help="rungs to leave out")
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    setting = SETTINGS[flags.setting]
    changed = {name: value for name in ("steps", "records", "per_class") if (value := getattr(flags, name))}
    setting = dataclasses.replace(setting, **changed)
    name = flags.setting + ("_batch_norm" if flags.batch_norm else "")

    began = time.perf_counter()
    run = measured(setting, flags.batch_norm, flags.path)
    print(f"{name}: trained and measured in {time.perf_counter() - began:.0f} s", flush=True)
    seconds, last = {}, time.perf_counter()

    def on_rung(rung: str) -> None:
        nonlocal last
        if seconds:
            seconds[list(seconds)[-1]] = time.perf_counter() - last
        seconds[rung], last = 0.0, time.perf_counter()
        print("climbing:", rung, flush=True)

    start = run.start(setting.start)
    ladder = climb(start, [rung for rung in available_rungs(start) if rung not in flags.skip], on_rung=on_rung)
    seconds[list(seconds)[-1]] = time.perf_counter() - last
    out = HERE / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    save_ladders(out, {setting.start: ladder})
    title = f"{run.title}{', batch norm' if flags.batch_norm else ''}; theory from step {setting.start}"
    plots.save(plots.ladder_figure(ladder, title=title), HERE / "figures" / f"ladder_{name}")
    plots.save(plots.attribution_figure(attributions(ladder), title=title), HERE / "figures" / f"attribution_{name}")
    rates = rates_table(run.trajectory, measured_rates(run.trajectory))
    cost = ", ".join(f"{rung} {s:.0f} s" for rung, s in seconds.items())
    text = f"## {title}\n\n{setting}\n\n```\n{ladder_tables(ladder, times=6)}\n\n{rates}\n```\n\nCost: {cost}.\n"
    (HERE / "results" / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
