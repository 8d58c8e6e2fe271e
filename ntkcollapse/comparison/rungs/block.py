"""Rungs 1 and 2: the theorem's block kernel, frozen at the start, and along its measured path."""

from typing import Any

from ntkcollapse.comparison.rungs._course import Course
from ntkcollapse.comparison.start import MeasuredStart


def block_frozen(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """Three kernel values as measured at the start: the theorem. Its integration costs the same for every N."""
    return Course.by_kernel("block-frozen", start, start.block_kernel, times, **options)


def block_path(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """Three kernel values as measured along training, κ(t)."""
    return Course.by_kernel("block-path", start, start.block_path, times, **options)
