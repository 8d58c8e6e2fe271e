"""What fits into memory, said before anything is computed."""

import os
from collections.abc import Mapping


def available_memory() -> int:
    """Bytes that can be had without swapping, as the system says."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def fits_memory(needed: int) -> bool:
    """Whether so many bytes are at most three quarters of what there is."""
    return needed <= 0.75 * available_memory()


def columns(times: int, features: int, samples: int) -> int:
    """Bytes of the states of a rung that keeps every column at every time: what all of them need at the least."""
    return 8 * 3 * times * features * samples


def pairs(samples: int) -> int:
    """Bytes of a kernel between all samples, and of what factoring it takes."""
    return 8 * 6 * samples**2


def require_memory(rung: str, needed: int, less: Mapping[str, int] | None = None) -> None:
    """Raises MemoryError where a rung asks for more than three quarters of what there is.

    less: rung → bytes; the first one that fits is named.
    """
    if fits_memory(needed):
        return
    fitting = next((name for name, size in (less or {}).items() if fits_memory(size)), None)
    other = "" if fitting is None else f", or the rung {fitting!r}, which fits"
    raise MemoryError(
        f"rung {rung!r}: needs about {needed / 2**30:.1f} GiB, {available_memory() / 2**30:.1f} GiB are available; "
        f"use fewer samples or records{other}."
    )
