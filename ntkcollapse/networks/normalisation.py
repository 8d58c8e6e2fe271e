"""Batch normalisation as every network here uses it."""

from typing import Any

import flax.linen as nn


def batch_norm(param_dtype: Any, name: str | None = None, momentum: float = 0.9) -> nn.BatchNorm:
    """Batch normalisation over all axes but the last, called as ``(x, use_running_average)``.

    Running averages keep `momentum` of their value at every step and are in the parameters' precision. Samples of a
    batch that is spread over several devices are normalised together.
    """
    return nn.BatchNorm(momentum=momentum, force_float32_reductions=False, param_dtype=param_dtype, name=name)
