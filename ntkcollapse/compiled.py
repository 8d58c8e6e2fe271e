"""Compiled programs that outlive the process: what was compiled once is loaded by every later one."""

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ntkcollapse._checks import check_positive, is_traced
from ntkcollapse._files import user_cache
from ntkcollapse._platforms import platform

_P = ParamSpec("_P")
_T = TypeVar("_T")

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


@contextmanager
def compilation_announced(after: float = 1.5) -> Iterator[None]:
    """Within it, the first program that takes more than `after` seconds to compile is announced on standard error.

    Where no cache of compiled programs is in use, JAX does not say when it begins to compile, and nothing is announced.
    """
    import jax

    timers: list[threading.Timer] = []
    said = threading.Event()

    def say() -> None:
        print("compiling ... (what is compiled is kept for later runs)", file=sys.stderr)
        said.set()

    def begun(event: str, **_: Any) -> None:
        if event.endswith("/compile_requests_use_cache") and not said.is_set():
            cancel()
            timers.append(threading.Timer(after, say))
            timers[-1].daemon = True
            timers[-1].start()

    def ended(event: str, *_: Any, **__: Any) -> None:
        if event.endswith("/backend_compile_duration"):
            cancel()

    def cancel() -> None:
        while timers:
            timers.pop().cancel()

    jax.monitoring.register_event_listener(begun)
    jax.monitoring.register_event_duration_secs_listener(ended)
    try:
        yield
    finally:
        cancel()
        jax.monitoring.unregister_event_duration_listener(ended)
        jax.monitoring.unregister_event_listener(begun)


# On a CPU half of the compile time: simple code for fused loops, which runs as fast.
_SIMPLE_LOOPS: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False}
# A fifth of it: no optimisation besides. Long loops over large arrays then take up to twice as long.
_LEAST_EFFORT: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    **_SIMPLE_LOOPS,
}
# Four fifths of it where the work is in products of matrices, which run as fast; with simple loops half of it for the
# steps of a recurrence, while attention takes twice as long to compile with these.
_FOR_PRODUCTS: dict[str, Any] = {"xla_backend_optimization_level": 1}
_FOR_STEPS: dict[str, Any] = _FOR_PRODUCTS | _SIMPLE_LOOPS
_EFFORTS = {"least": _LEAST_EFFORT, "loops": _SIMPLE_LOOPS, "products": _FOR_PRODUCTS, "steps": _FOR_STEPS}


def _compiler_options(effort: str) -> dict[str, Any] | None:
    """Those that the compiler of this JAX has; none but on a CPU: other platforms have other trades."""
    return _cpu_options(effort) if platform() == "cpu" else None


@cache
def _cpu_options(effort: str) -> dict[str, Any]:
    import jax

    def has(options: dict[str, Any]) -> bool:
        try:
            with jax.default_device("cpu"):
                jax.jit(lambda: 0, compiler_options=options).lower().compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    wanted = _EFFORTS[effort]
    return wanted if has(wanted) else {name: value for name, value in wanted.items() if has({name: value})}


def compiled_quickly(below: float = math.inf) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """A decorator: compiled with the least effort, for what runs for a shorter time than it is compiled.

    That holds below a number of numbers in all arguments together; from there on the loops alone are kept simple.
    Arrays are traced, everything else is static. Within another compiled function it is a part of that.
    """

    return lambda function: _with_options(function, lambda given: "least" if _count(given) < below else "loops")


@cache
def pulled_back_quickly(function: Callable[..., _T]) -> Callable[..., _T]:
    """The function, whose derivative in reverse mode is one more program of the least effort.

    That calls the function again, and computes what the results that are differentiated need: of many perhaps one. What
    the function closes over is a constant. Its arguments are positional.
    """
    import equinox as eqx
    import jax

    from ntkcollapse._precision import exact_products

    @eqx.filter_custom_vjp
    def call(args):
        return function(*args)

    @call.def_fwd
    def _forward(perturbed, args):
        del perturbed
        return function(*args), None

    @call.def_bwd
    def _backward(residuals, cotangents, perturbed, args):
        del residuals, perturbed
        # Of a call that has returned, with the digits that it computed in.
        with exact_products():
            return pulled_back(args, cotangents)

    @compiled_quickly()
    def pulled_back(args, cotangents):
        arrays, static = eqx.partition(args, eqx.is_inexact_array)
        used = jax.tree.map(lambda x: x is not None, cotangents, is_leaf=lambda x: x is None)
        _, pull = jax.vjp(lambda arrays: eqx.filter(function(*eqx.combine(arrays, static)), used), arrays)
        return pull(cotangents)[0]

    return wraps(function)(lambda *args: call(args))


def compiled_for_products(function: Callable[_P, _T], *, steps: bool = False, donate: Any = "none") -> Callable[_P, _T]:
    """The function, compiled with the effort that suits products of matrices; else as `compiled_quickly`.

    steps: whether these stand in the steps of a recurrence; donate: as in `equinox.filter_jit`.
    """
    return _with_options(function, lambda _: "steps" if steps else "products", donate)


def _with_options(function: Callable[_P, _T], effort: Callable[[Any], str], donate: Any = "none") -> Callable[_P, _T]:
    @cache
    def program(effort: str, on: str) -> Any:
        import equinox as eqx

        return eqx.filter_jit(function, donate=donate, **{"compiler_options": _compiler_options(effort)})  # pyright: ignore[reportCallIssue, reportArgumentType]

    @cache
    def part() -> Any:
        import equinox as eqx

        return eqx.filter_jit(function, donate=donate)

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if is_traced(args, kwargs):
            return part()(*args, **kwargs)
        try:
            return program(effort((args, kwargs)), platform())(*args, **kwargs)
        except ValueError as error:
            # Values known beforehand, within a function that is being compiled: JAX takes options of that alone.
            if "compiler_options" not in str(error):
                raise
            return part()(*args, **kwargs)

    return call


def _count(*trees: Any) -> int:
    """The number of numbers in all arrays."""
    import jax

    return sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(trees))
