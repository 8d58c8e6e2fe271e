"""Rung 4: features linearised in their parameters at the start; the last layer learns as it does in the network."""

from typing import Any

from ntkcollapse.comparison.parametric import FeaturesLinearised
from ntkcollapse.comparison.rungs._course import Course, integrate_parameters
from ntkcollapse.comparison.start import MeasuredStart


def features_linearised(
    start: MeasuredStart,
    times: Any,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    progress: bool = False,
) -> Course:
    """The full feature kernel Θ^h, n × n for each pair of samples, frozen: no average over features.

    By products of Θ^h with WᵀR (one vector-Jacobian and one Jacobian-vector product of the features), never as a
    matrix. Each step costs some passes over the N samples.
    """
    model = FeaturesLinearised(start.network)
    return integrate_parameters(
        model,
        times,
        rung="features-linearised",
        weight_decay=start.weight_decay,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        progress=progress,
    )
