"""`ntkcollapse compare`: a network in training and the theory beside it, from a measured state."""

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ntkcollapse import plots
from ntkcollapse._checks import check_choice, check_positive
from ntkcollapse.commands._ladder_tables import attributions, chains, ladder_tables
from ntkcollapse.commands._summaries import files_line
from ntkcollapse.commands.network_runs import (
    apart_at,
    can_be_trained_again,
    check_starts,
    compared_steps,
    default_start,
    has_batch_norm,
    last_step,
    load_network_run,
    measured_run,
    title_of,
    training_settings,
)
from ntkcollapse.commands.settings import CompareConfig
from ntkcollapse.comparison import (
    RUNGS,
    Ladder,
    MeasuredRun,
    MeasuredStart,
    climb,
    joined,
    load_ladders,
    save_ladders,
)
from ntkcollapse.comparison.rungs import Needs
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import Interrupted, TrainConfig, preset, train
from ntkcollapse.trajectory import Trajectory

# Of a preset: the step that theory starts from, and the rungs, which take seconds.
_START = 80
_QUICK = ("block-frozen", "block-path", "sample-frozen")
_ALONG_THE_PATH: Needs = "network along the path"


def compare_command(config: CompareConfig) -> None:
    """Does what `CompareConfig` says."""
    for rung in config.rungs:
        check_choice("rungs", rung, ("all", *RUNGS))
    check_positive("records", config.records)
    check_positive("homogeneity", config.homogeneity, zero=True)
    _check_used(config)
    config = dataclasses.replace(config, starts=tuple(sorted(set(config.starts))))
    config = config if config.run is not None else _trained_first(config)
    assert config.run is not None
    recorded = load_network_run(Path(config.run))
    out = RunDirectory(config.run if config.out is None else config.out)
    # What another comparison adds meanwhile would be lost, as would what this one adds to a run that is replaced.
    with out.locked("compare"):
        plan, figures = _climbed(config, recorded, out)
    if not plan.starts:
        print("all of it was there already; --overwrite climbs again")
    print(files_line(plan.out.path, figures))


def _climbed(config: CompareConfig, recorded: Trajectory, out: RunDirectory) -> "tuple[_Plan, list[Path]]":
    """Climbs what is missing and shows all of it; the figures of the last start."""
    plan = _plan(config, recorded, out)
    for step, names in plan.missing.items():
        _climb(plan, step, names)
    figures: list[Path] = []
    for step in plan.missing:
        ladder = plan.ladders[step]
        if plan.starts:
            title = f"{plan.title}; theory from step {step}"
            figures = plots.save(plots.ladder_figure(ladder, title=title), plan.out.figure(f"ladder_{step}"))
            if "frozen" in chains(ladder):
                figure = plots.attribution_figure(attributions(ladder), title=title)
                plots.save(figure, plan.out.figure(f"attribution_{step}"))
        print(f"theory from step {step}\n\n{ladder_tables(ladder)}\n")
    return plan, figures


class _Plan(NamedTuple):
    """What is there and what is to be climbed.

    out: run directory; ladders: start → what is known, filled as rungs are climbed; missing: start → rungs to climb;
    starts: where they are climbed from, none where nothing is missing; title: of figures.
    """

    out: RunDirectory
    ladders: dict[int, Ladder]
    missing: dict[int, tuple[str, ...]]
    starts: dict[int, MeasuredStart]
    title: str


def _check_used(config: CompareConfig) -> None:
    """Raises ValueError for settings that would be passed over in silence."""
    for name in ("preset", "seed") if config.run is not None else ():
        if getattr(config, name) != getattr(CompareConfig(), name):
            raise ValueError(f"{name}: expected none here, got {getattr(config, name)}: a run has its own.")


def _trained_first(config: CompareConfig) -> CompareConfig:
    """Trains the network of the preset, kept where the comparison needs it; and the comparison of that run.

    What is refused is refused before it is trained.
    """
    settings = dataclasses.replace(preset(config.preset), seed=config.seed)
    starts = config.starts or (_START,)
    last = last_step(settings)
    check_starts(starts, last)
    rungs = _of_network(_chosen(config.rungs) or _QUICK, settings, config)
    out = config.out or "runs/compare"
    RunDirectory(out).check(overwrite=config.overwrite)
    keep = set(starts)
    if _need(rungs, _ALONG_THE_PATH):
        keep |= settings.measured_steps(last // settings.epochs)
    try:
        train(settings, out, overwrite=config.overwrite, keep_networks_at=keep, progress=sys.stderr.isatty())
    except Interrupted as error:
        resumed = f"ntkcollapse train --resume --out {out}"
        print(f"{error}\ngo on with: {resumed}, then ntkcollapse compare {out}", file=sys.stderr)
        sys.exit(128 + error.signum)
    return dataclasses.replace(config, run=str(out), out=None, starts=starts, rungs=rungs, overwrite=False)


def _plan(config: CompareConfig, recorded: Trajectory, out: RunDirectory) -> _Plan:
    assert config.run is not None
    run = Path(config.run)
    steps = [int(step) for step in np.asarray(recorded["step"])]
    elsewhere = out.path.resolve() != run.resolve()
    ladders = _held(config, recorded, out, elsewhere)
    starts = config.starts or tuple(ladders) or (default_start(steps),)
    check_starts(starts, steps[-1])
    rungs = _chosen(config.rungs or ("all",))
    if not config.rungs:
        rungs = tuple(name for name in rungs if RUNGS[name].needs != _ALONG_THE_PATH)
    if can_be_trained_again(run, recorded):
        rungs = _of_network(rungs, training_settings(run), config)
    elif not _are_named(config):
        rungs = tuple(name for name in rungs if RUNGS[name].needs == "nothing")
    missing = {step: _lacking(ladders.get(step), rungs, config) for step in starts}
    climbed = sorted(step for step, names in missing.items() if names)
    if not climbed:
        return _Plan(out, ladders, missing, {}, "")
    at = {*climbed, *compared_steps(steps, config.records)}.union(*(_steps(ladders.get(step)) for step in climbed))
    networks_at = {step for step in climbed if any(RUNGS[name].needs != "nothing" for name in missing[step])}
    if any(_need(names, _ALONG_THE_PATH) for names in missing.values()):
        networks_at = at
    measured = measured_run(run, recorded, at=at, networks_at=networks_at)
    # Refused before anything is removed or climbed.
    begin = {step: _start(measured, step, ladders.get(step), out, config.homogeneity) for step in climbed}
    if elsewhere:
        # A directory of its own holds all that a report needs.
        settings = RunDirectory(run).settings
        text = settings.read_text(encoding="utf-8") if settings.exists() else None
        out.put(text, measured.trajectory.save, keep_derived=bool(ladders))
    return _Plan(out, ladders, missing, begin, title_of(recorded))


def _need(rungs: Iterable[str], what: Needs) -> bool:
    """Whether one of these rungs needs this."""
    return any(RUNGS[name].needs == what for name in rungs)


def _of_network(rungs: tuple[str, ...], settings: TrainConfig, config: CompareConfig) -> tuple[str, ...]:
    """Drops the rungs of batch statistics for a network that has none; raises ValueError where one was named."""
    if not _need(rungs, "batch statistics") or has_batch_norm(settings):
        return rungs
    kept = tuple(name for name in rungs if RUNGS[name].needs != "batch statistics")
    if _are_named(config):
        refused = next(name for name in rungs if name not in kept)
        raise ValueError(
            f"rungs: expected {refused!r} of a network with batch normalisation only, got one without, of which it is "
            "the rung before it; name that one."
        )
    return kept


def _held(config: CompareConfig, recorded: Trajectory, out: RunDirectory, elsewhere: bool) -> dict[int, Ladder]:
    """What a comparison has already, nothing where it is to be made anew; changes nothing.

    Raises:
        FileExistsError: what is there is not of this run.
    """
    if config.overwrite:
        if elsewhere:
            out.check(overwrite=True)
        return {}
    if elsewhere and out.trajectory.exists():
        apart = apart_at(recorded, Trajectory.load(out.path))
        if not apart or max(apart.values()) > 1e-2:
            raise FileExistsError(
                f"{out}: holds another run than this one; choose another --out, or pass --overwrite to replace it."
            )
    elif elsewhere:
        out.check()
    return load_ladders(out.path) if out.comparison.exists() else {}


def _lacking(held: Ladder | None, rungs: tuple[str, ...], config: CompareConfig) -> tuple[str, ...]:
    """The rungs that a ladder does not have; one that failed is tried again if it is named.

    Raises:
        ValueError: what it has was climbed under another homogeneity.
    """
    if held is None:
        return rungs
    if held.rungs and held.homogeneity != config.homogeneity:
        raise ValueError(
            f"homogeneity: expected {held.homogeneity:g}, of the rungs that are there, got {config.homogeneity:g}; "
            "choose another --out, or pass --overwrite to climb them again."
        )
    failed = held.failures if _are_named(config) else {}
    return tuple(name for name in rungs if name in failed or (name not in held.rungs and name not in held.failures))


def _are_named(config: CompareConfig) -> bool:
    """A rung that was asked for by its name and lacks what it needs is an error, one of "all" is left out."""
    return bool(config.rungs) and "all" not in config.rungs


def _chosen(rungs: tuple[str, ...]) -> tuple[str, ...]:
    """In the ladder's order."""
    return tuple(name for name in RUNGS if name in rungs or "all" in rungs)


def _steps(ladder: Ladder | None) -> list[int]:
    """The optimiser steps at which a ladder compares."""
    return [] if ladder is None else [int(s) for s in np.asarray(ladder.network["step"])]


def _start(
    measured: MeasuredRun, step: int, held: Ladder | None, out: RunDirectory, homogeneity: float
) -> MeasuredStart:
    """Where rungs are climbed from.

    Raises:
        ValueError: as `MeasuredStart`; or it is not the state that the ladder held starts from.
    """
    if held is not None:
        measured = measured.at_steps(_steps(held))
    start = measured.start(step, homogeneity=homogeneity)
    if held is not None:
        before, now = (float(run["loss"][0]) for run in (held.network, start.network_run))
        # Single precision and the order of sums; the state of another run is percents off.
        if not abs(now / before - 1) < 1e-3:
            raise ValueError(
                f"{out}: its comparison starts from a loss of {before:.6g}, the run from one of {now:.6g}; "
                "choose another --out, or pass --overwrite to climb all rungs again."
            )
    return start


def _climb(plan: _Plan, step: int, rungs: tuple[str, ...]) -> None:
    """Climbs these rungs from a start. One can take an hour: each is saved before the next."""
    for name in tqdm(rungs, desc=f"ladder from step {step}", disable=not sys.stderr.isatty()):
        more = climb(plan.starts[step], [name])
        first = not plan.ladders
        plan.ladders[step] = joined(plan.ladders.get(step), more)
        save_ladders(plan.out.path, plan.ladders)
        # What was written and drawn of what is now another comparison.
        plan.out.report.unlink(missing_ok=True)
        if first:
            plan.out.remove_figures("ladder", "attribution")
