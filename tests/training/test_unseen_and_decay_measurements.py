"""Quasi-interpolation, unseen classes and samples from elsewhere, against numpy and scipy on the network's features."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from ntkcollapse.data import Dataset, Splits
from ntkcollapse.networks import mlp
from ntkcollapse.training import MEASUREMENTS, Moment, OutOfDistribution, TrainConfig, UnseenClasses

RNG = np.random.default_rng(0)
C, λ = 3, 0.02


def some(name, classes=C, per_class=5, shift=0.0):
    labels = np.repeat(np.arange(classes), per_class)
    return Dataset.of(RNG.normal(size=(len(labels), 4)) + shift + 2 * labels[:, None], labels, name=name)


@pytest.fixture(scope="module")
def moment():
    network = mlp((7, 6), C)
    splits = Splits(some("train"), some("test", per_class=4))
    variables = network.init(jax.random.key(0), splits.train.inputs)
    return Moment(
        network, variables, splits.train, splits, loss="squared", step=0, record=None, with_kernel=False, weight_decay=λ
    )


def features(moment, part):
    return np.asarray(moment.network.features(moment.variables.params, part.inputs), np.float64)


def test_quasi_interpolation(moment):
    values = MEASUREMENTS["quasi-interpolation"](moment)
    train, params = moment.splits.train, moment.variables.params
    h, W = features(moment, train), np.asarray(params["last_layer"]["kernel"], np.float64).T
    Y, N = np.eye(C)[train.labels], len(h)
    f = h @ W.T + np.asarray(params["last_layer"]["bias"])
    ε = np.mean(1 - np.sum(f * Y, axis=1))
    pattern = Y * (1 - ε) + (1 - Y) * ε / (C - 1)
    # λ/2 ‖p‖² beside 1/(2 N C) Σ R² is C λ/2 ‖p‖² beside 1/(2N) Σ R².
    penalty, fit = C * λ * np.sum(W**2, axis=1), np.sum((Y - f) * (h @ W.T), axis=0) / N
    M = np.stack([h[train.labels == c].mean(0) for c in range(C)])
    predicted = ε * (M - M.mean(0)) / (C * λ * (C - 1))
    norms = [np.sum(np.asarray(p, np.float64) ** 2) for p in jax.tree.leaves(params) if p.ndim > 1]
    expected = {
        "weight_identity_gap": np.linalg.norm(penalty - fit) / (np.linalg.norm(penalty) + np.linalg.norm(fit)),
        "epsilon": ε,
        "symmetry_residual": np.linalg.norm(f - pattern) / np.linalg.norm(Y - pattern),
        "epsilon_spread": np.std(1 - np.sum(f * Y, axis=1)) / abs(ε),
        "symmetric_weights_gap": np.linalg.norm(W - predicted) / np.linalg.norm(W),
        "layer_imbalance": (max(norms) - min(norms)) / np.mean(norms),
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="the squared loss with 'quasi-interpolation'"):
        dataclasses.replace(TrainConfig(), loss="cross-entropy", measure=("quasi-interpolation",))


def test_unseen_classes(moment):
    unseen = some("unseen", classes=2, per_class=4, shift=1.0)
    values = UnseenClasses(unseen, shots=(1, 3), draws=5)(moment)
    assert values["shots"].tolist() == ["1", "3"]
    assert values["unseen_few_shot_error"].shape == (2,)
    h = features(moment, unseen)
    means = [h[:4].mean(0), h[4:].mean(0)]
    variances = [np.mean(np.sum((h[4 * c : 4 * c + 4] - means[c]) ** 2, axis=1)) for c in range(2)]
    cdnv = sum(variances) / (2 * np.sum((means[0] - means[1]) ** 2))
    np.testing.assert_allclose(values["unseen_mean_cdnv_galanti2022"], cdnv, rtol=1e-5)
    assert {"train_nc1_tirer2022", "test_nc1_tirer2022", "test_mean_cdnv_galanti2022"} <= values.keys()


def test_samples_from_elsewhere(moment):
    outside = some("elsewhere", shift=-3.0)
    values = OutOfDistribution(outside)(moment)
    train, test = moment.splits
    h = features(moment, train)
    M = np.stack([h[train.labels == c].mean(0) for c in range(C)])
    parts = [features(moment, part) for part in (test, outside)]
    labels = np.repeat([0, 1], [len(part) for part in parts])
    distances = np.concatenate([cdist(part, M).min(1) for part in parts])
    np.testing.assert_allclose(values["auroc_simplex_distance"], roc_auc_score(labels, distances), rtol=1e-12)
    layer = moment.variables.params["last_layer"]
    logits = np.concatenate(parts) @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
    np.testing.assert_allclose(
        values["auroc_softmax"], roc_auc_score(labels, 1 - softmax(logits, axis=1).max(1)), rtol=1e-12
    )
    out = parts[1].mean(0)
    cosines = M @ out / np.linalg.norm(M, axis=1) / np.linalg.norm(out)
    np.testing.assert_allclose(values["nc5_ammar2024"], np.abs(cosines).mean(), rtol=1e-5)
