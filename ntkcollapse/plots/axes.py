"""What figures along a run share: epochs, steps or flow time on the axis, phases marked, nothing below rounding."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ntkcollapse._palette import BLACK
from ntkcollapse.captions import time_axis
from ntkcollapse.phases import rate_drops, terminal_phase
from ntkcollapse.trajectory import Trajectory

# Below this share of the largest value of a line there is only rounding.
_ROUNDING = 1e-16
TERMINAL: dict[str, Any] = {"color": "#e8eef4", "linewidth": 0, "zorder": 0}
DROP: dict[str, Any] = {"color": "#888888", "linestyle": (0, (1, 2)), "linewidth": 0.9, "zorder": 0.5}


def has_epochs(run: Trajectory) -> bool:
    """Whether a run is of a network that says its epochs, on more than one record."""
    return run.equation.of_network and "epoch" in run.observables and float(run["epoch"][-1]) > 0


def drawable(y: Any, *, log: bool) -> Bool[np.ndarray, " T"]:
    """Where there is something to draw: finite, and on a logarithmic axis above 0 and above rounding."""
    y = np.asarray(y, float)
    if not log:
        return np.isfinite(y)
    largest = np.max(y, initial=0.0, where=np.isfinite(y))
    return np.isfinite(y) & (y > 0) & (y >= _ROUNDING * largest)


def epochs_of(run: Trajectory) -> Float[np.ndarray, " T"]:
    """Where the records of a run stand on a logarithmic axis of epochs; the start, which has none, before the first."""
    epochs = np.asarray(run["epoch"], float)
    return np.where(epochs > 0, epochs, epochs[epochs > 0].min() / 3)


def epoch_axis(ax: Axes, run: Trajectory, *, flow_time: bool = True) -> None:
    """Epochs below, logarithmic, with a tick 0 at the start; flow time above where it is asked for and known."""
    x = epochs_of(run)
    ax.set_xscale("log")
    ax.set_xlim(x[0] / 1.15, x[-1] * 1.15)
    powers = 10.0 ** np.arange(np.ceil(np.log10(x[1])), np.floor(np.log10(x[-1])) + 1)
    ax.set_xticks([x[0], *powers], ["0", *(_power(p) for p in powers)])
    ax.set_xlabel("epoch")
    if flow_time and run.equation.in_flow_time:
        _second_axis(ax, np.asarray(run.times, float), x, time_axis(run).label)


def step_axis(ax: Axes, run: Trajectory) -> None:
    """Steps of the optimiser above an axis of flow time, where a run has both."""
    if "step" in run.observables and run.equation.in_flow_time and len(run.times) > 1:
        _second_axis(ax, np.asarray(run["step"], float), np.asarray(run.times, float), "step")


def mark_phases(ax: Axes, run: Trajectory, x: Float[np.ndarray, " T"]) -> None:
    """Shades the terminal phase of a run, and draws a line where its learning rate drops; `x` are its records."""
    record = terminal_phase(run)
    if record is not None and record < len(x) - 1:
        ax.axvspan(float(x[record]), float(x[-1]), **TERMINAL)
    for step in rate_drops(run):
        ax.axvline(float(np.interp(step, np.asarray(run["step"], float), x)), **DROP)


def phase_handles(run: Trajectory) -> list[Any]:
    """What the legend says of the marks of `mark_phases` that a run has."""
    handles: list[Any] = []
    if has_epochs(run) and terminal_phase(run) is not None:
        handles.append(Patch(label="terminal phase: training accuracy 1", **TERMINAL))
    if has_epochs(run) and rate_drops(run):
        handles.append(Line2D([], [], label="learning rate drops", **DROP))
    return handles


def smooth(x: Any, y: Any, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """A smooth curve through a course on logarithmic axes that does not overshoot between its points.

    The piecewise cubic of Fritsch and Carlson in the logarithms; a polygon's corners would be those of the records.
    """
    from scipy.interpolate import PchipInterpolator

    x, y = np.asarray(x, float), np.asarray(y, float)
    keep = (x > 0) & drawable(y, log=True)
    x, y = x[keep], y[keep]
    if len(x) < 3:
        return x, y
    dense = np.geomspace(x[0], x[-1], points)
    # At its ends too, the curve has the points themselves.
    dense = np.unique(np.concatenate([x, dense[(dense > x[0]) & (dense < x[-1])]]))
    return dense, np.exp(PchipInterpolator(np.log(x), np.log(y))(np.log(dense)))


def _second_axis(ax: Axes, values: np.ndarray, positions: np.ndarray, label: str) -> None:
    """Powers of ten of `values`, which increase, on top, at the positions that they have on the axis."""
    low, high = values[values > 0].min(initial=np.inf), values[-1]
    if not low < high:
        return
    powers = 10.0 ** np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
    # Of more than five, every second or third: they stand in small panels.
    powers = powers[:: -(-len(powers) // 5)] if len(powers) else np.array([low, high])
    top = ax.secondary_xaxis("top")
    known = values > 0
    inside = np.exp(np.interp(np.log(powers), np.log(values[known]), np.log(positions[known])))
    top.set_xticks(inside, [_power(p) for p in powers], fontsize=7, color=BLACK)
    top.minorticks_off()
    top.set_xlabel(label, fontsize=7.5)
    top.spines["top"].set_visible(True)
    top.spines["top"].set_linewidth(0.5)


def _power(value: float) -> str:
    exponent = np.log10(value)
    if abs(exponent - round(exponent)) > 1e-9:
        return f"{value:.2g}"
    return f"{value:g}" if -2 <= exponent <= 3 else f"$10^{{{round(exponent)}}}$"
