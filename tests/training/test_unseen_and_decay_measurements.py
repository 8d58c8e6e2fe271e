"""Quasi-interpolation, unseen classes and samples from elsewhere, against numpy and scipy on the network's features."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
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
    layer = variables.params["last_layer"] | {"bias": jnp.array([0.3, -0.2, 0.1], jnp.float32)}
    variables = variables._replace(params={**variables.params, "last_layer": layer})
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


def cdnv(h):
    """Of two classes of four rows each."""
    means = [h[:4].mean(0), h[4:].mean(0)]
    variances = [np.mean(np.sum((h[4 * c : 4 * c + 4] - means[c]) ** 2, axis=1)) for c in range(2)]
    return sum(variances) / (2 * np.sum((means[0] - means[1]) ** 2))


def few_shot_errors(h, shots):
    """Of two classes of four rows each: the error of each choice of examples."""
    errors = []
    for first, second in itertools.product(itertools.combinations(range(4), shots), repeat=2):
        chosen = [list(first), [4 + k for k in second]]
        wrong = cdist(h, np.stack([h[rows].mean(0) for rows in chosen])).argmin(1) != np.repeat([0, 1], 4)
        errors.append(np.mean(wrong[np.setdiff1d(np.arange(8), np.concatenate(chosen))]))
    return errors


def test_unseen_classes(moment):
    labels = np.repeat([0, 1], 4)
    unseen = Dataset.of(RNG.normal(size=(8, 4)) + 0.7 * labels[:, None], labels, name="unseen")
    values = UnseenClasses(unseen, shots=(1, 3), draws=2000)(moment)
    assert values["shots"].tolist() == ["1", "3"]
    h = features(moment, unseen)
    np.testing.assert_allclose(values["unseen_mean_cdnv_galanti2022"], cdnv(h), rtol=1e-5)
    errors = [few_shot_errors(h, shots) for shots in (1, 3)]
    spread = [5 * np.std(e) / np.sqrt(2000) for e in errors]
    assert abs(np.mean(errors[0]) - np.mean(errors[1])) > sum(spread)
    for value, exact, tolerance in zip(values["unseen_few_shot_error"], errors, spread, strict=True):
        np.testing.assert_allclose(value, np.mean(exact), atol=tolerance)
    # Each part about its own class means.
    for name, part in moment.splits._asdict().items():
        rows = features(moment, part)
        M = np.stack([rows[part.labels == c].mean(0) for c in range(C)])
        within = np.mean(np.sum((rows - M[part.labels]) ** 2, axis=1))
        between = np.mean(np.sum((M - M.mean(0)) ** 2, axis=1))
        np.testing.assert_allclose(values[f"{name}_nc1_tirer2022"], within / between, rtol=1e-5)


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
    # About the centre, the same for samples and for classes of one size: angles, and what principal directions leave.
    centre, both = M.mean(0), np.concatenate(parts) - M.mean(0)
    angles = cdist(both, M - centre, metric="cosine").min(1)
    np.testing.assert_allclose(values["auroc_simplex_angle"], roc_auc_score(labels, angles), rtol=1e-12)
    principal = np.linalg.svd(h - centre, full_matrices=False)[2][: C - 1]
    inside = np.linalg.norm(both @ principal.T, axis=1) / np.linalg.norm(both, axis=1)
    np.testing.assert_allclose(values["auroc_neco"], roc_auc_score(labels, 1 - inside), rtol=1e-12)
    out = parts[1].mean(0)
    for name, shift in (("nc5_ammar2024", 0), ("nc5_centred", centre)):
        cosines = 1 - cdist(M - shift, (out - shift)[None], metric="cosine")
        np.testing.assert_allclose(values[name], np.abs(cosines).mean(), rtol=1e-5)
