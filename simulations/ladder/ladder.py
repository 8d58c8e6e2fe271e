"""Which assumption of the theory owns the gap to a trained network, on real images?

    python simulations/ladder/ladder.py --setting digits
    python simulations/ladder/ladder.py --setting mnist
    python simulations/ladder/ladder.py --setting fashion-mnist --batch-norm --double
    python simulations/ladder/ladder.py --setting mnist --seeds 0 1 2 --starts 80 589 --skip network-flow

Trains full batch on the squared loss, measures on the whole training set, climbs the ladder from one state (or from
several of several runs, whose prices are then shown with their spread over seeds), and writes tables
(`results/NAME.md`), the comparisons and figures. Every rung is kept as it is done, and not climbed again. RESULTS.md is
written from these by hand. Data sets are found where `ntkcollapse.data.search_path` says, NTKCOLLAPSE_DATA among them.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from ntkcollapse import plots
from ntkcollapse.commands import Table, attributions, ladder_tables
from ntkcollapse.commands.network_runs import title_of, train_measured
from ntkcollapse.commands.rates import rates_table
from ntkcollapse.comparison import (
    RUNGS,
    Ladder,
    MeasuredRun,
    available_rungs,
    climb,
    joined,
    load_ladders,
    measured_rates,
    save_ladders,
)
from ntkcollapse.observable_table import described
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
    "digits": Setting("digits", "mlp", 30, 0.3, 10240, 80, records=16, options=("widths=(256,256,64)",)),
    "mnist": Setting("mnist", "mlp", 30, 0.3, 4000, 80, records=14, options=("widths=(256,256,64)",)),
    "fashion-mnist": Setting("fashion-mnist", "mlp", 30, 0.3, 4000, 80, records=14, options=("widths=(256,256,64)",)),
    # Sixty images, which it fits in some hundred steps; Θ^h of all pairs of 64 features is an array of 118 MB.
    "resnet20-mnist": Setting("mnist", "resnet20", 6, 0.2, 200, 30, records=16),
    "resnet20-fashion-mnist": Setting("fashion-mnist", "resnet20", 6, 0.2, 200, 30, records=16),
}


def measured(
    setting: Setting, starts: list[int], options: tuple[str, ...] = (), *, seed: int = 0, keep_all: bool = False
) -> MeasuredRun:
    """The run with its networks at the starts, or at all records; options of the network beside the setting's."""
    config = TrainConfig(
        network=setting.network,
        network_options=(*setting.options, *options),
        seed=seed,
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
    at = {0, *starts, *log_spaced(setting.steps, setting.records)}
    return train_measured(config, at=at, networks_at=at if keep_all else starts)


def climbed(
    run: MeasuredRun, out: Path, made_by: str, start: int, skip: list[str], flow_step: float
) -> tuple[Ladder, dict[str, float]]:
    """The ladder from this start, without the rungs that are in `out` already, and the seconds that the others took."""
    note = out / "made_by.txt"
    if note.exists() and note.read_text() != made_by:
        raise FileExistsError(f"{out}: holds ladders of {note.read_text()}, expected {made_by}; remove it.")
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(made_by)
    ladders = load_ladders(out) if (out / "comparison.nc").exists() else {}
    at, seconds = run.start(start), {}
    held = ladders[start].rungs if start in ladders else {}
    for name in available_rungs(at):
        if name in skip or name in held:
            continue
        print(f"climbing from step {start}: {name}", flush=True)
        began = time.perf_counter()
        options = {name: {"step": flow_step}} if name == "network-flow" else None
        ladders[start] = joined(ladders.get(start), climb(at, [name], options=options))
        seconds[name] = time.perf_counter() - began
        save_ladders(out, ladders)
    return ladders[start], seconds


def spread_table(ladders: list[Ladder], said: str) -> str:
    """The price of each assumption over several seeds: median, smallest and largest factor.

    Each at the last time at which all rungs of its ladder are resolved; assumptions that all ladders have.
    """
    found = [attributions(ladder) for ladder in ladders]
    names = [name for name in found[0] if all(name in one for one in found)]
    priced = [{s.assumption: i for i, s in enumerate(one[names[0]].shares)} for one in found]
    rows = []
    for assumption in (a for a in priced[0] if all(a in other for other in priced)):
        shares = [(one, at[assumption]) for one, at in zip(found, priced, strict=True)]
        rows.append([assumption, *(_spread([one[name].shares[i].change[-1] for one, i in shares]) for name in names)])
    rows.append(["all of them", *(_spread([one[name].gap[-1] for one in found]) for name in names)])
    return Table([said, *(described(name).symbol for name in names)], rows)


def _spread(logarithms: list[np.floating]) -> str:
    """Median and range of the factors."""
    f = np.exp(np.asarray(logarithms))
    return f"{np.median(f):.3g} ({f.min():.3g}-{f.max():.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="digits")
    parser.add_argument("--batch-norm", action="store_true", help="of the multilayer perceptron")
    parser.add_argument("--double", action="store_true", help="train in float64; float32 rounds small updates away")
    parser.add_argument("--path", action="store_true", help="the sample kernel's path too: a kernel at every record")
    parser.add_argument("--steps", type=int, help="fewer or more optimiser steps than the setting has")
    parser.add_argument("--records", type=int, help="fewer or more measurements of the network's kernels on the way")
    parser.add_argument("--per-class", type=int, help="fewer or more images a class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of initial weights, a run each")
    parser.add_argument("--starts", type=int, nargs="+", help="steps to start from instead of the setting's own")
    parser.add_argument("--flow-step", type=float, default=1.0, help="of rung 6, over the largest eigenvalue")
    parser.add_argument("--skip", nargs="*", default=(), choices=tuple(RUNGS), help="rungs to leave out")
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    setting = SETTINGS[flags.setting]
    changed = {name: value for name in ("steps", "records", "per_class") if (value := getattr(flags, name))}
    setting = dataclasses.replace(setting, **changed)
    options = [
        option for option, on in (("batch_norm=True", flags.batch_norm), ("param_dtype=float64", flags.double)) if on
    ]
    starts = flags.starts or [setting.start]
    name = flags.setting + ("_batch_norm" if flags.batch_norm else "")
    results, costs, first = HERE / "results", [], None
    ladders: dict[int, list[Ladder]] = {start: [] for start in starts}
    for seed in flags.seeds:
        began = time.perf_counter()
        run = measured(setting, starts, tuple(options), seed=seed, keep_all=flags.path)
        first = first or run
        print(f"{name}, seed {seed}: trained and measured in {time.perf_counter() - began:.0f} s", flush=True)
        made_by = f"{setting}, {', '.join(options)}, starts {starts}, seed {seed}, flow step {flags.flow_step:g}"
        for start in starts:
            ladder, seconds = climbed(run, results / f"{name}_{seed}", made_by, start, flags.skip, flags.flow_step)
            ladders[start].append(ladder)
            costs.append(", ".join(f"{rung} {s:.0f} s" for rung, s in seconds.items()))
    assert first is not None
    ladder = ladders[starts[0]][0]
    title = f"{title_of(first.trajectory)}{', batch norm' if flags.batch_norm else ''}; theory from step {starts[0]}"
    plots.save(plots.ladder_figure(ladder, title=title), HERE / "figures" / f"ladder_{name}")
    plots.save(plots.attribution_figure(attributions(ladder), title=title), HERE / "figures" / f"attribution_{name}")
    rates = rates_table(first.trajectory, measured_rates(first.trajectory))
    # Apart for each start: what is left to go is another price.
    spread = [
        spread_table(of_seeds, f"from step {start}, {len(of_seeds)} seeds: median (range)")
        for start, of_seeds in ladders.items()
        if len(of_seeds) > 1
    ]
    text = (
        f"## {title}\n\n{setting}\n\n```\n"
        + "\n\n".join([ladder_tables(ladder, times=6), *spread, rates])
        + f"\n```\n\nCost: {costs}.\n"
    )
    (results / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
