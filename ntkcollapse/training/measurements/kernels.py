"""Feature kernel and output kernel on the probe: block means, class pairs, alignment with the labels."""

from functools import partial
from typing import Any

import numpy as np

from ntkcollapse import ntk
from ntkcollapse.observables import block_observables
from ntkcollapse.training.measurements.moment import MeasuredKernel, Moment


def kernel(name: str, moment: Moment) -> dict[str, Any]:
    """The three numbers of a kernel, its class-pair matrix, and its alignment with the labels.

    Alignment is that of the kernel itself where the probe has at most `DENSE` samples; beyond, that of its blocks, an
    upper bound, since what is spread within blocks adds to ‖K‖ alone.
    """
    measured: MeasuredKernel = getattr(moment, name)
    numbers = block_observables(measured[:3], name) | {f"{name}_class_pairs": measured.class_pairs}
    if measured.matrix is None:
        d, c, n = measured.diagonal, measured.within, measured.between
        sizes = np.asarray(moment.probe.classes.sizes, float)
        N, squares = sizes.sum(), (sizes**2).sum()
        norm = np.sqrt(N * d**2 + (squares - N) * c**2 + (N**2 - squares) * n**2)
        return numbers | {f"{name}_alignment": (N * d + (squares - N) * c) / (norm * np.sqrt(squares))}
    alignment = ntk.matrix_alignment(measured.matrix, moment.probe.classes)
    return numbers | {f"{name}_alignment": alignment.alignment, f"{name}_centred_alignment": alignment.centred}


kappa = partial(kernel, "kappa")
gamma = partial(kernel, "gamma")
