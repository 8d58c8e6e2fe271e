"""Collapse along depth: metrics of every layer that need no n × n matrix, on training and test data."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_finite, check_real, check_whole
from ntkcollapse.classes import Classes, class_order
from ntkcollapse.collapse.coding_rate import rate_reduction_yu2020
from ntkcollapse.collapse.nearest_centre import ncc_depth
from ntkcollapse.collapse.neighbours import knn_accuracy
from ntkcollapse.collapse.statistics import check_label_range, check_labels, check_no_empty_class
from ntkcollapse.collapse.streaming import RunningStatistics
from ntkcollapse.collapse.summary import measure
from ntkcollapse.observable_table import shown_in


class LayerProfile(NamedTuple):
    """Metrics of every layer, in the order of the network.

    layers: names; widths: features of each, (L,);
    train, test: values (L,) by name of the metric, as `layer_profile` lists them; test is empty without test data.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]

    def ncc_depth(self, tolerance: float = 0.0, *, first: int = 0) -> int | None:
        """After how many layers the nearest-class-centre error on training data is at most `tolerance`.

        Args:
            tolerance: the error that is allowed.
            first: layers before the first entry of the profile. 0 where that is the network's input, as with
                ``at="inputs"`` of `flax_activations` and in `DeepRFM.inputs`: the depth is then 0 for classes that are
                separated by their means before any layer, and L at the output of L layers. 1 with ``at="outputs"``.
        """
        return ncc_depth(self.train["ncc_accuracy"], tolerance, first=first)


def layer_profile(
    activations: Callable[[Any], Mapping[str, Array]],
    inputs: Float[ArrayLike, "N *shape"],
    labels: Any,
    test: tuple[Any, Any] | None = None,
    *,
    batch_size: int = 500,
    neighbours: int | None = None,
    precision: float | None = None,
) -> LayerProfile:
    r"""The collapse profile of a network: one pass for means, one for what needs them, in flat memory.

    Activations are flattened to n numbers a sample. No n × n matrix is formed, however wide a layer is: metrics that
    ask for the within-class covariance in the directions of the class means get it in those C − 1 directions alone, and
    the values are the same. Sums are in float64 on the host. Memory: 3 n C numbers a layer, 5 n C with test data, for
    all layers at once, and the activations of one batch. Training data go through the network twice, test data once.

    | metric | train | test |
    |---|---|---|
    | nc1_papyan2020, nc1_tirer2022, nc1_seleznova2023, nc2_seleznova2023, mean_cdnv_galanti2022 | yes | |
    | nc2_log_energy_liu2023, nc2_riesz_energy_liu2023 | yes | |
    | ncc_accuracy | yes | yes, by the means of training |
    | weak_nc1_tirer2022, strong_nc1_tirer2022 | | as `weak_test_collapse`, `strong_test_collapse` |
    | nc1_tirer2022 | | about the means of the test set itself |
    | knn_accuracy, with `neighbours` | each sample without itself | by the features of training |
    | rate_reduction_yu2020, with `precision` | yes, in nats | |

    Args:
        activations: of a batch, by name of the layer, each (batch, ...): `flax_activations`, or any pure function. The
            order of the dictionary is that of the profile; `jax.jit` sorts dictionaries by name, so jit inside.
        inputs, labels: training data, as `activations` takes it.
        test: test data and labels.
        batch_size: samples that go through the network at once.
        neighbours: k of `knn_accuracy`. It and `precision` look at all features of a layer together: N numbers a
            feature of every layer are kept for them, and memory is flat no more.
        precision: ε of `rate_reduction_yu2020`.
    Raises:
        ValueError: labels out of range, a class without samples, one class only, before anything is run; a layer whose
            output is not one row a sample, or not finite: the layer is named.
    """
    check_whole("batch_size", batch_size)
    y, C = check_labels(labels, np.shape(inputs)[0], None)
    y, z = np.asarray(y), None
    if test is not None:
        z, _ = check_label_range(test[1], np.shape(test[0])[0], C)
        check_no_empty_class(np.bincount(z, minlength=C))
    first: dict[str, RunningStatistics] = {}
    for name, features, batch in _batches(activations, inputs, y, batch_size):
        first[name] = first.get(name, _no_sums(features, C)).update(features, batch)
    frames = {name: _Frame.of(sums) for name, sums in first.items()}
    projected = {name: RunningStatistics.empty(frame.basis.shape[1], C) for name, frame in frames.items()}
    distances = dict.fromkeys(first, _Distances(0.0, 0.0, 0.0))
    kept = _Whole(neighbours, precision)
    for name, features, batch in _batches(activations, inputs, y, batch_size):
        kept.keep("train", name, features)
        inside, outside = frames[name].split(features)
        projected[name] = projected[name].update(inside, batch)
        distances[name] = distances[name].update(frames[name], inside, outside, batch)
    rows = [_train_values(first[name], projected[name], distances[name]) | kept.train_values(name, y) for name in first]
    tested = []
    if test is not None and z is not None:
        own: dict[str, RunningStatistics] = {}
        distances = dict.fromkeys(first, _Distances(0.0, 0.0, 0.0))
        for name, features, batch in _batches(activations, test[0], z, batch_size):
            kept.keep("test", name, features)
            own[name] = own.get(name, _no_sums(features, C)).update(features, batch)
            distances[name] = distances[name].update(frames[name], *frames[name].split(features), batch)
        tested = [
            _test_values(first[name], own[name], distances[name]) | kept.test_values(name, z, y) for name in first
        ]
    return LayerProfile(
        layers=tuple(first),
        widths=tuple(sums.means.shape[0] for sums in first.values()),
        train={key: np.array([row[key] for row in rows]) for key in rows[0]},
        test={key: np.array([row[key] for row in tested]) for key in tested[0]} if tested else {},
    )


def singular_split(
    kernel: Float[ArrayLike, "*fan out"],
    x: Float[ArrayLike, "N *shape"],
    linear: Callable[[Array, Array], Array] = lambda x, kernel: x @ kernel,
) -> dict[str, Array]:
    r"""A layer's input, and the same after each factor of its weight W = U S Vᵀ.

    With W of shape (out, fan) = kernelᵀ, S Vᵀ is where a linear layer can lose within-class variance; U only rotates
    what is left, and NC1 does not see rotations, so that what NC1 changes by after U is the non-linearity's doing. Give
    the result, with the non-linearity of "after U" as one more entry, to `layer_profile` as the activations of a batch.

    Args:
        kernel: as flax stores it: (in, out), or (height, width, in, out) of a convolution.
        x: input of the layer, rows.
        linear: (x, kernel) ↦ the layer's linear map without bias, for any number of outputs; a matrix product unless
            given, a convolution for example.
    Returns:
        {"input", "after SVᵀ", "after U"}, the last one W x.
    References:
        Beaglehole, Súkeník, Mondelli & Belkin (2024), on the average gradient outer product and collapse.
    """
    x, K = jnp.asarray(x), jnp.asarray(kernel)
    flat = K.reshape(-1, K.shape[-1])
    V, S, Ut = jnp.linalg.svd(flat, full_matrices=False)
    right = linear(x, (V * S[None, :]).reshape(*K.shape[:-1], S.shape[0]))
    return {"input": x, "after SVᵀ": right, "after U": right @ Ut}


def _batches(activations, inputs, labels, batch_size: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(layer, float64 features in rows, labels) batch by batch."""
    N = np.shape(inputs)[0]
    for start in range(0, N, batch_size):
        batch = inputs[start : start + batch_size]
        size = np.shape(batch)[0]
        outputs = activations(batch)
        if not outputs:
            raise ValueError("activations: expected at least one layer, got none; a network without kernels has none.")
        for name, value in outputs.items():
            check_real(**{f"activations[{name!r}]": value})
            value = np.asarray(value)
            if np.ndim(value) < 2 or np.shape(value)[0] != size:
                raise ValueError(
                    f"activations[{name!r}]: expected one row for each of the {size} samples of the batch, got shape "
                    f"{np.shape(value)}; leave out layers whose output is not per sample."
                )
            features = value.reshape(size, -1).astype(np.float64)
            check_finite(f"activations[{name!r}]", features)
            yield name, features, labels[start : start + batch_size]


def _no_sums(features: np.ndarray, num_classes: int) -> RunningStatistics:
    return RunningStatistics.empty(features.shape[1], num_classes, scatter=False)


def _about_their_mean(means: np.ndarray) -> np.ndarray:
    """Class means (n, C) about their mean; exact zeros where they coincide, as they are taken about the first."""
    shifted = means - means[:, :1]
    return shifted - shifted.mean(1, keepdims=True)


class _Frame(NamedTuple):
    """An orthonormal basis (n, r) of the directions in which class means differ, and the point it is taken about."""

    basis: np.ndarray
    centre: np.ndarray
    means: np.ndarray

    @classmethod
    def of(cls, sums: RunningStatistics) -> "_Frame":
        centred = _about_their_mean(sums.means)
        U, _, _ = np.linalg.svd(centred, full_matrices=False)
        U = U[:, : min(centred.shape[0], centred.shape[1] - 1)]
        return cls(U, sums.means[:, 0] - centred[:, 0], U.T @ centred)

    def split(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features in the frame (B, r), and how far each is from it, squared."""
        centred = features - self.centre
        inside = centred @ self.basis
        return inside, np.square(centred - inside @ self.basis.T).sum(1)


class _Distances(NamedTuple):
    """How often the nearest training mean is that of the sample's class, and squared distances from both, summed."""

    hits: float
    nearest: float
    own: float

    def update(self, frame: _Frame, inside: np.ndarray, outside: np.ndarray, labels: np.ndarray) -> "_Distances":
        # Outside the frame every class mean is the centre, so that this part is common to all distances. The nearest
        # mean is found by a product, which keeps (B, C) numbers; its distance is a difference, which does not cancel.
        M = frame.means
        nearest = (np.square(M).sum(0) / 2 - inside @ M).argmin(1)
        squares = (np.square(inside - M.T[classes]).sum() + outside.sum() for classes in (nearest, labels))
        return _Distances(
            self.hits + float((nearest == labels).sum()),
            *(total + float(s) for total, s in zip((self.nearest, self.own), squares, strict=True)),
        )


class _Whole:
    """What looks at all features of a layer together, and the features that are kept for it."""

    def __init__(self, neighbours: int | None, precision: float | None):
        self.neighbours, self.precision = neighbours, precision
        self.batches: dict[tuple[str, str], list[np.ndarray]] = {}

    def keep(self, part: str, name: str, features: np.ndarray) -> None:
        if self.neighbours is not None or (self.precision is not None and part == "train"):
            self.batches.setdefault((part, name), []).append(features)

    def train_values(self, name: str, labels: np.ndarray) -> dict[str, float]:
        values = {}
        if self.neighbours is not None:
            values["knn_accuracy"] = knn_accuracy(self._columns("train", name), labels, neighbours=self.neighbours)
        if self.precision is not None:
            order = class_order(labels)
            H, classes = self._columns("train", name)[:, order], Classes.from_labels(labels[order])
            rates = rate_reduction_yu2020(H, classes, precision=self.precision)
            values["rate_reduction_yu2020"] = rates.reduction
        return values

    def test_values(self, name: str, labels: np.ndarray, train_labels: np.ndarray) -> dict[str, float]:
        if self.neighbours is None:
            return {}
        train = self._columns("train", name), train_labels
        return {"knn_accuracy": knn_accuracy(self._columns("test", name), labels, train, neighbours=self.neighbours)}

    def _columns(self, part: str, name: str) -> np.ndarray:
        return np.concatenate(self.batches[part, name]).T


def _train_values(sums: RunningStatistics, inside: RunningStatistics, distances: _Distances) -> dict[str, float]:
    # One more feature stands for all that is orthogonal to the class means: there only variances count.
    rest = np.maximum(sums.square_deviations.sum(0) - inside.square_deviations.sum(0), 0)[None, :]
    r, C = inside.means.shape
    assert inside.scatter is not None
    scatter = np.zeros((r + 1, r + 1))
    scatter[:r, :r], scatter[r, r] = inside.scatter, rest.sum()
    compressed = RunningStatistics(
        sums.sizes,
        np.concatenate([inside.means, np.zeros((1, C))]),
        scatter,
        np.concatenate([inside.square_deviations, rest]),
    )
    with warnings.catch_warnings():
        # That a narrow layer cannot hold a simplex ETF is no news here; its width stands in the profile.
        warnings.simplefilter("ignore", UserWarning)
        values = measure(compressed)
    # This one changes with the rotation of the features.
    values["nc1_seleznova2023"] = float(np.sqrt(sums.square_deviations / sums.sizes).mean())
    values["ncc_accuracy"] = distances.hits / sums.num_samples
    return {name: values[name] for name in shown_in("layers")}


def _test_values(train: RunningStatistics, own: RunningStatistics, distances: _Distances) -> dict[str, float]:
    def between(sums):
        return float(np.square(_about_their_mean(sums.means)).sum() / sums.sizes.size)

    def ratio(within, variance):
        return within / variance if variance > 0 else float("inf")

    N = own.num_samples
    return {
        "nc1_tirer2022": ratio(float(own.square_deviations.sum()) / N, between(own)),
        "weak_nc1_tirer2022": ratio(distances.nearest / N, between(train)),
        "strong_nc1_tirer2022": ratio(distances.own / N, between(train)),
        "ncc_accuracy": distances.hits / N,
    }
