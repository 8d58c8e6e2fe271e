"""What features are worth for samples of other classes: few-shot error, and detection as none of those trained on."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkcollapse import collapse
from ntkcollapse.data import Dataset
from ntkcollapse.training.measurements.moment import Moment, features_in_chunks, features_of_all


@dataclass(frozen=True)
class UnseenClasses:
    """Collapse of classes that training did not have, and how well a few examples of each tell them apart.

    For `measurements=` of `train` or of a `Recorder`: observables "train_", "test_" and "unseen_" before
    "mean_cdnv_galanti2022" and "nc1_tirer2022", each about its own class means, and "unseen_few_shot_error", one value
    for each of `shots`, whose numbers stand as "shots" among the `names` of the trajectory. In float64.

    Args:
        unseen: two or more classes that the network was not trained on (`Dataset.of_classes`).
        shots: numbers of examples of each class.
        draws: of the examples.
        seed: of the draws, the same at every record.
        batch_size: samples that go through the network at once.
    """

    unseen: Dataset
    shots: tuple[int, ...] = (1, 5)
    draws: int = 100
    seed: int = 0
    batch_size: int = 500

    def __call__(self, moment: Moment) -> dict[str, Any]:
        values: dict[str, Any] = {}
        parts = {"train": moment.splits.train, "test": moment.splits.test, "unseen": self.unseen}
        features = {name: features_of_all(moment, part, self.batch_size) for name, part in parts.items()}
        with jax.enable_x64(True):
            for name, part in parts.items():
                seen = collapse.ClassStatistics.from_features(features[name].T, part.labels)
                for metric in (collapse.mean_cdnv_galanti2022, collapse.nc1_tirer2022):
                    values[f"{name}_{metric.__name__}"] = float(metric(seen))
            key = jax.random.key(self.seed)
            errors = [
                collapse.few_shot_error_galanti2022(
                    features["unseen"], self.unseen.labels, s, key=key, draws=self.draws
                )
                for s in self.shots
            ]
        return values | {
            "shots": np.array([str(s) for s in self.shots]),
            "unseen_few_shot_error": np.array([float(found.error) for found in errors]),
        }


@dataclass(frozen=True)
class OutOfDistribution:
    """How well samples from elsewhere are told from the test set by where their features fall.

    For `measurements=` of `train` or of a `Recorder`: areas under the curve (½ by chance, 1 at best) of
    "auroc_simplex_distance", "auroc_simplex_angle" and "auroc_neco" (`collapse.simplex_distance`, `simplex_angle`,
    `neco_ammar2024`), of "auroc_softmax", one minus the largest softmax of the logits (Hendrycks & Gimpel 2017), and
    "nc5_ammar2024" and "nc5_centred". Class means and covariance are those of the training set. In float64.

    Args:
        outside: samples of none of the classes, of the shape of the data.
        batch_size: samples that go through the network at once.
    """

    outside: Dataset
    batch_size: int = 500

    def __call__(self, moment: Moment) -> dict[str, Any]:
        train, test = moment.splits
        sums = collapse.RunningStatistics.of_batches(
            features_in_chunks(moment, train, self.batch_size), train.classes.num_classes
        )
        H = [features_of_all(moment, part, self.batch_size) for part in (test, self.outside)]
        W, b = moment.network.head(moment.variables.params)
        with jax.enable_x64(True):
            own = sums.statistics()

            def softmax(H, _):
                logits = np.asarray(W, np.float64) @ H + (0 if b is None else np.asarray(b, np.float64)[:, None])
                return 1 - jnp.max(jax.nn.softmax(jnp.asarray(logits), axis=0), axis=0)

            scores = {
                "simplex_distance": collapse.simplex_distance,
                "simplex_angle": collapse.simplex_angle,
                "neco": collapse.neco_ammar2024,
                "softmax": softmax,
            }
            areas = {
                f"auroc_{name}": float(collapse.auroc(*(score(part, own) for part in H)))
                for name, score in scores.items()
            }
            return areas | {
                "nc5_ammar2024": float(collapse.nc5_ammar2024(own, H[1])),
                "nc5_centred": float(collapse.nc5_ammar2024(own, H[1], centred=True)),
            }
