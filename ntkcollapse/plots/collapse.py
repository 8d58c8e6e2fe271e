"""Collapse along depth, on test data, and the neural feature ansatz: what layer measurements leave, as figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntkcollapse._palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY
from ntkcollapse.collapse import LayerProfile
from ntkcollapse.observable_table import described, group, shown_in
from ntkcollapse.plots.style import label_decades, style
from ntkcollapse.trajectory import Trajectory

_COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)
_WAYS = {"weak": "--", "strong": ":"}
_LINES: dict[Any, str] = {"-": "training data", "--": "test data (right panel: weak)", ":": "test data, strong"}


def profile_panels(*, tested: bool) -> list[tuple[str, list[tuple[str, str, str]], str]]:
    """Title, metrics as (part, name, line), and scale of the panels of a profile; the last with test data alone.

    Metrics that are measured on test data about the means of training, weak and strong, have that panel.
    """
    panels = []
    for name in shown_in("depth figure"):
        lines = [("train", name, "-")] + [("test", name, "--")] * (name == "ncc_error")
        panels.append((described(name).label, lines, described(name).scale))
    if tested:
        lines = [("test", f"{way}_{name}", line) for name in shown_in("test data") for way, line in _WAYS.items()]
        panels.append(("test features about training means", lines, "log"))
    return panels


def collapse_profile_figure(profiles: Mapping[str, LayerProfile], *, title: str | None = None) -> Figure:
    """Metrics against depth, one panel a metric, one colour a network (up to six).

    Solid lines are training data, dashed and dotted ones test data. Networks of one architecture share the names of the
    layers on the axis.
    """
    tested = any(profile.test for profile in profiles.values())
    panels = profile_panels(tested=tested)
    with style():
        figure, axes = plt.subplots(1, len(panels), figsize=(2.7 * len(panels), 3.3), constrained_layout=True)
        for ax, (name, metrics, scale) in zip(axes, panels, strict=True):
            for profile, colour in zip(profiles.values(), _COLOURS, strict=False):
                for part, metric, line in metrics:
                    values = getattr(profile, part)
                    if values:
                        plot_depth(ax, _values(values, metric), line, colour)
            ax.set_yscale(scale)
            if scale == "log":
                label_decades(ax.yaxis)
            ax.set_title(name, loc="left")
            _name_layers(ax, next(iter(profiles.values())).layers)
        figure.legend(handles=_legend(profiles, tested), loc="outside lower center", ncols=7, handlelength=2.6)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


HELD_OUT_LINES = (
    ("train", "training", {"color": BLACK, "linestyle": "-"}),
    ("test", "test, about its own means", {"color": SKY, "linestyle": "-."}),
    ("weak", "test, weak", {"color": ORANGE, "linestyle": "--"}),
    ("strong", "test, strong", {"color": RED, "linestyle": ":"}),
)


def held_out_figure(
    runs: Mapping[str, Trajectory], metric: str = "nc1_tirer2022", *, title: str | None = None
) -> Figure:
    """A metric of the last layer's features along training, one panel a run: on training data and, in three ways, on
    test data, as the measurement "test-collapse" of a run has them."""
    with style():
        figure, axes = plt.subplots(
            1, len(runs), figsize=(max(2.7 * len(runs), 4.2), 3.1), sharey=True, squeeze=False, constrained_layout=True
        )
        for ax, (name, run) in zip(axes[0], runs.items(), strict=True):
            for part, label, line in HELD_OUT_LINES:
                values = np.asarray(run[f"{part}_{metric}"], float)
                ax.plot(np.asarray(run["epoch"]), np.where(np.isfinite(values), values, np.nan), label=label, **line)
            _epochs(ax, run)
            ax.set_yscale("log")
            ax.set_title(name, loc="left")
        label_decades(axes[0, 0].yaxis)
        axes[0, 0].set_ylabel(described(metric).label)
        figure.legend(handles=axes[0, 0].lines, loc="outside lower center", ncols=4, handlelength=2.6)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def ansatz_figure(run: Trajectory, *, title: str | None = None) -> Figure:
    """Correlation of WᵀW with the AGOP, and with its square root, along training: a line a layer, dark at the input."""
    names = run.names["ansatz"]
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(names)))
    with style():
        figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.1), sharey=True, constrained_layout=True)
        for ax, observable in zip(axes, group("Neural feature ansatz"), strict=True):
            for values, name, colour in zip(np.asarray(run[observable]).T, names, colours, strict=True):
                ax.plot(
                    np.asarray(run["epoch"]), values, "o-", markersize=2.5, color=colour, label=name.split("/", 1)[-1]
                )
            _epochs(ax, run)
            ax.set_ylim(0, 1.05)
            ax.set_title(described(observable).label, loc="left")
        axes[0].set_ylabel(r"$W^\top W$ and the input of the layer")
        handles = axes[0].lines if len(names) <= 8 else [axes[0].lines[i] for i in (0, len(names) // 2, -1)]
        figure.legend(handles=handles, loc="outside right upper", handlelength=1.6)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def plot_depth(ax: Axes, values: np.ndarray, line: str = "-", colour: str = BLACK) -> Axes:
    """One metric against the layer; values that are not finite leave a gap."""
    values = np.where(np.isfinite(values), values, np.nan)
    ax.plot(np.arange(values.size), values, line, color=colour, marker="o", markersize=3, linewidth=1.1)
    return ax


def _epochs(ax: Axes, run: Trajectory) -> None:
    """A logarithm from the first record after the start on, linear before."""
    epochs = np.asarray(run["epoch"], float)
    ax.set_xscale("symlog", linthresh=min(epochs[epochs > 0], default=1.0))
    ax.set_xlabel("epoch")


def _values(part: Mapping[str, np.ndarray], metric: str) -> np.ndarray:
    return 1 - part["ncc_accuracy"] if metric == "ncc_error" else part[metric]


def _name_layers(ax: Axes, layers: Sequence[str]) -> None:
    if len(layers) > 12:
        ax.set_xlabel("layer")
        return
    ax.set_xticks(range(len(layers)), [name.split("/")[-1] for name in layers], rotation=60, ha="right", fontsize=6.5)


def _legend(profiles: Mapping[str, LayerProfile], tested: bool) -> list[Any]:
    handles = [Line2D([], [], color=c, label=name) for name, c in zip(profiles, _COLOURS, strict=False)]
    if tested:
        handles += [Line2D([], [], color=BLACK, linestyle=s, label=label) for s, label in _LINES.items()]
    return handles
