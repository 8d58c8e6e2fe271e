"""Recursive feature machines: closed-form AGOP, a known low-rank target, deep collapse on real digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ntkcollapse import collapse
from ntkcollapse.data import load

RNG = np.random.default_rng(0)


def test_kernel_regression_interpolates_and_its_agop_is_that_of_autodiff():
    x, y = RNG.normal(size=(30, 4)), RNG.normal(size=(30, 2))
    A = RNG.normal(size=(4, 4))
    f = collapse.kernel_regression(x, y, bandwidth=1.5, metric=A @ A.T)
    np.testing.assert_allclose(f(x), y, atol=1e-10)
    # The kernel against its definition, pair by pair.
    u = np.linalg.cholesky(A @ A.T).T @ (x[3] - x[7])
    K = collapse.laplace_kernel(x @ np.asarray(f.root).T, x @ np.asarray(f.root).T, 1.5)
    np.testing.assert_allclose(K[3, 7], np.exp(-np.linalg.norm(u) / 1.5), rtol=1e-9)

    elsewhere = RNG.normal(size=(9, 4))
    np.testing.assert_allclose(f.agop(elsewhere), collapse.agop(f, elsewhere), rtol=1e-9, atol=1e-12)
    # At the centres, the kinks count as 0 in both.
    np.testing.assert_allclose(f.agop(), collapse.agop(f, x), rtol=1e-9, atol=1e-12)


def test_ridge():
    x, y = RNG.normal(size=(10, 3)), RNG.normal(size=(10, 1))
    f = collapse.kernel_regression(x, y, bandwidth=2.0, ridge=0.5)
    K = np.exp(-np.linalg.norm(x[:, None] - x[None], axis=2) / 2.0)
    np.testing.assert_allclose(f(x), K @ np.linalg.solve(K + 0.5 * np.eye(10), y), rtol=1e-9, atol=1e-12)


def test_rfm_finds_the_directions_of_its_target():
    """A target of two of eight coordinates: their share of the metric grows to nearly all, and the test error falls."""
    x, z = RNG.normal(size=(2, 150, 8))

    def target(x):
        return (x[:, :1] * x[:, 1:2]).astype(float)

    machine = collapse.recursive_feature_machine(x, target(x), bandwidth=5.0, ridge=1e-3, iterations=4)
    shares = [float(jnp.trace(M[:2, :2]) / jnp.trace(M)) for M in machine.metrics]
    assert shares[0] > 0.4
    assert shares[-1] > 0.98
    first = collapse.kernel_regression(x, target(x), bandwidth=5.0, ridge=1e-3)
    errors = [float(jnp.mean((f(z) - target(z)) ** 2)) for f in (first, machine.predictor)]
    assert errors[1] < 0.3 * errors[0]
    np.testing.assert_allclose(jnp.trace(machine.metric), 8.0)


def test_deep_rfm_collapses_by_a_near_constant_factor_on_real_digits():
    images, labels = load_digits(return_X_y=True)
    x, labels = np.asarray(images)[:300], np.asarray(labels)[:300]
    machine = collapse.deep_rfm(x, np.eye(10)[labels], key=jax.random.key(0), depth=5, width=256)
    profile = collapse.layer_profile(machine.activations, x, labels)
    nc1 = dict(zip(profile.layers, profile.train["nc1_tirer2022"], strict=True))
    ratios = [nc1[f"input {i + 1}"] / nc1[f"input {i}"] for i in range(2, 5)]
    # Real images give factors near one half a layer; random weights move them by some per cent.
    assert 0.3 < min(ratios)
    assert max(ratios) < 0.65
    assert max(ratios) / min(ratios) < 1.4
    assert nc1["output"] < 0.15 * nc1["input 1"]
    for i in range(1, 6):
        assert nc1[f"metric {i}"] < nc1[f"input {i}"]
    assert list(machine.inputs(x)) == [f"input {i}" for i in range(1, 6)] + ["output"]


@pytest.mark.slow
def test_deep_rfm_on_real_mnist():
    """500 images, 8 layers: from the fourth layer on, between-run factors of 0.45 to 0.49."""
    try:
        part = load("mnist", per_class=50).train
    except FileNotFoundError:
        pytest.skip("no files of MNIST here")
    x = np.asarray(part.inputs, float).reshape(500, -1)
    machine = collapse.deep_rfm(x, np.eye(10)[part.labels], key=jax.random.key(0))
    nc1 = collapse.layer_profile(machine.inputs, x, part.labels).train["nc1_tirer2022"]
    factors = nc1[1:] / nc1[:-1]
    assert (factors < 0.6).all()
    assert 0.42 < factors[3:].min()
    assert factors[3:].max() < 0.52


@pytest.mark.usefixtures("as_users_call")
def test_bad_input_is_refused():
    x, y = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2))
    with pytest.raises(ValueError, match="one row a sample of x"):
        collapse.kernel_regression(x, y[:5], bandwidth=1.0)
    with pytest.raises(ValueError, match="bandwidth: expected numbers above zero"):
        collapse.kernel_regression(x, y, bandwidth=0.0)
    with pytest.raises(ValueError, match="equal rows in x need a ridge"):
        collapse.kernel_regression(np.ones((6, 3)), y, bandwidth=1.0)
    twice = RNG.normal(size=(9, 3))
    twice[7] = twice[3]
    with pytest.raises(ValueError, match="rows 3 and 7 equal in the metric"):
        collapse.kernel_regression(twice, RNG.normal(size=(9, 2)), bandwidth=1.0)
    assert np.isfinite(collapse.kernel_regression(twice, np.ones((9, 1)), bandwidth=1.0, ridge=0.1).coefficients).all()
    # Rows that differ only in what the metric does not see.
    flat = np.concatenate([np.ones((6, 1)), x[:, 1:] * 0 + np.arange(6)[:, None]], axis=1)
    with pytest.raises(ValueError, match="rows 0 and 1 equal in the metric"):
        collapse.kernel_regression(flat, y, bandwidth=1.0, metric=np.diag([1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match=r"metric: expected shape \(3, 3\)"):
        collapse.kernel_regression(x, y, bandwidth=1.0, metric=np.eye(2))
    with pytest.raises(ValueError, match="metric: expected finite"):
        collapse.kernel_regression(x, y, bandwidth=1.0, metric=np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="targets that vary with x"):
        collapse.recursive_feature_machine(x, 0 * y, bandwidth=1.0)
    with pytest.raises(ValueError, match="norm 0"):
        collapse.deep_rfm(np.zeros((6, 3)), y, key=jax.random.key(0))
