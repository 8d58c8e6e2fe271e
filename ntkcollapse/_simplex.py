"""The simplex equiangular tight frame: C unit vectors with cosines −1/(C − 1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def check_dimension(num_features: int | None, num_classes: int) -> None:
    """Raises ValueError where a simplex ETF of C vectors has no room: n < C − 1. None is not checked."""
    if num_features is not None and num_features < num_classes - 1:
        raise ValueError(
            f"num_features: a simplex ETF of C = {num_classes} vectors needs at least C - 1 = {num_classes - 1} "
            f"dimensions, got {num_features}."
        )


def simplex_cosines(num_classes: int) -> Float[Array, "C C"]:
    """C Π/(C − 1): cosines of a simplex ETF, 1 and −1/(C − 1)."""
    return (jnp.eye(num_classes) - 1 / num_classes) * num_classes / (num_classes - 1)


def simplex_etf(num_classes: int, num_features: int, *, key: jax.Array) -> Float[Array, "C n"]:
    """C unit vectors with cosines −1/(C − 1), as rows, in a random orientation.

    Raises:
        ValueError: fewer than C − 1 features.
    """
    check_dimension(num_features, num_classes)
    values, vectors = jnp.linalg.eigh(simplex_cosines(num_classes))
    frame = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :])[:, 1:]
    rotation, _ = jnp.linalg.qr(jax.random.normal(key, (num_features, num_features)))
    return frame @ rotation[: num_classes - 1]
