"""Memory that there is, asked before it is taken."""

import os
from math import prod
from pathlib import Path

# Beside what is asked for, copies of it are made: in class order, in another type.
_SHARE = 0.5


def affordable() -> int:
    """Bytes that one array may take: half of the memory that is available."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(_SHARE * 1024 * int(line.split()[1]))
    except (OSError, ValueError, IndexError):
        pass
    try:
        return int(_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 2**62


def check_affordable(argument: str, shape: tuple[int, ...], itemsize: int, remedy: str) -> None:
    """Raises ValueError where an array of this shape is more than `affordable`."""
    size = prod(map(int, shape)) * itemsize
    if size > affordable():
        raise ValueError(
            f"{argument}: expected an array that fits into memory ({spelled(affordable())} for one array), got shape "
            f"{tuple(map(int, shape))}, {spelled(size)}; {remedy}."
        )


def spelled(size: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.3g} {unit}"
