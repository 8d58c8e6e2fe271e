"""Everything that is observed of the last layer on the probe."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.compiled import compiled_quickly
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.observable_table import Observable, metrics
from ntkcollapse.observables import Observables, observe
from ntkcollapse.training.measurements.moment import Moment
from ntkcollapse.training.objectives import summed_loss


def last_layer(moment: Moment) -> Observables:
    """Observes everything of the last layer on the probe; `loss` is the training loss, summed over the probe.

    Where the measured κ has λ_single ≤ 0 the invariant is not defined, and what is said of it is NaN.
    """
    state, classes, entries = moment.last_layer, moment.probe.classes, metrics(along_runs=True)
    if not moment.with_kernel:
        return _observe(state, classes, None, moment.loss, entries)
    try:
        return _observe(state, classes, moment.kappa.block(), moment.loss, entries)
    except ValueError:
        if not np.isfinite(moment.kappa[:3]).all():
            raise
    without_kernel = _observe(state, classes, None, moment.loss, entries)
    names = eqx.filter_eval_shape(_observe, state, classes, BlockKernel(1.0, 0.0, 0.0), moment.loss, entries)
    return {name: without_kernel.get(name, jnp.asarray(jnp.nan)) for name in names if not name.startswith("kappa_")}


@compiled_quickly()
def _observe(
    state: LastLayer, classes: Classes, kappa: BlockKernel | None, loss: str, entries: tuple[Observable, ...]
) -> Observables:
    # The squared loss is the sum of the parts of the residual, to the last digit.
    summed = None if loss == "squared" else summed_loss(loss)
    return observe(state, classes, kappa, summed, metrics=entries)
