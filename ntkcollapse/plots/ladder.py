"""The ladder: the network and every rung, each always drawn alike; and what each assumption owns of the gap."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntkcollapse._palette import BLACK
from ntkcollapse.captions import caption, time_axis
from ntkcollapse.comparison import RUNGS, Attribution, Ladder, Rung, Share
from ntkcollapse.comparison.rungs.assumptions import STATISTICS_AT_REST
from ntkcollapse.observable_table import described, shown_in
from ntkcollapse.plots.axes import drawable, smooth, step_axis
from ntkcollapse.plots.style import label_decades, style
from ntkcollapse.trajectory import Trajectory

NETWORK_STYLE = {"color": BLACK, "linestyle": "none", "marker": "o", "markersize": 3.2, "markeredgewidth": 0}


def plot_ladder(ax: Axes, ladder: Ladder, observable: str) -> Axes:
    """One observable of the network and of every rung against flow time, both logarithmic; steps stand above.

    Predictions are smooth curves through their values at the network's records. Where none of them is above 0 after the
    start the panel stays empty, and its title says so.
    """
    for name, run in ladder.rungs.items():
        _draw(ax, run, observable, rung_style(RUNGS[name]))
    _draw(ax, ladder.network, observable, NETWORK_STYLE)
    ax.set_xlabel(time_axis(ladder.network).label)
    ax.set_ylabel(caption(observable, ladder.network).label)
    if not any(np.size(line.get_xdata()) for line in ax.lines):
        ax.set_title("no number above 0")
        ax.set(xticks=[], yticks=[])
        return ax
    ax.set_xscale("log")
    ax.set_yscale("log")
    # Predictions that are done run to rounding level: what is far below the network is of no interest.
    network = np.asarray(ladder.network.observables[observable])
    floor = network[network > 0].min(initial=np.inf) / 30
    if np.isfinite(floor) and ax.get_ylim()[0] < floor:
        ax.set_ylim(bottom=floor)
    label_decades(ax.xaxis)
    label_decades(ax.yaxis)
    step_axis(ax, ladder.network)
    return ax


def ladder_figure(ladder: Ladder, observables: Sequence[str] | None = None, *, title: str | None = None) -> Figure:
    """A panel for each of these observables that the network has, one legend for all.

    Args:
        ladder: to draw.
        observables: by default those that the table of observables shows in this figure and that have something to
            draw.
        title: above all panels.
    Raises:
        ValueError: the network has none of them.
    """
    wanted = shown_in("ladder figure") if observables is None else list(observables)
    names = [name for name in wanted if name in ladder.network.observables]
    if observables is None:
        runs = (ladder.network, *ladder.rungs.values())
        drawn = [n for n in names if any(drawable(r[n], log=True)[1:].any() for r in runs if n in r.observables)]
        names = drawn or names
    if not names:
        raise ValueError(
            f"observables: expected one at least of the network's, {', '.join(sorted(ladder.network.observables))}; "
            f"got {wanted}."
        )
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    with style():
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.5 * columns, 2.7 * rows + 0.7), constrained_layout=True, squeeze=False
        )
        for ax, name in zip(axes.flat, names, strict=False):
            plot_ladder(ax, ladder, name)
        for ax in axes.flat[len(names) :]:
            ax.remove()
        handles = [Line2D([], [], label="network", **NETWORK_STYLE)]
        for name in ladder.rungs:
            handles.append(Line2D([], [], label=RUNGS[name].title, **rung_style(RUNGS[name])))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), handlelength=3)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def attribution_figure(attributions: Mapping[str, Attribution], *, title: str | None = None) -> Figure:
    """For each observable, the gap at the last time split among assumptions: bars to the right of 0 raise the
    prediction on its way to the network, bars to the left lower it, and the diamond is their sum.

    Raises:
        ValueError: no observable.
    """
    if not attributions:
        raise ValueError("attributions: expected one observable or more, got none; `comparison.attribute` makes them.")
    with style():
        figure, ax = plt.subplots(figsize=(8.0, 0.55 * len(attributions) + 1.6), constrained_layout=True)
        looks = {share.assumption: _look(share) for a in attributions.values() for share in a.shares}
        for row, attribution in enumerate(attributions.values()):
            ends = {1: 0.0, -1: 0.0}
            for share in attribution.shares:
                # Logarithms to base 10: bars are powers of ten.
                width = float(share.change[-1]) / (np.log(10) if attribution.scale == "log" else 1)
                if not np.isfinite(width):
                    continue
                side = 1 if width >= 0 else -1
                ax.barh(row, width, left=ends[side], height=0.7, **looks[share.assumption])
                ends[side] += width
            total = float(attribution.gap[-1]) / (np.log(10) if attribution.scale == "log" else 1)
            ax.plot(total, row, marker="D", color=BLACK, markersize=5, zorder=3)
        ax.axvline(0, color=BLACK, linewidth=0.8)
        # Where a rung decays below what its solver resolves, the prices are of a time before the end.
        rows = [
            described(name).short + ("" if a.complete else f"\nat $t$ = {a.times[-1]:.3g}")
            for name, a in attributions.items()
        ]
        ax.set_yticks(range(len(attributions)), rows)
        ax.invert_yaxis()
        log = all(a.scale == "log" for a in attributions.values())
        first = next(iter(attributions.values())).shares[0].from_
        said = r"$\log_{10}$ (network / prediction)" if log else "network − prediction"
        when = "at the end" if all(a.complete for a in attributions.values()) else "at the end or the time named"
        ax.set_xlabel(f"{said} {when}, from rung {RUNGS[first].number}; diamond: all together")
        handles = [plt.Rectangle((0, 0), 1, 1, label=name, **look) for name, look in looks.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        if title:
            ax.set_title(title)
    return figure


def rung_style(rung: Rung) -> dict[str, Any]:
    """How matplotlib draws the line of a rung."""
    return {"color": rung.colour, "linestyle": rung.line, "linewidth": 1.4}


def _look(share: Share) -> dict[str, Any]:
    """The bar of a share: in the colour of the first assumption that is given up, hatched where there are others.

    So an assumption looks alike whichever rungs were climbed. Shares without one are grey; none is black, which the
    diamond is.
    """
    at_rest = STATISTICS_AT_REST in share.given_up and len(share.given_up) > 1
    others = [one for one in share.given_up if one != STATISTICS_AT_REST or not at_rest]
    hatch = ("//" if len(others) > 1 else "") + ("--" if at_rest else "")
    look = {"facecolor": others[0].colour if others else "#999999", "edgecolor": "white"}
    return look | ({"hatch": hatch} if hatch else {})


def _draw(ax: Axes, run: Trajectory, observable: str, kind: dict[str, Any]) -> None:
    if observable not in run.observables:
        return
    t, y = np.asarray(run.times), np.asarray(run.observables[observable])
    keep = (t > 0) & drawable(y, log=True)
    if kind["linestyle"] == "none":
        ax.plot(t[keep], y[keep], **kind)
    else:
        ax.plot(*smooth(t[keep], y[keep]), **kind)
