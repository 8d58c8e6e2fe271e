"""The neural feature ansatz of every layer."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkcollapse.collapse import neural_feature_ansatz
from ntkcollapse.training.measurements.moment import Moment, first_of_each_class


@dataclass(frozen=True)
class FeatureAnsatz:
    """How well WᵀW of every layer correlates with the AGOP of its input, and with its square root.

    "ansatz" among the measurements of `train`: observables "ansatz_correlation" and "ansatz_root_correlation", one
    value a layer with weights, and the layers' names among the `names` of the trajectory. As many backward passes as
    classes.

    Args:
        per_class: samples of each class of the training set that gradients are averaged over, or as many as the
            smallest class has; 0 for all.
        chunk: samples differentiated at once.
    """

    per_class: int = 10
    chunk: int = 100

    def __call__(self, moment: Moment) -> dict[str, Any]:
        part = first_of_each_class(moment.splits.train, self.per_class)
        found = neural_feature_ansatz(
            moment.network.module, moment.variables._asdict(), part.inputs, chunk=self.chunk, train=False
        )
        return {
            "ansatz": np.array(list(found)),
            "ansatz_correlation": np.array([layer.correlation for layer in found.values()]),
            "ansatz_root_correlation": np.array([layer.root_correlation for layer in found.values()]),
        }


feature_ansatz = FeatureAnsatz()
