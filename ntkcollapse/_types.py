"""Names for annotations."""

import numpy as np
from jaxtyping import Array

# What public functions take where an array is meant: jax's or numpy's.
AnyArray = Array | np.ndarray
