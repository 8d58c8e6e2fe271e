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


def require_memory(rung: str, needed: int, *, fits: str) -> None:
    """Raises MemoryError where a rung asks for more than three quarters of what there is, and names one with less."""
    available = available_memory()
    if needed > 0.75 * available:
        raise MemoryError(
            f"rung {rung!r}: needs about {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are available; use "
            f"fewer samples, or the rung {fits!r}, which needs less."
        )
