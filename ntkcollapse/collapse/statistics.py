"""Sufficient statistics of a set of features: everything that NC1 to NC3 need, whatever the number of samples."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from ntkcollapse import _safe
from ntkcollapse._checks import check_arrays, check_choice, check_finite, check_real, check_shape, is_traced
from ntkcollapse.classes import Classes

WEIGHTINGS = ("class", "sample")


class ClassStatistics(eqx.Module):
    r"""Class sizes, class means and within-class scatter of N features h_i, columns as in the paper.

        sizes              m_c
        means              M = [μ_1, …, μ_C],  μ_c = Σ_{i ∈ c} h_i / m_c
        scatter            S = Σ_c Σ_{i ∈ c} (h_i − μ_c)(h_i − μ_c)ᵀ        a sum over samples, not divided by N
        square_deviations  (S_c)_jj = Σ_{i ∈ c} (h_i − μ_c)_j²               sums as well; their sum over c is diag S
        unit               S and S_c are kept in units of its square

    Every metric here is a function of these alone, works under `jit`, `vmap` and `grad`, and costs the same for any N.
    Two statistics of disjoint sets of samples merge exactly (`merge`), so that sets of any size can be measured in
    pieces. Classes may differ in size: a covariance "by class" gives every class one vote, "by sample" every sample.

    Deviations are taken about each class mean twice, the second time about what rounding left of it, so that scatter
    is right to the precision of the features however small it is beside the means, and whatever the order of samples.
    Features whose squares leave the range of their type (float32: below 1e-9 or above 4e9) get a power of two as
    `unit`; otherwise it is 1.

    Args:
        sizes: (C,), floats.
        means: (n, C).
        scatter: (n, n), symmetric.
        square_deviations: (n, C), zero or above.
        unit: scalar, 1 unless given.

    Raises:
        ValueError: shapes that disagree, or fewer than two classes. (Values are checked where features come in.)

    >>> import numpy as np
    >>> H = np.array([[0.0, 2.0, 5.0, 5.0], [1.0, 1.0, 0.0, 4.0]])
    >>> stats = ClassStatistics.from_columns(H, Classes.balanced(num_classes=2, per_class=2))
    >>> stats.means.tolist(), stats.scatter.tolist()
    ([[1.0, 5.0], [1.0, 2.0]], [[2.0, 0.0], [0.0, 8.0]])
    """

    sizes: Float[Array, " C"]
    means: Float[Array, "n C"]
    scatter: Float[Array, "n n"]
    square_deviations: Float[Array, "n C"]
    unit: Float[Array, ""]

    def __init__(self, sizes, means, scatter, square_deviations, unit=None):
        self.sizes, self.means, self.scatter, self.square_deviations = sizes, means, scatter, square_deviations
        self.unit = jnp.ones((), means.dtype) if unit is None else unit

    def __check_init__(self):
        check_real(**vars(self))
        check_shape("means", self.means, (None, None), "(n features, C classes)")
        n, C = self.means.shape
        if C < 2:
            raise ValueError(f"means: expected at least two classes, got {C}; collapse is about how classes differ.")
        check_shape("sizes", self.sizes, (C,), "one size a class")
        check_shape("scatter", self.scatter, (n, n), "(n features, n features) as means has")
        check_shape("square_deviations", self.square_deviations, (n, C), "(n features, C classes) as means has")

    @classmethod
    def from_features(
        cls,
        features: Float[ArrayLike, "N n"],
        labels: Shaped[ArrayLike, " N"] | Sequence[int],
        num_classes: int | None = None,
    ) -> "ClassStatistics":
        """Measures features in rows, in any order. Costs N n² and one copy of the features, in float32 at least.

        Args:
            features: one row a sample.
            labels: class of each row, 0, …, C−1. Where they are traced (under `jit`) and one is out of this range,
                every number of the result is NaN.
            num_classes: C; needed where labels are traced, otherwise counted.
        Raises:
            ValueError: labels out of range, a class without samples, one class only, features that are not one row a
                sample, not real, masked or not finite.
        """
        check_arrays(features=features)
        features = as_floats(features)
        check_shape("features", features, (None, None), "(N samples, n features), one row a sample")
        check_finite("features", features)
        y, C = check_labels(labels, features.shape[0], num_classes)
        return _from_features(features, y, C)

    @classmethod
    def from_columns(cls, H: Float[ArrayLike, "n N"], classes: Classes) -> "ClassStatistics":
        """Measures features in columns that stand class by class, as `LastLayer.H`; in float32 at least.

        Raises:
            ValueError: a number of columns that `classes` does not have, or numbers that are not real, masked or not
                finite.
        """
        check_real(H=H)
        H = as_floats(H)
        check_shape("H", H, (None, classes.num_samples), f"(n, N) for the {classes.num_samples} samples of classes")
        check_finite("H", H)
        return _from_columns(H, classes)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.means.shape[1]

    @property
    def num_features(self) -> int:
        """n."""
        return self.means.shape[0]

    @property
    def num_samples(self) -> Float[Array, ""]:
        """N = Σ_c m_c."""
        return self.sizes.sum()

    def global_mean(self, weighting: str = "class") -> Float[Array, " n"]:
        """Mean of the class means ("class"), or of all samples ("sample"); equal for classes of one size."""
        return (self.means * self._weights(weighting)[None, :]).sum(1)

    def centred_means(self, weighting: str = "class") -> Float[Array, "n C"]:
        """M − μ_G 1ᵀ."""
        # About the first class mean: means that coincide are then centred to exact zeros.
        M = self.means - self.means[:, :1]
        return M - (M * self._weights(weighting)[None, :]).sum(1, keepdims=True)

    @property
    def within_class_covariance(self) -> Float[Array, "n n"]:
        """Σ_W = S / N: every sample counts the same."""
        return self.scatter * jnp.square(self.unit) / self.num_samples

    def between_class_covariance(self, weighting: str = "class") -> Float[Array, "n n"]:
        """Σ_B = Σ_c p_c (μ_c − μ_G)(μ_c − μ_G)ᵀ with p_c = 1/C ("class") or m_c/N ("sample").

        By sample, Σ_W + Σ_B is the covariance of all samples.
        """
        Mc = self.centred_means(weighting)
        return jnp.matmul(Mc * self._weights(weighting)[None, :], Mc.T, precision="highest")

    def between_class_variance(self, weighting: str = "class") -> Float[Array, ""]:
        """tr Σ_B."""
        return jnp.sum(jnp.square(self.centred_means(weighting)) * self._weights(weighting)[None, :])

    def in_own_units(self) -> "ClassStatistics":
        """The statistics of the features divided by `unit`: where that is not 1, squares of the result are in range."""
        return ClassStatistics(self.sizes, self.means / self.unit, self.scatter, self.square_deviations)

    @property
    def class_variances(self) -> Float[Array, " C"]:
        """Var_c = tr S_c / m_c, the mean squared distance of a class's samples from their mean; 0 without samples."""
        return self.square_deviations.sum(0) * jnp.square(self.unit) / jnp.maximum(self.sizes, 1)

    def _weights(self, weighting: str) -> Float[Array, " C"]:
        check_choice("weighting", weighting, WEIGHTINGS)
        if weighting == "class":
            return jnp.full_like(self.sizes, 1 / self.num_classes)
        return self.sizes / self.sizes.sum()

    def merge(self, other: "ClassStatistics") -> "ClassStatistics":
        """The statistics of both sets of samples together, by the parallel update of Chan, Golub and LeVeque.

        With δ_c the difference of class means and a_c = m_c m'_c / (m_c + m'_c), S + S' + Σ_c a_c δ_c δ_cᵀ: nothing is
        subtracted, so nothing cancels. A class may be missing from one of the two (size 0).

        Raises:
            ValueError: numbers of classes or features that differ.
        References:
            Chan, Golub & LeVeque (1983).
        """
        check_shape("other.means", other.means, self.means.shape, "as this one has")
        total = self.sizes + other.sizes
        share = _safe.divide(other.sizes, total, 0.0)
        unit = jnp.maximum(self.unit, other.unit)
        ours, theirs = jnp.square(self.unit / unit), jnp.square(other.unit / unit)
        difference = other.means - self.means
        δ = difference / unit
        spread = self.sizes * share
        squares = self.square_deviations * ours + other.square_deviations * theirs
        return ClassStatistics(
            sizes=total,
            means=self.means + difference * share[None, :],
            scatter=self.scatter * ours
            + other.scatter * theirs
            + jnp.matmul(δ * spread[None, :], δ.T, precision="highest"),
            square_deviations=squares + jnp.square(δ) * spread[None, :],
            unit=unit,
        )

    def merge_across(self, axis_name: str) -> "ClassStatistics":
        """The statistics of all samples along a mapped axis (`vmap`, `shard_map`, `pmap`), on each of its members."""
        total = jax.lax.psum(self.sizes, axis_name)
        share = _safe.divide(self.sizes, total, 0.0)
        means = jax.lax.psum(self.means * share[None, :], axis_name)
        unit = jax.lax.pmax(jax.lax.stop_gradient(self.unit), axis_name)
        ours = jnp.square(self.unit / unit)
        δ = (self.means - means) / unit
        between = jnp.matmul(δ * self.sizes[None, :], δ.T, precision="highest")
        squares = self.square_deviations * ours + jnp.square(δ) * self.sizes[None, :]
        return ClassStatistics(
            sizes=total,
            means=means,
            scatter=jax.lax.psum(self.scatter * ours + between, axis_name),
            square_deviations=jax.lax.psum(squares, axis_name),
            unit=unit,
        )

    def check(self) -> None:
        """Raises ValueError where a metric would be degenerate rather than a measurement.

        That is: numbers that are not finite, a class without samples, class means that all coincide.
        """
        for name in ("sizes", "means", "scatter", "square_deviations"):
            check_finite(name, getattr(self, name))
        if is_traced(self):
            return
        check_no_empty_class(np.asarray(self.sizes))
        if float(self.in_own_units().between_class_variance()) == 0:
            raise ValueError(
                "means: expected class means that differ, got zero between-class scatter (all class means coincide); "
                "the features carry no class: look at a constant or dead layer."
            )


def as_floats(values) -> Float[Array, "..."]:
    """Converts to floats of 32 bits at least: bfloat16 counts to 256 and float16 to 2048, and sums stay there."""
    dtype = jnp.result_type(values if hasattr(values, "dtype") else np.asarray(values))
    dtype = dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.result_type(float)
    return jnp.asarray(values, dtype=jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)


def check_labels(labels, num_samples: int, num_classes: int | None) -> tuple[Int[Array, " N"], int]:
    """Labels as an array, and C; every class occurs (which traced labels cannot be asked)."""
    if is_traced(labels):
        if num_classes is None:
            raise ValueError("num_classes: expected the number of classes, which traced labels do not tell; got None.")
        check_shape("labels", labels, (num_samples,), f"one label for each of the {num_samples} rows of features")
        _check_integers(labels.dtype)
        return jnp.asarray(labels), num_classes
    y, C = check_label_range(labels, num_samples, num_classes)
    if C < 2:
        raise ValueError("labels: expected at least two classes, got one only; collapse is about how classes differ.")
    check_no_empty_class(np.bincount(y, minlength=C))
    return jnp.asarray(y), C


def _check_integers(dtype) -> None:
    if not np.issubdtype(dtype, np.integer):
        raise ValueError(f"labels: expected integers 0, ..., C-1, got dtype {dtype}; convert with astype(int).")


def check_label_range(labels, num_samples: int, num_classes: int | None) -> tuple[np.ndarray, int]:
    """Integer labels, one a sample, from 0 to C−1; classes may be missing."""
    check_real(labels=labels)
    y = np.asarray(labels)
    check_shape("labels", y, (num_samples,), f"one label for each of the {num_samples} rows of features")
    _check_integers(y.dtype)
    if y.size == 0:
        raise ValueError("labels: expected at least one sample, got none.")
    C = int(y.max()) + 1 if num_classes is None else num_classes
    if y.min() < 0 or y.max() >= C:
        bad = int(y.min()) if y.min() < 0 else int(y.max())
        raise ValueError(
            f"labels: expected labels in 0, ..., {C - 1} for C = {C} classes, got {bad}; "
            "renumber them with numpy.unique(labels, return_inverse=True), or raise num_classes."
        )
    return y, C


def check_no_empty_class(sizes: np.ndarray) -> None:
    empty = np.flatnonzero(sizes == 0)
    if empty.size:
        raise ValueError(
            f"labels: expected samples of each of the {sizes.size} classes, got none of class {empty[0]} "
            f"({empty.size} of {sizes.size} are empty); its mean is undefined: drop it and renumber the labels."
        )


def unit_of_squares(*arrays: Float[Array, "..."]) -> Float[Array, ""]:
    """1, or the power of two next to the largest entry where squares of deviations would leave the type's range."""
    size = _safe.power_of_two(*arrays)
    limits = jnp.finfo(size.dtype)
    smallest = 1024 * float(limits.tiny) ** 0.5 / float(limits.eps)
    return jnp.where((size < smallest) | (size > float(limits.max) ** 0.25), size, 1)


def in_range(labels: Int[Array, " N"], num_classes: int, dtype) -> tuple[Int[Array, " N"], Float[Array, ""]]:
    """Labels in 0, …, C−1, and a factor for everything that is made of them: NaN where one was out of range, else 1."""
    labels = labels.astype(jnp.int32)
    inside = jnp.clip(labels, 0, num_classes - 1)
    return inside, jnp.where(jnp.all(inside == labels), jnp.ones((), dtype), jnp.nan)


@eqx.filter_jit
def _from_features(features, labels, num_classes: int) -> ClassStatistics:
    labels, valid = in_range(labels, num_classes, features.dtype)
    unit = unit_of_squares(features)
    features = features / unit
    sizes = _class_sums(jnp.ones((features.shape[0], 1), features.dtype), labels, num_classes)[:, 0]
    counts = jnp.maximum(sizes, 1)[:, None]
    means = _class_sums(features, labels, num_classes) / counts
    deviations = features - means[labels]
    # What rounding left of the class means, which may be as large as the deviations.
    rest = _class_sums(deviations, labels, num_classes) / counts
    deviations = deviations - rest[labels]
    return ClassStatistics(
        sizes=sizes * valid,
        means=(means + rest).T * unit * valid,
        scatter=jnp.matmul(deviations.T, deviations, precision="highest") * valid,
        square_deviations=_class_sums(jnp.square(deviations), labels, num_classes).T * valid,
        unit=unit,
    )


@eqx.filter_jit
def _from_columns(H, classes: Classes) -> ClassStatistics:
    unit = unit_of_squares(H)
    H = H / unit
    means = classes.means(H)
    deviations = H - classes.expand(means)
    # As above.
    rest = classes.means(deviations)
    deviations = deviations - classes.expand(rest)
    return ClassStatistics(
        sizes=classes.weights.astype(H.dtype),
        means=(means + rest) * unit,
        scatter=jnp.matmul(deviations, deviations.T, precision="highest"),
        square_deviations=classes.sums(jnp.square(deviations)),
        unit=unit,
    )


def _class_sums(values: Float[Array, "N k"], labels: Int[Array, " N"], num_classes: int) -> Float[Array, "C k"]:
    """Sums over the samples of each class, first in blocks of samples, then over blocks.

    Added one after the other, m numbers lose log₁₀ m digits. There are min(√N, N/C) blocks: no more sums than samples.
    """
    N = values.shape[0]
    blocks = max(1, min(math.isqrt(N), N // num_classes))
    block = jnp.arange(N, dtype=labels.dtype) // max(1, -(-N // blocks))
    sums = jax.ops.segment_sum(values, labels + num_classes * block, blocks * num_classes)
    return sums.reshape(blocks, num_classes, values.shape[1]).sum(0)
