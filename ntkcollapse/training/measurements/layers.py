"""Collapse along depth, on training and on test data."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkcollapse.collapse import LayerProfile, flax_activations, layer_profile
from ntkcollapse.collapse.activations import Activations
from ntkcollapse.networks import OwnNetwork
from ntkcollapse.training.measurements.moment import Moment, first_of_each_class
from ntkcollapse.trajectory import Trajectory


@dataclass(frozen=True)
class LayerCollapse:
    """The collapse profile of the network, on the first samples of each class of the training and of the test set.

    "layers" among the measurements of `train`: observables "layers_<metric>" and "layers_test_<metric>", one value a
    layer, in the order of `layer_profile` (what each layer with weights sees, and the network's output), and their
    names among the `names` of the trajectory; `saved_profile` puts them together again. At every measurement two
    passes over the training part and one over the test part.

    Args:
        per_class, test_per_class: samples, or as many as the smallest class has; 0 for all of the training set, and for
            no test set.
        at: which activations, as for `flax_activations`; of a network of another framework "inputs" alone.
        batch_size: samples that go through the network at once.
        neighbours, precision: of k nearest neighbours and of the coding rate reduction, as for `layer_profile`; not
            measured without.
    """

    per_class: int = 50
    test_per_class: int = 50
    at: str = "inputs"
    batch_size: int = 500
    neighbours: int | None = None
    precision: float | None = None

    def profile(self, moment: Moment) -> LayerProfile:
        """The profile itself, with the names of the layers."""
        train, test = moment.splits
        held_out = None
        if self.test_per_class:
            part = first_of_each_class(test, self.test_per_class)
            held_out = part.inputs, part.labels
        train = first_of_each_class(train, self.per_class)
        return layer_profile(
            self._activations(moment),
            train.inputs,
            train.labels,
            held_out,
            batch_size=self.batch_size,
            neighbours=self.neighbours,
            precision=self.precision,
        )

    def _activations(self, moment: Moment) -> Activations:
        network, variables = moment.network, moment.variables
        if not isinstance(network, OwnNetwork):
            return flax_activations(network.module, variables._asdict(), at=self.at, train=False)
        if self.at != "inputs":
            raise ValueError(f"at: expected 'inputs' for a network of another framework, got {self.at!r}.")
        return network.activations(variables)

    def __call__(self, moment: Moment) -> dict[str, Any]:
        profile = self.profile(moment)
        return {
            "layers": np.array(profile.layers),
            "layers_width": np.array(profile.widths),
            **{f"layers_{name}": value for name, value in profile.train.items()},
            **{f"layers_test_{name}": value for name, value in profile.test.items()},
        }


layer_collapse = LayerCollapse()


def saved_profile(run: Trajectory, index: int = -1) -> LayerProfile:
    """The collapse profile that a run measured with `LayerCollapse` has at a record.

    Raises:
        ValueError: a run that did not measure its layers.
    """
    names = run.names.get("layers")
    if names is None:
        raise ValueError("run: expected one that measured its layers, got none of them in it; train it with 'layers'.")
    seen = {k.removeprefix("layers_"): np.asarray(v[index]) for k, v in run.observables.items() if k[:7] == "layers_"}
    widths = tuple(int(n) for n in seen.pop("width"))
    return LayerProfile(
        layers=tuple(names),
        widths=widths,
        train={name: value for name, value in seen.items() if not name.startswith("test_")},
        test={name.removeprefix("test_"): value for name, value in seen.items() if name.startswith("test_")},
    )
