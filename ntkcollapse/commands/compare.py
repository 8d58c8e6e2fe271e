"""`ntkcollapse compare`: a network in training and the theory beside it, from a measured state."""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ntkcollapse import plots
from ntkcollapse._checks import check_choice, check_positive
from ntkcollapse.commands._ladder_tables import attributions, brief_table, chains, ladder_tables
from ntkcollapse.commands._summaries import files_line, overview_table, progress
from ntkcollapse.commands._verdicts import ladder_line, verdict
from ntkcollapse.commands.network_runs import (
    apart_at,
    can_be_trained_again,
    check_starts,
    chosen_start,
    compared_steps,
    has_batch_norm,
    lacks,
    last_step,
    load_network_run,
    measured_run,
    overview_title,
    placed_steps,
    sample_kernels,
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
from ntkcollapse.comparison.rungs import Needs, Rungs
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import Interrupted, TrainConfig, preset, train
from ntkcollapse.trajectory import Trajectory

# Of a preset: the steps that theory starts from, the last of them where it is meant to hold, and the rungs, which take
# seconds; of the others "auto", and the rungs of the last line.
_STARTS = {"digits": (80,), "collapse": (60, 1500)}
_QUICK = {"collapse": ("block-frozen", "block-path", "blocks:3"), "": ("block-frozen", "block-path", "sample-frozen")}
# The preset whose kernels are shown sample by sample.
_PICTURED = "collapse"
_ALONG_THE_PATH: Needs = "network along the path"


def compare_command(config: CompareConfig) -> None:
    """Does what `CompareConfig` says."""
    for rung in config.rungs:
        check_choice("rungs", rung, Rungs({"all": "every rung", **RUNGS}))
    if config.homogeneity is not None:
        check_positive("homogeneity", config.homogeneity, zero=True)
    _check_used(config)
    brief = config.run is None
    config = config if config.run is not None else _trained_first(config)
    assert config.run is not None
    of = RunDirectory(config.run)
    version = of.version(of.trajectory)
    recorded = load_network_run(of.path)
    out = RunDirectory(config.run if config.out is None else config.out)
    # What another comparison adds meanwhile would be lost, as would what this one adds to a run that is replaced.
    with out.locked("compare"):
        of.check_version(version)
        plan = _plan(config, recorded, out)
        for step, names in plan.missing.items():
            _climb(plan, step, names)
        figures = _shown(plan)
        if plots.has_overview(recorded):
            figures = _overview(config, recorded, plan)
        ladders = []
        # Where theory is meant to hold first.
        for step in reversed(plan.missing):
            ladder = plan.ladders[step]
            tables = brief_table(ladder) if brief else ladder_tables(ladder)
            ladders.append(f"theory from step {step}\n\n{tables}\n\n{ladder_line(ladder)}")
        print("\n\n".join(ladders))
    if not plan.starts:
        print("all of it was there already; --overwrite climbs again")
    print(files_line(plan.out.path, figures))


def _shown(plan: "_Plan") -> list[Path]:
    """Draws the ladder of every start that has been climbed; the figures of the last one."""
    figures: list[Path] = []
    for step in plan.missing if plan.starts else ():
        ladder, title = plan.ladders[step], f"{plan.title}; theory from step {step}"
        figures = plots.save(plots.ladder_figure(ladder, title=title), plan.out.figure(f"ladder_{step}"))
        if "frozen" in chains(ladder):
            plots.save(
                plots.attribution_figure(attributions(ladder), title=title), plan.out.figure(f"attribution_{step}")
            )
    return figures


def _overview(config: CompareConfig, recorded: Trajectory, plan: "_Plan") -> list[Path]:
    """The figure of blocks, collapse, invariant and the theorem from the last start on; its numbers in print."""
    assert config.run is not None
    step = max(plan.missing)
    print(f"{overview_table(recorded)}\n\n{verdict(recorded)}\n")
    title = overview_title(recorded)
    kernels = sample_kernels(Path(config.run), recorded, plots.pictured(recorded))
    figure = plots.overview_figure(recorded, kernels=kernels, ladder=plan.ladders[step], title=title)
    return plots.save(figure, plan.out.figure("collapse"))


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
    if not {"kappa", "last-layer"} <= set(settings.measure) or settings.probe_per_class:
        raise ValueError(
            f"preset: expected one that is measured with kappa and last-layer on its whole training set, got "
            f"{config.preset!r}; train it, with these, and compare its run."
        )
    starts: tuple[int | str, ...] = config.starts or _STARTS.get(config.preset, ("auto",))
    steps = {int(start) for start in starts if _is_step(start)}
    last = last_step(settings)
    check_starts(steps, last)
    rungs = _of_network(_chosen(config.rungs) or _QUICK.get(config.preset, _QUICK[""]), settings, config)
    out = config.out or "runs/compare"
    RunDirectory(out).check(overwrite=config.overwrite)
    if not config.starts:
        # Records between the last start, which is late, and the end.
        settings = dataclasses.replace(settings, measure_steps=tuple(sorted(placed_steps(max(steps), last, 16))))
    keep, measured = set(steps), settings.measured_steps(last // settings.epochs)
    if _need(rungs, _ALONG_THE_PATH) or len(steps) < len(starts) or config.preset == _PICTURED:
        keep |= measured
    try:
        train(settings, out, overwrite=config.overwrite, keep_networks_at=keep, progress=progress())
    except Interrupted as error:
        resumed = f"ntkcollapse train --resume --out {out}"
        print(f"{error}\ngo on with: {resumed}, then ntkcollapse compare {out}", file=sys.stderr)
        sys.exit(128 + error.signum)
    return dataclasses.replace(config, run=str(out), out=None, starts=starts, rungs=rungs, overwrite=False)


def _is_step(start: int | str) -> bool:
    return isinstance(start, int) or start.lstrip("-").isdigit()


def _plan(config: CompareConfig, recorded: Trajectory, out: RunDirectory) -> _Plan:
    assert config.run is not None
    run = Path(config.run)
    steps = [int(step) for step in np.asarray(recorded["step"])]
    elsewhere = out.path.resolve() != run.resolve()
    ladders = _held(config, recorded, out, elsewhere)
    starts = _starts(config.starts or tuple(ladders) or ("auto",), recorded)
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
    decays = float(recorded.equation.weight_decay.W) > 0
    networks_at = {step for step in climbed if any(RUNGS[name].needs != "nothing" for name in missing[step])}
    if decays and config.homogeneity is None and can_be_trained_again(run, recorded):
        # The decay of features is measured of the network, unless batch normalisation leaves none.
        networks_at |= set() if has_batch_norm(training_settings(run)) else set(climbed)

    def where(placed: Callable[[int], set[int]]) -> tuple[set[int], set[int]]:
        at = set(climbed).union(*map(placed, climbed), *(_steps(ladders.get(step)) for step in climbed))
        return at, at if any(_need(names, _ALONG_THE_PATH) for names in missing.values()) else networks_at

    at, networks_at = where(lambda start: compared_steps(steps, config.records, start))
    if lacks(run, recorded, at=at, networks_at=networks_at):
        at, networks_at = where(lambda start: placed_steps(start, steps[-1], config.records))
    measured = measured_run(run, recorded, at=at, networks_at=networks_at)
    # Refused before anything is removed or climbed.
    begin, said = {}, {}
    for step in climbed:
        p, why = _homogeneity(config, measured, step, ladders.get(step))
        begin[step] = _start(measured, step, ladders.get(step), out, p)
        said.setdefault(why, []).append(str(step))
    for why, at_steps in said.items():
        if why:
            print(f"weight decay, from step {' and '.join(at_steps)}: {why}\n")
    if elsewhere:
        # A directory of its own holds all that a report needs.
        settings = RunDirectory(run).settings
        text = settings.read_text(encoding="utf-8") if settings.exists() else None
        out.put(text, measured.trajectory.save, keep_derived=bool(ladders))
    return _Plan(out, ladders, missing, begin, title_of(recorded))


def _starts(words: Iterable[int | str], recorded: Trajectory) -> tuple[int, ...]:
    """The steps that theory starts from; a line says why where they are chosen by a word."""
    steps = set()
    for word in words:
        if _is_step(word):
            steps.add(int(word))
        else:
            step, why = chosen_start(recorded, str(word))
            steps.add(step)
            print(f"theory starts from step {step}: {why}\n")
    return tuple(sorted(steps))


def _homogeneity(config: CompareConfig, measured: MeasuredRun, step: int, held: Ladder | None) -> tuple[float, str]:
    """The degree of the features in decaying weights, and where it is from."""
    if config.homogeneity is not None:
        return config.homogeneity, ""
    if not float(measured.trajectory.equation.weight_decay.W):
        return 0.0, ""
    if held is not None and held.rungs:
        return held.homogeneity, f"features decay at {held.homogeneity:g} λ, as in the rungs that are there"
    network = measured.networks.get(measured.record(step))
    if network is None or network.coupled is not None:
        why = "features do not decay: batch normalisation makes them blind to the scale of their weights"
        return 0.0, why if network is not None or config.run is None or _normalised(config, measured.trajectory) else (
            "features do not decay, as their network is not known; --homogeneity names the degree"
        )
    p, share = network.degree()
    return max(p, 0.0), f"features decay at {p:.3g} λ, the pull of the decay on them to {100 * (1 - share):.0f}%"


def _normalised(config: CompareConfig, run: Trajectory) -> bool:
    """Whether the run's settings make it again and name a network with batch normalisation."""
    assert config.run is not None
    return can_be_trained_again(Path(config.run), run) and has_batch_norm(training_settings(Path(config.run)))


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
    if held.rungs and config.homogeneity is not None and held.homogeneity != config.homogeneity:
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
    named = [name for name in rungs if name != "all"]
    return RUNGS.in_order([*named, *RUNGS] if "all" in rungs else named)


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
