"""Sums in single precision, features of any scale, and what is refused or NaN instead of quietly wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes, DenseKernel, LastLayer, collapse, models
from ntkcollapse.collapse import ClassStatistics, KernelStatistics, RunningStatistics
from ntkcollapse.observables import observe
from ntkcollapse.theory import exact

C, PER_CLASS, FEATURES = 10, 6000, 16


def collapsed_features(spread: float):
    """MNIST's class size with class means of size 5, collapsed to `spread`; and the scatter, exact in float64."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(C), PER_CLASS)
    means = 5 + rng.normal(size=(C, FEATURES))
    features = (means[labels] + spread * rng.normal(size=(labels.size, FEATURES))).astype(np.float32)
    by_class = features.astype(float).reshape(C, PER_CLASS, FEATURES)
    deviations = (by_class - by_class.mean(1, keepdims=True)).reshape(-1, FEATURES)
    return features, labels, by_class.mean(1).T, deviations.T @ deviations


def orders(labels):
    return np.arange(labels.size), np.random.default_rng(1).permutation(labels.size)


@pytest.mark.parametrize("spread", [1e-3, 1e-5])
@pytest.mark.parametrize("compiled", [False, True])
def test_single_precision_scatter_is_that_of_double_precision(spread, compiled):
    features, labels, means, scatter = collapsed_features(spread)
    measure = ClassStatistics.from_features
    if compiled:
        measure = jax.jit(lambda x, y: ClassStatistics.from_features(x, y, C))
    for order in orders(labels):
        statistics = measure(jnp.asarray(features[order]), jnp.asarray(labels[order]))
        np.testing.assert_allclose(statistics.means, means, rtol=2e-7)
        np.testing.assert_allclose(statistics.scatter, scatter, atol=2e-6 * np.diagonal(scatter).max())
        np.testing.assert_allclose(statistics.square_deviations.sum(1), np.diagonal(scatter), rtol=1e-6)


@pytest.mark.parametrize(
    "classes", [Classes.balanced(C, PER_CLASS), Classes((PER_CLASS,) * (C - 1) + (PER_CLASS - 1,))]
)
def test_columns_in_single_precision_near_the_last_digit(classes):
    """A spread of 1e-6 of the means: rounding of the class means alone is a tenth of it."""
    features = collapsed_features(5e-6)[0][: classes.num_samples]
    double = features.astype(float)
    right = [part - part.mean(0) for part in np.split(double, np.cumsum(classes.sizes)[:-1])]
    statistics = ClassStatistics.from_columns(features.T, classes)
    expected = sum(np.square(part).sum(0) for part in right)
    np.testing.assert_allclose(np.diagonal(statistics.scatter), expected, rtol=1e-5)
    np.testing.assert_allclose(statistics.square_deviations.sum(1), expected, rtol=1e-4)


def scale_free(features, labels, W):
    """Every metric without units, of each way in, by name; in the precision of the features."""
    order = np.argsort(labels, kind="stable")
    train = ClassStatistics.from_features(features, labels)
    ways = {
        "features": train,
        "columns": ClassStatistics.from_columns(features[order].T, Classes.from_labels(labels[order])),
        "strong": collapse.strong_test_collapse(features.T, labels, train),
        "merged": ClassStatistics.from_features(features[::2], labels[::2]).merge(
            ClassStatistics.from_features(features[1::2], labels[1::2])
        ),
    }
    values = {}
    for way, statistics in ways.items():
        for metric in (
            collapse.nc1_papyan2020,
            collapse.nc1_tirer2022,
            collapse.mean_cdnv_galanti2022,
            collapse.nc2_seleznova2023,
            collapse.nc2_equinorm_papyan2020,
            collapse.nc2_equiangle_papyan2020,
            collapse.nc2_maximal_angle_papyan2020,
            collapse.fisher_ratio_zarka2021,
        ):
            values[f"{way} {metric.__name__}"] = metric(statistics)
        for metric in (collapse.nc3_seleznova2023, collapse.nc3_zhu2021):
            values[f"{way} {metric.__name__}"] = metric(statistics, W)
        statistics.check()
    values["accuracy"] = collapse.ncc_accuracy(features.T, labels, train.means)
    values["weights"] = collapse.nc2_zhu2021(W)
    return {name: float(value) for name, value in values.items()}


def test_features_of_any_scale_have_the_same_scale_free_metrics():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(4), 30))
    features = (rng.normal(size=(4, 5))[labels] + 0.1 * rng.normal(size=(120, 5))).astype(np.float32)
    W = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    expected = scale_free(jnp.asarray(features), labels, W)
    for exponent in (-73, 60):  # about 1e-22 and 1e18: powers of two, so that not one digit moves
        scale = np.float32(2.0**exponent)
        values = scale_free(jnp.asarray(features * scale), labels, W * scale)
        assert values == pytest.approx(expected, rel=1e-5)
        statistics = ClassStatistics.from_features(features * scale, labels)
        np.testing.assert_allclose(
            collapse.nc1_seleznova2023(statistics) / scale,
            collapse.nc1_seleznova2023(ClassStatistics.from_features(features, labels)),
            rtol=1e-6,
        )
        measured, right = (
            collapse.measure(s) for s in (statistics, RunningStatistics.of_batches([(features * scale, labels)], 4))
        )
        assert measured == pytest.approx(right, rel=1e-5)
        with jax.enable_x64(False):
            rounded = RunningStatistics.of_batches([(features * scale, labels)], 4).statistics()
        assert collapse.measure(rounded) == pytest.approx(right, rel=1e-5)
    K = jnp.asarray(features @ features.T)
    expected = collapse.kernel_nc1_papyan2020(KernelStatistics.from_gram(K, labels))
    for exponent in (-73, 100):
        statistics = KernelStatistics.from_gram(K * np.float32(2.0**exponent), labels)
        np.testing.assert_allclose(collapse.kernel_nc1_papyan2020(statistics), expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [-1, 3, 100])
def test_traced_labels_out_of_range_make_everything_nan(bad):
    rng = np.random.default_rng(0)
    H, labels = rng.normal(size=(2, 12)), np.arange(12) % 3
    train = ClassStatistics.from_features(H.T, labels)

    @jax.jit
    def values(labels):
        statistics = ClassStatistics.from_features(H.T, labels, 3)
        return (
            collapse.nc1_tirer2022(statistics),
            collapse.nc1_papyan2020(statistics),
            statistics.means.sum(),
            collapse.nc1_tirer2022(collapse.strong_test_collapse(H, labels, train)),
            collapse.ncc_accuracy(H, labels, train.means),
            collapse.kernel_nc1_kothapalli2025(KernelStatistics.from_gram(H.T @ H, labels, 3)),
        )

    assert np.isfinite(values(jnp.asarray(labels))).all()
    labels[5] = bad
    assert np.isnan(values(jnp.asarray(labels))).all()


X, LABELS = np.arange(12.0).reshape(6, 2) ** 2, np.array([0, 0, 0, 1, 1, 1])
GRAM = np.eye(6)
WAYS_IN = {
    "features": (X, lambda x: ClassStatistics.from_features(x, LABELS)),
    "H": (X.T, lambda x: ClassStatistics.from_columns(x, Classes((3, 3)))),
    "scatter": (np.eye(2), lambda x: ClassStatistics(jnp.full(2, 3.0), jnp.eye(2), x, jnp.eye(2))),
    "K": (GRAM, lambda x: KernelStatistics.from_gram(x, LABELS)),
    "running features": (X, lambda x: RunningStatistics.empty(2, 2).update(x, LABELS)),
    "W": (np.eye(2), lambda x: collapse.measure(ClassStatistics.from_features(X, LABELS), x)),
    "classifier W": (np.eye(2), collapse.nc2_zhu2021),
    "test H": (X.T, lambda x: collapse.strong_test_collapse(x, LABELS, ClassStatistics.from_features(X, LABELS))),
    "layer H": (X.T, lambda x: LastLayer(x, np.eye(2), np.zeros(2))),
    "layer W": (np.eye(2), lambda x: LastLayer(X.T, x, np.zeros(2))),
    "rows features": (X, lambda x: LastLayer.from_rows(x, LABELS, np.eye(2))),
    "rows kernel": (np.eye(2), lambda x: LastLayer.from_rows(X, LABELS, x)),
    "matrix": (GRAM, DenseKernel),
    "kernel between": (np.eye(2), lambda x: BlockKernel(np.full(2, 3.0), np.full(2, 2.0), x)),
}


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("way", WAYS_IN)
def test_complex_and_masked_arrays_are_refused_by_name(way):
    array, call = WAYS_IN[way]
    name = way.split()[-1]
    with pytest.raises(ValueError, match=f"^{name}: expected real numbers, got dtype complex"):
        call(array + 1j * array)
    mask = np.zeros(array.shape, bool)
    mask[0, 0] = True
    with pytest.raises(
        ValueError, match=f"^{name}: expected an array without a mask, got 1 of {array.size} entries masked"
    ):
        call(np.ma.masked_array(array, mask))
    with pytest.raises(ValueError, match=f"^{name}: expected real numbers, got dtype"):
        call(array.astype(str))
    call(array)


def test_sizes_of_small_features_in_single_precision_are_their_sizes():
    """What is observed of a small start: squares of 1e-22 are below the smallest float32."""
    rng = np.random.default_rng(0)
    classes, H = Classes((3, 3)), rng.normal(size=(2, 6)).astype(np.float32)
    W, b = jnp.asarray(rng.normal(size=(2, 2)), jnp.float32), jnp.zeros(2, jnp.float32)
    names = ("scatter_norm", "residual_single")
    right, small = (observe(LastLayer(H * np.float32(s), W, b), classes) for s in (1, 2.0**-73))
    for name in names:
        np.testing.assert_allclose(small[name] * 2.0**73, right[name], rtol=1e-5)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda z: collapse.agop(lambda x: x, z)),
        ("A", lambda z: collapse.ansatz_correlation(z, z)),
        ("x", lambda z: collapse.kernel_regression(z, np.eye(2), bandwidth=1.0)),
        (r"activations\['a'\]", lambda z: collapse.layer_profile(lambda x: {"a": z}, np.eye(2), [0, 1])),
        ("R", lambda z: exact.frozen_residual(1.0, z, BlockKernel(3.0, 2.0, 0.5), Classes((1, 1)))),
        ("outputs", lambda z: models.homogeneous.quasi_interpolation(z, Classes((1, 1)))),
    ],
)
def test_complex_arrays_are_refused_by_everything_that_measures(name, call):
    with pytest.raises(ValueError, match=f"^{name}: expected real numbers, got dtype complex128"):
        call(np.eye(2) + 1j)


def test_the_minority_has_at_least_two_classes():
    with pytest.raises(ValueError, match="majority: expected 1 to C - 2 = 2 classes, got 3"):
        models.layer_peeled.cosine_curve(np.ones(2), 4, 3, 2.0, 1.0, key=jax.random.key(0))
