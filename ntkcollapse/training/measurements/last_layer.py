"""Everything that is observed of the last layer on the probe."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.observables import Observables, observe
from ntkcollapse.training.measurements.moment import Moment


def last_layer(moment: Moment) -> Observables:
    """Everything `observe` says of the last layer on the probe; its `loss` is ½‖R‖² there.

    Where the measured κ has λ_single ≤ 0 the invariant is not defined, and what is said of it is NaN.
    """
    state, classes = moment.last_layer, moment.probe.classes
    if not moment.with_kernel:
        return _observe(state, classes, None)
    try:
        return _observe(state, classes, moment.kappa.block())
    except ValueError:
        if not np.isfinite(moment.kappa[:3]).all():
            raise
    seen = _observe(state, classes, None)
    names = jax.eval_shape(_observe, state, classes, BlockKernel(1.0, 0.0, 0.0)).keys()
    return {name: seen.get(name, jnp.asarray(jnp.nan)) for name in names if not name.startswith("kappa_")}


@eqx.filter_jit
def _observe(state: LastLayer, classes: Classes, kappa: BlockKernel | None) -> Observables:
    return observe(state, classes, kappa)
