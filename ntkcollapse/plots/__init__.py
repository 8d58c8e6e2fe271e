"""Figures: axes in, axes out; nothing is computed here."""

from typing import TYPE_CHECKING

from ntkcollapse._lazy import import_on_use

if TYPE_CHECKING:
    from ntkcollapse.observable_table import described
    from ntkcollapse.plots.axes import smooth
    from ntkcollapse.plots.collapse import ansatz_figure, collapse_profile_figure, held_out_figure
    from ntkcollapse.plots.ladder import attribution_figure, ladder_figure, plot_ladder, rung_style
    from ntkcollapse.plots.overview import has_overview, overview_figure, pictured
    from ntkcollapse.plots.phase_diagram import phase_diagram
    from ntkcollapse.plots.rates import rates_figure
    from ntkcollapse.plots.style import save, style
    from ntkcollapse.plots.trajectories import comparison_figure, comparison_panels, plot_observables, simulation_figure

__all__ = [
    "ansatz_figure",
    "attribution_figure",
    "collapse_profile_figure",
    "comparison_figure",
    "comparison_panels",
    "described",
    "has_overview",
    "held_out_figure",
    "ladder_figure",
    "overview_figure",
    "phase_diagram",
    "pictured",
    "plot_ladder",
    "plot_observables",
    "rates_figure",
    "rung_style",
    "save",
    "simulation_figure",
    "smooth",
    "style",
]

import_on_use(__name__)
