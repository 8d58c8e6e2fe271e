"""Collapse of the last layer's features on test data, about their own class means and about those of training."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ntkcollapse.collapse import (
    ClassStatistics,
    RunningStatistics,
    nc1_papyan2020,
    nc1_seleznova2023,
    nc1_tirer2022,
    nc4_mismatch,
    ncc_accuracy,
    strong_test_collapse,
    weak_test_collapse,
)
from ntkcollapse.training.measurements.moment import (
    Moment,
    features_in_chunks,
    features_of_all,
    first_of_each_class,
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
        train = first_of_each_class(moment.splits.train, self.per_class)
        test = first_of_each_class(moment.splits.test, self.test_per_class)
        C = train.classes.num_classes
        sums = RunningStatistics.of_batches(features_in_chunks(moment, train, self.batch_size), C)
        H, labels = features_of_all(moment, test, self.batch_size), test.labels
        layer = moment.last_layer
        with jax.enable_x64(True):
            # Once more in float64 whatever the flag: sums and features are exact there.
            own = sums.statistics()
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


held_out_collapse = HeldOutCollapse()
