"""Rung 2a: one kernel value for each pair of classes, one diagonal for each class."""

from typing import Any

from ntkcollapse.comparison.rungs._course import Course
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.simulation import simulate


def class_pairs(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """The general block kernel as measured at the start. Classes differ; samples of a class still do not."""
    options = start.flow_options | options
    return Course.of(simulate(start.state, start.class_pair_kernel, start.classes, times, columns=False, **options))
