"""The ladder on one screen: how far each rung is from the network, until when it is close, and who owns the gap."""

import numpy as np

from ntkcollapse._table import Table, number, percent
from ntkcollapse.captions import time_axis
from ntkcollapse.comparison import CHAINS, RUNGS, Attribution, Gap, Ladder, attribute, chain, gaps
from ntkcollapse.observable_table import described, shown_in
from ntkcollapse.theory.rates import stability_bound


def ladder_tables(ladder: Ladder, *, times: int = 5) -> str:
    """Everything below, for one start."""
    parts: list[str] = [course_table(ladder, times=times), horizon_table(ladder)]
    parts += [share_table(attributions(ladder, along), ladder) for along in chains(ladder)]
    parts += filter(None, [edge_of_stability(ladder)])
    for name, why in ladder.failures.items():
        parts.append(f"rung {RUNGS[name].number} ({name}) is missing or ends early: {why}")
    return "\n\n".join(parts)


def chains(ladder: Ladder) -> list[str]:
    """The chains whose prices say something of a ladder, by the rungs that reach its end.

    Those that have the rungs that `CHAINS` names, two in any case; the first with two where there is none of them.
    """
    T = len(ladder.network.times)
    complete = {name for name, run in ladder.rungs.items() if len(run.times) == T}
    with_prices = [name for name in CHAINS if len(complete.intersection(chain(name))) > 1]
    return [name for name in with_prices if complete.issuperset(CHAINS[name])] or with_prices[:1]


def course_table(ladder: Ladder, *, times: int = 5) -> Table:
    """The network at a few steps, and how far each rung is from it, in percent or as a factor."""
    T = len(ladder.network.times)
    indices = sorted(set(np.linspace(0, T - 1, times + 1).round().astype(int).tolist()[1:]))
    steps = ladder.network.observables.get("step")
    said = ["" if steps is None else str(int(steps[i])) for i in indices]
    rows = [[time_axis(ladder.network).symbol, "", *(number(ladder.network.times[i]) for i in indices)]]
    for name in _of_course(ladder):
        rows.append([name, "network", *(number(ladder.network.observables[name][i]) for i in indices)])
        for rung, run in ladder.rungs.items():
            if name not in run.observables:
                continue
            gap = gaps(ladder.network, run, [name])[name].relative
            values = [percent(gap[i]) if i < len(gap) else "-" for i in indices]
            rows.append(["", RUNGS[rung].title, *values])
    return Table(["", "step", *said], rows)


def horizon_table(ladder: Ladder) -> Table:
    """The last step until which a rung is within 10% of the network."""
    names = _present(ladder)
    steps = ladder.network.observables.get("step")
    rows = []
    for rung, run in ladder.rungs.items():
        row = [RUNGS[rung].title]
        rows.append([*row, *(_until(ladder, gaps(ladder.network, run, [name])[name].horizon) for name in names)])
    unit = "flow time" if steps is None else "step"
    return Table([f"within 10% until {unit}", *(described(name).symbol for name in names)], rows)


def brief_table(ladder: Ladder) -> Table:
    """How long each rung holds and by what factor it is off at the end, of each observable."""
    names, steps = _present(ladder), ladder.network.observables.get("step")
    rows = []
    for rung, run in ladder.rungs.items():
        found = gaps(ladder.network, run, names)
        rows.append([f"{RUNGS[rung].title}: until", *(_until(ladder, found[name].horizon) for name in names)])
        with np.errstate(divide="ignore", invalid="ignore"):
            rows.append(["    / network, at the end", *(_ratio(found[name]) for name in names)])
    unit = "flow time" if steps is None else "step"
    return Table([f"within 10% until {unit}", *(described(name).symbol for name in names)], rows)


def _ratio(gap: Gap) -> str:
    return f"x{gap.theory[-1] / gap.network[-1]:.2g}" if gap.network[-1] else "-"


def _until(ladder: Ladder, horizon: float) -> str:
    """The step, where there are any, until which a rung holds."""
    steps = ladder.network.observables.get("step")
    if steps is None or np.isnan(horizon):
        return number(horizon)
    return str(int(steps[int(np.searchsorted(np.asarray(ladder.network.times), horizon))]))


def share_table(found: dict[str, Attribution], ladder: Ladder) -> Table:
    """What each assumption owns of the gap: factors whose product is network / first rung.

    At the end, or, where a rung has decayed below what its solver resolves, at the last record before.
    """
    first = next(iter(found.values()))
    rows = [] if all(a.complete for a in found.values()) else [_prices_at(found, ladder)]
    rows += [
        [share.assumption, *(_factor(a.shares[i].change[-1]) for a in found.values())]
        for i, share in enumerate(first.shares)
    ]
    rows.append(
        [
            f"network / rung {RUNGS[first.shares[0].from_].number}",
            *(_factor(a.gap[-1]) for a in found.values()),
        ]
    )
    return Table(["price of each assumption, at the end", *(described(name).symbol for name in found)], rows)


def _prices_at(found: dict[str, Attribution], ladder: Ladder) -> list[str]:
    """The record that prices are of, where a later one is below what a solver resolves."""
    steps = ladder.network.observables.get("step")
    at = [number(a.times[-1]) if steps is None else str(int(steps[len(a.times) - 1])) for a in found.values()]
    return ["  or at the last resolved " + ("time" if steps is None else "step"), *at]


def attributions(ladder: Ladder, along: str = "frozen") -> dict[str, Attribution]:
    """The prices along a chain, of every observable that the tables show."""
    return {name: attribute(ladder, name, along) for name in _present(ladder)}


def edge_of_stability(ladder: Ladder) -> str | None:
    """The largest step times the largest eigenvalue that rung 6 met; None without it.

    In flow time a step is η / (N C), without the factor of momentum β; the bound is that of `stability_bound`.
    """
    flow, steps = ladder.rungs.get("network-flow"), ladder.network.observables.get("step")
    if flow is None or steps is None or "eigenvalue_largest" not in flow.statistics or len(steps) < 2:
        return None
    clock = ladder.network.equation.clock
    β = 0.0 if clock is None else clock.momentum
    step = float(np.max(np.diff(np.asarray(ladder.network.times)) / np.diff(np.asarray(steps)))) * (1 - β)
    bound = stability_bound("nesterov" if clock is not None and clock.nesterov else "heavy-ball", β)
    ρ = float(flow.statistics["eigenvalue_largest"])
    return (
        f"step x largest eigenvalue of the Hessian along rung 6: {number(step)} x {number(ρ)} = {step * ρ:.3g}; "
        f"the optimiser is stable below {bound:.3g}"
    )


def _present(ladder: Ladder) -> list[str]:
    """Observables that network and rungs have and that have a price."""
    runs = [ladder.network, *ladder.rungs.values()]
    return [name for name in shown_in("prices") if all(name in run.observables for run in runs)]


def _of_course(ladder: Ladder) -> list[str]:
    """Observables to follow along the run: those with a price, and others of the network.

    The others have neither horizon nor price: NC4 moves in steps of one sample, and κ and the invariant are the kernel
    that a rung assumes rather than something that it predicts.
    """
    priced, network = _present(ladder), ladder.network.observables
    return priced + [name for name in shown_in("gaps") if name not in shown_in("prices") and name in network]


def _factor(logarithm: float) -> str:
    """x2.5; nothing where one of the two values is 0."""
    return "-" if np.isnan(logarithm) else f"x{np.exp(logarithm):.3g}"
