"""Multiplications in the kernel of a function, beside those in the function itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import PyTree

from ntkcollapse.ntk._problem import one_like, parameters_alone
from ntkcollapse.ntk._trace import Traced, trace


class KernelWork(NamedTuple):
    """Multiplications in products of matrices and convolutions, the same numbers on every platform.

    forward: of a forward pass of one sample; kernel: of the kernel of all samples, mean over outputs.
    """

    forward: int
    kernel: int


def kernel_work(f: Callable, params: PyTree, x: Any, *, pairs: bool = True) -> KernelWork:
    r"""Multiplications of the empirical NTK of f between N samples x, mean over its K outputs, and of a pass of f.

    A forward pass a sample and K ways back; for a layer of T positions, I inputs and O outputs the gradients
    ($N K T I O$) and their inner products ($N^2 K I O$), or Grams ($N^2 T^2 (I + K O)$) where these are less. Nothing
    is computed. Elementwise work and memory are not counted.

    Args:
        f, params, x: as in `empirical_ntk`.
        pairs: of all pairs of samples; sums over classes (`block_statistics`) without.
    """
    f, params = parameters_alone(f, params)
    like, N = one_like(x), len(x)
    traced, K = Traced(f, params, like), trace(f, params, like)[1].shape[1]
    forth, back = traced.work
    kernel = N * (forth.products + K * back.products)
    for use in (tap.use for tap in traced.taps if tap.use is not None):
        T, gradient = use.positions, use.groups * use.inputs * use.outputs
        formed = N * K * T * gradient + (N**2 * K * gradient if pairs else 0)
        grams = N**2 * use.groups * T**2 * (use.inputs + K * use.outputs)
        kernel += min(formed, grams) if pairs else formed
    return KernelWork(forth.products, kernel)
