"""How much memory a computation may take, and how many samples at a time that allows."""

import os

import jax

from ntkcollapse._checks import check_positive

# Larger chunks than this are not faster on a CPU, they only take more.
_ENOUGH_ON_CPU = 512 * 2**20
_FRACTION = 0.25
# What one compiled step may take: the usual allocator of Linux gives memory beyond 32 MiB back to the system at once
# and gets it page by page the next time, which takes longer than the work in it. Elsewhere memory is kept.
_STEP_ON_CPU = 24 * 2**20
_STEP = 512 * 2**20


def budget(memory: int | float | None) -> int:
    """Bytes for intermediate arrays: `memory`, or a quarter of what the first device reports (CPU: at most 512 MiB)."""
    if memory is not None:
        check_positive("memory", memory)
        return int(memory)
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(_FRACTION * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        free = 4 * _ENOUGH_ON_CPU
    return min(int(_FRACTION * free), _ENOUGH_ON_CPU)


def step() -> int:
    """Bytes that one compiled step of a long computation should keep below."""
    return _STEP_ON_CPU if jax.default_backend() == "cpu" else _STEP


def fit(available: int, each: int, most: int) -> int:
    """How many things of `each` bytes fit into `available`: at least 1, at most `most`."""
    return max(1, min(most, available // max(each, 1)))


def evened(number: int, most: int) -> int:
    """How many of `number` things are done at a time, in as many equal turns as `most` at a time take."""
    return -(-number // -(-number // most)) if number else 1
