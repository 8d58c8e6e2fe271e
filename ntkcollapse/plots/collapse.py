"""Collapse along depth: one figure of the profiles of one or more networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntkcollapse.collapse import LayerProfile
from ntkcollapse.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, style

# Title, metrics as (part, name, line), scale of the axis.
PROFILE_PANELS = (
    (r"NC1: $\mathrm{tr}\,\Sigma_W/\mathrm{tr}\,\Sigma_B$", (("train", "nc1_tirer2022", "-"),), "log"),
    (r"NC1: $\mathrm{tr}(\Sigma_W\Sigma_B^{+})/C$", (("train", "nc1_papyan2020", "-"),), "log"),
    ("NC2: distance from simplex ETF", (("train", "nc2_seleznova2023", "-"),), "linear"),
    ("error of nearest class mean", (("train", "ncc_error", "-"), ("test", "ncc_error", "--")), "linear"),
    (
        "test features about training means",
        (("test", "weak_nc1_tirer2022", "--"), ("test", "strong_nc1_tirer2022", ":")),
        "log",
    ),
)
_COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)
_LINES: dict[Any, str] = {"-": "training data", "--": "test data (right panel: weak)", ":": "test data, strong"}


def collapse_profile_figure(profiles: Mapping[str, LayerProfile], *, title: str | None = None) -> Figure:
    """Metrics against depth, one panel a metric, one colour a network (up to six).

    Solid lines are training data, dashed and dotted ones test data. Networks of one architecture share the names of the
    layers on the axis.
    """
    tested = any(profile.test for profile in profiles.values())
    panels = PROFILE_PANELS if tested else PROFILE_PANELS[:4]
    with style():
        figure, axes = plt.subplots(1, len(panels), figsize=(2.7 * len(panels), 3.3), constrained_layout=True)
        for ax, (name, metrics, scale) in zip(axes, panels, strict=True):
            for profile, colour in zip(profiles.values(), _COLOURS, strict=False):
                for part, metric, line in metrics:
                    values = getattr(profile, part)
                    if values:
                        plot_depth(ax, _values(values, metric), line, colour)
            ax.set_yscale(scale)
            ax.set_title(name, loc="left")
            _name_layers(ax, next(iter(profiles.values())).layers)
        figure.legend(handles=_legend(profiles, tested), loc="outside lower center", ncols=7, handlelength=2.6)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def plot_depth(ax: Axes, values: np.ndarray, line: str = "-", colour: str = BLACK) -> Axes:
    """One metric against the layer; values that are not finite leave a gap."""
    values = np.where(np.isfinite(values), values, np.nan)
    ax.plot(np.arange(values.size), values, line, color=colour, marker="o", markersize=3, linewidth=1.1)
    return ax


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
