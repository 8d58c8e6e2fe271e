"""The metrics of the table of observables, evaluated on one set of features."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse import collapse
from ntkcollapse._checks import check_finite, check_real
from ntkcollapse.collapse import nc2
from ntkcollapse.collapse.statistics import ClassStatistics, check_no_empty_class
from ntkcollapse.collapse.streaming import RunningStatistics
from ntkcollapse.observable_table import Observable, metrics


def measure(
    statistics: ClassStatistics | RunningStatistics,
    W: Float[ArrayLike, "C n"] | None = None,
    b: Float[ArrayLike, " C"] | None = None,
) -> dict[str, float]:
    """Evaluates every metric of the table of observables that statistics (and a classifier) determine.

    Evaluated in float64 on whichever device holds the statistics, whatever JAX's x64 flag says: metrics subtract means
    that may be close, while features are usually float32.

    Args:
        statistics: of a set of features.
        W: classifier; NC3, and NC2 of its rows (names ending in _of_weights), come with it.
        b: bias; what is said of it comes with it.
    Returns:
        Numbers by the names of the functions of this package. Degenerate values are as each function states.
    Raises:
        ValueError: a class without samples, numbers that are not finite, sums kept without scatter, or W that does not
            fit.
    Warns:
        UserWarning: n < C − 1, where no simplex ETF exists.

    >>> import numpy as np
    >>> H = np.array([[0.0, 2.0, 5.0, 5.0], [1.0, 1.0, 0.0, 4.0]])
    >>> values = measure(ClassStatistics.from_features(H.T, [0, 0, 1, 1]))
    >>> round(values["nc1_tirer2022"], 4), values["nc1_seleznova2023"]
    (0.5882, 0.75)
    """
    if statistics.scatter is None:
        raise ValueError("scatter: expected the within-class scatter, got sums kept without it (scatter=False).")
    for name in ("sizes", "means", "scatter", "square_deviations"):
        check_finite(name, getattr(statistics, name))
    for name, value in (("W", W), ("b", b)):
        check_real(**{name: value})
        check_finite(name, value)
    leaves = [np.asarray(x, dtype=np.float64) for x in jax.tree.leaves(statistics)]
    check_no_empty_class(leaves[0])
    with jax.enable_x64(True):
        wide = ClassStatistics(*(jnp.asarray(x) for x in leaves))
        nc2.warn_if_no_simplex(wide.num_features, wide.num_classes, stacklevel=3)
        with warnings.catch_warnings():
            # Said above in every call; each metric would say so again, and only while it is compiled.
            warnings.simplefilter("ignore", UserWarning)
            layer = (None if x is None else jnp.asarray(np.asarray(x, dtype=np.float64)) for x in (W, b))
            values = _measure(metrics(), wide, *layer)
        return {name: float(value) for name, value in values.items()}


def evaluate(
    entries: Sequence[Observable],
    statistics: ClassStatistics,
    W: Float[ArrayLike, "C n"] | None = None,
    b: Float[ArrayLike, " C"] | None = None,
) -> dict[str, Array]:
    """Evaluates these metrics, those that need W or b only where these are given.

    Args:
        entries: of the table of observables.
        statistics: of a set of features.
        W, b: classifier.
    """
    given = {"statistics": statistics, "W": W, "b": b}
    return {
        entry.name: _function(entry)(*(given[argument] for argument in entry.of))
        for entry in entries
        if all(given[argument] is not None for argument in entry.of)
    }


def _function(entry: Observable) -> Callable[..., Array]:
    if callable(entry.function):
        return entry.function
    name = entry.function or entry.name
    if not hasattr(collapse, name):
        raise ValueError(
            f"observable {entry.name!r}: expected a function {name!r} that ntkcollapse.collapse exports, got none; "
            "export it there, or give the function itself in the entry."
        )
    return getattr(collapse, name)


@partial(jax.jit, static_argnums=0)
def _measure(entries: tuple[Observable, ...], statistics: ClassStatistics, W, b) -> dict[str, Array]:
    return evaluate(entries, statistics, W, b)
