"""The empirical NTK between samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from tqdm import tqdm

from ntkcollapse._checks import check_choice, check_finite, is_traced
from ntkcollapse._platforms import behind, platform
from ntkcollapse._precision import Precision, in_precision
from ntkcollapse.ntk._devices import Devices
from ntkcollapse.ntk._fastest import known, resolve
from ntkcollapse.ntk._memory import budget
from ntkcollapse.ntk._partial import PartialResults, fingerprint
from ntkcollapse.ntk._problem import one_like, prepare
from ntkcollapse.ntk._samples import one_array
from ntkcollapse.ntk.engines import OUTPUTS, Engine, Outputs, kernel_shape, mirror


@in_precision
def empirical_ntk(
    f: Callable,
    params: PyTree,
    x1: Any,
    x2: Any = None,
    *,
    outputs: Outputs = "full",
    engine: str | Engine = "layerwise",
    parameters: Any = None,
    in_axes: Any = 0,
    memory: int | float | None = None,
    checkpoint: str | Path | None = None,
    precision: Precision | None = None,
) -> Float[Array, "A B ..."]:
    r"""Empirical neural tangent kernel of a pure function, exact.

    $$\Theta_{ks}(x_i, x_j) = \langle \nabla_\theta f_k(x_i), \nabla_\theta f_s(x_j) \rangle$$

    With f a network's outputs this is Θ (the paper's γ), with f its last-layer features Θ^h (κ).

    Args:
        f: (params, x) ↦ (N, K), one row a sample, in evaluation mode.
        params: any pytree, or a flax nnx module; the kernel is a sum over its floating-point arrays. Python's own
            numbers are none of them, nor is what a forward pass updates: collections such as "batch_stats" beside
            "params", variables of flax nnx that are no `nnx.Param`, an `equinox.nn.State`. Compiled code is found again
            for the same f: arrays that f closes over are read when it is compiled, those in `params` at every call.
        x1: samples, (A, ...): an array, or a pytree of arrays (tokens with a mask, graphs) as f takes it.
        x2: samples, (B, ...); x1 with itself where None.
        outputs: "full" (A, B, K, K), "diagonal" (A, B, K) for k = s, "mean" (A, B) for its mean over k.
        engine: how it is computed; the numbers are the same. "layerwise", "jacobian", "ntvp", "neural-tangents", or
            "auto": the fastest of the first two, and of the third where the samples are few, by trying each on some
            samples, once for every f and shape (compilation included, so for long work or many calls; under `jit`,
            where nothing can be tried, "layerwise").
        parameters: part of these parameters: a path such as "trunk/Dense_0", several paths, or a pytree of True and
            False shaped like `params` or like its upper levels.
        in_axes: where samples stand in x1 and x2, as in `jax.vmap`: a number, or a pytree of them that is x1's or its
            upper levels. f takes and returns what it always does, outputs (N, K). A kernel can be differentiated in
            samples of one array, not of a pytree.
        memory: bytes for intermediate arrays, on each device; what peaks is one chunk of samples in the engine.
            Default: a quarter of what is free, on a CPU at most 512 MiB. The kernel itself comes on top, in the
            host's memory while it is made; one of more bytes than these stays on the CPU device.
        checkpoint: a folder for the finished part of the kernel, written every minute: a stopped call goes on from
            there when made again with the same arguments. Not needed once the call returns, and not under `jit`.
        precision: digits of products of matrices and convolutions on accelerators, as JAX names them: "highest" (by
            default, unless `jax_default_matmul_precision` is set), "high", "tensorfloat32", "bfloat16", "default".
            A CPU has all digits always. docs/accelerators.md has what each costs and leaves.
    Returns:
        Θ, in squared units of f over squared units of the parameters; in float32 at least.
    Raises:
        ValueError: an f that is not (N, K) or couples samples, numbers that are not finite, unknown names, or a
            checkpoint of other work.
    References:
        Jacot et al. (2018), "Neural tangent kernel"; Novak et al. (2022), "Fast finite width neural tangent kernel".
    """
    check_choice("outputs", outputs, OUTPUTS)
    samples = {"x1": x1} if x2 is None else {"x1": x1, "x2": x2}
    engine = known(engine)
    f, samples = one_array(f, samples, in_axes)
    x1, x2 = samples["x1"], samples.get("x2")
    problem = prepare(f, params, samples, parameters)
    engine = resolve(engine, problem, x1, outputs, budget(memory))
    K = problem.num_outputs
    like = one_like(x1)
    A, B = np.shape(x1)[0], np.shape(x1 if x2 is None else x2)[0]
    devices = Devices()
    each = -(-max(A, B) // devices.count)
    chunks = engine.chunks(problem, like, each, outputs, budget(memory) // (1 if x2 is None else 2))
    size = chunks.samples * devices.count
    rows, columns = _bounds(A, size), _bounds(B, size)
    tiles = [(r, c) for r in rows for c in columns if x2 is not None or c[0] >= r[0]]
    traced = is_traced(problem, x1, x2)
    # Filled on the host: the kernel of many samples need not fit beside the chunk on an accelerator.
    shape = kernel_shape(outputs, A, B, K)
    kernel = jnp.zeros(shape, problem.dtype) if traced else _zeros(shape, problem.dtype)
    placed = problem if traced else devices.everywhere(problem)

    def chunk(x, i, ii):
        return jnp.asarray(x[i:ii]) if traced else devices.place(devices.padded(x[i:ii]), spread=engine.spreads)

    if traced and checkpoint is not None:
        raise ValueError(
            "checkpoint: expected a call outside of `jit`, whose numbers can be written; got traced arrays."
        )
    partial = PartialResults(
        checkpoint, lambda: fingerprint(problem, list(samples.values()), outputs, engine.name, chunks, devices.count)
    )
    done, saved = partial.load("kernel")
    if done:
        kernel[...] = saved[0]
    bar = tqdm(total=len(tiles), initial=done, desc="empirical NTK", unit="tile", disable=None, delay=1.0, leave=False)

    def sent():
        for (i, ii), (j, jj) in tiles[done:]:
            right = None if x2 is None and i == j else chunk(x1 if x2 is None else x2, j, jj)
            tile = engine.kernel(placed, chunk(x1, i, ii), right, outputs, chunks)
            yield (i, ii), (j, jj), tile if traced else devices.to_fetch(tile)

    for n, ((i, ii), (j, jj), tile) in enumerate(behind(sent()), done + 1):
        if not traced:
            tile = np.asarray(tile)[: ii - i, : jj - j]
            check_finite("gradients of f", tile)
        kernel = _write(kernel, slice(i, ii), slice(j, jj), tile)
        if x2 is None and i != j:
            kernel = _write(kernel, slice(j, jj), slice(i, ii), mirror(tile))
        bar.update()
        if n < len(tiles):
            partial.save("kernel", n, lambda kernel=kernel: [kernel])
    bar.close()
    partial.remove("kernel")
    if outputs == "mean":
        kernel = kernel / K if traced else np.divide(kernel, K, out=kernel)
    if traced:
        return jnp.asarray(kernel)
    # One that would leave no room beside it on an accelerator stays with the CPU.
    on_host = platform() != "cpu" and kernel.nbytes > budget(memory)
    return jax.device_put(kernel, jax.local_devices(backend="cpu")[0] if on_host else None)


def _bounds(n: int, chunk: int) -> list[tuple[int, int]]:
    """(first, end) of chunks of one size, at most `chunk`: the last one may overlap, so that one shape is compiled."""
    count = -(-n // chunk)
    size = -(-n // count)
    return [(min(i * size, n - size), min((i + 1) * size, n)) for i in range(count)]


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that begins at a multiple of 64 bytes, which JAX then takes over on a CPU and makes no second one."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _write(kernel, rows: slice, columns: slice, tile):
    if isinstance(kernel, np.ndarray):
        kernel[rows, columns] = tile
        return kernel
    return kernel.at[rows, columns].set(tile)
