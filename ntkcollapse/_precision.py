"""How many digits accelerators keep in products of matrices."""

from contextlib import AbstractContextManager, nullcontext

import jax


def exact_products() -> AbstractContextManager:
    """Within it, products of matrices and convolutions keep all digits of their type, whatever computes them.

    By default TF32 and bfloat16 units give three: kernels would be good to 1e-3, and engines would differ. A precision
    that is set for JAX as a whole (`jax_default_matmul_precision`) stays: faster kernels, of fewer digits, are asked
    for with `jax.default_matmul_precision("default")`.
    """
    chosen = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return jax.default_matmul_precision("highest") if chosen is None else nullcontext()
