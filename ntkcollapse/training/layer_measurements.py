"""Measurement plug-ins that look at every layer: collapse along depth, and the neural feature ansatz."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkcollapse.collapse import LayerProfile, flax_activations, layer_profile, neural_feature_ansatz
from ntkcollapse.training.measurements import Moment


@dataclass(frozen=True)
class LayerCollapse:
    """The collapse profile of the network, on the first samples of each class of the training and of the test set.

    Give it to `train` as measurements={"layers": LayerCollapse()}: observables "layers_<metric>" and
    "layers_test_<metric>", one value a layer, in the order of `layer_profile` (what each layer with weights sees, and
    the network's output). Two passes over both parts at every measurement.

    Args:
        per_class, test_per_class: samples; 0 for all of the training set, and for no test set.
        at: which activations, as for `flax_activations`.
        batch_size: samples that go through the network at once.
    """

    per_class: int = 50
    test_per_class: int = 50
    at: str = "inputs"
    batch_size: int = 500

    def profile(self, moment: Moment) -> LayerProfile:
        """The profile itself, with the names of the layers."""
        train, test = moment.splits
        train = train.balanced(self.per_class) if self.per_class else train
        held_out = None
        if self.test_per_class:
            part = test.balanced(self.test_per_class)
            held_out = part.inputs, part.labels
        activations = flax_activations(moment.network.module, moment.variables._asdict(), at=self.at, train=False)
        return layer_profile(activations, train.inputs, train.labels, held_out, batch_size=self.batch_size)

    def __call__(self, moment: Moment) -> dict[str, np.ndarray]:
        profile = self.profile(moment)
        return {f"layers_{name}": value for name, value in profile.train.items()} | {
            f"layers_test_{name}": value for name, value in profile.test.items()
        }


@dataclass(frozen=True)
class FeatureAnsatz:
    """How well WᵀW of every layer correlates with the AGOP of its input, and with its square root.

    Give it to `train` as measurements={"ansatz": FeatureAnsatz()}: observables "ansatz_correlation" and
    "ansatz_root_correlation", one value a layer with weights. As many backward passes as classes.

    Args:
        per_class: samples of each class of the training set that gradients are averaged over.
        chunk: samples differentiated at once.
    """

    per_class: int = 10
    chunk: int = 100

    def __call__(self, moment: Moment) -> dict[str, Any]:
        part = moment.splits.train.balanced(self.per_class)
        found = neural_feature_ansatz(
            moment.network.module, moment.variables._asdict(), part.inputs, chunk=self.chunk, train=False
        )
        return {
            "ansatz_correlation": np.array([layer.correlation for layer in found.values()]),
            "ansatz_root_correlation": np.array([layer.root_correlation for layer in found.values()]),
        }
