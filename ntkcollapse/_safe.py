"""Division, root and norm with a stated value, and derivative 0, where the textbook ones have none. NaN stays NaN."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def divide(top: Float[Array, "..."], bottom: Float[Array, "..."], otherwise: float) -> Float[Array, "..."]:
    """top / bottom where bottom > 0, and `otherwise` where it is not. Arrays of one shape."""
    none = bottom <= 0
    return jnp.where(none, otherwise, top / jnp.where(none, 1, bottom))


def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """√square where it is positive, and 0 where it is not."""
    none = square <= 0
    return jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, square)))


def norm(A: Float[Array, "..."]) -> Float[Array, ""]:
    """Frobenius norm."""
    # Scaled by the largest entry: squares of entries below 1e-160 (1e-20 in float32) would be lost. That is held: the
    # derivative is that of any scale, and the derivative of a largest entry asks which entry equals it: none does where
    # a compiler forms A a second time with other roundings, and the derivative is 0/0.
    size = jnp.max(jnp.abs(jax.lax.stop_gradient(A)))
    size = jnp.where(size > 0, size, 1)
    return size * root(jnp.sum(jnp.square(A / size)))


def unit(A: Float[Array, "..."]) -> Float[Array, "..."]:
    """A / ‖A‖_F, and 0 for A = 0."""
    length = norm(A)
    return A / jnp.where(length > 0, length, 1)


def std(x: Float[Array, " k"]) -> Float[Array, ""]:
    """Standard deviation of the population."""
    return root(jnp.var(x))


def power_of_two(*arrays: Float[Array, "..."]) -> Float[Array, ""]:
    """The power of two at or below the largest |entry| of all arrays; 1 where all are 0. Derivative 0.

    Dividing by it brings numbers to order 1 without changing a digit.
    """
    size = jnp.max(jnp.stack([jnp.max(jnp.abs(jax.lax.stop_gradient(A))) for A in arrays]))
    limits = jnp.finfo(size.dtype)
    exponent = jnp.clip(jnp.frexp(size)[1] - 1, int(limits.minexp), int(limits.maxexp) - 1)
    return jnp.where(size > 0, jnp.ldexp(jnp.ones((), size.dtype), exponent), 1)
