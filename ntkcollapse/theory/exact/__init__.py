"""Exact solutions of the flow as functions of time, its limits, and the minimisers with weight decay."""

from ntkcollapse.theory.exact.centring import GlobalMode, bias_relaxation, global_mode_limit
from ntkcollapse.theory.exact.frozen import frozen_residual
from ntkcollapse.theory.exact.limits import (
    LimitState,
    NonCollapsedLimit,
    collapsed_limit,
    feature_scale_of_invariant,
    imbalanced_limit,
    invariant_of_feature_scale,
    minimal_scatter_rank,
    non_collapsed_limit,
)
from ntkcollapse.theory.exact.minimisers import RegularisedMinimiser, regularised_minimiser
from ntkcollapse.theory.exact.modes import aligned_pair, learning_time, logistic_mode, scalar_mode
from ntkcollapse.theory.exact.riccati import class_gram_solution, ufm_gram_solution

__all__ = [
    "GlobalMode",
    "LimitState",
    "NonCollapsedLimit",
    "RegularisedMinimiser",
    "aligned_pair",
    "bias_relaxation",
    "class_gram_solution",
    "collapsed_limit",
    "feature_scale_of_invariant",
    "frozen_residual",
    "global_mode_limit",
    "imbalanced_limit",
    "invariant_of_feature_scale",
    "learning_time",
    "logistic_mode",
    "minimal_scatter_rank",
    "non_collapsed_limit",
    "regularised_minimiser",
    "scalar_mode",
    "ufm_gram_solution",
]
