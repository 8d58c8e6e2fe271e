"""How much memory a computation may take, and how many samples at a time that allows."""

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ntkcollapse._checks import check_positive
from ntkcollapse._platforms import constant, here, number


def budget(memory: int | float | None) -> int:
    """Bytes for intermediate arrays on each device: `memory`, or a share of what is free on the fullest of them.

    On a CPU, at most 512 MiB. All processes of one computation get the same number, that of the fullest device of all.
    """
    if memory is not None:
        check_positive("memory", memory)
        return int(memory)
    free = min(_free(device) for device in [here(), *jax.local_devices(backend=here().platform)])
    if jax.process_count() > 1:
        free = int(np.min(multihost_utils.process_allgather(np.asarray(free))))
    return min(int(number("free_share") * free), constant("most_memory"))


def _free(device: Any) -> int:
    """Bytes that are free on a device, as far as it says."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**31


def step() -> int:
    """Bytes that one compiled step of a long computation should keep below."""
    return constant("step_bytes")


def fit(available: int, each: int, most: int) -> int:
    """How many things of `each` bytes fit into `available`: at least 1, at most `most`."""
    return max(1, min(most, available // max(each, 1)))


def fit_sides(available: int, each: int, rows: int, columns: int | None) -> int:
    """How many samples of `each` bytes fit into `available`, of both sides where they are two."""
    return fit(available if columns is None else available // 2, each, max(rows, columns or 0))


def evened(number: int, most: int) -> int:
    """How many of `number` things are done at a time, in as many equal turns as `most` at a time take."""
    return -(-number // -(-number // most)) if number else 1
