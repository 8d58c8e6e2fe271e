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
from ntkcollapse.plots.axes import drawable, epoch_axis, epochs_of, has_epochs, mark_phases, phase_handles
from ntkcollapse.plots.style import NETWORK, THEORIES, label_decades, style
from ntkcollapse.trajectory import Trajectory


def line_styles(runs: Mapping[str, Trajectory]) -> dict[str, dict[str, Any]]:
    """One line style a run: dots for networks, dashes of their own for each theory."""
    styles, theories = {}, itertools.cycle(THEORIES)
    for name, run in runs.items():
        styles[name] = NETWORK if run.equation.of_network else next(theories)
    return styles


def plot_observables(
    ax: Axes, runs: Mapping[str, Trajectory], names: Sequence[str], *, scale: str = "log", flow_time: bool = True
) -> Axes:
    """Draws the named observables of every run into the axes; colour says which observable.

    A single network is drawn against its epochs, with its terminal phase shaded and drops of its learning rate marked,
    and with an axis of flow time above; all else against flow time, from the first record after the start on.
    """
    styles = line_styles(runs)
    run = next(iter(runs.values()))
    alone = len(runs) == 1 and has_epochs(run)
    drawn, points = [], 0
    for name in names:
        present = {label: run for label, run in runs.items() if has(run, name)}
        for label, one in present.items():
            x, y = epochs_of(one) if alone else np.asarray(one.times, float), np.asarray(one.observables[name])
            keep = (x > 0) & drawable(y, log=scale == "log")
            points += int(keep.sum())
            line = {"color": described(name).colour, **styles[label]}
            if alone:
                line |= {"linestyle": "-", "linewidth": 0.7}
            ax.plot(x[keep], y[keep], **line)
        if present:
            entry = caption(name, *present.values())
            drawn.append(Line2D([], [], color=entry.colour, label=entry.label))
    # Without a point above 0 (a run that ended where it began) there is nothing to take the logarithm of.
    if points:
        ax.set_yscale(scale)
    if points and scale == "log":
        label_decades(ax.yaxis)
    if alone:
        epoch_axis(ax, run, flow_time=flow_time)
        mark_phases(ax, run, epochs_of(run))
    else:
        if points:
            ax.set_xscale("log")
            label_decades(ax.xaxis)
        ax.set_xlabel(time_axis(*runs.values()).label)
    if drawn:
        # Above the axes: curves that cross everything leave no room inside.
        above = 1.2 if alone and flow_time and run.equation.in_flow_time else 1.0
        ax.legend(handles=drawn, loc="lower left", bbox_to_anchor=(-0.02, above), handlelength=1.2, labelspacing=0.2)
    return ax


def comparison_panels(runs: Mapping[str, Trajectory]) -> list[tuple[str, list[str], str]]:
    """Title, observables and scale of the panels that at least one of the runs has something for.

    A panel is a group of the table of observables that are shown in figures; its scale is that of the first of them.
    One in which nothing changes is left out.
    """
    panels = ((title, group(title, "figure")) for title in groups("figure"))
    kept = []
    for title, names, scale in ((title, names, described(names[0]).scale) for title, names in panels):
        # The mean losses of a network say it already, on another scale than ½‖R‖².
        if "loss" in names and all("train_loss" in run.observables for run in runs.values()):
            continue
        if any(_changes(run, name, scale) for run in runs.values() for name in names):
            kept.append((title, names, scale))
    return kept


def _changes(run: Trajectory, name: str, scale: str) -> bool:
    """Whether an observable that means something has values to draw that are not all the same."""
    if not has(run, name):
        return False
    y = np.asarray(run[name], float)
    y = y[drawable(y, log=scale == "log")]
    return bool(y.size and np.ptp(y) > 1e-9 * np.abs(y).max())


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
        for i, (ax, (name, observables, scale)) in enumerate(zip(axes.flat, panels, strict=False)):
            plot_observables(ax, runs, observables, scale=scale, flow_time=i < columns)
            ax.set_ylabel(name)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        handles = [Line2D([], [], color=BLACK, label=label, **kind) for label, kind in line_styles(runs).items()]
        if len(runs) == 1:
            handles = phase_handles(*runs.values())
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=3)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def simulation_figure(run: Trajectory, *, title: str | None = None) -> Figure:
    """Draws the panels of a single run; the title calls a run of theory by its kernel where it is given no other."""
    return comparison_figure({run_name(run): run}, title=run_name(run) if title is None else title)


def run_plot(run: Trajectory, names: Sequence[str], ax: Axes | None) -> Axes | Figure:
    """What `Trajectory.plot` draws.

    Raises:
        ValueError: axes without names, or a run without any observable that figures show.
    """
    if not names:
        if ax is not None:
            raise ValueError("names: expected some observables for one pair of axes, got none; leave ax out for all.")
        return simulation_figure(run)
    with style():
        if ax is None:
            ax = plt.figure(figsize=(4.5, 3.6), constrained_layout=True).add_subplot()
        return plot_observables(ax, {run_name(run): run}, names, scale=described(names[0]).scale)
