"""Measurement plug-ins that look beyond the probe: collapse along depth and on test data, the neural feature ansatz."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ntkcollapse.collapse import (
    ClassStatistics,
    LayerProfile,
    RunningStatistics,
    flax_activations,
    layer_profile,
    nc1_papyan2020,
    nc1_seleznova2023,
    nc1_tirer2022,
    nc4_mismatch,
    ncc_accuracy,
    neural_feature_ansatz,
    strong_test_collapse,
    weak_test_collapse,
)
from ntkcollapse.data import Dataset
from ntkcollapse.networks import Network, Variables
from ntkcollapse.training.measurements import Moment
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
        held_out = None
        if self.test_per_class:
            part = _first(test, self.test_per_class)
            held_out = part.inputs, part.labels
        train = _first(train, self.per_class)
        activations = flax_activations(moment.network.module, moment.variables._asdict(), at=self.at, train=False)
        return layer_profile(activations, train.inputs, train.labels, held_out, batch_size=self.batch_size)

    def __call__(self, moment: Moment) -> dict[str, Any]:
        profile = self.profile(moment)
        return {
            "layers": np.array(profile.layers),
            "layers_width": np.array(profile.widths),
            **{f"layers_{name}": value for name, value in profile.train.items()},
            **{f"layers_test_{name}": value for name, value in profile.test.items()},
        }


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


@dataclass(frozen=True)
class HeldOutCollapse:
    """Collapse of the last layer's features on the whole training set, on the test set, and of test features about the
    class means of training: weak and strong.

    "test-collapse" among the measurements of `train`: each of `nc1_papyan2020`, `nc1_tirer2022`, `nc1_seleznova2023`
    with "train_", "test_" (about the test set's own means), "weak_" and "strong_" before it (as `weak_test_collapse`
    and `strong_test_collapse`), and on test data "test_ncc_accuracy" and "test_nc4_mismatch" by the means of training.
    One pass over both parts at every measurement; features of the test set are kept, n N numbers. In float64.

    Args:
        per_class, test_per_class: samples, or as many as the smallest class has; 0 for all.
        batch_size: samples that go through the network at once.
    """

    per_class: int = 0
    test_per_class: int = 0
    batch_size: int = 500

    def __call__(self, moment: Moment) -> dict[str, Any]:
        train, test = _first(moment.splits.train, self.per_class), _first(moment.splits.test, self.test_per_class)
        C = train.classes.num_classes
        sums = RunningStatistics.of_batches(self._features(moment, train), C)
        rows, labels = (np.concatenate(parts) for parts in zip(*self._features(moment, test), strict=True))
        layer = moment.last_layer
        with jax.enable_x64(True):
            # Once more in float64 whatever the flag: sums and features are exact there.
            own, H = sums.statistics(), rows.T.astype(np.float64)
            W, b = (np.asarray(value, np.float64) for value in (layer.W, layer.b))
            parts = {
                "train": own,
                "test": ClassStatistics.from_features(H.T, labels, C),
                "weak": weak_test_collapse(H, own),
                "strong": strong_test_collapse(H, labels, own),
            }
            values = {
                f"{part}_{metric.__name__}": float(metric(statistics))
                for part, statistics in parts.items()
                for metric in (nc1_papyan2020, nc1_tirer2022, nc1_seleznova2023)
            }
            return values | {
                "test_ncc_accuracy": float(ncc_accuracy(H, labels, own.means)),
                "test_nc4_mismatch": float(nc4_mismatch(H, W, b, own.means)),
            }

    def _features(self, moment: Moment, part: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(part.inputs), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield np.asarray(_features(moment.network, moment.variables, part.inputs[rows])), part.labels[rows]


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
        part = _first(moment.splits.train, self.per_class)
        found = neural_feature_ansatz(
            moment.network.module, moment.variables._asdict(), part.inputs, chunk=self.chunk, train=False
        )
        return {
            "ansatz": np.array(list(found)),
            "ansatz_correlation": np.array([layer.correlation for layer in found.values()]),
            "ansatz_root_correlation": np.array([layer.root_correlation for layer in found.values()]),
        }


held_out_collapse, layer_collapse, feature_ansatz = HeldOutCollapse(), LayerCollapse(), FeatureAnsatz()


def _first(part: Dataset, per_class: int) -> Dataset:
    """The first samples of each class; all of the part for 0."""
    return part.balanced(min(per_class, *part.classes.sizes)) if per_class else part


@eqx.filter_jit
def _features(network: Network, variables: Variables, x):
    return network.features(variables.params, x, variables.batch_stats)
