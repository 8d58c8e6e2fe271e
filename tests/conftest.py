"""Tests run in float64, under strict dtype promotion and without silent rank promotion.

Compiled code is kept in pytest's cache directory, by the hash of what was compiled: most of a test's time is
compilation, and most tests compile what another process, another module or the run before compiled. `make clean`
removes it.
"""

import collections
import functools
import gc
import inspect
import os
import zlib
from typing import Any

import jax
import jaxtyping
import pytest
from jax._src import compilation_cache, lru_cache, traceback_util
from jax._src.interpreters import mlir

from tests.sketches import sketched

jax.config.update("jax_enable_x64", True)
# Most of a test is compilation: a third of it goes when the compiler does not try so hard. Programs that tests start
# must do the same, to end in the same bits.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# As much again goes with the simpler code for fused loops, and a tenth where a program is not cut into pieces that
# several threads compile: the workers are the threads. The XLA of later versions ends at a flag it does not know.
if jax.__version_info__ < (0, 11):
    flags = " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags
# Where in Python an operation comes from is no part of a program: a twentieth less to lower and to look up.
jax.config.update("jax_traceback_in_locations_limit", 0)
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    # Workers and the programs that tests start share one folder; its path is no part of what was compiled.
    kept = {
        "compilation_cache_dir": str(config.cache.mkdir("compiled")),
        "persistent_cache_min_compile_time_secs": 0,
        "persistent_cache_min_entry_size_bytes": -1,
        "persistent_cache_enable_xla_caches": "none",
    }
    for name, value in kept.items():
        jax.config.update(f"jax_{name}", value)
        os.environ[f"JAX_{name.upper()}"] = str(value)


def _put_at_once(cache, key, value):
    """Entries appear whole: JAX writes them bit by bit, and who reads them meanwhile finds them damaged."""
    entry = cache.path / f"{key}-cache"
    if not entry.exists():
        unfinished = cache.path / f"{key}-{os.getpid()}"
        unfinished.write_bytes(value)
        unfinished.replace(entry)


setattr(lru_cache.LRUCache, "put", _put_at_once)  # noqa: B010
# They live as long as a folder of tests: the least compression, which all read.
if getattr(compilation_cache, "zstd", ...) is None and getattr(compilation_cache, "zstandard", ...) is None:
    setattr(compilation_cache, "compress_executable", functools.partial(zlib.compress, level=1))  # noqa: B010

# Each check of Equinox's asks of every frame of a deep stack whether its file is one of JAX's: of the disk, each time.
_in_folder: Any = getattr(traceback_util, "_path_starts_with", None)
if _in_folder is not None:
    setattr(traceback_util, "_path_starts_with", functools.cache(_in_folder))  # noqa: B010

# A program begins with a new context of the compiler's, which takes longer than all else before the compiler itself:
# here a module's programs share one, but for those that are made while another is.
_new_context: Any = getattr(mlir, "make_ir_context", None)
_contexts: list[Any] = []


def _shared_context():
    if mlir.ir.Context.current is not None:
        return _new_context()
    if not _contexts:
        _contexts.append(_new_context())
    return _contexts[0]


mlir.make_ir_context = _shared_context


# Functions without annotations have nothing to check: binding their arguments takes longer than they do, and to wrap
# those that are defined anew in every call of another takes longer still.
_checked = jaxtyping.jaxtyped


def _checked_where_annotated(**options):
    def decorate(thing):
        plain = inspect.isfunction(thing) and not inspect.get_annotations(thing)
        return thing if plain else _checked(thing, **options)

    return decorate


jaxtyping.jaxtyped = _checked_where_annotated


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """What is imported stays: nothing of it is garbage, and no later search for garbage looks at it.

    Searches are rarer too: traces make millions of objects, hardly any of them in cycles.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        gc.set_threshold(20_000, 10, 5)


def pytest_collection_modifyitems(items):
    """Files that take long by few tests come first, then those with many tests: workers end at about the same time."""
    tests = collections.Counter(item.path for item in items)
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: (item.path not in long, -tests[item.path]))


@pytest.fixture(autouse=True, scope="module")
def compiled_code_is_let_go():
    """Compiled functions hold mapped memory, of which a process may have 65,530 pieces; past that the compiler dies.

    Until it has most of them what one module has traced and compiled serves the next; a module needs some thousands.
    """
    yield
    _contexts.clear()
    if _mapped() > 45_000:
        jax.clear_caches()


def _mapped() -> float:
    """Pieces of mapped memory that this process has: no end of them where the system does not say."""
    try:
        with open("/proc/self/maps", "rb") as pieces:
            return sum(1 for _ in pieces)
    except OSError:
        return float("inf")


@pytest.fixture
def as_users_call():
    """Without the runtime checks of annotations, which tests add: the package's own errors are what users see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def figures_are_sketched(request):
    """Figures are not drawn, but for those of tests/plots, of tests marked `drawn`, and of fixtures of a module that do
    not ask for `sketched`: every command has one.
    """
    if "plots" in request.node.path.parts or request.node.get_closest_marker("drawn"):
        yield
    else:
        with sketched():
            yield
