"""Synthetic sets against their known answers."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from ntkcollapse.classes import Classes
from ntkcollapse.data import (
    Dataset,
    gaussian_mixture,
    imbalanced,
    label_noise,
    orthogonal_inputs,
    random_labels,
    synthetic_splits,
)


def test_gaussian_mixture_has_its_bayes_error_and_its_nc1():
    classes = Classes.balanced(2, 20000)
    data = gaussian_mixture(classes, 5, separation=2.0, noise=1.5, seed=0)
    x, y = data.inputs.astype(float), data.labels
    means = np.stack([x[y == c].mean(0) for c in range(2)])
    direction = means[1] - means[0]
    wrong = ((x - means.mean(0)) @ direction > 0) != (y == 1)
    bayes = norm.cdf(-2.0 / 3.0)
    # Four standard errors of a share of 40,000.
    assert abs(wrong.mean() - bayes) < 4 * math.sqrt(bayes * (1 - bayes) / 40000)
    within = np.mean((x - means[y]) ** 2, axis=0).sum()
    between = np.mean((means - means.mean(0)) ** 2, axis=0).sum()
    # 2 d noise² C / ((C − 1) separation²), see the docstring; 3%: the means have errors of 1%.
    assert within / between == pytest.approx(2 * 5 * 1.5**2 * 2 / 4.0, rel=0.03)


def test_means_of_the_mixture_are_a_centred_simplex():
    data = gaussian_mixture(Classes.balanced(4, 1), 9, separation=3.0, noise=0.0, seed=1)
    x = data.inputs.astype(float)
    np.testing.assert_allclose(x.sum(0), 0, atol=1e-5)
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.testing.assert_allclose(distances[~np.eye(4, dtype=bool)], 3.0, rtol=1e-5)


def test_orthogonal_inputs_have_the_identity_as_kernel():
    x = orthogonal_inputs(Classes.balanced(3, 4), dimension=20, seed=0).inputs
    # Products of float32 roundings of unit vectors.
    np.testing.assert_allclose(x @ x.T, np.eye(12), atol=1e-6)


def numbered(classes: Classes) -> Dataset:
    return Dataset(np.arange(classes.num_samples, dtype=np.float32)[:, None], classes, "numbered")


def test_label_noise_moves_the_stated_share_of_each_class():
    data = numbered(Classes.balanced(5, 40))
    noisy = label_noise(data, 0.25, seed=0)
    before = data.labels[noisy.inputs[:, 0].astype(int)]
    for c in range(5):
        assert (noisy.labels[before == c] != c).sum() == 10
    assert sorted(noisy.inputs[:, 0].tolist()) == list(range(200))


def test_random_labels_keep_class_sizes():
    data = numbered(Classes((10, 20, 30)))
    shuffled = random_labels(data, seed=0)
    assert shuffled.classes.sizes == (10, 20, 30)
    before = data.labels[shuffled.inputs[:, 0].astype(int)]
    assert 0 < (before == shuffled.labels).sum() < 40


def test_imbalance_has_the_stated_ratio():
    data = numbered(Classes.balanced(4, 80))
    assert imbalanced(data, 8).classes.sizes == (80, 40, 20, 10)
    step = imbalanced(data, 8, kind="step")
    assert step.classes.sizes == (80, 80, 10, 10)
    assert (data.labels[step.inputs[:, 0].astype(int)] == step.labels).all()
    # 100/30 rounds to 3: the name says what was made.
    rounded = imbalanced(numbered(Classes.balanced(10, 100)), 30)
    assert (max(rounded.classes.sizes), min(rounded.classes.sizes)) == (100, 3)
    assert rounded.name == "numbered/imbalanced-exponential-33.3"


def test_both_parts_of_a_synthetic_set_are_of_one_draw():
    train, test = synthetic_splits("orthogonal", per_class=4, test_per_class=2, seed=0, options={"classes": 3})
    assert (train.classes.sizes, test.classes.sizes, train.shape) == ((4,) * 3, (2,) * 3, (18,))
    both = np.concatenate([train.inputs, test.inputs])
    np.testing.assert_allclose(both @ both.T, np.eye(18), atol=1e-6)
    with pytest.raises(ValueError, match=r"dimension .*: expected at least the 18 samples of training and test part"):
        synthetic_splits("orthogonal", per_class=4, test_per_class=2, seed=0, options={"classes": 3, "dimension": 17})
    options = {"classes": 4, "dimension": 9, "separation": 3, "noise": 0.0}
    train, test = synthetic_splits("gaussian-mixture", per_class=2, test_per_class=1, seed=1, options=options)
    assert (train.classes.sizes, train.shape) == ((2,) * 4, (9,))
    means = test.inputs.astype(float)
    np.testing.assert_array_equal(train.inputs, np.repeat(test.inputs, 2, axis=0))
    distances = np.linalg.norm(means[:, None] - means, axis=-1)
    np.testing.assert_allclose(distances[~np.eye(4, dtype=bool)], 3.0, rtol=1e-5)


def test_the_mixture_without_options_is_what_it_was():
    """Ten classes in 64 dimensions, 100 samples a class and part, means 4 apart, noise 1."""
    train, test = synthetic_splits("gaussian-mixture", seed=3)
    rows = gaussian_mixture(Classes.balanced(10, 200), 64, separation=4.0, noise=1.0, seed=3).inputs
    rows = rows.reshape(10, 200, 64)
    np.testing.assert_array_equal(train.inputs, rows[:, :100].reshape(-1, 64))
    np.testing.assert_array_equal(test.inputs, rows[:, 100:].reshape(-1, 64))


def test_what_cannot_be():
    data = numbered(Classes.balanced(4, 8))
    with pytest.raises(ValueError, match="fraction: expected a number from 0 to 1"):
        label_noise(data, 1.5, seed=0)
    with pytest.raises(ValueError, match="ratio: expected at most the 8 samples"):
        imbalanced(data, 100)
    with pytest.raises(ValueError, match="dimension: expected at least the 4 classes"):
        gaussian_mixture(data.classes, 3, seed=0)
    with pytest.raises(ValueError, match="dimension: expected at least the 32 samples"):
        orthogonal_inputs(data.classes, dimension=31, seed=0)
    with pytest.raises(ValueError, match="one row for each of the 32 samples"):
        Dataset(np.zeros((31, 1), np.float32), data.classes, "short")
