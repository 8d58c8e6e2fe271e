"""Theory beside networks: predictions from a measured state, and where, when and why the two part."""

from typing import TYPE_CHECKING

from ntkcollapse._lazy import import_on_use

if TYPE_CHECKING:
    from ntkcollapse.comparison.attribution import Attribution, Share, attribute
    from ntkcollapse.comparison.blocks_error import krylov_error
    from ntkcollapse.comparison.files import load_ladders, save_ladders
    from ntkcollapse.comparison.invariant import CollapsePoint, InvariantCourse, collapse_points, invariant_course
    from ntkcollapse.comparison.ladder import Ladder, available_rungs, climb, joined
    from ntkcollapse.comparison.measured_run import MeasuredRun
    from ntkcollapse.comparison.network_at import NetworkAt
    from ntkcollapse.comparison.parametric import (
        FeaturesLinearised,
        FullNetwork,
        NetworkLinearised,
        Parameters,
        ParametricFlow,
        ParametricModel,
    )
    from ntkcollapse.comparison.predict import Gap, gaps
    from ntkcollapse.comparison.rates import MeasuredRate, implied_rates, measured_rates, within_class_spectrum
    from ntkcollapse.comparison.rungs import CHAINS, RUNGS, Assumption, Rung, chain
    from ntkcollapse.comparison.rungs._course import Course
    from ntkcollapse.comparison.start import MeasuredStart

__all__ = [
    "CHAINS",
    "RUNGS",
    "Assumption",
    "Attribution",
    "CollapsePoint",
    "Course",
    "FeaturesLinearised",
    "FullNetwork",
    "Gap",
    "InvariantCourse",
    "Ladder",
    "MeasuredRate",
    "MeasuredRun",
    "MeasuredStart",
    "NetworkAt",
    "NetworkLinearised",
    "Parameters",
    "ParametricFlow",
    "ParametricModel",
    "Rung",
    "Share",
    "attribute",
    "available_rungs",
    "chain",
    "climb",
    "collapse_points",
    "gaps",
    "implied_rates",
    "invariant_course",
    "joined",
    "krylov_error",
    "load_ladders",
    "measured_rates",
    "save_ladders",
    "within_class_spectrum",
]

import_on_use(__name__)
