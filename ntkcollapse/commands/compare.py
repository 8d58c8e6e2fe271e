"""`ntkcollapse compare`: a network in training and the theory beside it, from a measured state."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ntkcollapse import plots
from ntkcollapse._checks import check_choice, check_positive
from ntkcollapse._config import run_directory, setting, write_config
from ntkcollapse.commands._ladder_tables import attributions, chains, ladder_tables
from ntkcollapse.commands._measured import MeasuredRun, check_starts, digits_run, measured_again
from ntkcollapse.commands._summaries import files_line
from ntkcollapse.comparison import FROZEN_CHAIN, RUNGS, Ladder, available_rungs, climb, save_ladders

_DEMO = ("block-frozen", "block-path", "sample-frozen")


@dataclass(frozen=True)
class CompareConfig:
    """Settings of `ntkcollapse compare`; those of the network are for comparing without a run, on digits."""

    run: str | None = setting(None, "directory of a measured run (default: train a network here)", positional=True)
    starts: tuple[int, ...] = setting(
        (), "optimiser steps at whose measured state theory starts (default: 80; of a run, a hundredth)", flag="--from"
    )
    rungs: tuple[str, ...] = setting(
        (),
        "rungs of the ladder, from strong assumptions to weak; default: three quick ones without a run, with a run all "
        "but the sample kernel's path",
        choices=("all", *RUNGS),
    )
    records: int = setting(24, "at how many of its steps a run is compared, log-spaced")
    homogeneity: float = setting(0.0, "degree of the features in decaying weights: rungs 1 to 3 decay H at so many λ")
    per_class: int = setting(30, "training images of each digit m")
    widths: tuple[int, ...] = setting((256, 256, 64), "hidden widths; the last is the number of features n")
    learning_rate: float = setting(0.3, "of full-batch gradient descent on the mean squared loss")
    steps: int = setting(10240, "optimiser steps")
    measurements: int = setting(40, "how often to measure, log-spaced in steps")
    seed: int = setting(0, "of the network's initialisation")
    out: str | None = setting(None, "run directory (default: runs/compare; of a run, the run's own)")
    overwrite: bool = setting(False, "replace what is in the run directory")


def compare_command(config: CompareConfig) -> None:
    """A measured network beside predictions under assumptions from strong to weak, and which assumption costs what.

    Without a run it trains a network on real digits first.
    """
    for rung in config.rungs:
        check_choice("rungs", rung, ("all", *RUNGS))
    check_positive("records", config.records)
    check_positive("homogeneity", config.homogeneity, zero=True)
    if config.run is None:
        out, measured, starts, rungs = _on_digits(config)
    else:
        out, measured, starts, rungs = _on_run(config, Path(config.run))
    # A rung that was asked for by its name and lacks what it needs is an error, one of "all" is left out.
    named = bool(config.rungs) and "all" not in config.rungs
    ladders = {}
    for step in starts:
        ladders[step] = _climb(measured, step, rungs, config.homogeneity, named)
        # A start can take an hour: what is done is kept before the next.
        save_ladders(out, ladders)
    figures = []
    for step, ladder in ladders.items():
        title = f"{measured.title}; theory from step {step}"
        figures += plots.save(plots.ladder_figure(ladder, title=title), out / "figures" / f"ladder_{step}")
        if FROZEN_CHAIN in chains(ladder):
            figure = plots.attribution_figure(attributions(ladder), title=title)
            plots.save(figure, out / "figures" / f"attribution_{step}")
        print(f"theory from step {step}\n\n{ladder_tables(ladder)}\n")
    print(files_line(out, figures))


def _on_digits(config: CompareConfig):
    starts = config.starts or (80,)
    check_starts(starts, config.steps)
    rungs = _chosen(config.rungs) or _DEMO
    out = run_directory(config.out or "runs/compare", overwrite=config.overwrite)
    measured = digits_run(
        per_class=config.per_class,
        widths=config.widths,
        learning_rate=config.learning_rate,
        steps=config.steps,
        measurements=config.measurements,
        seed=config.seed,
        starts=starts,
        keep_all="sample-path" in rungs,
    )
    write_config(config, out)
    measured.trajectory.save(out, overwrite=config.overwrite)
    return out, measured, starts, rungs


def _on_run(config: CompareConfig, run: Path):
    rungs = _chosen(config.rungs or ("all",))
    if not config.rungs:
        rungs = tuple(name for name in rungs if name != "sample-path")
    if config.out is None and (run / "comparison.nc").exists() and not config.overwrite:
        raise FileExistsError(f"{run}: holds a comparison already; choose another --out, or pass --overwrite.")
    out = run if config.out is None else run_directory(config.out, overwrite=config.overwrite)
    measured, starts = measured_again(run, config.starts, records=config.records, keep_all="sample-path" in rungs)
    if out != run:
        # A directory of its own holds all that a report needs.
        measured.trajectory.save(out, overwrite=True)
        shutil.copyfile(run / "config.toml", out / "config.toml")
    return out, measured, starts, rungs


def _chosen(rungs: tuple[str, ...]) -> tuple[str, ...]:
    """In the ladder's order."""
    return tuple(name for name in RUNGS if name in rungs or "all" in rungs)


def _climb(measured: MeasuredRun, step: int, rungs: tuple[str, ...], homogeneity: float, named: bool) -> Ladder:
    start = measured.start(step, homogeneity=homogeneity)
    if not named:
        rungs = tuple(name for name in rungs if name in available_rungs(start))
    with tqdm(total=len(rungs), desc=f"ladder from step {step}", disable=not sys.stderr.isatty()) as bar:

        def on_rung(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update(0 if bar.n == 0 and name == rungs[0] else 1)

        ladder = climb(start, rungs, on_rung=on_rung)
        bar.update(bar.total - bar.n)
    return ladder
