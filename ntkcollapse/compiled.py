"""Compiled programs that outlive the process: what was compiled once is loaded by every later one."""

import os
from pathlib import Path

from ntkcollapse._checks import check_positive
from ntkcollapse._files import user_cache

# Where the command line keeps compiled programs; "off" for nowhere.
VARIABLE = "NTKCOLLAPSE_CACHE"


def enable_cache(folder: str | os.PathLike | None = None, *, max_bytes: float = 1e9) -> Path | None:
    """Keeps what JAX compiles in a folder, from which later processes load it.

    A first call of `simulate` or of a kernel is mostly compilation; in the next process it is not. Call it once, before
    anything is computed. The command line does so by itself. Several processes may share the folder: each entry is read
    and written under a lock, and the oldest go when there are more than `max_bytes`. Programs of another JAX, another
    machine or other options have entries of their own.

    A cache that is set up already (`jax_compilation_cache_dir`, `JAX_COMPILATION_CACHE_DIR`) stays as it is.

    Args:
        folder: by default that of $NTKCOLLAPSE_CACHE, else ntkcollapse/compiled in the user's cache folder
            ($XDG_CACHE_HOME, or ~/.cache). NTKCOLLAPSE_CACHE=off leaves it out.
        max_bytes: size above which the entries that have not been used for longest are removed.

    Returns:
        The folder that is used; None where it is off, or cannot be written.

    Raises:
        ValueError: max_bytes not above zero.
    """
    import jax

    check_positive("max_bytes", max_bytes)
    present = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if present is not None:
        return Path(present)
    wanted = os.environ.get(VARIABLE) if folder is None else os.fspath(folder)
    if wanted is not None and wanted.lower() == "off":
        return None
    chosen = Path(wanted) if wanted else user_cache() / "compiled"
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(chosen, os.W_OK):
        return None
    # Without a largest size entries are written without a lock, and others may read them half written.
    jax.config.update("jax_compilation_cache_max_size", int(max_bytes))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    return chosen
