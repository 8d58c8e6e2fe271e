"""Decay of the three residual parts: the run, the fitted exponential in its window, and the predicted ones."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntkcollapse.comparison import MeasuredRate
from ntkcollapse.plots.style import BLACK, COLOURS, LABELS, NETWORK, ORANGE, PURPLE, style
from ntkcollapse.theory.rates import SpectrumDecay
from ntkcollapse.trajectory import Trajectory


def rates_figure(
    run: Trajectory,
    rates: Mapping[str, MeasuredRate],
    spectrum: tuple[np.ndarray, SpectrumDecay] | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """One panel a part, its norm logarithmic against time: straight where it decays exponentially.

    Args:
        run: behind the rates.
        rates: of `comparison.measured_rates`.
        spectrum: times, and the sum of exponentials predicted for R_single from the first of them on.
        title: above all panels.
    """
    t = np.asarray(run.times)
    network = run.settings.get("producer") == "network"
    kind = NETWORK if network else {"linestyle": "-", "linewidth": 1.4}
    with style():
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.5), constrained_layout=True)
        for ax, (part, rate) in zip(axes, rates.items(), strict=True):
            name = f"residual_{part}"
            y = np.asarray(run.observables[name], dtype=float)
            seen = y > 0
            ax.plot(t[seen], y[seen], color=COLOURS[name], **kind)
            low, high = ax.get_ylim()
            if rate.fit is not None:
                a, b = rate.fit.window
                inside = (t >= a) & (t <= b) & seen
                middle = np.exp(np.mean(np.log(y[inside]) + rate.fit.rate * t[inside]))
                line = np.linspace(a, b, 50)
                ax.axvspan(a, b, color=BLACK, alpha=0.06, linewidth=0)
                ax.plot(line, middle * np.exp(-rate.fit.rate * line), color=BLACK, linewidth=1.2)
                beginning = y[rate.record]
                for value, colour, dashes in ((rate.eigenvalue, ORANGE, "--"), (rate.implied, PURPLE, ":")):
                    if np.isfinite(value):
                        line_y = beginning * np.exp(-value * (line - t[rate.record]))
                        ax.plot(line, line_y, color=colour, linestyle=dashes, linewidth=1.4)
                ax.set_title(f"fitted {rate.fit.rate:.3g} ± {rate.fit.uncertainty:.1g}")
            if spectrum is not None and part == "single":
                ax.plot(spectrum[0], np.asarray(spectrum[1].norm), color=BLACK, linestyle="-.", linewidth=1.4)
            ax.set_yscale("log")
            if seen.any():
                ax.set_ylim(max(low, y[seen].min() / 3), high * 1.2)
            else:
                ax.set_title("0 throughout")
            ax.set_xlabel(r"flow time $t$ (loss $\frac{1}{2}\|R\|^2$)")
            ax.set_ylabel(LABELS[name])
        handles = [
            Line2D([], [], color=BLACK, label="network" if network else "run", **kind),
            Line2D([], [], color=BLACK, label="fitted exponential, in its window"),
            Line2D([], [], color=ORANGE, linestyle="--", label=r"$\lambda(\gamma)$, lazy"),
            Line2D([], [], color=PURPLE, linestyle=":", label=r"implied by $\Theta$ at the window's start"),
        ]
        if spectrum is not None:
            handles.append(Line2D([], [], color=BLACK, linestyle="-.", label="measured within-class spectrum"))
        figure.legend(handles=handles, loc="outside lower center", ncols=5, handlelength=3)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure
