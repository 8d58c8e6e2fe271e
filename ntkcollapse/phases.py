"""Moments of a run, as its records show them: its terminal phase, its blocks, how far its features have moved."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ntkcollapse.clock import Staircase
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.observable_table import group
from ntkcollapse.trajectory import Trajectory

# From here on the kernel counts as one of blocks: κ_n below this share of κ_c, and a cosine with YᵀY of at least this.
BETWEEN_BELOW = 0.1
ALIGNED_ABOVE = 0.8


class Blocks(NamedTuple):
    """How far the feature kernel is one of blocks, at every record.

    within, between: κ_c/κ_d and κ_n/κ_d; alignment: cosine of the kernel with YᵀY.
    """

    within: Float[np.ndarray, " T"]
    between: Float[np.ndarray, " T"]
    alignment: Float[np.ndarray, " T"]


def blocks_of(run: Trajectory) -> Blocks | None:
    """The blocks of the feature kernel along a run; None where it was not measured."""
    names = [*group("Feature kernel"), "kappa_alignment"]
    if any(name not in run.observables for name in names):
        return None
    diagonal, within, between, alignment = (np.asarray(run[name], float) for name in names)
    # NaN of features that are all zero.
    with np.errstate(invalid="ignore", divide="ignore"):
        return Blocks(within / diagonal, between / diagonal, alignment)


def blocks_formed(run: Trajectory) -> int | None:
    """The first record from which on blocks have formed and last: κ_n below a tenth of κ_c, alignment above 0.8.

    None where the kernel was not measured, or is none of blocks at the end.
    """
    blocks = blocks_of(run)
    if blocks is None:
        return None
    formed = (blocks.between < BETWEEN_BELOW * blocks.within) & (blocks.alignment > ALIGNED_ABOVE)
    return _from_which_on(formed)


def terminal_phase(run: Trajectory) -> int | None:
    """The first record at which every training sample is classified rightly; None where there is none.

    Of a run that did not measure its whole training set, every sample of its probe.
    """
    name = "train_accuracy" if "train_accuracy" in run.observables else "accuracy"
    if not run.equation.of_network or name not in run.observables:
        return None
    right = np.asarray(run[name], float) >= 1
    return int(np.argmax(right)) if right.any() else None


def rate_drops(run: Trajectory) -> list[float]:
    """The optimiser steps at which the learning rate of a run drops."""
    if "step" not in run.observables or len(run.times) < 2:
        return []
    steps = np.asarray(run["step"], float)
    schedule = None if run.equation.clock is None else run.equation.clock.learning_rate
    if isinstance(schedule, Staircase) and schedule.every and schedule.factor < 1:
        return [float(step) for step in range(schedule.every, int(steps[-1]), schedule.every)]
    if "learning_rate" not in run.observables:
        return []
    # Between two records; it is known no better.
    return [float(steps[i + 1]) for i in np.flatnonzero(np.diff(np.asarray(run["learning_rate"], float)) < 0)]


def features_moved(run: Trajectory) -> Float[np.ndarray, " T"] | None:
    """‖H(t) − H(0)‖ / ‖H(0)‖ at every record; None of a run that kept no features, or whose first ones are all zero."""
    if not isinstance(run.states, LastLayer):
        return None
    H = np.asarray(run.states.H, float)
    size = np.linalg.norm(H[0])
    return np.linalg.norm(H - H[:1], axis=(1, 2)) / size if size else None


def _from_which_on(holds: np.ndarray) -> int | None:
    """The first index from which on something holds to the end."""
    if not holds[-1]:
        return None
    return int(len(holds) - np.argmin(holds[::-1])) if not holds.all() else 0
