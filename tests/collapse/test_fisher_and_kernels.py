"""Fisher's ratio under tight frames, and collapse from Gram matrices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes, collapse
from ntkcollapse.collapse import ClassStatistics, KernelStatistics
from tests.cases import UNEQUAL, random_state


def test_fisher_ratio_by_hand_and_under_linear_maps():
    H = np.array([[0.0, 2.0, 5.0, 5.0], [1.0, 1.0, 0.0, 4.0]])
    classes = Classes.balanced(2, 2)
    # Σ_W = diag(1/2, 2), Σ_B = v vᵀ with v = (2, 1/2): 4 · 2 + 1/4 · 1/2.
    value = collapse.fisher_ratio_zarka2021(ClassStatistics.from_columns(H, classes))
    np.testing.assert_allclose(value, 8.125, rtol=1e-13)
    A = np.array([[2.0, 1.0], [-1.0, 0.3]])
    np.testing.assert_allclose(
        collapse.fisher_ratio_zarka2021(ClassStatistics.from_columns(A @ H + 7, classes)), 8.125, rtol=1e-11
    )
    # A direction with neither kind of scatter does not count; one with class means but no scatter is infinite.
    flat = np.concatenate([H, np.ones((1, 4))])
    np.testing.assert_allclose(
        collapse.fisher_ratio_zarka2021(ClassStatistics.from_columns(flat, classes)), 8.125, rtol=1e-12
    )
    apart = np.concatenate([H, [[0.0, 0.0, 1.0, 1.0]]])
    assert float(collapse.fisher_ratio_zarka2021(ClassStatistics.from_columns(apart, classes))) == np.inf


def test_tight_frame():
    for p, sign_invariant in ((7, False), (10, True)):
        F = collapse.tight_frame(p, 5, key=jax.random.key(0), sign_invariant=sign_invariant)
        np.testing.assert_allclose(F.T @ F, np.eye(5), atol=1e-14)
    for p, sign_invariant in ((4, False), (9, True), (8, True)):
        with pytest.raises(ValueError, match="num_vectors"):
            collapse.tight_frame(p, 5, key=jax.random.key(0), sign_invariant=sign_invariant)


def test_a_sign_invariant_rectifier_holds_its_input_and_separates_covariances():
    """Two classes of mean zero and different covariances: the ratio is 0 before, and not after."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(3, 40))
    X = np.concatenate([half, -half], axis=1)  # mean exactly zero
    H = np.concatenate([X, np.array([[3.0], [1.0], [0.3]]) * X], axis=1)
    classes = Classes.balanced(2, 80)
    F = collapse.tight_frame(12, 3, key=jax.random.key(1), sign_invariant=True)
    U = collapse.separation_block(H, F)
    np.testing.assert_allclose((U[:6] - U[6:]) * 2, F[:6] @ H * 2, atol=1e-14)
    before, after = (
        float(collapse.fisher_ratio_zarka2021(ClassStatistics.from_columns(x, classes))) for x in (H, U[:6])
    )
    assert before < 1e-25
    assert after > 0.1


def test_soft_thresholds_concentrate():
    """Means sparse in the frame, noise spread over it: tr Σ_W falls with the threshold, tr Σ_B far less."""
    rng = np.random.default_rng(0)
    F = np.eye(16)
    classes = Classes.balanced(3, 50)
    means = 4 * np.eye(16)[:, :3]
    H = np.repeat(means, 50, axis=1) + 0.5 * rng.normal(size=(16, 150))
    seen = [ClassStatistics.from_columns(collapse.concentration_block(H, F, t), classes) for t in (0.0, 0.3, 0.6, 0.9)]
    within = [float(jnp.trace(s.within_class_covariance)) for s in seen]
    between = [float(s.between_class_variance()) for s in seen]
    assert all(a > b for a, b in itertools.pairwise(within))
    ratios = np.array(between) / between[0]
    # A mean entry of 4 loses the threshold: ((4 − t) / 4)² of Σ_B stays.
    np.testing.assert_allclose(ratios, (1 - np.array([0.0, 0.3, 0.6, 0.9]) / 4) ** 2, rtol=0.05)
    assert within[-1] / within[0] < 0.4 * ratios[-1]
    np.testing.assert_allclose(collapse.concentration_block(H, F, 0.0), H, atol=1e-14)


def test_linear_kernel_is_its_features():
    H = np.asarray(random_state(5, UNEQUAL).H)
    shuffle = np.random.default_rng(0).permutation(9)
    statistics = ClassStatistics.from_columns(H, UNEQUAL)
    kernel = KernelStatistics.from_gram((H.T @ H)[np.ix_(shuffle, shuffle)], np.asarray(UNEQUAL.labels)[shuffle])
    pairs = (
        (collapse.kernel_nc1_kothapalli2025, collapse.nc1_tirer2022),
        (collapse.kernel_nc1_papyan2020, collapse.nc1_papyan2020),
        (collapse.kernel_nc2_seleznova2023, collapse.nc2_seleznova2023),
    )
    for of_kernel, of_features in pairs:
        np.testing.assert_allclose(of_kernel(kernel), of_features(statistics), rtol=1e-11)


@pytest.mark.parametrize("between", [0.5, -0.02])
def test_block_kernel_has_a_closed_form(between):
    """tr Σ_W = (κ_d − κ_c)(1 − 1/m), tr Σ_B = (κ̄ − κ_n)(1 − 1/C) with κ̄ = κ_c + (κ_d − κ_c)/m; its NC2 is 0."""
    C, m, d, w = 4, 5, 3.0, 2.0
    classes = Classes.balanced(C, m)
    K = np.where(np.equal.outer(classes.labels, classes.labels), w, between) + (d - w) * np.eye(C * m)
    if between > 0:
        np.testing.assert_allclose(BlockKernel(d, w, between).as_matrix(classes), K)
    statistics = KernelStatistics.from_gram(K, classes.labels)
    expected = (d - w) * (1 - 1 / m) / ((w + (d - w) / m - between) * (1 - 1 / C))
    np.testing.assert_allclose(collapse.kernel_nc1_kothapalli2025(statistics), expected, rtol=1e-13)
    np.testing.assert_allclose(collapse.kernel_nc2_seleznova2023(statistics), 0, atol=1e-14)


def test_kernels_of_features_with_a_common_offset():
    """In float32, with features about 100: what the class means share must not be inverted."""
    rng = np.random.default_rng(0)
    C, n, m = 10, 20, 30
    labels = np.repeat(np.arange(C), m)
    features = 0.3 * rng.normal(size=(C, n))[labels] + 2 * rng.normal(size=(C * m, n))
    exact = ClassStatistics.from_features(features, labels)
    shifted = (features + 100).astype(np.float32)
    single = KernelStatistics.from_gram(shifted @ shifted.T, labels)
    double = KernelStatistics.from_gram((features + 100) @ (features + 100).T, labels)
    pairs = (
        (collapse.kernel_nc1_kothapalli2025, collapse.nc1_tirer2022),
        (collapse.kernel_nc1_papyan2020, collapse.nc1_papyan2020),
        (collapse.kernel_nc2_seleznova2023, collapse.nc2_seleznova2023),
    )
    for of_kernel, of_features in pairs:
        # Entries of 2e5 are rounded at 1e-2, and contrasts of the means are of order 0.1 to 10.
        np.testing.assert_allclose(of_kernel(single), of_features(exact), rtol=0.01)
        np.testing.assert_allclose(of_kernel(double), of_features(exact), rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_whose_class_means_coincide_to_rounding(dtype):
    labels = np.repeat(np.arange(3), 4)
    x = np.tile(np.random.default_rng(0).normal(size=(4, 5)), (3, 1)) + 1.0
    for K in (x @ x.T, np.full((12, 12), 0.1)):
        shuffle = np.random.default_rng(1).permutation(12)
        statistics = KernelStatistics.from_gram(K[np.ix_(shuffle, shuffle)].astype(dtype), labels[shuffle])
        assert float(collapse.kernel_nc1_papyan2020(statistics)) == np.inf
        assert float(collapse.kernel_nc1_kothapalli2025(statistics)) == np.inf
        np.testing.assert_allclose(collapse.kernel_nc2_seleznova2023(statistics), 1.0, rtol=1e-6)


def test_kernels_of_fewer_features_than_classes():
    """G has rank n < C − 1: what rounding leaves in its null directions is not inverted."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 5
    x = rng.normal(size=(5, 2))[labels] + 0.3 * rng.normal(size=(60, 2))
    expected = collapse.nc1_papyan2020(ClassStatistics.from_features(x, labels))
    kernel = KernelStatistics.from_gram((x + 30) @ (x + 30).T, labels)
    np.testing.assert_allclose(collapse.kernel_nc1_papyan2020(kernel), expected, rtol=1e-8)


def test_degenerate_and_bad_kernels():
    constant = KernelStatistics.from_gram(np.ones((4, 4)) + np.eye(4) * 0.0, [0, 0, 1, 1])
    assert float(collapse.kernel_nc1_kothapalli2025(constant)) == np.inf
    assert float(collapse.kernel_nc1_papyan2020(constant)) == np.inf
    np.testing.assert_allclose(collapse.kernel_nc2_seleznova2023(constant), 1.0)
    with pytest.raises(ValueError, match="symmetric"):
        KernelStatistics.from_gram(np.arange(16.0).reshape(4, 4), [0, 0, 1, 1])
    with pytest.raises(ValueError, match="none of class 1"):
        KernelStatistics.from_gram(np.eye(4), [0, 0, 2, 2])


@pytest.mark.usefixtures("as_users_call")
def test_kernels_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="square"):
        KernelStatistics.from_gram(np.ones((4, 3)), [0, 0, 1, 1])
    with pytest.raises(ValueError, match="as H has"):
        collapse.separation_block(np.ones((3, 4)), np.ones((5, 4)))


@pytest.mark.parametrize("classes", [UNEQUAL, Classes.balanced(3, 3)])
def test_all_metrics_at_once_are_the_functions(classes):
    state = random_state(5, classes)
    statistics = ClassStatistics.from_columns(state.H, classes)
    values = collapse.measure(statistics, state.W)
    for name, value in values.items():
        if name.endswith("_of_weights"):
            expected = getattr(collapse, name.removesuffix("_of_weights"))(state.W)
        elif name == "nc2_zhu2021":
            expected = collapse.nc2_zhu2021(state.W)
        elif name.startswith("snc") and not classes.is_balanced:
            with pytest.raises(ValueError, match="balanced classes only"):
                getattr(collapse, name)(statistics, state.W)
            expected = np.nan
        else:
            f = getattr(collapse, name)
            expected = f(statistics, state.W) if name.startswith(("nc3", "snc")) else f(statistics)
        np.testing.assert_allclose(value, expected, rtol=1e-12, err_msg=name)
    assert set(collapse.measure(statistics)) < set(values)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_infinite_width_ntk_does_not_collapse_more_than_nngp_on_gaussians(seed):
    """Kothapalli & Tirer (2025) prove it for Gaussian data; here the two-layer ReLU kernels in closed form."""
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 2
    x = rng.normal(size=(60, 5)) + np.where(labels == 1, 2.0, -2.0)[:, None]
    inner, norms = x @ x.T, np.linalg.norm(x, axis=1)
    cosine = np.clip(inner / np.outer(norms, norms), -1, 1)
    angle = np.arccos(cosine)
    nngp = np.outer(norms, norms) * (np.sin(angle) + (np.pi - angle) * cosine) / np.pi
    ntk = nngp + inner * (np.pi - angle) / np.pi
    values = [
        float(collapse.kernel_nc1_kothapalli2025(KernelStatistics.from_gram(K, labels))) for K in (inner, nngp, ntk)
    ]
    assert values[1] < values[2]
    assert all(0 < v < 3 for v in values)
