"""Kernels against dense linear algebra: the oracle writes the matrix entry by entry and uses numpy."""

import jax
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes, DenseKernel, GroupedKernel, KernelPath

BALANCED = Classes.balanced(num_classes=3, per_class=4)
UNEQUAL = Classes(sizes=(2, 5, 1, 3))
PAIRS = np.array([[2.0, 0.3, -0.1, 0.2], [0.3, 1.5, 0.4, 0.1], [-0.1, 0.4, 1.0, 0.0], [0.2, 0.1, 0.0, 1.2]])
CASES = {
    "balanced": (BlockKernel(3.0, 2.0, 0.6), BALANCED),
    "unequal": (BlockKernel(3.0, 2.0, 0.6), UNEQUAL),
    "identity": (BlockKernel(1.0, 0.0, 0.0), BALANCED),
    "general": (BlockKernel.from_class_pairs(np.array([3.0, 2.5, 2.0, 4.0]), np.clip(PAIRS, 0, None)), UNEQUAL),
}


def entries(kernel: BlockKernel, classes: Classes) -> np.ndarray:
    C, y = classes.num_classes, np.asarray(classes.labels)
    diagonal = np.broadcast_to(kernel.diagonal, (C,))
    within = np.broadcast_to(kernel.within, (C,))
    between = np.broadcast_to(kernel.between, (C, C))
    K = np.empty((len(y), len(y)))
    for i, c in enumerate(y):
        for j, d in enumerate(y):
            K[i, j] = diagonal[c] if i == j else within[c] if c == d else between[c, d]
    return K


def measured(classes: Classes, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(classes.num_samples, 30)) + 2 * np.asarray(classes.Y).T @ rng.normal(
        size=(classes.num_classes, 30)
    )
    return A @ A.T / 30


@pytest.mark.parametrize("case", CASES)
def test_block_kernel_is_its_dense_matrix(case):
    kernel, classes = CASES[case]
    K = entries(kernel, classes)
    X = np.random.default_rng(1).normal(size=(2, 5, classes.num_samples))
    np.testing.assert_allclose(kernel.as_matrix(classes), K, atol=1e-14)
    np.testing.assert_allclose(kernel.mv(X, classes), X @ K, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(kernel.solve(X, classes), X @ np.linalg.inv(K), rtol=1e-10, atol=1e-11)
    values, counts = kernel.eigenvalues(classes)
    np.testing.assert_allclose(np.repeat(values, counts.astype(int)), np.linalg.eigvalsh(K), rtol=1e-12, atol=1e-12)


def test_known_kernels_are_made_and_checked_in_compiled_functions():
    """What JAX's arrays do under `jit` is traced, though they are known."""
    K = jax.jit(lambda x: x * BlockKernel(3.0, 2.0, 0.6).as_matrix(BALANCED))(2.0)
    np.testing.assert_allclose(K, 2 * entries(*CASES["balanced"]), atol=1e-14)
    with pytest.warns(UserWarning, match=r"within = 1 < between = 2, so λ_class ≥ λ_single fails"):
        jax.jit(lambda x: x * BlockKernel(3.0, 1.0, 2.0).diagonal)(2.0)


@pytest.mark.parametrize("case", CASES)
def test_reduction_splits_the_kernel(case):
    kernel, classes = CASES[case]
    K, C, N = entries(kernel, classes), classes.num_classes, classes.num_samples
    Z = np.eye(C)[np.asarray(classes.labels)]
    D = np.diag(1.0 / np.asarray(classes.sizes))
    np.testing.assert_allclose(kernel.class_gram(classes.weights), D @ Z.T @ K @ Z @ D, atol=1e-13)
    deviations = np.asarray(classes.deviations(np.random.default_rng(2).normal(size=(3, N))))
    groups = kernel.split(deviations, classes)
    np.testing.assert_allclose(np.asarray(groups).sum(0), deviations, atol=1e-14)
    rates = np.asarray(kernel.group_rates(C))
    np.testing.assert_allclose(np.einsum("g,gni->ni", rates, np.asarray(groups)), deviations @ K, atol=1e-12)


def test_block_means_are_means_over_pairs():
    cases = [(kernel, entries(kernel, classes), classes) for kernel, classes in CASES.values()]
    for kernel, K, classes in [*cases, (DenseKernel(measured(UNEQUAL)), measured(UNEQUAL), UNEQUAL)]:
        y = np.asarray(classes.labels)
        same, apart = y[:, None] == y[None, :], ~np.eye(len(y), dtype=bool)
        expected = np.diag(K).mean(), K[same & apart].mean(), K[~same].mean()
        np.testing.assert_allclose(kernel.block_means(classes), expected, rtol=1e-12, atol=1e-14)


def test_theorem_eigenvalues():
    kappa = BlockKernel(3.0, 2.0, 0.6)
    lambda_single, lambda_class, lambda_global = kappa.rates(BALANCED)
    assert float(lambda_single) == 1.0
    np.testing.assert_allclose(lambda_class, 1.0 + 4 * 1.4)
    np.testing.assert_allclose(lambda_global, 1.0 + 4 * 1.4 + 12 * 0.6)


@pytest.mark.parametrize("groups", [1, 3, 9])
def test_grouped_kernel_keeps_means_and_spectrum(groups):
    K = measured(BALANCED)
    kernel = GroupedKernel.from_matrix(K, BALANCED, groups=groups)
    dense = np.asarray(kernel.as_matrix(BALANCED))
    P = np.kron(np.eye(3), np.ones((4, 4)) / 4)
    Q = np.eye(12) - P
    np.testing.assert_allclose(P @ dense @ P, P @ K @ P, atol=1e-12)
    np.testing.assert_allclose(P @ dense @ Q, 0, atol=1e-12)
    # Averaging eigenvalues in groups leaves their sum; one group each leaves the whole within-class block.
    np.testing.assert_allclose(np.trace(Q @ dense @ Q), np.trace(Q @ K @ Q), rtol=1e-12)
    if groups == 9:
        np.testing.assert_allclose(Q @ dense @ Q, Q @ K @ Q, atol=1e-12)
    X = np.random.default_rng(3).normal(size=(2, 12))
    np.testing.assert_allclose(kernel.solve(X, BALANCED), X @ np.linalg.inv(dense), rtol=1e-9, atol=1e-10)
    deviations = X @ Q
    parts = np.asarray(kernel.split(deviations, BALANCED))
    np.testing.assert_allclose(parts.sum(0), deviations, atol=1e-12)
    np.testing.assert_allclose(np.einsum("g,gni->ni", kernel.rates, parts), deviations @ dense, atol=1e-12)
    values, counts = kernel.eigenvalues(BALANCED)
    np.testing.assert_allclose(np.repeat(values, counts.astype(int)), np.linalg.eigvalsh(dense), atol=1e-11)


def test_grouped_kernel_of_a_matrix_without_full_rank_and_of_other_classes():
    A = np.random.default_rng(6).normal(size=(12, 3))
    kernel = GroupedKernel.from_matrix(A @ A.T, BALANCED, groups=2)
    deviations = np.asarray(BALANCED.deviations(np.random.default_rng(7).normal(size=(2, 12))))
    np.testing.assert_allclose(np.asarray(kernel.split(deviations, BALANCED)).sum(0), deviations, atol=1e-12)
    other = GroupedKernel.from_matrix(measured(BALANCED), BALANCED, groups=2)
    with pytest.raises(ValueError, match="got one of other class sizes"):
        other.check(Classes(sizes=(3, 4, 5)))
    again = GroupedKernel.from_matrix(measured(BALANCED, seed=1), BALANCED, groups=2)
    with pytest.raises(ValueError, match="one common basis"):
        KernelPath.of([0.0, 1.0], [other, again])


def test_dense_kernel():
    K = measured(UNEQUAL)
    kernel = DenseKernel(K)
    X = np.random.default_rng(4).normal(size=(3, UNEQUAL.num_samples))
    np.testing.assert_allclose(kernel.mv(X, UNEQUAL), X @ K, rtol=1e-12)
    np.testing.assert_allclose(kernel.solve(X, UNEQUAL), X @ np.linalg.inv(K), rtol=1e-8)
    kernel.check(UNEQUAL)


def test_kernel_path_is_linear_between_measurements_and_constant_outside():
    path = KernelPath([0.0, 1.0, 3.0], diagonal=[3.0, 5.0, 9.0], within=[1.0, 2.0, 2.0], between=[0.1, 0.2, 0.6])
    for t, expected in [(-1, (3, 1, 0.1)), (0.5, (4, 1.5, 0.15)), (1, (5, 2, 0.2)), (2, (7, 2, 0.4)), (9, (9, 2, 0.6))]:
        kernel = path.at(t)
        assert isinstance(kernel, BlockKernel)
        np.testing.assert_allclose([kernel.diagonal, kernel.within, kernel.between], expected, atol=1e-14)
    dense = KernelPath.of([0.0, 2.0], [DenseKernel(np.eye(3)), DenseKernel(3 * np.eye(3))])
    np.testing.assert_allclose(dense.at(0.5).as_matrix(Classes(sizes=(1, 2))), 1.5 * np.eye(3))


def test_bad_kernels_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"λ_single = diagonal − within above zero, got -1"):
        BlockKernel(1.0, 2.0, 0.5)
    with pytest.warns(UserWarning, match=r"λ_class ≥ λ_single fails"):
        BlockKernel(3.0, 1.0, 2.0)
    with pytest.warns(UserWarning, match=r"λ_global ≥ λ_class fails"):
        BlockKernel(3.0, 1.0, -0.1)
    with pytest.raises(ValueError, match=r"between: expected a symmetric"):
        BlockKernel(3.0, 1.0, np.array([[0, 0.1], [0.2, 0]]))
    with pytest.raises(ValueError, match=r"within: expected finite numbers, got nan"):
        BlockKernel(3.0, np.nan, 0.1)
    with pytest.warns(UserWarning, match="λ_global"):
        indefinite = BlockKernel(3.0, 2.0, -1.5)
    with pytest.raises(ValueError, match=r"positive-definite kernel on 12 samples, got the eigenvalue -"):
        indefinite.check(BALANCED)
    with pytest.raises(ValueError, match="balanced classes only"):
        BlockKernel(3.0, 2.0, 0.6).lambda_class(UNEQUAL)
    with pytest.raises(ValueError, match="three-number form"):
        CASES["general"][0].rates(UNEQUAL)
    with pytest.raises(ValueError, match="expected a symmetric kernel"):
        DenseKernel(np.array([[1.0, 0.5], [0.2, 1.0]]))
    with pytest.raises(ValueError, match=r"groups: expected 1 to N - C = 9"):
        GroupedKernel.from_matrix(measured(BALANCED), BALANCED, groups=10)
    with pytest.raises(ValueError, match="strictly increasing"):
        KernelPath([0.0, 0.0], diagonal=[1.0, 1.0], within=[0.0, 0.0], between=[0.0, 0.0])
    with pytest.raises(ValueError, match="kernels of one kind"):
        KernelPath.of([0.0, 1.0], [DenseKernel(np.eye(3)), BlockKernel(1.0, 0.0, 0.0)])
