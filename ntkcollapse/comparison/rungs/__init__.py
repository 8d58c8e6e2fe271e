"""The rungs of the ladder: predictions under assumptions from strong to weak, one rung a file.

Every rung is a function of a `MeasuredStart` and the times asked for, and gives states and logits there; what is
observed of them is the same for all (`ladder.climb`).
"""

from collections.abc import Callable
from typing import NamedTuple

from ntkcollapse.comparison.rungs._course import Course
from ntkcollapse.comparison.rungs.block import block_frozen, block_path
from ntkcollapse.comparison.rungs.class_pairs import class_pairs
from ntkcollapse.comparison.rungs.features_linearised import features_coupled, features_linearised
from ntkcollapse.comparison.rungs.network_flow import network_flow
from ntkcollapse.comparison.rungs.network_linearised import network_linearised
from ntkcollapse.comparison.rungs.sample_kernel import sample_frozen, sample_path
from ntkcollapse.comparison.rungs.within_spectrum import within_spectrum


class Rung(NamedTuple):
    """One set of assumptions.

    number: as the ladder is counted; label: for legends and tables; predict: (start, times, **options) → `Course`;
    needs_network: whether the last layer and block kernels of the run are not enough.
    """

    number: str
    label: str
    predict: Callable[..., Course]
    needs_network: bool


RUNGS: dict[str, Rung] = {
    "block-frozen": Rung("1", "block kernel, frozen", block_frozen, False),
    "block-path": Rung("2", "block kernel, measured path", block_path, False),
    "class-pairs": Rung("2a", "class-pair blocks", class_pairs, True),
    "within-spectrum": Rung("2b", "class pairs, within-class spectrum", within_spectrum, True),
    "sample-frozen": Rung("3", "sample kernel, frozen", sample_frozen, True),
    "sample-path": Rung("3'", "sample kernel, measured path", sample_path, True),
    "features-linearised": Rung("4", "features linearised", features_linearised, True),
    "features-coupled": Rung("4b", "features linearised, batch statistics too", features_coupled, True),
    "network-linearised": Rung("5", "network linearised", network_linearised, True),
    "network-flow": Rung("6", "gradient flow of the network", network_flow, True),
}

__all__ = ["RUNGS", "Course", "Rung"]
