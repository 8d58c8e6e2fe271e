"""Classes of samples in class-major order, and the projections that the order defines."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ntkcollapse._arrays import as_array, module_of, one_thread
from ntkcollapse._checks import check_arrays, check_real, check_shape, check_whole, is_traced
from ntkcollapse._types import AnyArray

# Their sizes stand in memory one by one.
_MOST = 10**7


def _whole(sizes: Any) -> tuple[int, ...]:
    if hasattr(sizes, "__iter__") and getattr(sizes, "ndim", 1):
        sizes = tuple(sizes)
        check_arrays(sizes=sizes)
    if np.ndim(sizes) != 1:
        raise ValueError(f"sizes: expected one number of samples a class, such as (500, 300, 20), got {sizes!r}.")
    for m in sizes:
        if isinstance(m, bool | np.bool_) or not np.isfinite(m) or int(m) != m:
            raise ValueError(f"sizes: expected whole numbers of samples, got {m} ({type(m).__name__}).")
    return tuple(int(m) for m in sizes)


class ResidualParts(NamedTuple):
    """The three orthogonal parts of a residual, R = single + class_ + global_.

    single: R − R_class, what differs between samples of one class;
    class_: R_class − R_global, class means about the global mean (`residual_class` is its norm);
    global_: R_global, the mean over all samples. Each is (C, N). R_class itself, as in the paper, are the class means
    with the global mean in them.
    """

    single: Float[Array, "C N"]
    class_: Float[Array, "C N"]
    global_: Float[Array, "C N"]


class Classes(eqx.Module):
    """C classes of m_c samples each; sample columns stand class by class.

    With Z (N × C) the indicator of membership and D = diag(m_c), the labels are Y = Zᵀ, class means are
    X Z D⁻¹, and X ↦ X Z D⁻¹ Zᵀ is the projection on what is constant within classes.

    Args:
        sizes: number of samples of each class, all at least 1.

    Raises:
        ValueError: fewer than two classes, an empty one, or a size that is not a whole number.

    >>> Classes(sizes=(2, 3)).labels.tolist()
    [0, 0, 1, 1, 1]
    """

    sizes: tuple[int, ...] = eqx.field(static=True, converter=_whole)

    def __check_init__(self):
        if len(self.sizes) < 2:
            raise ValueError(f"sizes: expected at least two classes, got {len(self.sizes)}.")
        if min(self.sizes) < 1:
            empty = self.sizes.index(min(self.sizes))
            raise ValueError(
                f"sizes: expected at least one sample in every class, got {min(self.sizes)} in class {empty}; "
                "drop that class from the labels."
            )

    @classmethod
    def balanced(cls, num_classes: int, per_class: int) -> "Classes":
        """C classes of m samples each."""
        check_whole("num_classes", num_classes)
        if num_classes > _MOST:
            raise ValueError(f"num_classes: expected at most {_MOST:,} classes, got {num_classes:,}.")
        return cls(sizes=(per_class,) * num_classes)

    @classmethod
    def from_labels(cls, labels: Shaped[AnyArray, "..."] | Sequence[int]) -> "Classes":
        """The classes of labels that already stand in class order 0, 0, …, 1, 1, …

        Raises:
            ValueError: labels that are not in class order (use `class_order` to sort them).
        """
        y = _check_labels(labels)
        if (np.diff(y) < 0).any():
            i = int(np.argmax(np.diff(y) < 0))
            raise ValueError(
                f"labels: expected class order (all of class 0, then all of class 1, ...), got label {y[i]} "
                f"before {y[i + 1]} at index {i}; sort samples with ntkcollapse.class_order(labels)."
            )
        return cls(sizes=tuple(np.bincount(y)))

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.sizes)

    @property
    def num_samples(self) -> int:
        """N = Σ_c m_c."""
        return sum(self.sizes)

    @property
    def is_balanced(self) -> bool:
        """Whether every class has the same number of samples."""
        return len(set(self.sizes)) == 1

    @property
    def per_class(self) -> int:
        """m, the common class size.

        Raises:
            ValueError: the classes differ in size.
        """
        if not self.is_balanced:
            raise ValueError(
                f"classes: expected classes of one size, got sizes from {min(self.sizes)} to {max(self.sizes)}; "
                "this quantity is defined for balanced classes only."
            )
        return self.sizes[0]

    @property
    def labels(self) -> Int[Array, " N"]:
        """The class of each sample, non-decreasing."""
        return as_array(np.repeat(np.arange(self.num_classes), self.sizes))

    @property
    def weights(self) -> Float[Array, " C"]:
        """d, the sizes m_c as floating-point numbers."""
        return as_array(np.asarray(self.sizes, dtype=float))

    @property
    def Y(self) -> Float[Array, "C N"]:
        """One-hot labels, one column a sample."""
        return as_array(np.repeat(np.eye(self.num_classes), self.sizes, axis=1))

    def sums(self, X: Float[AnyArray, "... N"]) -> Float[Array, "... C"]:
        """X Z: sums over the samples of each class."""
        return as_array(self._sums(module_of(X), X))

    def _sums(self, xp: Any, X: Any) -> Any:
        X = xp.asarray(X)
        check_shape("X", X, (*(None,) * (X.ndim - 1), self.num_samples), "one column a sample")
        with np.errstate(all="ignore"):
            if self.is_balanced:
                return X.reshape(*X.shape[:-1], self.num_classes, self.per_class).sum(-1)
            ends = np.cumsum(self.sizes)[:-1]
            return xp.stack([part.sum(-1) for part in xp.split(X, ends, axis=-1)], axis=-1)

    @property
    def pair_counts(self) -> tuple[float, float, float]:
        """Numbers of pairs (i, j): with i = j, of one class with i ≠ j, of two classes; N, Σ m² − N, N² − Σ m²."""
        N, squares = self.num_samples, sum(m * m for m in self.sizes)
        return float(N), float(squares - N), float(N * N - squares)

    def block_means(self, diagonal: Any, within: Any, between: Any) -> tuple[Any, Any, Any]:
        """Divides sums of a kernel's entries over the pairs of `pair_counts` by these; NaN where there are none."""
        sums = (diagonal, within, between)
        one, two, three = (total / (count or math.nan) for total, count in zip(sums, self.pair_counts, strict=True))
        return one, two, three

    def means(self, X: Float[AnyArray, "... N"]) -> Float[Array, "... C"]:
        """X Z D⁻¹: class means."""
        return as_array(self._means(module_of(X), X))

    def _means(self, xp: Any, X: Any) -> Any:
        sums = self._sums(xp, X)
        with np.errstate(all="ignore"):
            return sums / xp.broadcast_to(np.asarray(self.sizes, sums.dtype), sums.shape)

    def expand(self, M: Float[AnyArray, "... C"]) -> Float[Array, "... N"]:
        """M Zᵀ: each class's column repeated over its samples."""
        return as_array(self._expand(module_of(M), M))

    def _expand(self, xp: Any, M: Any) -> Any:
        length = {} if xp is np else {"total_repeat_length": self.num_samples}
        return xp.repeat(xp.asarray(M), np.asarray(self.sizes), axis=-1, **length)

    def split_on_host(
        self, X: Float[np.ndarray, "... N"]
    ) -> tuple[Float[np.ndarray, "... C"], Float[np.ndarray, "... N"]]:
        """Class means and deviations of an array of numpy, by numpy: nothing is compiled, and X is read twice."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        means = np.add.reduceat(X, starts, axis=-1) / np.asarray(self.sizes, X.dtype)
        return means, X - np.repeat(means, self.sizes, axis=-1)

    def columns_or_squares(self, X: Float[AnyArray, "n N"]) -> Float[AnyArray, "C n r"]:
        """What tells Σ (p·x)² over each class for every p, in a shape that N alone does not change.

        The columns of each class, filled up with zeros to a power of two r < n; where the largest class has more, all
        Σ x xᵀ, (C, n, n), which then take fewer multiplications. By numpy where X has values.
        """
        xp, r = jnp if is_traced(X) else np, 1 << (max(self.sizes) - 1).bit_length()
        if r < X.shape[0]:
            parts = xp.split(X, np.cumsum(self.sizes)[:-1], axis=1)
            return xp.stack([xp.pad(part, ((0, 0), (0, r - part.shape[1]))) for part in parts])
        # Threads cost more than products of one class. What overflows is refused by name where it goes.
        with nullcontext() if xp is jnp else one_thread(), np.errstate(over="ignore", invalid="ignore"):
            return xp.stack([part @ part.T for part in xp.split(X, np.cumsum(self.sizes)[:-1], axis=1)])

    def deviations(self, X: Float[AnyArray, "... N"]) -> Float[Array, "... N"]:
        """X − X Z D⁻¹ Zᵀ: what remains of each sample after its class mean."""
        xp = module_of(X)
        with np.errstate(all="ignore"):
            return as_array(xp.asarray(X) - self._expand(xp, self._means(xp, X)))

    def parts(self, R: Float[AnyArray, "C N"]) -> ResidualParts:
        """The three orthogonal parts of R: within classes, between class means, global mean."""
        xp = module_of(R)
        R = xp.asarray(R)
        with np.errstate(all="ignore"):
            means = self._means(xp, R)
            class_part = self._expand(xp, means)
            overall = (self._sums(xp, R).sum(-1) / self.num_samples)[:, None] + xp.zeros(R.shape, means.dtype)
            parts = (R - class_part, class_part - overall, overall)
        return ResidualParts(*map(as_array, parts))


def as_classes(classes: Any) -> Classes:
    """Gives the classes themselves, or those of a list of their sizes.

    Raises:
        TypeError: anything else: of an array it is not plain whether it holds sizes or labels.
        ValueError: as `Classes`.
    """
    if isinstance(classes, Classes):
        return classes
    if isinstance(classes, list | tuple):
        return Classes(sizes=tuple(classes))
    raise TypeError(
        "classes: expected Classes, or a list with the number of samples of each class such as (500, 300, 20), got "
        f"{type(classes).__name__}; Classes.from_labels makes them of labels in class order."
    )


def class_order(labels: Shaped[AnyArray, "..."] | Sequence[int]) -> Int[np.ndarray, " N"]:
    """The stable permutation that puts samples in class order: `x[class_order(y)]`."""
    return np.argsort(_check_labels(labels), kind="stable")


def _check_labels(labels) -> np.ndarray:
    check_real(labels=labels)
    y = np.asarray(labels)
    check_shape("labels", y, (None,), "one integer label a sample")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels: expected integers 0, ..., C-1, got dtype {y.dtype}; convert with astype(int).")
    if y.size == 0 or y.min() < 0:
        got = "no labels" if y.size == 0 else str(y.min())
        raise ValueError(f"labels: expected integers 0, ..., C-1, got {got}.")
    missing = np.flatnonzero(np.bincount(y) == 0)
    if missing.size:
        raise ValueError(
            f"labels: expected every class from 0 to {y.max()} to occur, class {missing[0]} has no sample; "
            "renumber the labels with numpy.unique(labels, return_inverse=True)."
        )
    return y
