"""Norms of what is trained."""

from typing import Any

import jax
import optax
from jaxtyping import Array

from ntkcollapse.training.measurements.moment import Moment


def parameters(moment: Moment) -> dict[str, Any]:
    """Norm of all parameters, and of all weights (tensors with more than one axis): what weight decay pulls on."""
    every, weights = _norms(moment.variables.params)
    return {"parameter_norm": every, "all_weights_norm": weights}


@jax.jit
def _norms(params: Any) -> tuple[Array, Array]:
    leaves = jax.tree.leaves(params)
    return optax.tree.norm(leaves), optax.tree.norm([leaf for leaf in leaves if leaf.ndim > 1])
