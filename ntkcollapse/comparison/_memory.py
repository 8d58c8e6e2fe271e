"""What fits into memory, said before anything is computed."""

import os


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


def require_memory(rung: str, needed: int, *, fits: str | None) -> None:
    """Raises MemoryError where a rung asks for more than three quarters of what there is, and names one with less."""
    if not fits_memory(needed):
        less = "fewer samples or records" if fits is None else f"fewer samples, or the rung {fits!r}, which needs less"
        raise MemoryError(
            f"rung {rung!r}: needs about {needed / 2**30:.1f} GiB, {available_memory() / 2**30:.1f} GiB are available; "
            f"use {less}."
        )
