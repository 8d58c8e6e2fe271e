"""`ntkcollapse train`: one network trained as the settings say, measured on the way."""

import dataclasses
import sys
from pathlib import Path

from ntkcollapse import plots
from ntkcollapse._table import Table, number
from ntkcollapse.captions import has, shown, time_axis
from ntkcollapse.commands._summaries import files_line, progress, training_figures
from ntkcollapse.commands._verdicts import verdict
from ntkcollapse.commands.network_runs import overview_title
from ntkcollapse.commands.settings import TrainCommandConfig
from ntkcollapse.observable_table import shown_in
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import Interrupted, NonFiniteLoss, TrainConfig, preset_table, saved_config, train
from ntkcollapse.trajectory import Trajectory


def train_command(config: TrainCommandConfig) -> None:
    """Does what `TrainCommandConfig` says."""
    if config.preset == "list":
        print(preset_table())
        return
    settings = TrainConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)})
    if config.resume:
        changed = {name: value for name, value in vars(settings).items() if name in config.given}
        settings = dataclasses.replace(saved_config(config.out), **changed)
    try:
        run, _ = train(
            settings,
            config.out,
            resume=config.resume,
            overwrite=config.overwrite,
            keep_networks_at=config.keep_networks,
            progress=progress(),
        )
    except NonFiniteLoss as error:
        # A run that diverged has a trajectory up to there, which is shown as any other.
        if error.last is not None:
            _report(error.last, config.out)
        raise
    except Interrupted as error:
        print(f"{error}\ngo on with: ntkcollapse train --resume --out {config.out}", file=sys.stderr)
        sys.exit(128 + error.signum)
    _report(run, config.out)


def training_table(run: Trajectory) -> Table:
    """Observables at the start, in between and at the end, and where the time went."""
    T = len(run.times)
    indices = sorted({round(i * (T - 1) / 5) for i in range(6)})
    header = ["epoch", *(number(run.observables["epoch"][i]) for i in indices)]
    rows = [[time_axis(run).symbol, *(number(run.times[i]) for i in indices)]]
    held_out = [f"{way}_{name}" for name in shown_in("test data") for way in ("train", "weak", "strong")]
    names = shown(run, "train") + [name for name in held_out if has(run, name)]
    rows += [[name, *(number(run[name][i]) for i in indices)] for name in names]
    seconds = {name.removeprefix("seconds_"): float(value) for name, value in run.statistics.items()}
    costs = ", ".join(
        f"{name.removeprefix('measuring_')} {value:.3g}"
        for name, value in sorted(seconds.items(), key=lambda item: -item[1])
        if name.startswith("measuring_") and value >= 0.01 * seconds["measuring"]
    )
    foot = (
        f"{run.settings['parameters']:,} parameters, {run.settings['features']} features; "
        f"{seconds['training']:.3g} s training, {seconds['measuring']:.3g} s measuring ({costs}), with compilation"
    )
    if run.on_a_probe:
        foot += (
            f"\nNC, invariant and kernels: of a probe of {run.classes.num_samples} of the "
            f"{run.training_classes.num_samples} training samples; losses and accuracies: of all"
        )
    return Table(header, rows, f"\n{foot}")


def _report(run: Trajectory, out: str) -> None:
    figures = training_figures(run, Path(out))
    if plots.has_overview(run):
        figure = plots.overview_figure(run, title=overview_title(run))
        figures = plots.save(figure, RunDirectory(out).figure("collapse"))
    print(training_table(run))
    if said := verdict(run):
        print(f"\n{said}")
    print(files_line(Path(out), figures))
