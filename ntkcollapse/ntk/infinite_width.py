"""Kernels of infinitely wide networks, which know nothing of labels."""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice, check_finite, check_positive, check_real, check_shape, is_traced
from ntkcollapse.ntk._neural_tangents import neural_tangents


def infinite_width_kernel(
    kernel_fn: Callable, x1: Any, x2: Any = None, *, kind: Literal["ntk", "nngp"] = "ntk"
) -> Float[Array, "A B"]:
    """NTK or NNGP kernel of an infinitely wide network, the same for every output.

    Args:
        kernel_fn: the third of the functions that a layer of `stax()` returns.
        x1, x2: samples, one row each; x1 with itself where x2 is None.
        kind: "ntk", training all layers; "nngp", the prior over functions at initialisation.
    Raises:
        ImportError: neural-tangents is not installed.
    References:
        Jacot et al. (2018); Novak et al. (2020), "Neural Tangents".
    """
    check_choice("kind", kind, ("ntk", "nngp"))
    return kernel_fn(jnp.asarray(x1), None if x2 is None else jnp.asarray(x2), kind)


def stax() -> Any:
    """The layers of `neural_tangents.stax`: each call gives (init, apply, kernel_fn).

    >>> layers = stax()
    >>> _, _, kernel_fn = layers.serial(layers.Dense(512), layers.Relu(), layers.Dense(1))

    Raises:
        ImportError: neural-tangents is not installed.
    """
    return neural_tangents().stax


def predict_lazily(
    kernel: Float[ArrayLike, "N N"], targets: Float[ArrayLike, "N K"], initial: Float[ArrayLike, "N K"], times: Any
) -> Float[Array, "T N K"]:
    """Training outputs at each time under gradient flow with a kernel that never moves, by `neural_tangents.predict`.

    The loss is ½ Σ_i ‖f_i − y_i‖² over the samples and time is flow time, as in `ntkcollapse.simulate`.

    Args:
        kernel: one N × N kernel for all outputs, symmetric and without negative eigenvalues (of `empirical_ntk` take
            outputs="mean").
        targets, initial: rows of y and of f at time zero.
        times: flow times, zero or above.
    Raises:
        ImportError: neural-tangents is not installed.
        ValueError: shapes that disagree, numbers that are not real, masked or not finite, a kernel that is not
            symmetric or has an eigenvalue below zero (rounding apart), or a negative time.
    """
    check_real(kernel=kernel, targets=targets, initial=initial, times=times)
    per_output = 'one kernel for all outputs; of empirical_ntk take outputs="mean"'
    check_shape("kernel", kernel, (None, None), f"(N, N), {per_output}")
    check_shape("kernel", kernel, (np.shape(kernel)[0],) * 2, "(N, N), rows and columns the same samples")
    for name, value in (("kernel", kernel), ("targets", targets), ("initial", initial)):
        check_finite(name, value)
    _check_positive_semidefinite(kernel)
    check_shape("targets", targets, (np.shape(kernel)[0], None), "one row a sample of the kernel")
    check_shape("initial", initial, np.shape(targets), "as targets")
    check_positive("times", times, zero=True)
    kernel, targets, initial = (jnp.asarray(a) for a in (kernel, targets, initial))
    # The package divides its loss by the number of targets: its clock runs slower by that.
    flow = neural_tangents().predict.gradient_descent_mse(kernel, targets)
    times = jnp.asarray(times, kernel.dtype)
    return flow(times * targets.size, initial)


def _check_positive_semidefinite(kernel) -> None:
    """Symmetric, and no eigenvalue below zero, both to the rounding of the kernel's type: else the flow grows."""
    if is_traced(kernel):
        return
    K = np.asarray(kernel, dtype=np.float64)
    if np.abs(K - K.T).max(initial=0) > 1e-4 * np.abs(K).max(initial=0):
        raise ValueError(
            "kernel: expected a symmetric kernel, got one that is not: rows and columns are one sample set."
        )
    values = np.linalg.eigvalsh(K)
    rounding = 10 * len(K) ** 0.5 * float(jnp.finfo(jnp.result_type(float, jnp.asarray(kernel))).eps)
    if values.size and values[0] < -rounding * values[-1]:
        raise ValueError(
            f"kernel: expected eigenvalues of zero or above, got {values[0]:.3g} (largest {values[-1]:.3g}): gradient "
            "flow under it grows without bound; add a positive multiple of the identity, or measure it in float64."
        )
