"""Which engine is the fastest for a function, found by trying."""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ntkcollapse._checks import check_choice, is_traced
from ntkcollapse.ntk._partial import of_first_process
from ntkcollapse.ntk._problem import Problem, one_like
from ntkcollapse.ntk.engines import ENGINES, Engine, Outputs, get_engine
from ntkcollapse.ntk.engines._engine import Batch, Sums

AUTO = "auto"

# Samples of a trial, enough for products of matrices to be products of matrices.
_TRIAL = 16
_REPEATS = 2
# Answers kept, so that the same function of the same shapes is not tried again.
_MOST_KNOWN = 100

_found: dict[Any, str] = {}


def known(engine: str | Engine) -> str | Engine:
    """The engine of that name, or "auto", for `resolve` to choose once there is something to try.

    Raises:
        ValueError: an unknown name.
        ImportError: neural-tangents where that package is missing.
    """
    if isinstance(engine, str):
        check_choice("engine", engine, (*ENGINES, AUTO))
    return engine if isinstance(engine, str) and engine == AUTO else get_engine(engine)


def resolve(engine: str | Engine, problem: Problem, x: Any, outputs: Outputs | None, available: int) -> Engine:
    """The engine of that name; for "auto" the fastest one on some of the samples.

    Args:
        outputs: of a kernel between samples; None for sums over classes.
        available: bytes for intermediate arrays; where they follow what is free, they are other ones at every call, so
            that an answer serves all of the same power of two.
    """
    if isinstance(engine, Engine) or engine != AUTO:
        return get_engine(engine)
    if is_traced(problem, x):
        return get_engine("layerwise")
    x = np.asarray(x[:_TRIAL])
    arrays, rest = eqx.partition(problem, eqx.is_array)
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in (*jax.tree.leaves(arrays), x)]
    key = (jax.tree.structure(arrays), *jax.tree.leaves(rest), *shapes, outputs, available.bit_length())
    if key not in _found:
        if len(_found) >= _MOST_KNOWN:
            _found.clear()
        seconds = engine_seconds(problem, x, outputs, available)
        _found[key] = list(seconds)[of_first_process(int(np.argmin(list(seconds.values()))))]
    return get_engine(_found[key])


def engine_seconds(problem: Problem, x: np.ndarray, outputs: Outputs | None, available: int) -> dict[str, float]:
    """Warm seconds a sample by each engine, on the samples x."""
    seconds = {name: _seconds(get_engine(name), problem, x, outputs, available) for name in ("layerwise", "jacobian")}
    if outputs is not None and len(x) < _TRIAL:
        # It passes over all samples for each of them: never the fastest for many.
        try:
            seconds["ntvp"] = _seconds(get_engine("ntvp"), problem, x, outputs, available)
        except TypeError:  # A rule of differentiation of f's own, which JAX has backwards only.
            pass
    return seconds


def _seconds(engine: Engine, problem: Problem, x: np.ndarray, outputs: Outputs | None, available: int) -> float:
    if outputs is None:
        chunks = engine.sum_chunks(problem, one_like(x), 1, available)
    else:
        chunks = engine.chunks(problem, one_like(x), len(x), outputs, available)
    samples = jnp.asarray(x[: chunks.samples])
    n = len(samples)

    def run():
        if outputs is not None:
            return engine.kernel(problem, samples, None, outputs, chunks)
        sums = Sums.zeros(problem, chunks.outputs, 1, 0, output_pairs=False)
        ones, signs = jnp.ones(n, problem.dtype), jnp.zeros((n, 0), problem.dtype)
        return engine.add(problem, sums, Batch(samples, jnp.zeros(1, int), ones, signs), jnp.asarray(0))

    times = []
    for _ in range(_REPEATS + 1):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    # Kernels are of all outputs; sums may take them in turns.
    turns = 1 if outputs is not None else -(-problem.num_outputs // chunks.outputs)
    return turns * min(times[1:]) / n
