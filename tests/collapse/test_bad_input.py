"""What cannot be measured is refused by name, and what is degenerate is reported as such, wherever it comes in."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import collapse
from ntkcollapse.collapse import ClassStatistics, KernelStatistics, RunningStatistics

pytestmark = pytest.mark.usefixtures("as_users_call")

RNG = np.random.default_rng(0)
H, LABELS = RNG.normal(size=(4, 12)), np.arange(12) % 3
TRAIN = ClassStatistics.from_features(H.T, LABELS)
NAN = np.where(np.arange(12) == 5, np.nan, H)


def gram(features, labels):
    return KernelStatistics.from_gram(features @ features.T, labels)


def profile(features, labels):
    return collapse.layer_profile(lambda x: {"x": x}, features, labels)


def stream(features, labels):
    return RunningStatistics.of_batches([(features, labels)], 3).statistics()


def strong(features, labels):
    return collapse.strong_test_collapse(features.T, labels, TRAIN)


@pytest.mark.parametrize("entry", [ClassStatistics.from_features, gram, profile, stream])
def test_a_class_without_samples(entry):
    with pytest.raises(ValueError, match="none of class 1"):
        entry(H.T, 2 * (LABELS // 2))


@pytest.mark.parametrize("entry", [ClassStatistics.from_features, gram, profile])
def test_one_class_only(entry):
    with pytest.raises(ValueError, match=r"at least (one feature and )?two classes"):
        entry(H.T, 0 * LABELS)


@pytest.mark.parametrize("entry", [ClassStatistics.from_features, gram, profile, stream, strong])
def test_labels_out_of_range(entry):
    # Indexing on a device would take the nearest class there is.
    with pytest.raises(ValueError, match="got -1"):
        entry(H.T, LABELS - 1)
    with pytest.raises(ValueError, match="astype"):
        entry(H.T, LABELS.astype(float))


@pytest.mark.parametrize("entry", [stream, strong])
def test_labels_beyond_the_classes_that_are_known(entry):
    with pytest.raises(ValueError, match=r"labels in 0, \.\.\., 2 for C = 3 classes, got 3"):
        entry(H.T, LABELS + 1)


@pytest.mark.parametrize("entry", [ClassStatistics.from_features, gram, profile, stream, strong])
def test_features_that_are_not_finite(entry):
    with pytest.raises(ValueError, match="expected finite"):
        entry(NAN.T, LABELS)


def test_numbers_that_are_not_finite_do_not_count_as_class_0():
    """An argmax over NaN is 0, in both decisions of NC4: silence would call that collapse."""
    for call in (
        lambda: collapse.nc4_mismatch(NAN, np.ones((3, 4)), None, TRAIN.means),
        lambda: collapse.nc4_mismatch(H, np.ones((3, 4)), np.array([np.nan, 0, 0]), TRAIN.means),
        lambda: collapse.ncc_accuracy(NAN, LABELS, TRAIN.means),
        lambda: collapse.weak_test_collapse(NAN, TRAIN),
        lambda: collapse.measure(ClassStatistics(TRAIN.sizes, TRAIN.means * np.nan, *list(vars(TRAIN).values())[2:])),
        lambda: collapse.measure(TRAIN, np.full((3, 4), np.inf)),
    ):
        with pytest.raises(ValueError, match="expected finite"):
            call()


def test_classifiers_that_are_not_finite_are_not_perfect():
    """NaN lengths and angles are not equal ones. Under jit, where values cannot be looked at, NaN stays NaN."""
    W = np.full((3, 4), np.nan)
    of_W = (
        collapse.nc2_zhu2021,
        collapse.nc2_equinorm_papyan2020,
        collapse.nc2_equiangle_papyan2020,
        collapse.nc2_maximal_angle_papyan2020,
        *(lambda W, f=f: f(TRAIN, W) for f in (collapse.nc3_seleznova2023, collapse.nc3_han2022, collapse.nc3_zhu2021)),
    )
    for f in of_W:
        with pytest.raises(ValueError, match="W: expected finite"):
            f(W)
        assert np.isnan(jax.jit(f)(W))
    lost = ClassStatistics(TRAIN.sizes, TRAIN.means * np.nan, TRAIN.scatter, TRAIN.square_deviations)
    with pytest.raises(ValueError, match="means: expected finite"):
        collapse.nc2_seleznova2023(lost)
    of_statistics = (
        collapse.nc1_papyan2020,
        collapse.nc1_tirer2022,
        collapse.mean_cdnv_galanti2022,
        collapse.nc2_seleznova2023,
        collapse.nc2_equinorm_papyan2020,
    )
    for f in of_statistics:
        assert np.isnan(jax.jit(f)(lost)), f


def test_fewer_features_than_classes():
    """n < C − 1: NC1 is that of the directions there are, NC2 is above its floor with a warning."""
    x, labels = RNG.normal(size=(60, 2)), np.arange(60) % 5
    statistics = ClassStatistics.from_features(x, labels)
    M = np.stack([x[labels == c].mean(0) for c in range(5)], axis=1)
    between = (M - M.mean(1, keepdims=True)) @ (M - M.mean(1, keepdims=True)).T / 5
    within = (x - M.T[labels]).T @ (x - M.T[labels]) / 60
    np.testing.assert_allclose(
        collapse.nc1_papyan2020(statistics), np.trace(within @ np.linalg.inv(between)) / 5, rtol=1e-10
    )
    # The first call compiles, the second one does not: both warn, once.
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 features cannot hold a simplex ETF of C = 5") as said:
            collapse.measure(statistics, x[:5])
        assert sum("simplex" in str(warning.message) for warning in said) == 1
    with pytest.warns(UserWarning, match="2 features cannot hold a simplex ETF of C = 5"):
        assert collapse.measure(statistics)["nc2_seleznova2023"] >= collapse.simplex_etf_floor(2, 5)
    # The profile of a narrow layer holds the same values, without a word.
    found = profile(x, labels).train
    np.testing.assert_allclose(found["nc1_papyan2020"], collapse.nc1_papyan2020(statistics), rtol=1e-10)


def test_zero_between_class_scatter_is_infinite_everywhere_and_never_nan():
    """A dead layer, and classes whose means coincide while samples differ."""
    x = np.concatenate([H[:, :4].T] * 3)
    labels = np.repeat(np.arange(3), 4)
    # The mean of three times 0.1 is not 0.1.
    for features in (x, 0 * x + 2.0, 0 * x + 0.1):
        statistics = ClassStatistics.from_features(features, labels)
        values = collapse.measure(statistics, np.zeros((3, 4)))
        for name in ("nc1_papyan2020", "nc1_han2022", "nc1_tirer2022", "mean_cdnv_galanti2022"):
            assert values[name] == np.inf, name
        assert not np.isnan(list(values.values())).any()
        assert float(collapse.fisher_ratio_zarka2021(statistics)) == 0
        test = collapse.layer_profile(lambda x: {"x": x}, features, labels, (features + 1.0, labels)).test
        assert test["weak_nc1_tirer2022"] == test["strong_nc1_tirer2022"] == np.inf
        assert not np.isnan(np.concatenate(list(test.values()))).any()


def test_sums_without_scatter_say_so():
    sums = RunningStatistics.empty(4, 3, scatter=False).update(H.T, LABELS)
    for call in (sums.statistics, lambda: collapse.measure(sums)):
        with pytest.raises(ValueError, match="kept without it"):
            call()


def test_profile_of_bad_test_data_and_batches():

    def activations(x):
        return {"x": x}

    with pytest.raises(ValueError, match=r"labels in 0, \.\.\., 2 for C = 3 classes, got 3"):
        collapse.layer_profile(activations, H.T, LABELS, (H.T, LABELS + 1))
    with pytest.raises(ValueError, match="none of class 2"):
        collapse.layer_profile(activations, H.T, LABELS, (H.T, LABELS % 2))
    with pytest.raises(ValueError, match="batch_size"):
        collapse.layer_profile(activations, H.T, LABELS, batch_size=0)


def test_no_samples_no_classes_and_labels_that_are_none():
    W, none = np.ones((3, 4)), np.zeros((4, 0))
    with pytest.raises(ValueError, match="H: expected at least one sample"):
        collapse.nc4_mismatch(none, W, None, TRAIN.means)
    with pytest.raises(ValueError, match="H: expected at least one sample"):
        collapse.ncc_accuracy(none, np.zeros(0, int), TRAIN.means)
    for labels, bad in ((LABELS + 1, 3), (LABELS - 1, -1)):
        with pytest.raises(ValueError, match=f"got {bad}"):
            collapse.ncc_accuracy(H, labels, TRAIN.means)
    for f in (collapse.nc2_zhu2021, collapse.nc2_equiangle_papyan2020, collapse.nc2_maximal_angle_papyan2020):
        with pytest.raises(ValueError, match="at least two classes"):
            f(W[:1])


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name="twice")
        return layer(nn.tanh(layer(x)))


class Summed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="layer")(x).sum(0)


class Heads(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.DenseGeneral((3, 2), name="heads")(x).reshape(x.shape[0], -1))


class Groups(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Conv(4, (1,), feature_group_count=2, name="groups")(x[:, None]).reshape(x.shape[0], -1))


def test_layers_that_are_more_than_one_matrix():
    """Their kernel, as one matrix, has not the shape or not the meaning of what they do."""
    x = jnp.asarray(H.T, jnp.float32)
    for module, message in ((Heads(), "heads: expected .* got DenseGeneral"), (Groups(), "groups: expected .* Conv")):
        variables = module.init(jax.random.key(0), x)
        for f in (collapse.layer_agops, collapse.neural_feature_ansatz, collapse.layer_kernels):
            with pytest.raises(ValueError, match=message):
                f(module, variables, x)
    plain = nn.Dense(2)
    with pytest.raises(ValueError, match=r"at least one sample, got shape \(0, 4\)"):
        collapse.layer_agops(plain, plain.init(jax.random.key(0), x), x[:0])


def test_layers_that_have_no_agop_of_their_own():
    x = jnp.asarray(H.T, jnp.float32)
    for module, message in ((Shared(), "twice: expected a layer that is called once"), (Summed(), "one row a sample")):
        variables = module.init(jax.random.key(0), x)
        with pytest.raises(ValueError, match=message):
            collapse.layer_agops(module, variables, x)
