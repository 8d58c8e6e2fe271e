"""Arrays of numpy as arrays of JAX, without a compilation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_array(x: Any) -> Any:
    """`jnp.asarray(x)`, but numbers of numpy are put on the device as they are.

    `jnp.asarray` of a numpy array compiles a program for each shape and type, some hundredths of a second that a run of
    many shapes pays again and again, and keeps.
    """
    return jax.device_put(x) if isinstance(x, np.ndarray) and x.dtype != object else jnp.asarray(x)
