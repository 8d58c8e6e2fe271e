"""Statistics of sets that do not fit in memory: one pass, flat memory, float64 sums whatever the input."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from ntkcollapse._checks import check_finite, check_real, check_shape
from ntkcollapse.collapse.statistics import ClassStatistics, check_label_range, check_no_empty_class, unit_of_squares


class RunningStatistics(NamedTuple):
    r"""Statistics of all samples of the batches so far; `update` returns them with one more batch added.

    Sums are kept on the host in float64: a batch of float32 (or bfloat16) features from any device is exact in float64,
    its deviations from its own class means are summed there, and batches merge by the update of Chan, Golub and LeVeque
    (Welford's for single samples). So the result does not depend on JAX's x64 flag, nor, beyond rounding at 1e-16, on
    how the samples were cut into batches or in which order these came. Compensated float32 sums on the device would be
    the alternative where the host is slow; a float64 host product is simpler, and costs B n² for a batch of B.

    A tuple of numpy arrays: pickle it, gather it from other processes, and `merge`. Memory n² + 2 n C numbers.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> running = RunningStatistics.empty(num_features=3, num_classes=2)
    >>> for _ in range(5):
    ...     running = running.update(rng.normal(size=(40, 3)).astype(np.float32), rng.integers(0, 2, 40))
    >>> running.num_samples, running.statistics().means.shape
    (200, (3, 2))

    References:
        Welford (1962); Chan, Golub & LeVeque (1983).
    """

    sizes: Float[np.ndarray, " C"]
    means: Float[np.ndarray, "n C"]
    scatter: Float[np.ndarray, "n n"] | None
    square_deviations: Float[np.ndarray, "n C"]

    @classmethod
    def empty(cls, num_features: int, num_classes: int, *, scatter: bool = True) -> "RunningStatistics":
        """Statistics of no samples; `scatter=False` leaves the n × n matrix out, for n in the ten thousands."""
        n, C = num_features, num_classes
        if n < 1 or C < 2:
            raise ValueError(f"empty: expected at least one feature and two classes, got n = {n}, C = {C}.")
        return cls(np.zeros(C), np.zeros((n, C)), np.zeros((n, n)) if scatter else None, np.zeros((n, C)))

    @classmethod
    def of_batches(cls, batches: Iterable[tuple[Any, Any]], num_classes: int) -> "RunningStatistics":
        """Statistics of an iterable of batches (features, labels)."""
        running = None
        for features, labels in batches:
            running = cls.empty(np.shape(features)[1], num_classes) if running is None else running
            running = running.update(features, labels)
        if running is None:
            raise ValueError("batches: expected at least one batch of features and labels, got none.")
        return running

    @property
    def num_samples(self) -> int:
        """N so far."""
        return int(self.sizes.sum())

    def update(
        self, features: Shaped[ArrayLike, "B n"], labels: Shaped[ArrayLike, " B"] | Sequence[int]
    ) -> "RunningStatistics":
        """Adds one more batch: rows of features, in any order and of any classes.

        Raises:
            ValueError: features that are not one row a sample, of another width or not finite; labels out of range.
        """
        n, C = self.means.shape
        check_real(features=features)
        features = np.asarray(features)
        check_shape("features", features, (None, n), f"(B samples, n = {n} features) as the batches before")
        check_finite("features", features)
        y, _ = check_label_range(labels, features.shape[0], C)
        # Only classes that occur cost anything: batches are often smaller than C.
        present, y = np.unique(y, return_inverse=True)
        features = features.astype(np.float64)
        member = np.equal.outer(np.arange(present.size), y).astype(np.float64)
        sizes = member.sum(1)
        # About the first sample of each class, so that a large common offset costs no digits of the means.
        anchor = features[member.argmax(1)]
        deviations = features - anchor[y]
        shift = member @ deviations / sizes[:, None]
        deviations -= shift[y]
        squares = member @ np.square(deviations)
        scatter = None if self.scatter is None else deviations.T @ deviations
        return self._merge(present, sizes, (anchor + shift).T, scatter, squares.T)

    def merge(self, other: "RunningStatistics") -> "RunningStatistics":
        """Joins the statistics of two sets of samples (other batches, devices or processes), in any order.

        Raises:
            ValueError: numbers of features or classes that differ.
        """
        check_shape("other.means", other.means, self.means.shape, "(n features, C classes) as this one has")
        present = np.flatnonzero(other.sizes)
        return self._merge(
            present,
            other.sizes[present],
            other.means[:, present],
            other.scatter,
            other.square_deviations[:, present],
        )

    def _merge(self, present, sizes, means, scatter, square_deviations) -> "RunningStatistics":
        before = self.sizes[present]
        share = sizes / (before + sizes)
        spread = before * share
        δ = means - self.means[:, present]
        summed = None
        if self.scatter is not None and scatter is not None:
            summed = self.scatter + scatter + (δ * spread) @ δ.T
        total = RunningStatistics(self.sizes.copy(), self.means.copy(), summed, self.square_deviations.copy())
        total.sizes[present] += sizes
        total.means[:, present] += δ * share
        total.square_deviations[:, present] += square_deviations + np.square(δ) * spread
        return total

    def statistics(self) -> ClassStatistics:
        """Converts to `ClassStatistics`: float64 where JAX's x64 flag is on, otherwise rounded once to float32.

        Rounding acts on the class means as they are. Where those share an offset much larger than their differences,
        evaluate in float64: `with jax.enable_x64(True): ...`, as `measure` does.

        Raises:
            ValueError: a class without samples, or sums that were kept without scatter.
        """
        check_no_empty_class(self.sizes)
        if self.scatter is None:
            raise ValueError("scatter: expected the within-class scatter, got sums kept without it (scatter=False).")
        dtype = jnp.result_type(float)
        sizes, means = (jnp.asarray(x.astype(dtype)) for x in (self.sizes, self.means))
        unit = float(unit_of_squares(means))
        squares = (jnp.asarray((x / unit**2).astype(dtype)) for x in (self.scatter, self.square_deviations))
        return ClassStatistics(sizes, means, *squares, unit=jnp.asarray(unit, dtype))
