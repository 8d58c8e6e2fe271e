"""A quantity as a function of two parameters."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from ntkcollapse._checks import check_increasing, check_real, check_shape


def phase_diagram(
    x: Any,
    y: Any,
    values: Any,
    *,
    ax: Axes | None = None,
    log: bool = True,
    levels: Sequence[float] = (),
    theory: Any = None,
    limits: tuple[float, float] | None = None,
    label: str = "",
) -> Axes:
    """Draws values[i, j] at (x[j], y[i]) as colours, with a colour bar; grey where they are not finite.

    An axis whose points grow by one factor is logarithmic.

    Args:
        x, y: points along the axes, increasing, (X,) and (Y,).
        values: (Y, X).
        ax: to draw into; by default one of a new figure.
        log: whether colours and contours are those of the logarithm; values not above 0 are then grey.
        levels: of contours: solid for values, dashed for theory, each with its line in a legend.
        theory: predicted values, (Y, X).
        limits: of the colours, those of the values by default; the colour bar points beyond where values do.
        label: of the colour bar.

    Raises:
        ValueError: points that do not increase, values of another shape, limits out of order, or nothing finite.
    """
    check_increasing("x", x)
    check_increasing("y", y)
    x, y, values = np.asarray(x, float), np.asarray(y, float), np.asarray(values, float)
    fields = {"values": values} if theory is None else {"values": values, "theory": np.asarray(theory, float)}
    for name, field in fields.items():
        check_real(**{name: field})
        check_shape(name, field, (y.size, x.size), "a row for each of y, a column for each of x")
    shown = {
        name: np.ma.masked_where(~(np.isfinite(field) & ((field > 0) | (not log))), field)
        for name, field in fields.items()
    }
    if shown["values"].count() == 0:
        raise ValueError(f"values: expected some that are finite{' and above zero' if log else ''}, got none.")
    ax = plt.subplots()[1] if ax is None else ax
    (x_edges, x_scale), (y_edges, y_scale) = _edges(x), _edges(y)
    ax.set_facecolor("0.85")
    range_ = shown["values"].min(), shown["values"].max()
    low, high = range_ if limits is None else limits
    if limits is not None and not (low < high and (low > 0 or not log)):
        raise ValueError(f"limits: expected two numbers in order{', above 0' if log else ''}, got {limits}.")
    norm = (LogNorm if log else Normalize)(low, high)
    mesh = ax.pcolormesh(x_edges, y_edges, shown["values"], cmap="viridis", norm=norm, rasterized=True)
    ax.set(xscale=x_scale, yscale=y_scale)
    names = {"values": ("integrated", "white", "solid"), "theory": ("theory", "black", "dashed")}
    for name, field in shown.items() if len(levels) else ():
        said, colour, style = names[name]
        # In logarithms, in which such a grid is even and the values are smooth.
        heights, at = (np.ma.log10(field), np.log10(levels)) if log else (field, np.asarray(levels))
        ax.contour(x, y, heights, levels=np.sort(at), colors=colour, linestyles=style, linewidths=1.0)
        ax.plot([], [], color=colour, linestyle=style, label=said)
    if len(levels):
        ax.legend(loc="upper left", labelcolor="white", facecolor="0.5", framealpha=0.7, edgecolor="none")
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    # Rounding of the values themselves is not beyond.
    beyond = bool(range_[0] < low - 1e-3 * abs(low)), bool(range_[1] > high + 1e-3 * abs(high))
    ax.figure.colorbar(mesh, ax=ax, label=label, extend=ends[beyond])
    return ax


def _edges(points: np.ndarray) -> tuple[np.ndarray, str]:
    """Borders of the cells around points, and the scale on which they are even."""
    log = bool((points > 0).all()) and np.allclose(np.diff(np.log(points), 2), 0, atol=1e-9) and points.size > 2
    t = np.log(points) if log else points
    middle = (t[1:] + t[:-1]) / 2
    edges = np.concatenate([[2 * t[0] - middle[0]], middle, [2 * t[-1] - middle[-1]]])
    return (np.exp(edges), "log") if log else (edges, "linear")
