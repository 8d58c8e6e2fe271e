"""Rungs 1 and 2: the theorem's block kernel, frozen at the start, and along its measured path."""

from typing import Any

from ntkcollapse.comparison.rungs._course import Course
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.simulation import simulate


def block_frozen(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """Three kernel values as measured at the start: the theorem. Cost independent of N."""
    options = start.flow_options | options
    return Course.of(simulate(start.state, start.block_kernel, start.classes, times, columns=False, **options))


def block_path(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """Three kernel values as measured along training, κ(t). Cost independent of N."""
    options = start.flow_options | options
    return Course.of(simulate(start.state, start.block_path, start.classes, times, columns=False, **options))
