"""The invariant of runs with a known course."""

import numpy as np
import pytest

from ntkcollapse import Classes, Trajectory
from ntkcollapse.comparison import collapse_points, invariant_course

CLASSES = Classes.balanced(num_classes=3, per_class=4)


def run_with(rate: float, points: int = 40) -> Trajectory:
    times = np.linspace(0.0, 10.0, points)
    decay = np.exp(-rate * times)
    names = "necessary_condition nc1_tirer2022 nc2_seleznova2023 nc3_seleznova2023 accuracy".split()
    seen = {name: (i + 1) * np.exp(-times) for i, name in enumerate(names)}
    kappa = {"kappa_diagonal": 2.0, "kappa_within": 1.5, "kappa_between": 0.5}
    seen |= {name: np.full(points, value) for name, value in kappa.items()}
    seen |= {"invariant_norm": 3 * decay, "invariant_relative": decay / 2, "invariant_alignment": 1 - decay / 2}
    return Trajectory(times, seen, CLASSES)


def test_decay_beside_twice_the_weight_decay():
    course = invariant_course(run_with(0.4), decay=0.2)
    assert course.fit is not None
    assert course.fit.rate == pytest.approx(course.predicted_rate, rel=1e-9)
    slower = invariant_course(run_with(0.1), decay=0.2)
    assert slower.fit is not None
    assert slower.fit.rate == pytest.approx(slower.predicted_rate / 4, rel=1e-9)


def test_nothing_is_fitted_without_decay():
    course = invariant_course(run_with(0.0))
    assert course.fit is None
    assert course.predicted_rate == 0
    # Decay that does not come: no exponential is found, and none is made up.
    assert invariant_course(run_with(0.0), decay=0.1).fit is None


def test_points_are_ends_of_runs():
    (point,) = collapse_points([("a", run_with(0.4))])
    assert point.name == "a"
    assert point.invariant_start == 0.5
    assert point.invariant_end == pytest.approx(np.exp(-4.0) / 2)
    assert point.nc1 == pytest.approx(2 * np.exp(-10.0))
    assert point.block_strength == 0.5


def test_a_run_without_kernels_is_refused():
    without = Trajectory(np.arange(3.0), {"loss": np.ones(3)}, CLASSES)
    with pytest.raises(ValueError, match="got one without the invariant"):
        invariant_course(without)
    with pytest.raises(ValueError, match="got one without the invariant"):
        collapse_points([("x", without)])
