"""The empirical NTK between samples."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
from ntkcollapse.ntk.engines import OUTPUTS, Chunks, Engine, Outputs, kernel_shape, mirror


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
            "auto": the one of these but the last that takes the least work, counted from f's operations and the memory,
            so that the choice is the same at every call.
        parameters: part of these parameters: a path such as "trunk/Dense_0", several paths, or a pytree of True and
            False shaped like `params` or like its upper levels.
        in_axes: where samples stand in x1 and x2, as in `jax.vmap`: a number, or a pytree of them that is x1's or its
            upper levels. f takes and returns what it always does, outputs (N, K). A kernel can be differentiated in
            samples of one array, not of a pytree.
        memory: bytes for intermediate arrays, on each device; what peaks is one chunk of samples in the engine.
            Default: a quarter of what is free, on a CPU at most 512 MiB; thousands of samples of a large network take
            two thirds of the time in 2e9. The kernel itself comes on top, in the host's memory while it is made; one of
            more bytes than these stays on the CPU device.
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
    engine = resolve(engine, problem, x1, x2, outputs, budget(memory))
    K = problem.num_outputs
    like = one_like(x1)
    A, B = np.shape(x1)[0], np.shape(x1 if x2 is None else x2)[0]
    devices = Devices()
    each = [-(-n // devices.count) for n in (A, B)]
    chunks = engine.chunks(problem, like, each[0], None if x2 is None else each[1], outputs, budget(memory))
    left, right = (_Blocks(n, *chunks.block(n, devices.count)) for n in (A, B))
    tiles = list(_tiles(left, right, chunks, K, same=x2 is None))
    traced = is_traced(problem, x1, x2)
    shape = kernel_shape(outputs, A, B, K)
    placed = problem if traced else devices.everywhere(problem)

    def block(x, blocks, i):
        if blocks.number > 1:
            x = x[slice(*blocks.span(i))]
        x = _filled(x, blocks.size)
        return jnp.asarray(x) if traced else devices.place(x, spread=engine.spreads)

    if traced and checkpoint is not None:
        raise ValueError(
            "checkpoint: expected a call outside of `jit`, whose numbers can be written; got traced arrays."
        )
    partial = PartialResults(
        checkpoint, lambda: fingerprint(problem, list(samples.values()), outputs, engine.name, chunks, devices.count)
    )
    done, saved = partial.load("kernel")

    def sent():
        kept, kept_for = None, None
        for rows, first, column in tiles[done:]:
            if kept_for != (rows, first):
                # What is kept is given back before as much is asked for.
                kept = None
                given = [block(x1, left, i) for i in range(*rows)]
                kept, kept_for = engine.keep(placed, given, first, outputs, chunks), (rows, first)
            others = None if column is None else block(x1 if x2 is None else x2, right, column)
            tile = engine.against(placed, kept, others, first, outputs, chunks)
            yield (rows, first, column), tile if traced else devices.to_fetch(tile)

    if len(tiles) == devices.count == 1 and not traced and left.size == A and right.size == B:
        ((_, tile),) = sent()
        check_finite("gradients of f", np.asarray(tile))
        if outputs != "mean" or K == 1:
            return tile
        return jax.device_put(np.divide(tile, K, out=_zeros(shape, problem.dtype)))
    # Filled on the host: the kernel of many samples need not fit beside the chunk on an accelerator.
    kernel = jnp.zeros(shape, problem.dtype) if traced else _zeros(shape, problem.dtype)
    if done:
        kernel[...] = saved[0]
    bar = tqdm(total=len(tiles), initial=done, desc="empirical NTK", unit="tile", disable=None, delay=1.0, leave=False)
    for n, ((rows, first, column), tile) in enumerate(behind(sent()), done + 1):
        (i, ii), (j, jj) = left.span(*rows), left.span(*rows) if column is None else right.span(column)
        if not traced:
            tile = np.asarray(tile)
            check_finite("gradients of f", tile)
        tile = tile[: ii - i, : jj - j]
        some = slice(first, first + chunks.outputs) if outputs == "diagonal" else slice(None)
        if outputs == "diagonal":
            tile = tile[:, :, : K - first]
        kernel = _add(kernel, (slice(i, ii), slice(j, jj), some), tile)
        if x2 is None and column is not None:
            kernel = _add(kernel, (slice(j, jj), slice(i, ii), some), mirror(tile))
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


class _Blocks(NamedTuple):
    """n samples in blocks of one size, so that one shape is compiled; the last one may lack some."""

    n: int
    size: int
    number: int

    def span(self, i: int, end: int | None = None) -> tuple[int, int]:
        """The samples of block i, or of all from i to before `end`: first, and the one after the last."""
        return i * self.size, min(self.n, (i + 1 if end is None else end) * self.size)


class _Tile(NamedTuple):
    """Blocks of the left side, from and to; the first of the outputs; block of the other side, None for the same."""

    rows: tuple[int, int]
    first: int
    column: int | None


def _tiles(left: _Blocks, right: _Blocks, chunks: Chunks, num_outputs: int, *, same: bool) -> Iterator[_Tile]:
    """Tiles of a row and some outputs one after the other; where both sides are the same, from the diagonal on."""
    for start in range(0, left.number, chunks.blocks):
        rows = start, min(start + chunks.blocks, left.number)
        for first in range(0, num_outputs, chunks.outputs):
            for column in (None, *range(rows[1], left.number)) if same else range(right.number):
                yield _Tile(rows, first, column)


def _filled(x: Any, size: int) -> Any:
    """With the last sample repeated up to a size."""
    xp, missing = jnp if is_traced(x) else np, size - len(x)
    return x if not missing else xp.concatenate([x, xp.repeat(x[-1:], missing, axis=0)])


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that begins at a multiple of 64 bytes, which JAX then takes over on a CPU and makes no second one."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _add(kernel, at: tuple[slice, ...], tile):
    at = at[: tile.ndim]
    if isinstance(kernel, np.ndarray):
        kernel[at] += tile
        return kernel
    return kernel.at[at].add(tile)
