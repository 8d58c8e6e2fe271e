"""Figures: axes in, axes out; nothing is computed here."""

from ntkcollapse.plots.collapse import ansatz_figure, collapse_profile_figure, held_out_figure
from ntkcollapse.plots.ladder import attribution_figure, ladder_figure, plot_ladder, rung_style
from ntkcollapse.plots.rates import rates_figure
from ntkcollapse.plots.style import COLOURS, LABELS, save, style
from ntkcollapse.plots.trajectories import comparison_figure, comparison_panels, plot_observables, simulation_figure

__all__ = [
    "COLOURS",
    "LABELS",
    "ansatz_figure",
    "attribution_figure",
    "collapse_profile_figure",
    "comparison_figure",
    "comparison_panels",
    "held_out_figure",
    "ladder_figure",
    "plot_ladder",
    "plot_observables",
    "rates_figure",
    "rung_style",
    "save",
    "simulation_figure",
    "style",
]
