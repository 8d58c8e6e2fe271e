"""CDNV, nearest class centres, weak and strong test collapse: Gaussians and constructions with known answers."""

from math import erf, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import Classes
from ntkcollapse.collapse import (
    ClassStatistics,
    cdnv_galanti2022,
    mean_cdnv_galanti2022,
    nc1_seleznova2023,
    nc1_tirer2022,
    ncc_accuracy,
    ncc_depth,
    strong_test_collapse,
    weak_test_collapse,
)


def cross(means: np.ndarray, radii) -> tuple[np.ndarray, Classes]:
    """Around each mean ± radius along every axis: 2n samples whose mean squared distance is radius²."""
    n, C = means.shape
    steps = np.concatenate([np.eye(n), -np.eye(n)], axis=1)
    return np.concatenate([means[:, [c]] + radii[c] * steps for c in range(C)], axis=1), Classes.balanced(C, 2 * n)


def test_cdnv_of_known_variances_and_distances():
    means, radii = np.array([[0.0, 3.0, 0.0], [0.0, 0.0, 4.0]]), [1.0, 2.0, 3.0]
    H, classes = cross(means + 1e6, radii)  # a common offset must not cost digits
    V = np.asarray(cdnv_galanti2022(ClassStatistics.from_columns(H, classes)))
    expected = np.array([[0, 5 / 18, 10 / 32], [5 / 18, 0, 13 / 50], [10 / 32, 13 / 50, 0]])
    np.testing.assert_allclose(V, expected, rtol=1e-8)
    mean = mean_cdnv_galanti2022(ClassStatistics.from_columns(H, classes))
    np.testing.assert_allclose(mean, expected[np.triu_indices(3, 1)].mean(), rtol=1e-8)


def test_cdnv_of_coinciding_means_is_infinite_and_its_gradient_finite():
    H, classes = cross(np.array([[0.0, 0.0, 4.0], [0.0, 0.0, 0.0]]), [1.0, 1.0, 1.0])
    V = np.asarray(cdnv_galanti2022(ClassStatistics.from_columns(H, classes)))
    np.testing.assert_allclose(V, [[0, np.inf, 1 / 16], [np.inf, 0, 1 / 16], [1 / 16, 1 / 16, 0]])

    def one_pair(H):
        return cdnv_galanti2022(ClassStatistics.from_columns(H, classes))[0, 2]

    assert np.isfinite(np.asarray(jax.grad(one_pair)(jnp.asarray(H)))).all()


def test_nearest_class_centre_of_gaussians():
    """Classes N(±μ, I): the error is Φ(−|μ|)."""
    rng = np.random.default_rng(0)
    N, μ = 20_000, np.array([0.6, 0.8, 0.0])
    labels = rng.integers(0, 2, N)
    H = rng.normal(size=(3, N)) + np.where(labels == 1, 1, -1) * μ[:, None]
    exact = (1 + erf(1 / sqrt(2))) / 2
    # Four standard deviations of a mean of N coin tosses.
    accuracy = ncc_accuracy(H, labels, np.stack([-μ, μ], axis=1))
    np.testing.assert_allclose(accuracy, exact, atol=4 * sqrt(exact * (1 - exact) / N))
    # With estimated means, and the CDNV of the two: 3 / |2μ|².
    statistics = ClassStatistics.from_features(H.T, labels)
    np.testing.assert_allclose(mean_cdnv_galanti2022(statistics), 3 / 4, rtol=0.03)


def test_depth_is_the_first_layer_within_tolerance():
    assert ncc_depth([0.2, 0.99, 0.9, 1.0], tolerance=0.01) == 2
    assert ncc_depth(np.array([0.2, 0.99, 0.9, 1.0])) == 4
    assert ncc_depth([0.99, 1.0], tolerance=0.01, first=0) == 0
    assert ncc_depth([0.2, 0.3]) is None
    for bad in ([], [1.2], [np.nan]):
        with pytest.raises(ValueError, match="accuracies"):
            ncc_depth(bad, tolerance=0.1)


def test_strong_collapse_of_the_training_set_is_its_collapse():
    rng = np.random.default_rng(0)
    H, labels = rng.normal(size=(4, 30)), np.arange(30) % 3
    train = ClassStatistics.from_features(H.T, labels)
    again = strong_test_collapse(H, labels, train)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), again, train)


def test_weak_and_strong_by_hand():
    """Two classes at ±2: test samples at 1, 3 (right), −1 (wrong side), all of class 1."""
    train = ClassStatistics.from_columns(np.array([[-2.0, -2.0, 2.0, 2.0]]), Classes.balanced(2, 2))
    H, labels = np.array([[1.0, 3.0, -1.0]]), np.array([1, 1, 1])
    strong, weak = strong_test_collapse(H, labels, train), weak_test_collapse(H, train)
    np.testing.assert_allclose(strong.scatter, [[1 + 1 + 9]])
    np.testing.assert_allclose(weak.scatter, [[1 + 1 + 1]])
    np.testing.assert_allclose(strong.square_deviations, [[0, 11]])
    np.testing.assert_allclose(weak.square_deviations, [[1, 2]])
    np.testing.assert_allclose(nc1_tirer2022(strong), 11 / 3 / 4)
    np.testing.assert_allclose(nc1_tirer2022(weak), 1 / 4)


def test_classes_without_test_samples_have_no_vote():
    """All test samples near the first of three means, or of two: averages are over those."""
    labels = np.arange(30) % 3
    means = np.array([[0.0, 100.0, 0.0], [0.0, 0.0, 100.0]])
    rng = np.random.default_rng(0)
    train = ClassStatistics.from_features((means[:, labels] + rng.normal(size=(2, 30))).T, labels)
    M, H = np.asarray(train.means), rng.normal(size=(2, 8))
    weak = weak_test_collapse(H, train)
    np.testing.assert_array_equal(weak.sizes, [8, 0, 0])
    deviations = H - M[:, :1]
    np.testing.assert_allclose(nc1_seleznova2023(weak), np.sqrt(np.square(deviations).mean(1)).mean())
    assert np.isnan(float(mean_cdnv_galanti2022(weak)))

    H[:, 5:] += means[:, 1:2]
    weak = weak_test_collapse(H, train)
    variances = [np.square(H[:, part] - M[:, [c]]).sum(0).mean() for c, part in enumerate((slice(5), slice(5, 8)))]
    expected = sum(variances) / 2 / np.square(M[:, 0] - M[:, 1]).sum()
    np.testing.assert_allclose(mean_cdnv_galanti2022(weak), expected)


@pytest.mark.usefixtures("as_users_call")
def test_integer_features_are_measured_as_numbers():
    """Pixels as they are stored: sizes and means of integers would lose fractions and overflow."""
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    H = (rng.integers(0, 60, (4, 30)) + 90 * (np.arange(4)[:, None] == labels[None, :])).astype(np.uint8)
    train = ClassStatistics.from_features(H.T.astype(float), labels)
    of_floats = strong_test_collapse(H.astype(float), labels, train), weak_test_collapse(H.astype(float), train)
    for found, expected in zip(
        (strong_test_collapse(H, labels, train), weak_test_collapse(H, train)), of_floats, strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_weak_is_never_above_strong():
    rng = np.random.default_rng(2)
    labels = np.arange(60) % 3
    means = 1.5 * rng.normal(size=(4, 3))
    train = ClassStatistics.from_features((means[:, labels] + 0.1 * rng.normal(size=(4, 60))).T, labels)
    H = means[:, labels] + rng.normal(size=(4, 60))
    values = [
        float(nc1_tirer2022(s)) for s in (train, weak_test_collapse(H, train), strong_test_collapse(H, labels, train))
    ]
    assert values[0] < values[1] < values[2]
    with pytest.raises(ValueError, match="finite"):
        strong_test_collapse(H * np.nan, labels, train)
    with pytest.raises(ValueError, match="as train has"):
        weak_test_collapse(H[:3], train)
