"""Decay of the three residual parts: the run, the fitted exponential in its window, and the predicted ones."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntkcollapse._palette import BLACK, BLUE, ORANGE, PURPLE
from ntkcollapse._table import with_error
from ntkcollapse.captions import time_axis
from ntkcollapse.comparison import MeasuredRate
from ntkcollapse.observable_table import described
from ntkcollapse.plots.style import NETWORK, label_decades, style
from ntkcollapse.theory.rates import SpectrumDecay
from ntkcollapse.trajectory import Trajectory

# In the title, in the legend, and the line.
_PREDICTED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (r"$\lambda(\gamma)$", r"$\lambda(\gamma)$, lazy", {"color": ORANGE, "linestyle": "--", "linewidth": 1.4}),
    (
        "implied",
        r"implied by $\Theta$ at the window's start",
        {"color": PURPLE, "linestyle": ":", "linewidth": 1.4},
    ),
)
# As the rung of that spectrum in a ladder.
_SPECTRUM: dict[str, Any] = {"color": ORANGE, "linestyle": "-.", "linewidth": 1.4}


def rates_figure(
    run: Trajectory,
    rates: Mapping[str, MeasuredRate],
    spectrum: tuple[np.ndarray, SpectrumDecay] | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """One panel a part, its norm logarithmic against time: straight where it decays exponentially.

    A part that is nowhere above 0 leaves its panel empty, and its title says so.

    Args:
        run: behind the rates.
        rates: of `comparison.measured_rates`.
        spectrum: times, and the sum of exponentials predicted for R_single from the first of them on.
        title: above all panels.
    """
    t = np.asarray(run.times)
    network = run.equation.of_network
    kind = NETWORK if network else {"linestyle": "-", "linewidth": 1.4}
    # The legend names what some panel draws.
    # A run's line has each panel's own colour; black would be taken for the fit's.
    drawn: dict[str, dict[str, Any]] = {"network" if network else "run": {"color": BLACK if network else BLUE, **kind}}
    with style():
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.5), constrained_layout=True)
        for ax, (part, rate) in zip(axes, rates.items(), strict=True):
            name = f"residual_{part}"
            y = np.asarray(run.observables[name], dtype=float)
            positive = np.isfinite(y) & (y > 0)
            ax.set_xlabel(time_axis(run).label)
            ax.set_ylabel(described(name).label)
            if not positive.any():
                ax.set_title("0 throughout" if (y == 0).all() else "no number above 0")
                ax.set(xticks=[], yticks=[])
                continue
            ax.plot(t[positive], y[positive], color=described(name).colour, **kind)
            low, high = ax.get_ylim()
            if rate.fit is not None:
                a, b = rate.fit.window
                inside = (t >= a) & (t <= b) & positive
                middle = np.exp(np.mean(np.log(y[inside]) + rate.fit.rate * t[inside]))
                line = np.linspace(a, b, 50)
                ax.axvspan(a, b, color=BLACK, alpha=0.06, linewidth=0)
                drawn["fitted exponential, in its window"] = look = {"color": BLACK, "linewidth": 1.2}
                ax.plot(line, middle * np.exp(-rate.fit.rate * line), **look)
                title_parts = [f"fitted {with_error(rate.fit.rate, rate.fit.uncertainty)}"]
                for (short, label, look), value in zip(_PREDICTED, (rate.eigenvalue, rate.implied), strict=True):
                    if np.isfinite(value):
                        drawn[label] = look
                        ax.plot(line, y[rate.record] * np.exp(-value * (line - t[rate.record])), **look)
                        title_parts.append(f"{short} {value:.4g}")
                ax.set_title(", ".join(title_parts))
            if spectrum is not None and part == "single":
                drawn["predicted from the within-class spectrum"] = _SPECTRUM
                ax.plot(spectrum[0], np.asarray(spectrum[1].norm), **_SPECTRUM)
            ax.set_yscale("log")
            ax.set_ylim(max(low, y[positive].min() / 3), high * 1.2)
            label_decades(ax.yaxis)
        handles = [Line2D([], [], label=label, **look) for label, look in drawn.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=5, handlelength=3)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure
