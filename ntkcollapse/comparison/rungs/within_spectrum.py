"""Rung 2b: class-pair means, and the measured spectrum within classes in groups of eigenvalues."""

from typing import Any

from ntkcollapse.comparison.rungs._course import Course
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.sample_kernel import GroupedKernel


def within_spectrum(start: MeasuredStart, times: Any, *, groups: int = 32, **options: Any) -> Course:
    """The sample kernel at the start without its cross terms between class means and deviations.

    Samples of a class differ in how fast their deviations decay; class means and deviations still do not feel each
    other. `groups` eigenvalue groups carry n × n numbers each.
    """
    groups = min(groups, start.classes.num_samples - start.classes.num_classes)
    kernel = GroupedKernel.from_matrix(start.sample_kernel.matrix, start.classes, groups=groups)
    return Course.by_kernel("within-spectrum", start, kernel, times, **options)
