"""Rungs 4 and 4b: features linearised in their parameters at the start; the last layer learns as in the network."""

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
    coupled: bool = False,
) -> Course:
    """The full feature kernel Θ^h, n × n for each pair of samples, frozen: no average over features.

    By products of Θ^h with WᵀR (one vector-Jacobian and one Jacobian-vector product of the features), never as a
    matrix. Each step costs some passes over the N samples.

    coupled: the features that training sees, in which batch statistics depend on the parameters and samples on one
    another; otherwise those of evaluation mode, whose statistics stay as they are.
    """
    model = FeaturesLinearised(start.network.in_training if coupled else start.network)
    return integrate_parameters(
        model,
        times,
        rung="features-coupled" if coupled else "features-linearised",
        weight_decay=start.weight_decay,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        progress=progress,
    )


def features_coupled(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """The same with batch statistics that move as the parameters do, to first order: Θ^h then couples all samples.

    Raises:
        ValueError: a network without batch statistics, for which this is rung 4.
    """
    if start.network.coupled is None:
        raise ValueError("features-coupled: expected a network with batch normalisation, got one without: see rung 4.")
    return features_linearised(start, times, coupled=True, **options)
