"""Kernel-vector products, eigenvalues and their levels, alignment: against the dense kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes
from ntkcollapse.ntk import (
    NTKOperator,
    count_levels,
    label_alignment,
    matrix_alignment,
    ntk_vector_product,
    spectral_density,
    top_eigenvalues,
    within_class_eigenvalues,
)
from tests.ntk.zoo import case, dense_ntk, normal

# One forward and backward pass of three samples of the case "plain", about.
SMALL = 3000.0


def mean_kernel(theta):
    return np.einsum("ijkk->ij", theta) / theta.shape[2]


@pytest.mark.parametrize("memory", [None, SMALL])
def test_product_with_a_vector(memory):
    c, theta = case("plain"), dense_ntk("plain")
    v = normal(0, *theta.shape[1:3])
    want = np.einsum("ijks,js->ik", theta, v)
    np.testing.assert_allclose(ntk_vector_product(c.f, c.params, c.x, v, memory=memory), want, rtol=1e-12, atol=1e-12)
    mean = NTKOperator(c.f, c.params, c.x, outputs="mean", memory=memory)
    np.testing.assert_allclose(mean(v[:, 0]), mean_kernel(theta) @ v[:, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "memory"), [("plain", None), ("plain", SMALL), ("convolutions", 10 * SMALL)])
def test_products_with_many_vectors(name, memory):
    """All of them at once, in groups and chunks of any size, against the dense kernel."""
    c, theta = case(name), dense_ntk(name)
    X = normal(0, *theta.shape[1:3], 4)
    every = NTKOperator(c.f, c.params, c.x, memory=memory)
    np.testing.assert_allclose(every.matmat(X), np.einsum("ijks,jsc->ikc", theta, X), rtol=1e-11, atol=1e-11)
    mean = NTKOperator(c.f, c.params, c.x, outputs="mean", memory=memory)
    np.testing.assert_allclose(mean.matmat(X[:, 0]), mean_kernel(theta) @ X[:, 0], rtol=1e-11, atol=1e-11)
    assert mean.matmat(X[:, 0, :0]).shape == (theta.shape[1], 0)


def test_product_refuses_another_shape():
    c = case("plain")
    with pytest.raises(ValueError, match=r"X: expected shape \(5, any\)"):
        NTKOperator(c.f, c.params, c.x, outputs="mean").matmat(np.ones(5))
    with pytest.raises(ValueError, match=r"v: expected shape \(5, 3\)"):
        ntk_vector_product(c.f, c.params, c.x, np.ones(5))


def test_largest_eigenvalues_and_density():
    c, theta = case("plain"), dense_ntk("plain")
    N, K = theta.shape[1:3]
    matrix = theta.transpose(0, 2, 1, 3).reshape(N * K, N * K)
    want = np.linalg.eigvalsh(matrix)[::-1]
    operator = NTKOperator(c.f, c.params, c.x)
    values, vectors = top_eigenvalues(operator, 3, key=jax.random.key(0), tolerance=1e-12)
    np.testing.assert_allclose(values, want[:3], rtol=1e-10)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-6 * want[0])
    # A rule with as many nodes as rows is exact for its probe z: Σ w g(ξ) = zᵀ g(Θ) z / zᵀz, g of any degree.
    nodes, weights = spectral_density(operator, num_matvecs=N * K, num_probes=2, key=jax.random.key(1))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    for row, w, key in zip(nodes, weights, jax.random.split(jax.random.key(1), 2), strict=True):
        z = np.asarray(jax.random.rademacher(key, (N * K,), dtype=float))
        np.testing.assert_allclose((w * row**3).sum(), z @ matrix @ matrix @ matrix @ z / (z @ z), rtol=1e-9)


def test_too_many_eigenvalues_are_refused():
    c = case("plain")
    with pytest.raises(ValueError, match="num: expected 1 to 14"):
        top_eigenvalues(NTKOperator(c.f, c.params, c.x), 15, key=jax.random.key(0))


def test_levels_of_a_block_kernel():
    classes = Classes.balanced(num_classes=4, per_class=6)
    kernel = BlockKernel(diagonal=3.0, within=2.0, between=0.5)
    matrix = np.asarray(kernel.as_matrix(classes))
    assert count_levels(np.linalg.eigvalsh(matrix), kernel, classes) == (1, 3, 20)
    np.testing.assert_allclose(within_class_eigenvalues(matrix, classes), np.ones(20), rtol=1e-12)
    with pytest.warns(UserWarning, match="aligned"):
        unordered = BlockKernel(diagonal=3.0, within=0.5, between=1.0)
    with pytest.raises(ValueError, match="eigenvalues belong to no level"):
        count_levels(np.ones(3), unordered, classes)


def test_within_class_eigenvalues_of_any_kernel():
    classes = Classes(sizes=(2, 5, 3))
    A = normal(0, 10, 12)
    Z = np.eye(3)[np.asarray(classes.labels)]
    Q = np.eye(10) - Z @ np.diag(1 / Z.sum(0)) @ Z.T
    want = np.sort(np.linalg.eigvalsh(Q @ (A @ A.T) @ Q))[3:]
    np.testing.assert_allclose(within_class_eigenvalues(A @ A.T, classes), want, rtol=1e-9)


def centred_alignment(K, Y):
    H = np.eye(len(K)) - 1 / len(K)
    K, L = H @ K @ H, H @ Y @ Y.T @ H
    return (K * L).sum() / np.linalg.norm(K) / np.linalg.norm(L)


@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 5, 3)])
def test_alignment_by_its_definition(sizes):
    classes = Classes(sizes=sizes)
    A = normal(1, classes.num_samples, 20)
    K, Y = A @ A.T, np.eye(3)[np.asarray(classes.labels)]
    got = matrix_alignment(K, classes)
    np.testing.assert_allclose(got.alignment, (K * (Y @ Y.T)).sum() / np.linalg.norm(K) / np.linalg.norm(Y @ Y.T))
    np.testing.assert_allclose(got.centred, centred_alignment(K, Y))
    assert got.standard_error == got.centred_standard_error == 0


def test_alignment_of_a_block_kernel_is_the_closed_form():
    d, w, b, m, C = 3.0, 2.0, 0.5, 6, 4
    classes = Classes.balanced(C, m)
    got = matrix_alignment(BlockKernel(d, w, b).as_matrix(classes), classes).alignment
    np.testing.assert_allclose(
        got, (d + (m - 1) * w) / np.sqrt(m * (d**2 + (m - 1) * w**2 + (C * m - m) * b**2)), rtol=1e-12
    )


def test_estimated_alignment_covers_the_exact_one():
    # A linear network: Θ = x xᵀ + 1 for its one output, so that the kernel is any we like.
    classes = Classes(sizes=(9, 14, 12))
    labels = np.asarray(classes.labels)
    x = normal(2, 35, 8) + 1.5 * normal(3, 3, 8)[labels]
    params = {"w": normal(4, 8, 1), "b": np.zeros(1)}

    def f(p, x):
        return x @ p["w"] + p["b"][None, :]

    exact = label_alignment(f, params, x, labels)
    np.testing.assert_allclose(exact.centred, centred_alignment(x @ x.T + 1, np.eye(3)[labels]), rtol=1e-12)
    errors, claimed = [], []
    for seed in range(30):
        got = label_alignment(f, params, x, labels, method="estimate", probes=12, key=jax.random.key(seed))
        errors.append([float(got.alignment - exact.alignment), float(got.centred - exact.centred)])
        claimed.append([float(got.standard_error), float(got.centred_standard_error)])
    errors, claimed = np.asarray(errors), np.asarray(claimed)
    # Thirty seeds: the mean of the errors is within 4 of its own standard errors (the ratio has a bias of second
    # order, smaller than that), two claimed errors cover most, and the claimed size is the true one within a factor.
    assert (np.abs(errors.mean(0)) < 4 * errors.std(0) / np.sqrt(30)).all()
    assert ((np.abs(errors) < 2 * claimed).mean(0) > 0.8).all()
    ratio = np.sqrt((claimed**2).mean(0)) / np.sqrt((errors**2).mean(0))
    assert ((ratio > 0.6) & (ratio < 1.7)).all()


def test_estimate_asks_for_a_key():
    c = case("plain")
    with pytest.raises(ValueError, match="key: expected a PRNG key"):
        label_alignment(c.f, c.params, c.x, np.asarray([0, 1, 0, 1, 1]), method="estimate")
    assert jnp.isfinite(label_alignment(c.f, c.params, c.x, np.asarray([0, 1, 0, 1, 1])).alignment)
