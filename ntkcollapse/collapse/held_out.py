"""Collapse of test features about the class means of training: weak and strong."""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from ntkcollapse._checks import check_finite, check_real, check_shape, is_traced
from ntkcollapse.collapse.nc4 import nearest_class_mean
from ntkcollapse.collapse.statistics import ClassStatistics, as_floats, check_label_range, in_range, unit_of_squares


def strong_test_collapse(
    H: Float[ArrayLike, "n N"], labels: Shaped[ArrayLike, " N"], train: ClassStatistics
) -> ClassStatistics:
    r"""Statistics of test features about the *training* mean of their *own* class.

    Strong collapse of the test distribution is that every test sample goes to the point to which its class went in
    training. So deviations are h − μ_y with μ of training, and so is Σ_B: any NC1 of the result, weighted by class,
    says how far test features are from that, on the scale on which the same NC1 of `train` says it for training
    features. (Weighted by sample, Σ_B would follow the sizes of the test set's classes.)

    Args:
        H: test features in columns.
        labels: their true classes.
        train: statistics of the training features.
    Returns:
        Sizes, scatter and squared deviations of the test set; means of the training set.
    Raises:
        ValueError: shapes that disagree, features that are not finite, or labels of classes that training did not have.
    References:
        Hui, Belkin & Nakkiran (2022) for the notion; the scatter about training means as its measure is this
        package's choice.
    """
    check_real(H=H, labels=labels)
    return _about_training_means(as_floats(H), jnp.asarray(labels), train)


def weak_test_collapse(H: Float[ArrayLike, "n N"], train: ClassStatistics) -> ClassStatistics:
    r"""Statistics of test features about the training mean that is *nearest* to each, right or wrong.

    Weak collapse asks only that test features concentrate at C points, whichever sample goes where. With the training
    means as those points, tr Σ_W is the least over all assignments: never above that of `strong_test_collapse`, and
    equal to it where the nearest-class-centre rule makes no error; weighted by class, the same Σ_B stands below both.
    So for `nc1_tirer2022` weak ≤ strong always. Other NC1 take averages over classes or weigh directions, and the order
    is then usual, not certain. Classes to which no sample is assigned have size 0, and no vote in those averages.

    Arguments, errors and source as in `strong_test_collapse`; test labels are not used.
    """
    check_real(H=H)
    H = as_floats(H)
    check_shape("H", H, (train.num_features, None), "(n features, N samples) with n as train has")
    return _about_training_means(H, nearest_class_mean(H, train.means), train)


def _about_training_means(H: Array, labels: Array, train: ClassStatistics) -> ClassStatistics:
    check_shape("H", H, (train.num_features, None), "(n features, N samples) with n as train has")
    check_shape("labels", labels, (H.shape[1],), "one label a column of H")
    check_finite("H", H)
    if not is_traced(labels):
        check_label_range(labels, H.shape[1], train.num_classes)
    return _scatter(H, labels, train.means)


@eqx.filter_jit
def _scatter(H, labels, means) -> ClassStatistics:
    labels, valid = in_range(labels, means.shape[1], H.dtype)
    member = (labels[:, None] == jnp.arange(means.shape[1], dtype=labels.dtype)[None, :]).astype(H.dtype)
    unit = unit_of_squares(H, means)
    deviations = (H - means[:, labels]) / unit
    return ClassStatistics(
        sizes=member.sum(0) * valid,
        means=means * valid,
        scatter=jnp.matmul(deviations, deviations.T, precision="highest") * valid,
        square_deviations=jnp.matmul(jnp.square(deviations), member, precision="highest") * valid,
        unit=unit,
    )
