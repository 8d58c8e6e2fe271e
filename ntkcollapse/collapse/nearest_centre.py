"""The nearest-class-centre rule: how well it classifies, and from which layer on."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from ntkcollapse._checks import check_finite, check_real, check_shape, is_traced
from ntkcollapse.collapse.nc4 import check_samples, nearest_class_mean
from ntkcollapse.collapse.statistics import as_floats, check_label_range, in_range


def ncc_accuracy(
    H: Float[ArrayLike, "n N"], labels: Shaped[ArrayLike, " N"], means: Float[ArrayLike, "n C"]
) -> Float[Array, ""]:
    r"""Fraction of samples whose nearest class mean is their own class's.

    Args:
        H: features in columns, of training or of test data.
        labels: class of each column; or the network's predictions, for the agreement of the two rules. NaN comes back
            where they are traced (under `jit`) and one is not 0, …, C−1.
        means: class means of the *training* features.
    Returns:
        Between 0 and 1.
    Raises:
        ValueError: shapes that disagree, no samples, labels that are not 0, …, C−1, or numbers that are not finite.
    References:
        Galanti, Galanti & Ben-Shaul (2022); Ben-Shaul & Dekel (2022).
    """
    check_real(H=H, labels=labels, means=means)
    H, y = as_floats(H), jnp.asarray(labels)
    check_samples(H)
    check_shape("labels", y, (H.shape[1],), "one label a column of H")
    check_shape("means", means, (H.shape[0], None), "(n features, C classes) with n as H has")
    if not is_traced(labels):
        check_label_range(labels, H.shape[1], np.shape(means)[1])
    for name, value in (("H", H), ("means", means)):
        check_finite(name, value)
    y, valid = in_range(y, np.shape(means)[1], H.dtype)
    return jnp.mean((nearest_class_mean(H, means).astype(y.dtype) == y).astype(H.dtype)) * valid


def ncc_depth(
    accuracies: Float[ArrayLike, " L"] | Sequence[float], tolerance: float = 0.0, *, first: int = 1
) -> int | None:
    r"""After how many layers the nearest-class-centre error is at most ε for the first time: the effective depth.

    Args:
        accuracies: of the nearest-class-centre rule after layer 1, 2, …, L, as `ncc_accuracy` gives them.
        tolerance: ε, the error that is allowed.
        first: layers before the first accuracy; 0 where that is of the network's input.
    Returns:
        A number of layers from `first` on, or None where no layer reaches it (some authors report L then).
        Later layers may err more again: the definition asks for the first.
    Raises:
        ValueError: no layers, or accuracies that are not between 0 and 1.
    References:
        Galanti, Galanti & Ben-Shaul (2022).

    >>> ncc_depth([0.4, 0.8, 0.99, 1.0], tolerance=0.02)
    3
    """
    values = np.asarray(accuracies, dtype=float)
    check_shape("accuracies", values, (None,), "one accuracy a layer")
    check_finite("accuracies", values)
    if values.size == 0 or values.min() < 0 or values.max() > 1:
        raise ValueError(f"accuracies: expected at least one fraction between 0 and 1, got {values}.")
    # Accuracies are counts over N: 1 − 0.99 must count as 0.01.
    reached = np.flatnonzero(1 - values <= tolerance + 1e-12)
    return int(reached[0]) + first if reached.size else None
