"""Rung 2a: one kernel value for each pair of classes, one diagonal for each class."""

from typing import Any

from ntkcollapse.comparison.rungs._course import Course
from ntkcollapse.comparison.start import MeasuredStart


def class_pairs(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """The general block kernel as measured at the start. Classes differ; samples of a class still do not."""
    return Course.by_kernel("class-pairs", start, start.class_pair_kernel, times, **options)
