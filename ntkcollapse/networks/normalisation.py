"""Batch normalisation as every network here uses it."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


def batch_norm(param_dtype: Any, name: str | None = None, momentum: float = 0.9) -> nn.BatchNorm:
    """Batch normalisation over all axes but the last, called as ``(x, use_running_average)``.

    Running averages keep `momentum` of their value at every step and are in the parameters' precision. Samples of a
    batch that is spread over several devices are normalised together. Passes in half precision through a network in
    single take means and variances in single.
    """
    single = jnp.dtype(param_dtype) == jnp.float32
    return nn.BatchNorm(momentum=momentum, force_float32_reductions=single, param_dtype=param_dtype, name=name)
