"""Few-shot classification of classes that the network was not trained on, by the nearest centre of a few features."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from ntkcollapse._checks import check_finite, check_key, check_real, check_shape, check_whole
from ntkcollapse.collapse.nc4 import check_samples, nearest_class_mean
from ntkcollapse.collapse.statistics import as_floats, check_label_range


class FewShotError(NamedTuple):
    """error: mean over draws of the examples; standard_error: of that mean."""

    error: Float[Array, ""]
    standard_error: Float[Array, ""]


def few_shot_error_galanti2022(
    H: Float[ArrayLike, "n N"], labels: Shaped[ArrayLike, " N"], shots: int, *, key: jax.Array, draws: int = 100
) -> FewShotError:
    r"""Error of the nearest centre of s features a class, on the features that are left.

        err = E_{S_1, …, S_C} (1/C) Σ_c P_{h ∈ class c, h ∉ S_c} [ argmin_d ‖h − mean(S_d)‖ ≠ c ],   |S_d| = s

    With features of a network that was trained on other classes: what its collapse is worth for these. The expectation
    over which s features of each class are the examples is a mean over independent draws; every class has one vote.

    Args:
        H: features in columns, of classes that training did not have.
        labels: their classes 0, …, C−1, at least two, each with more than s features.
        shots: s, examples of each class.
        key: of the draws.
        draws: how many. Costs C n N each.
    Returns:
        Between 0 and 1. Ties go to the class of lower index.
    Raises:
        ValueError: shapes that disagree, fewer than two classes, a class with no more than s features, or numbers that
            are not finite.
    References:
        Galanti, György & Hutter (2022), the nearest-mean rule on target classes.
    """
    check_real(H=H, labels=labels)
    check_key("key", key)
    check_whole("shots", shots)
    check_whole("draws", draws)
    H = as_floats(H)
    check_samples(H)
    check_finite("H", H)
    y, C = check_label_range(labels, H.shape[1], None)
    sizes = np.bincount(y, minlength=C)
    if C < 2 or sizes.min() <= shots:
        raise ValueError(
            f"shots: expected at least two classes with more than {shots} features each, so that some are left to "
            f"classify; got classes of {sizes.tolist()} features."
        )
    check_shape("labels", y, (H.shape[1],), "one label a column of H")
    wrong = _errors(H, jnp.asarray(y), tuple(int(m) for m in sizes), shots, jax.random.split(key, draws))
    return FewShotError(wrong.mean(), jnp.std(wrong) / np.sqrt(max(draws - 1, 1)))


@eqx.filter_jit
def _errors(H, labels, sizes: tuple[int, ...], shots: int, keys) -> Float[Array, " draws"]:
    """The error of each draw."""
    starts = np.cumsum((0, *sizes[:-1]))
    left = jnp.asarray([m - shots for m in sizes], H.dtype)

    def error(key):
        # Class by class, the features of each in random order: the first s of them are the examples.
        order = jnp.lexsort((jax.random.uniform(key, labels.shape, H.dtype), labels))
        examples = order[starts[:, None] + np.arange(shots)[None, :]]
        centres = H[:, examples].mean(-1)
        wrong = (nearest_class_mean(H, centres).astype(labels.dtype) != labels).astype(H.dtype)
        wrong = wrong.at[examples.reshape(-1)].set(0)
        return jnp.mean(jax.ops.segment_sum(wrong, labels, len(sizes)) / left)

    return jax.lax.map(error, keys)
