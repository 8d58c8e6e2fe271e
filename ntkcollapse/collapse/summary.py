"""All metrics of one set of features at once, in float64."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from ntkcollapse._checks import check_finite
from ntkcollapse.collapse import nc1, nc2, nc3, pairs
from ntkcollapse.collapse.statistics import ClassStatistics, check_no_empty_class
from ntkcollapse.collapse.streaming import RunningStatistics


def measure(
    statistics: ClassStatistics | RunningStatistics, W: Float[ArrayLike, "C n"] | None = None
) -> dict[str, float]:
    """Every metric that statistics (and a classifier) determine, by name.

    Evaluated in float64 on whichever device holds the statistics, whatever JAX's x64 flag says: metrics subtract means
    that may be close, while features are usually float32.

    Args:
        statistics: of a set of features.
        W: classifier; NC3, and NC2 of its rows (names ending in _of_weights), come with it.
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
    check_finite("W", W)
    leaves = [np.asarray(x, dtype=np.float64) for x in jax.tree.leaves(statistics)]
    check_no_empty_class(leaves[0])
    with jax.enable_x64(True):
        wide = ClassStatistics(*(jnp.asarray(x) for x in leaves))
        nc2.warn_if_no_simplex(wide.num_features, wide.num_classes, stacklevel=3)
        with warnings.catch_warnings():
            # Said above in every call; each metric would say so again, and only while it is compiled.
            warnings.simplefilter("ignore", UserWarning)
            values = _measure(wide, None if W is None else jnp.asarray(np.asarray(W, dtype=np.float64)))
        return {name: float(value) for name, value in values.items()}


@jax.jit
def _measure(statistics: ClassStatistics, W) -> dict[str, Any]:
    of_statistics = (
        nc1.nc1_papyan2020,
        nc1.nc1_han2022,
        nc1.nc1_tirer2022,
        nc1.nc1_seleznova2023,
        pairs.mean_cdnv_galanti2022,
    )
    of_frame = (
        nc2.nc2_seleznova2023,
        nc2.nc2_equinorm_papyan2020,
        nc2.nc2_equiangle_papyan2020,
        nc2.nc2_maximal_angle_papyan2020,
    )
    values = {f.__name__: f(statistics) for f in (*of_statistics, *of_frame)}
    if W is not None:
        values |= {f.__name__: f(statistics, W) for f in (nc3.nc3_seleznova2023, nc3.nc3_han2022, nc3.nc3_zhu2021)}
        values["nc2_zhu2021"] = nc2.nc2_zhu2021(W)
        values |= {f"{f.__name__}_of_weights": f(W) for f in of_frame[1:]}
    return values
