"""What a kernel in Krylov blocks leaves out, as an error of the residual parts along the flow."""

from typing import Any

import numpy as np
from jaxtyping import Float

from ntkcollapse._types import AnyArray
from ntkcollapse.classes import Classes
from ntkcollapse.krylov_kernel import KrylovKernel
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.observable_table import group
from ntkcollapse.simulation import simulate
from ntkcollapse.theory.flow import Flow
from ntkcollapse.theory.method import Method


def krylov_error(
    start: LastLayer,
    ends: tuple[KrylovKernel, KrylovKernel],
    classes: Classes,
    times: Float[AnyArray, " T"],
    *,
    method: Method | None = None,
    **flow: Any,
) -> dict[str, Float[np.ndarray, " T"]]:
    r"""An estimate of the relative error of ‖R − R_class‖, ‖R_class − R_global‖ and ‖R_global‖ under the first kernel.

    It is the distance of the two predictions, |r_Radau − r_Gauss| over the larger one. What it sees is the coupling of
    the directions to the rest; that the rest has many rates and not one is seen by neither kernel.

    Args:
        start: the state at the first time.
        ends: of `KrylovKernel.ends_of`, which needs no more products for both than for the first.
        classes: behind the columns.
        times: flow times.
        method: as for `simulate`; by default with a relative tolerance of 1e-8.
        flow: weight_decay and bias, as for `Flow`.
    Returns:
        "residual_single", "residual_class" and "residual_global" → the estimate at each time, 0 at the start.
    """
    method = Method(rtol=1e-8, atol=1e-14) if method is None else method
    norms = []
    for kernel in ends:
        run = simulate(start, Flow(kernel, classes, **flow), times=times, method=method, observed=False)
        layers = [run.last_layer(i) for i in range(len(run.times))]
        parts = [classes.parts(layer.logits - classes.Y) for layer in layers]
        norms.append(np.linalg.norm(np.asarray(parts), axis=(2, 3)))
    distance, largest = np.abs(norms[1] - norms[0]), np.maximum(*norms)
    # Both are 0 where a part vanishes.
    errors = np.divide(distance, largest, out=np.zeros_like(distance), where=largest > 0)
    return dict(zip(group("Residual parts"), errors.T, strict=True))
