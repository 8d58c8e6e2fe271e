"""A kernel that changes in time, interpolated from the times at which it was measured."""

import inspect
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ntkcollapse._arrays import as_array, module_of, stacked
from ntkcollapse._checks import check_arrays, check_finite, check_increasing, check_shape, is_traced
from ntkcollapse._types import AnyArray
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.krylov_kernel import KrylovKernel
from ntkcollapse.sample_kernel import GroupedKernel, SampleKernel


class KernelPath(eqx.Module):
    """K(t), linear between measurements and constant before the first and after the last.

    Args:
        times: flow times of the measurements, increasing, (T,).
        diagonal, within, between: block values with a leading time axis: (T,) each, or in the general form
            (T, C), (T, C) and (T, C, C).

    `KernelPath.of(times, kernels)` takes any list of kernels of one kind and shape instead.

    Raises:
        ValueError: times that do not increase, or values that do not come one a time.
    """

    times: Float[Array, " T"]
    kernels: SampleKernel

    def __init__(self, times, *, diagonal, within, between):
        check_arrays(times=times, diagonal=diagonal, within=within, between=between)
        times = jnp.asarray(times, dtype=float)
        check_increasing("times", times)
        values = [jnp.asarray(x, dtype=float) for x in (diagonal, within, between)]
        for name, value in zip(("diagonal", "within", "between"), values, strict=True):
            check_shape(name, value, (times.shape[0], *(None,) * (value.ndim - 1)), "one kernel value a time")
            check_finite(name, value)
        for d, w, b in zip(*values, strict=True):
            BlockKernel(d, w, b)
        self.times = times
        self.kernels = jax.vmap(BlockKernel)(*values)

    @classmethod
    def of(cls, times: Float[AnyArray, " T"] | Sequence[float], kernels: Sequence[SampleKernel]) -> "KernelPath":
        """The path through kernels of one kind and shape, one at each time.

        Raises:
            TypeError: no list, or something in it that is no kernel.
            ValueError: times that do not increase; kernels of several kinds, shapes or bases, or not one a time.
        """
        check_increasing("times", times)
        times = jnp.asarray(times, dtype=float)
        if not isinstance(kernels, Sequence) or isinstance(kernels, str):
            raise TypeError(f"kernels: expected a list of kernels, one a time, got {type(kernels).__name__}.")
        if len(kernels) != times.shape[0] or len({jax.tree.structure(k) for k in kernels}) != 1:
            raise ValueError(
                f"kernels: expected {times.shape[0]} kernels of one kind and shape, one a time; got {len(kernels)} "
                f"of kinds {sorted({type(k).__name__ for k in kernels})}."
            )
        if len({tuple(jnp.shape(x) for x in jax.tree.leaves(k)) for k in kernels}) != 1:
            raise ValueError("kernels: expected kernels of one shape, got several; measure all on the same samples.")
        if not all(isinstance(kernel, SampleKernel) for kernel in kernels):
            raise TypeError(f"kernels: expected kernels, got {sorted({type(k).__name__ for k in kernels})}.")
        if isinstance(kernels[0], GroupedKernel | KrylovKernel) and not is_traced(kernels):
            bases = [_basis_of(k) for k in kernels if isinstance(k, GroupedKernel | KrylovKernel)]
            if not all(np.array_equal(bases[0], basis) for basis in bases):
                raise ValueError(
                    "kernels: expected kernels in one common basis, got several: between measurements their "
                    "directions cannot be interpolated. Keep the basis of the first (KrylovKernel.of_same_directions), "
                    "or use a path of DenseKernel."
                )
        return cls.through(times, jax.tree.map(stacked, *kernels))

    @classmethod
    def through(cls, times: Float[AnyArray, " T"], stacked: SampleKernel) -> "KernelPath":
        """The path through kernels that are stacked already, with a leading time axis on each array."""
        path = object.__new__(cls)
        object.__setattr__(path, "times", times)
        object.__setattr__(path, "kernels", stacked)
        return path

    @property
    def reducible(self) -> bool:
        """Whether the kernels along the path are reducible."""
        return self.kernels.reducible

    @property
    def num_directions(self) -> int:
        """How many further directions the kernels mix with class means."""
        return self.kernels.num_directions

    def at(self, t: float | Num[AnyArray, ""]) -> SampleKernel:
        """The kernel at flow time t."""
        xp = module_of(t, self)
        times, last = xp.asarray(self.times), self.times.shape[0] - 2
        i = xp.clip(xp.searchsorted(times, t, side="right") - 1, 0, last)
        weight = xp.clip((t - times[i]) / (times[i + 1] - times[i]), 0, 1)

        def between(k):
            k = xp.asarray(k)
            return as_array(k[i] + weight.astype(k.dtype) * (k[i + 1] - k[i]))

        return jax.tree.map(between, self.kernels)


class KernelFunction(eqx.Module):
    """K(t) as a function gives it: `SampleKernel`s, or three numbers of a block kernel.

    The function is called with times that JAX traces. Such flows are integrated in full; a trajectory keeps the kernels
    at its own times, as a `KernelPath`.

    Raises:
        TypeError: a function that does not take one argument, or gives no kernel.
    """

    function: Callable = eqx.field(static=True)

    def __check_init__(self):
        try:
            inspect.signature(self.function).bind(0.0)
        except (TypeError, ValueError):
            raise TypeError(
                f"kernel: expected a kernel, got the function {self.name!r}; for a kernel that depends on time give a "
                "KernelPath or a function of t alone, for one that depends on the state derive a flow of your own from "
                "ntkcollapse.Flow, with `kernel_at(t, state)`."
            ) from None

    @property
    def name(self) -> str:
        """Of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def reducible(self) -> bool:
        """Never: what it is at other times is not known."""
        return False

    @property
    def num_directions(self) -> int:
        """0, as of everything that is integrated in full."""
        return 0

    def at(self, t: float | Num[AnyArray, ""]) -> SampleKernel:
        """The kernel at flow time t, in the precision of t."""
        t = jnp.asarray(t)
        t = t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)
        kernel = self.function(t)
        if isinstance(kernel, Sequence) and len(kernel) == 3:
            kernel = BlockKernel(*kernel)
        if not isinstance(kernel, SampleKernel):
            raise TypeError(
                f"kernel: expected a kernel, got {type(kernel).__name__} from the function {self.name!r} of t; "
                "let it give a SampleKernel or three numbers."
            )
        return jax.tree.map(lambda x: x.astype(t.dtype) if eqx.is_inexact_array(x) else x, kernel)


def _basis_of(kernel: GroupedKernel | KrylovKernel) -> np.ndarray:
    """The directions that its numbers are of, groups of rates among them."""
    groups = (kernel.rest,) if isinstance(kernel, KrylovKernel) else ()
    return np.concatenate([np.asarray(V) for V in (kernel.basis, *groups)], axis=1)
