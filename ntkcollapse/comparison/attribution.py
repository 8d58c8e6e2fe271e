"""Which assumption owns the gap: differences of neighbouring rungs, which sum to it."""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from ntkcollapse._checks import check_choice
from ntkcollapse.comparison.ladder import Ladder
from ntkcollapse.comparison.predict import gaps
from ntkcollapse.comparison.rungs import RUNGS

Scale = Literal["log", "linear"]

# From the strongest assumption to the network. The second name of each pair drops what the first one assumes.
FROZEN_CHAIN = (
    "block-frozen",
    "class-pairs",
    "within-spectrum",
    "sample-frozen",
    "features-linearised",
    "features-coupled",
    "network-flow",
    "network",
)
LAZY_CHAIN = ("network-linearised", "features-linearised", "features-coupled", "network-flow", "network")
PATH_CHAIN = ("block-frozen", "block-path", "sample-path", "network-flow", "network")

# What is given up between two rungs. Pairs that no chain names are called by their rungs.
ASSUMPTIONS = {
    ("block-frozen", "block-path"): "block kernel drift",
    ("block-frozen", "class-pairs"): "classes alike",
    ("class-pairs", "within-spectrum"): "one rate within classes",
    ("within-spectrum", "sample-frozen"): "no cross terms of means and deviations",
    ("class-pairs", "sample-frozen"): "class blocks",
    ("block-frozen", "sample-frozen"): "block structure",
    ("block-path", "sample-path"): "block structure",
    ("sample-frozen", "sample-path"): "sample kernel drift",
    ("sample-frozen", "features-linearised"): "average over features",
    ("sample-path", "network-flow"): "average over features, along the path",
    ("features-linearised", "features-coupled"): "batch statistics at rest",
    ("features-linearised", "network-flow"): "lazy features",
    ("features-coupled", "network-flow"): "lazy features",
    ("network-linearised", "features-linearised"): "lazy last layer",
    ("network-linearised", "network-flow"): "lazy network",
    ("sample-frozen", "network-flow"): "average over features, and lazy features",
    ("sample-frozen", "network"): "all that the sample kernel leaves out",
    ("sample-path", "network"): "average over features, and the optimiser's steps",
    ("features-linearised", "network"): "lazy features, and the optimiser's steps",
    ("features-coupled", "network"): "lazy features, and the optimiser's steps",
    ("block-frozen", "network"): "all of it",
    ("block-path", "network"): "all but the drift of the block kernel",
    ("network-flow", "network"): "flow instead of the optimiser's steps",
}

# Beside what else two rungs differ in, where a network has batch normalisation and its rung 4b is stepped over.
AT_REST = ", batch statistics at rest"

# Of ‖R‖ at the start: below this share a part of the residual is the solver's, not the rung's. Rungs 1 to 5 are
# integrated at relative tolerances of 1e-8 and 1e-7; what has decayed is damped by the solver, not by e^{−λt}.
RESOLVED = 1e-7


class Share(NamedTuple):
    """What one assumption owns of the gap.

    assumption: what the first rung assumes and the second does not; from_, to: their names;
    change: second − first at each time, on the scale asked for (natural logarithm, or as it is).
    """

    assumption: str
    from_: str
    to: str
    change: Float[np.ndarray, " T"]


class Attribution(NamedTuple):
    """The gap in one observable, network − first rung, split among assumptions: gap = Σ changes, at every time.

    times: up to the last one at which all rungs of the chain are resolved, `RESOLVED` of the residual at the start.
    horizons: rung → last time until which it stays within the tolerance of the network; NaN if not even the next one.
    complete: whether the times reach the end of the run.
    """

    observable: str
    scale: str
    times: Float[np.ndarray, " T"]
    gap: Float[np.ndarray, " T"]
    shares: tuple[Share, ...]
    horizons: dict[str, float]
    complete: bool = True


def attribute(
    ladder: Ladder,
    observable: str,
    chain: Sequence[str] = FROZEN_CHAIN,
    *,
    scale: Scale = "log",
    tolerance: float = 0.1,
) -> Attribution:
    """Splits the gap between the first rung of a chain and the network.

    On the logarithmic scale a change is the logarithm of a factor, and factors multiply to network / first rung; that
    is the natural scale of what decays. Along other chains the same assumption may own another share: effects are not
    independent, and the chain is part of the statement. Rungs that the ladder lacks, and those that ended before the
    run, are stepped over.

    Args:
        ladder: rungs and network.
        observable: that all of them have.
        chain: names of rungs from strong to weak, "network" the last.
        scale: "log" or "linear".
        tolerance: of the horizons, relative to the network.
    Raises:
        ValueError: a chain that does not end in "network", fewer than one rung left in it, an unknown name, or an
            observable that some rung or the network lacks.
    """
    check_choice("scale", scale, get_args(Scale))
    if not chain or chain[-1] != "network":
        raise ValueError(f"chain: expected names of rungs with 'network' as the last one, got {tuple(chain)}.")
    for name in chain[:-1]:
        check_choice("chain", name, RUNGS)
    T = len(ladder.network.times)
    there = [name for name in chain[:-1] if name in ladder.rungs and len(ladder.rungs[name].times) == T]
    runs = {name: ladder.rungs[name] for name in there} | {"network": ladder.network}
    if len(runs) < 2:
        raise ValueError(
            f"chain: expected at least one of {tuple(chain[:-1])} in the ladder that reaches the end, got none."
        )
    values = {}
    for name, run in runs.items():
        check_choice(f"observable (of {name})", observable, run.observables)
        values[name] = np.asarray(run.observables[observable], dtype=float)
    # What comes after the first time that is not resolved is not either.
    resolved = np.all([y > _floor(ladder, observable) for name, y in values.items() if name != "network"], axis=0)
    T = max(1, int(np.argmin(np.append(resolved, False))))
    for name, y in values.items():
        y = y[:T]
        if scale == "log":
            y = np.log(np.where(y > 0, y, np.nan))
        values[name] = y
    names = list(runs)
    shares = tuple(Share(_assumption(ladder, a, b), a, b, values[b] - values[a]) for a, b in itertools.pairwise(names))
    horizons = {
        name: gaps(ladder.network, run, [observable], tolerance=tolerance)[observable].horizon
        for name, run in ladder.rungs.items()
        if observable in run.observables
    }
    return Attribution(
        observable=observable,
        scale=scale,
        times=np.asarray(ladder.network.times)[:T],
        gap=values["network"] - values[names[0]],
        shares=shares,
        horizons=horizons,
        complete=len(ladder.network.times) == T,
    )


def _assumption(ladder: Ladder, a: str, b: str) -> str:
    """What rung a assumes and b does not."""
    said = ASSUMPTIONS.get((a, b), f"{a} → {b}")
    moving = ("features-coupled", "network-flow", "network")
    joint = a not in moving and b in moving[1:] and ladder.rungs[a].settings.get("batch_norm", False)
    return said + AT_REST if joint else said


def _floor(ladder: Ladder, observable: str) -> float:
    """What an observable that decays has to be above to be more than the solver's error."""
    loss = float(ladder.network.observables["loss"][0]) if "loss" in ladder.network.observables else 0.0
    if observable == "loss":
        return RESOLVED**2 * loss
    return RESOLVED * np.sqrt(2 * loss) if observable.startswith("residual_") else -np.inf
