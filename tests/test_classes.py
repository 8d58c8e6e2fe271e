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


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((True, 3), r"sizes: expected whole numbers of samples, got True \(bool\)"),
        ((np.True_, 3), r"sizes: expected whole numbers of samples, got True"),
        ((np.nan, 3), r"sizes: expected whole numbers of samples, got nan"),
        ((3 + 0j, 3), r"sizes: expected real numbers, got dtype complex128"),
        (("3", "4"), r"sizes: expected real numbers, got dtype <U1"),
        (7, r"sizes: expected one number of samples a class, such as \(500, 300, 20\), got 7"),
        (((3, 3), (3, 3)), r"sizes: expected one number of samples a class"),
    ],
)
def test_sizes_that_are_no_numbers_of_samples(sizes, message):
    with pytest.raises(ValueError, match=message):
        Classes(sizes=sizes)


@pytest.mark.usefixtures("as_users_call")
def test_a_truth_value_is_no_number_of_classes_and_a_mask_hides_no_labels():
    with pytest.raises(ValueError, match="sizes: expected whole numbers of samples, got True"):
        Classes.balanced(num_classes=3, per_class=True)
    with pytest.raises(ValueError, match=r"num_classes: expected a whole number, got 2\.0"):
        Classes.balanced(num_classes=2.0, per_class=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="labels: expected an array without a mask"):
        Classes.from_labels(np.ma.masked_array([0, 0, 1, 1], mask=np.array([0, 1, 0, 0], bool)))
