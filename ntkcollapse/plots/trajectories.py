"""Trajectories side by side: theory, networks, or both, on the same axes."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntkcollapse._palette import BLACK
from ntkcollapse.captions import caption, has, run_name, time_axis
from ntkcollapse.observable_table import described, group, groups, shown_in
from ntkcollapse.plots.style import NETWORK, THEORIES, label_short_decades, style
from ntkcollapse.trajectory import Trajectory


def line_styles(runs: Mapping[str, Trajectory]) -> dict[str, dict[str, Any]]:
    """One line style a run: dots for networks, dashes of their own for each theory."""
    styles, theories = {}, itertools.cycle(THEORIES)
    for name, run in runs.items():
        styles[name] = NETWORK if run.equation.of_network else next(theories)
    return styles


def plot_observables(ax: Axes, runs: Mapping[str, Trajectory], names: Sequence[str], *, scale: str = "log") -> Axes:
    """Draws the named observables of every run into the axes, time logarithmic; colour says which observable."""
    styles = line_styles(runs)
    drawn, points = [], 0
    for name in names:
        present = {label: run for label, run in runs.items() if has(run, name)}
        for label, run in present.items():
            t, y = np.asarray(run.times), np.asarray(run.observables[name])
            keep = (t > 0) & np.isfinite(y) & ((y > 0) | (scale != "log"))
            points += int(keep.sum())
            ax.plot(t[keep], y[keep], color=described(name).colour, **styles[label])
        if present:
            entry = caption(name, *present.values())
            drawn.append(Line2D([], [], color=entry.colour, label=entry.label))
    # Without a point above 0 (a run that ended where it began) there is nothing to take the logarithm of.
    if points:
        ax.set_xscale("log")
        ax.set_yscale(scale)
    if points and scale == "log":
        label_short_decades(ax.yaxis)
    ax.set_xlabel(time_axis(*runs.values()).label)
    if drawn:
        # Above the axes: curves that cross everything leave no room inside.
        ax.legend(handles=drawn, loc="lower left", bbox_to_anchor=(-0.02, 1.0), handlelength=1.2, labelspacing=0.2)
    return ax


def comparison_panels(runs: Mapping[str, Trajectory]) -> list[tuple[str, list[str], str]]:
    """Title, observables and scale of the panels that at least one of the runs has something for.

    A panel is a group of the table of observables that are shown in figures; its scale is that of the first of them.
    """
    panels = ((title, group(title, "figure")) for title in groups("figure"))
    return [
        (title, names, described(names[0]).scale)
        for title, names in panels
        if any(has(run, name) for run in runs.values() for name in names)
    ]


def comparison_figure(runs: Mapping[str, Trajectory], *, title: str | None = None) -> Figure:
    """Draws the observables of every run side by side, in the panels that `comparison_panels` names.

    Raises:
        ValueError: runs that have none of these.
    """
    panels = comparison_panels(runs)
    if not panels:
        raise ValueError(f"runs: expected some of the observables {', '.join(shown_in('figure'))}, got none of them.")
    with style():
        rows, columns = -(-len(panels) // 3), min(len(panels), 3)
        size = (3.5 * columns, 3.2 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, constrained_layout=True)
        for ax, (name, observables, scale) in zip(axes.flat, panels, strict=False):
            plot_observables(ax, runs, observables, scale=scale)
            ax.set_ylabel(name)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        handles = [Line2D([], [], color=BLACK, label=label, **kind) for label, kind in line_styles(runs).items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=3)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def simulation_figure(run: Trajectory, *, title: str | None = None) -> Figure:
    """Draws the panels of a single theory run, which the legend calls by its kernel."""
    return comparison_figure({run_name(run): run}, title=title)
