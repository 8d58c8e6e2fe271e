"""What a run says, a sentence each: terminal phase, collapse, blocks, how far features moved, how long theory holds."""

import numpy as np

from ntkcollapse._table import number
from ntkcollapse.captions import has
from ntkcollapse.comparison import RUNGS, Ladder, gaps
from ntkcollapse.observable_table import described, group
from ntkcollapse.phases import blocks_formed, blocks_of, features_moved, terminal_phase
from ntkcollapse.trajectory import Trajectory

# Collapsed: variability within classes below this share of that of class means, NC2 and NC3 below the second.
_NC1, _GEOMETRY = 1e-3, 0.1
# Features that have moved by more than this are not those of lazy training.
_LAZY = 0.1


def verdict(run: Trajectory) -> str:
    """A line on each of these that the run has measured; empty where it has none."""
    lines = [terminal_line(run), collapse_line(run), blocks_line(run), moved_line(run)]
    return "\n".join(filter(None, lines))


def terminal_line(run: Trajectory) -> str:
    """Since when every training sample is classified rightly."""
    record = terminal_phase(run)
    if record is not None:
        return f"terminal phase: training accuracy 1 from {_when(run, record)} on{_accuracy_of(run)}"
    name = "train_accuracy" if "train_accuracy" in run.observables else "accuracy"
    if not run.equation.of_network or name not in run.observables:
        return ""
    return f"terminal phase: not reached, training accuracy {number(run[name][-1])} at the end{_accuracy_of(run)}"


def collapse_line(run: Trajectory) -> str:
    """Whether the run ends collapsed, and by which numbers."""
    names = ["nc1_tirer2022", *group("Geometry of means and weights", "figure")]
    if not all(has(run, name) for name in names):
        return ""
    said = [f"{_short(name)} {_change(run, name)}" for name in names]
    if has(run, "nc4_mismatch"):
        said.append(f"NC4 {number(run['nc4_mismatch'][-1])}")
    nc1, *geometry = (float(run[name][-1]) for name in names)
    if not np.isfinite([nc1, *geometry]).all():
        return ""
    if nc1 <= _NC1 and max(geometry) <= _GEOMETRY:
        word = "collapsed"
    else:
        fell = all(float(run[name][-1]) < 0.5 * float(run[name][0]) for name in names)
        word = "on its way" if fell else "no"
    return f"collapse: {word}; {', '.join(said)}{_probe(run)}"


def blocks_line(run: Trajectory) -> str:
    """How far the feature kernel became one of blocks."""
    blocks = blocks_of(run)
    if blocks is None:
        return ""
    record = blocks_formed(run)
    since = "none that last" if record is None else f"formed at {_when(run, record)}"
    between, within, alignment = (
        f"{number(part[0])} → {number(part[-1])}" for part in (blocks.between, blocks.within, blocks.alignment)
    )
    return f"blocks: {since}; between/diagonal {between}, within/diagonal {within}, alignment with labels {alignment}"


def moved_line(run: Trajectory) -> str:
    """How far features have moved, and since when lazy rates are none of theirs."""
    moved = features_moved(run)
    if moved is None or not run.equation.of_network or len(moved) < 2 or not np.isfinite(moved).all():
        return ""
    far = np.flatnonzero(moved > _LAZY)
    said = f"features moved by {100 * moved[-1]:.3g}%{_probe(run)}: "
    if not far.size:
        return said + f"below {100 * _LAZY:g}% throughout, as lazy training needs"
    return said + f"lazy rates do not apply from {_when(run, int(far[0]))} on"


def ladder_line(ladder: Ladder, rung: str | None = None) -> str:
    """Until when a rung (by default the first) is within 10% of the network, and its factor at the end."""
    rung = next(iter(ladder.rungs), None) if rung is None else rung
    if rung is None:
        return ""
    steps = ladder.network.observables.get("step")
    times = np.asarray(ladder.network.times)
    said = []
    for name in [*group("Residual parts")[:2], *group("Geometry of means and weights", "figure")]:
        if name not in ladder.network.observables or name not in ladder.rungs[rung].observables:
            continue
        gap = gaps(ladder.network, ladder.rungs[rung], [name])[name]
        if np.isnan(gap.horizon):
            until = "not to the next record"
        elif gap.horizon >= times[-1]:
            until = "to the end"
        elif steps is None:
            until = f"until t = {number(gap.horizon)}"
        else:
            until = f"until step {int(steps[int(np.searchsorted(times, gap.horizon))])}"
        off = "" if gap.network[-1] == 0 else f" (x{gap.theory[-1] / gap.network[-1]:.2g} at the end)"
        said.append(f"{described(name).symbol} {until}{off}")
    return f"theory ({RUNGS[rung].label}) within 10%: {'; '.join(said)}" if said else ""


def _short(name: str) -> str:
    return "tr Σ_W/tr Σ_B" if name == "nc1_tirer2022" else described(name).symbol


def _change(run: Trajectory, name: str) -> str:
    return f"{number(run[name][0])} → {number(run[name][-1])}"


def _when(run: Trajectory, record: int) -> str:
    if "step" not in run.observables:
        return f"t = {number(run.times[record])}"
    epoch = f" (epoch {number(run['epoch'][record])})" if "epoch" in run.observables else ""
    return f"step {int(run['step'][record])}{epoch}"


def _accuracy_of(run: Trajectory) -> str:
    """What training accuracy was measured on, where that is not the training set."""
    return "" if "train_accuracy" in run.observables else _probe(run)


def _probe(run: Trajectory) -> str:
    """That numbers are of a probe, where they are."""
    if not run.on_a_probe:
        return ""
    return f", on a probe of {run.classes.num_samples} of {run.training_classes.num_samples} samples"
