"""Rung 3: the measured N × N kernel, averaged over features; frozen at the start, and along its measured path."""

from typing import Any

from ntkcollapse.comparison.rungs._course import Course
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.theory.chebyshev import RungeKuttaChebyshev


def sample_frozen(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """No block structure: every pair of samples has its own kernel value, the mean over features of Θ^h."""
    options = {"solver": RungeKuttaChebyshev()} | options
    return Course.by_kernel("sample-frozen", start, start.sample_kernel, times, **options)


def sample_path(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """The same, with the kernel as it was at every record: what is left is the average over features.

    Between records the kernel is interpolated linearly; T N² numbers.
    """
    options = {"solver": RungeKuttaChebyshev()} | options
    return Course.by_kernel("sample-path", start, start.sample_path, times, **options)
