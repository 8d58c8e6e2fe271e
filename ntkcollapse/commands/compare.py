"""`ntkcollapse compare`: a network in training and the theory beside it, from a measured state."""

import dataclasses
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ntkcollapse import plots
from ntkcollapse._checks import check_choice, check_positive
from ntkcollapse.commands._ladder_tables import attributions, chains, ladder_tables
from ntkcollapse.commands._measured import (
    MeasuredRun,
    apart_at,
    as_recorded,
    check_starts,
    compared_steps,
    default_start,
    digits_run,
    has_batch_norm,
    made_by_settings,
    measured_again,
    recorded_run,
)
from ntkcollapse.commands._summaries import files_line
from ntkcollapse.commands.settings import CompareConfig
from ntkcollapse.comparison import (
    RUNGS,
    Ladder,
    MeasuredStart,
    climb,
    joined,
    load_ladders,
    save_ladders,
)
from ntkcollapse.comparison.rungs import Needs
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import log_spaced
from ntkcollapse.trajectory import Trajectory

_DEMO = ("block-frozen", "block-path", "sample-frozen")


def compare_command(config: CompareConfig) -> None:
    """Does what `CompareConfig` says."""
    for rung in config.rungs:
        check_choice("rungs", rung, ("all", *RUNGS))
    check_positive("records", config.records)
    check_positive("homogeneity", config.homogeneity, zero=True)
    _check_used(config)
    config = dataclasses.replace(config, starts=tuple(sorted(set(config.starts))))
    plan = _on_digits(config) if config.run is None else _on_run(config, Path(config.run))
    for step, names in plan.missing.items():
        _climb(plan, step, names)
    figures = []
    for step in plan.missing:
        ladder = plan.ladders[step]
        if plan.starts:
            title = f"{plan.title}; theory from step {step}"
            figures = plots.save(plots.ladder_figure(ladder, title=title), plan.out.figure(f"ladder_{step}"))
            if "frozen" in chains(ladder):
                figure = plots.attribution_figure(attributions(ladder), title=title)
                plots.save(figure, plan.out.figure(f"attribution_{step}"))
        print(f"theory from step {step}\n\n{ladder_tables(ladder)}\n")
    if not plan.starts:
        print("all of it was there already; --overwrite climbs again")
    print(files_line(plan.out.path, figures))


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
    of_digits = ("per_class", "widths", "learning_rate", "steps", "measurements", "seed")
    names = ("records",) if config.run is None else of_digits
    defaults = CompareConfig()
    for name in names:
        if getattr(config, name) != getattr(defaults, name):
            why = "a run has its own" if config.run else "without a run --measurements says how often"
            raise ValueError(f"{name}: expected none here, got {getattr(config, name)}: {why}.")


def _on_digits(config: CompareConfig) -> _Plan:
    starts = config.starts or (80,)
    check_starts(starts, config.steps)
    rungs = _without_batch_norm(_chosen(config.rungs) or _DEMO, config)
    out = RunDirectory(config.out or "runs/compare")
    out.check(overwrite=config.overwrite)
    measured = digits_run(
        per_class=config.per_class,
        widths=config.widths,
        learning_rate=config.learning_rate,
        steps=config.steps,
        at=log_spaced(config.steps, config.measurements),
        seed=config.seed,
        starts=starts,
        keep_all=_need(rungs, "network along the path"),
    )
    # Not before it is known that there is something to put in the place of an earlier run.
    out.begin(config)
    measured.trajectory.save(out.path)
    begin = {step: measured.start(step, homogeneity=config.homogeneity) for step in starts}
    return _Plan(out, {}, dict.fromkeys(starts, rungs), begin, measured.title)


def _on_run(config: CompareConfig, run: Path) -> _Plan:
    recorded, steps = recorded_run(run)
    elsewhere = config.out is not None and Path(config.out).resolve() != run.resolve()
    out = RunDirectory(config.out if elsewhere and config.out is not None else run)
    ladders = _held(config, recorded, out, elsewhere)
    starts = config.starts or tuple(ladders) or (default_start(steps),)
    check_starts(starts, steps[-1])
    rungs = _chosen(config.rungs or ("all",))
    if not config.rungs:
        rungs = tuple(name for name in rungs if RUNGS[name].needs != "network along the path")
    whole = made_by_settings(run, recorded)
    if not whole and not _are_named(config):
        rungs = tuple(name for name in rungs if RUNGS[name].needs == "nothing")
    if whole and _need(rungs, "batch statistics") and not has_batch_norm(run):
        rungs = _without_batch_norm(rungs, config)
    missing = {step: _lacking(ladders.get(step), rungs, config) for step in starts}
    climbed = sorted(step for step, names in missing.items() if names)
    if not climbed:
        return _Plan(out, ladders, missing, {}, "")
    at = {s for step in climbed for s in _steps(ladders.get(step))}
    if not whole and not any(RUNGS[name].needs != "nothing" for names in missing.values() for name in names):
        measured = as_recorded(run, {*climbed, *at})
    else:
        keep_all = any(_need(names, "network along the path") for names in missing.values())
        measured = measured_again(run, climbed, at=at | compared_steps(steps, config.records), keep_all=keep_all)
    # Refused before anything is removed or climbed.
    begin = {step: _start(measured, step, ladders.get(step), out, config.homogeneity) for step in climbed}
    if elsewhere:
        if not ladders:
            out.path.mkdir(parents=True, exist_ok=True)
            out.remove_derived()
        # A directory of its own holds all that a report needs.
        measured.trajectory.save(out.path, overwrite=True)
        if RunDirectory(run).settings.exists():
            shutil.copyfile(RunDirectory(run).settings, out.settings)
    return _Plan(out, ladders, missing, begin, measured.title)


def _need(rungs: Iterable[str], what: Needs) -> bool:
    """Whether one of these rungs needs this."""
    return any(RUNGS[name].needs == what for name in rungs)


def _without_batch_norm(rungs: tuple[str, ...], config: CompareConfig) -> tuple[str, ...]:
    """Without the rungs of batch statistics, for a network that has none; an error where one was named."""
    kept = tuple(name for name in rungs if RUNGS[name].needs != "batch statistics")
    if kept != rungs and _are_named(config):
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
    start = measured.start(step, homogeneity=homogeneity, steps=_steps(held) or None)
    if held is not None:
        before, now = (float(run["loss"][0]) for run in (held.network, start.network_run))
        # Single precision and the order of sums; the state of another run is percents off.
        if not abs(now / before - 1) < 1e-3:
            raise ValueError(
                f"{out}: its comparison starts from a loss of {before:.6g}, the run made again from one of {now:.6g}; "
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
