"""Projections by hand-written indicator matrices, and what is said of bad labels and shapes."""

import numpy as np
import pytest

from ntkcollapse import Classes, LastLayer, class_order


@pytest.mark.parametrize("classes", [Classes.balanced(3, 4), Classes(sizes=(2, 5, 1))])
def test_parts_are_orthogonal_projections(classes):
    N = classes.num_samples
    Z = np.eye(classes.num_classes)[np.asarray(classes.labels)]
    P = Z @ np.diag(1 / Z.sum(0)) @ Z.T
    J = np.ones((N, N)) / N
    R = np.random.default_rng(0).normal(size=(3, N))
    parts = classes.parts(R)
    for part, expected in zip(parts, (R - R @ P, R @ P - R @ J, R @ J), strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-14)
    np.testing.assert_allclose(sum(np.sum(np.square(p)) for p in parts), np.sum(R**2), rtol=1e-13)
    np.testing.assert_array_equal(classes.Y, Z.T)
    np.testing.assert_allclose(classes.means(R), R @ Z @ np.diag(1 / Z.sum(0)), atol=1e-14)
    np.testing.assert_allclose(classes.deviations(R), R - R @ P, atol=1e-14)


def test_rows_become_columns_in_class_order():
    labels = np.array([2, 0, 1, 0, 2])
    features = np.arange(10.0).reshape(5, 2)
    kernel = np.arange(6.0).reshape(2, 3)
    state, classes = LastLayer.from_rows(features, labels, kernel)
    assert classes.sizes == (2, 1, 2)
    np.testing.assert_array_equal(state.H, features[[1, 3, 2, 0, 4]].T)
    np.testing.assert_array_equal(state.logits, (features[[1, 3, 2, 0, 4]] @ kernel).T)
    np.testing.assert_array_equal(class_order(labels), [1, 3, 2, 0, 4])


def test_bad_labels_and_shapes_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"class order .* label 1 before 0 at index 1; sort samples with"):
        Classes.from_labels([0, 1, 0])
    with pytest.raises(ValueError, match="class 1 has no sample"):
        Classes.from_labels([0, 0, 2])
    with pytest.raises(ValueError, match="expected integers"):
        Classes.from_labels(np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="at least two classes"):
        Classes(sizes=(3,))
    with pytest.raises(ValueError, match="got 0 in class 1"):
        Classes(sizes=(3, 0))
    with pytest.raises(ValueError, match=r"whole numbers of samples, got 2\.7"):
        Classes(sizes=(2.7, 3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"W: expected shape \(any, 5\)"):
        LastLayer(H=np.zeros((5, 6)), W=np.zeros((2, 4)), b=np.zeros(2))
    with pytest.raises(ValueError, match=r"H: expected finite numbers, got nan at index \(0, 1\)"):
        LastLayer(H=np.array([[0.0, np.nan]]), W=np.zeros((2, 1)), b=np.zeros(2))
    with pytest.raises(ValueError, match="7 samples of classes"):
        LastLayer(H=np.zeros((5, 6)), W=np.zeros((2, 5)), b=np.zeros(2)).check(Classes(sizes=(3, 4)))
    with pytest.raises(ValueError, match="one size, got sizes from 3 to 4"):
        _ = Classes(sizes=(3, 4)).per_class
