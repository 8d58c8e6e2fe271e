"""Which assumption owns the gap: differences of neighbouring rungs, which sum to it."""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from ntkcollapse._checks import check_choice
from ntkcollapse.comparison.ladder import Ladder
from ntkcollapse.comparison.predict import gaps
from ntkcollapse.comparison.rungs import CHAINS, RUNGS, Assumption, given_up, joint_name
from ntkcollapse.comparison.rungs import chain as chain_of

Scale = Literal["log", "linear"]

# Of ‖R‖ at the start: below this share a part of the residual is the solver's, not the rung's. Rungs 1 to 5 are
# integrated at relative tolerances of 1e-8 and 1e-7; what has decayed is damped by the solver, not by e^{−λt}.
RESOLVED = 1e-7


class Share(NamedTuple):
    """What one assumption owns of the gap.

    given_up: what the first rung assumes and the second does not; assumption: its name, "first → second" where the
    second one assumes more; from_, to: names of the rungs;
    change: second − first at each time, on the scale asked for (natural logarithm, or as it is).
    """

    given_up: tuple[Assumption, ...]
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
    chain: str | Sequence[str] = "frozen",
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
        chain: of `CHAINS`, or names of rungs from strong to weak, "network" the last.
        scale: "log" or "linear".
        tolerance: of the horizons, relative to the network.
    Raises:
        ValueError: a chain that does not end in "network", fewer than one rung left in it, an unknown name, or an
            observable that some rung or the network lacks.
    """
    check_choice("scale", scale, get_args(Scale))
    if isinstance(chain, str):
        check_choice("chain", chain, CHAINS)
        chain = chain_of(chain)
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
    shares = tuple(_share(ladder, a, b, values[b] - values[a]) for a, b in itertools.pairwise(names))
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


def _share(ladder: Ladder, a: str, b: str, change: np.ndarray) -> Share:
    """What is given up from rung a to rung b, and its price."""
    dropped = given_up(a, b, batch_norm=ladder.batch_norm)
    kept = RUNGS[b].assumes if b in RUNGS else ()
    return Share(dropped, joint_name(dropped, kept) or f"{a} → {b}", a, b, change)


def _floor(ladder: Ladder, observable: str) -> float:
    """What an observable that decays has to be above to be more than the solver's error."""
    loss = float(ladder.network.observables["loss"][0]) if "loss" in ladder.network.observables else 0.0
    if observable == "loss":
        return RESOLVED**2 * loss
    return RESOLVED * np.sqrt(2 * loss) if observable.startswith("residual_") else -np.inf
