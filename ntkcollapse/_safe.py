"""Division, root and norm with a stated value, and derivative 0, where the textbook ones have none."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def divide(top: Float[Array, "..."], bottom: Float[Array, "..."], otherwise: float) -> Float[Array, "..."]:
    """top / bottom where bottom > 0, else `otherwise`. Arrays of one shape."""
    positive = bottom > 0
    return jnp.where(positive, top / jnp.where(positive, bottom, 1), otherwise)


def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """√square where it is positive, else 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def norm(A: Float[Array, "..."]) -> Float[Array, ""]:
    """Frobenius norm."""
    # Scaled by the largest entry: squares of entries below 1e-160 (1e-20 in float32) would be lost.
    size = jnp.max(jnp.abs(A))
    scaled = A / jnp.where(size > 0, size, 1)
    return size * root(jnp.sum(jnp.square(scaled)))


def unit(A: Float[Array, "..."]) -> Float[Array, "..."]:
    """A / ‖A‖_F, and 0 for A = 0."""
    length = norm(A)
    return A / jnp.where(length > 0, length, 1)


def std(x: Float[Array, " k"]) -> Float[Array, ""]:
    """Standard deviation of the population."""
    return root(jnp.var(x))
