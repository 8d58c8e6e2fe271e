"""Rung 3: the measured N × N kernel, averaged over features; frozen at the start, and along its measured path."""

from typing import Any

from ntkcollapse.comparison.rungs._course import Course
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.simulation import simulate
from ntkcollapse.theory.chebyshev import RungeKuttaChebyshev


def sample_frozen(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """No block structure: every pair of samples has its own kernel value, the mean over features of Θ^h."""
    options = {"solver": RungeKuttaChebyshev()} | start.flow_options | options
    return Course.of(simulate(start.state, start.sample_kernel, start.classes, times, **options))


def sample_path(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """The same, with the kernel as it was at every record: what is left is the average over features.

    Between records the kernel is interpolated linearly; T N² numbers.
    """
    options = {"solver": RungeKuttaChebyshev()} | start.flow_options | options
    return Course.of(simulate(start.state, start.sample_path, start.classes, times, **options))
