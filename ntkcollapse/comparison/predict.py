"""How far a theory is from what was measured."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ntkcollapse.observable_table import shown_in
from ntkcollapse.trajectory import Trajectory


class Gap(NamedTuple):
    """How far theory is from the network in one observable.

    relative: (theory − network) / |network| at the common times; NaN where the network's value is 0.
    horizon: the last common time up to which |relative| stays within the tolerance; NaN if not even the next one.
    """

    times: Float[np.ndarray, " T"]
    network: Float[np.ndarray, " T"]
    theory: Float[np.ndarray, " T"]
    relative: Float[np.ndarray, " T"]
    horizon: float


def gaps(
    network: Trajectory, theory: Trajectory, names: Sequence[str] | None = None, *, tolerance: float = 0.1
) -> dict[str, Gap]:
    """The gap in each observable that both trajectories have, at the times that both have.

    Args:
        network, theory: the two trajectories.
        names: of observables; by default those that the table of observables names for gaps.
        tolerance: on |relative|, for the horizon.
    Raises:
        ValueError: no time in common.
    """
    common, at_network, at_theory = np.intersect1d(network.times, theory.times, return_indices=True)
    if common.size == 0:
        raise ValueError("gaps: the two trajectories have no time in common; compare rungs of one ladder.")
    gaps_by_name = {}
    for name in shown_in("gaps") if names is None else names:
        if name not in network.observables or name not in theory.observables:
            continue
        y = np.asarray(network.observables[name], dtype=float)[at_network]
        z = np.asarray(theory.observables[name], dtype=float)[at_theory]
        relative = np.divide(z - y, np.abs(y), out=np.full_like(y, np.nan), where=y != 0)
        apart = ~(np.abs(relative) <= tolerance) & ~((y == 0) & (z == 0))
        # At the start they agree by construction, so the horizon is counted from there.
        first = int(np.argmax(apart)) if apart.any() else len(common)
        horizon = float(common[first - 1]) if first > 1 else float("nan")
        gaps_by_name[name] = Gap(common, y, z, relative, horizon)
    return gaps_by_name
