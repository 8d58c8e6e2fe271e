"""Statistics and spectra where they easily go wrong: units, unequal classes, copies of an eigenvalue, resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes
from ntkcollapse.ntk import (
    NTKOperator,
    _fastest,
    block_statistics,
    empirical_ntk,
    label_alignment,
    spectral_density,
    within_class_eigenvalues,
)
from ntkcollapse.ntk.statistics import BlockStatistics, OutputBlocks
from tests.ntk.zoo import case, normal


def linear(p, x):
    return x @ p["w"]


# ---- classes of unequal size

UNEQUAL = np.concatenate([10 + normal(0, 10, 1) / 10, 0.03 + normal(1, 2, 1) / 100])
LABELS = np.repeat([0, 1], [10, 2])


def test_unequal_classes_have_an_alignment_and_a_residual_without_three_positive_rates():
    theta, Y = UNEQUAL @ UNEQUAL.T, np.eye(2)[LABELS]
    want = (theta * (Y @ Y.T)).sum() / np.linalg.norm(theta) / np.linalg.norm(Y @ Y.T)
    arguments = (linear, {"w": np.ones((1, 1))}, UNEQUAL, LABELS)
    np.testing.assert_allclose(label_alignment(*arguments).alignment, want, rtol=1e-12)
    same, off = LABELS[:, None] == LABELS, ~np.eye(12, dtype=bool)
    diagonal, within, between = (theta[mask].mean() for mask in (~off, same & off, ~same))
    assert diagonal < within
    B = np.where(off, np.where(same, within, between), diagonal)
    got = block_statistics(*arguments, residual="exact")
    np.testing.assert_allclose(got.residual, np.linalg.norm(theta - B) / np.linalg.norm(theta), rtol=1e-10)
    options = {"residual": "estimate", "probes": 40, "key": jax.random.key(0)}
    estimate = block_statistics(*arguments, **options)  # pyright: ignore
    assert abs(estimate.residual - got.residual) < 4 * estimate.residual_standard_error
    with pytest.raises(ValueError, match=r"λ_single .* classes of 2 to 10 samples.*`class_kernel`"):
        _ = got.kernel
    np.testing.assert_allclose(got.class_kernel.diagonal, [np.diag(theta)[LABELS == c].mean() for c in (0, 1)])


def test_equal_samples_have_no_three_rates():
    x = np.repeat([[1.0], [2.0]], 3, axis=0)
    got = block_statistics(linear, {"w": np.ones((1, 1))}, x, np.repeat([0, 1], 3))
    with pytest.raises(ValueError, match=r"λ_single .* above zero, got 0: samples of one class have the same"):
        _ = got.kernel


# ---- components off the output's own

ZERO = np.zeros((2, 2))


def off_output(diagonal, within, between):
    classes = Classes(sizes=(2, 3))
    blocks = OutputBlocks(*(jnp.asarray(v) for v in (diagonal, within, between)))
    return BlockStatistics(jnp.ones((2, 2)), jnp.ones((2, 2, 2)), blocks, None, classes).off_output


@pytest.mark.parametrize("unit", [1.0, 1e-170])
def test_small_components_off_the_output_keep_their_digits(unit):
    small = np.asarray([[0, 1e-10], [1e-10, 0]])
    # 5 diagonal entries of an output, 20 others; two outputs, two pairs.
    got = off_output(unit * np.eye(2), unit * small, ZERO)
    np.testing.assert_allclose(got, np.sqrt(8 * 2 * 1e-20 / (5 * 2)), rtol=1e-12)


def test_a_kernel_of_zeros_has_nothing_off_the_output():
    assert off_output(ZERO, ZERO, ZERO) == 0


# ---- spectra


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-9), (np.float32, 1e-4)])
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_within_class_eigenvalues_in_any_units(unit, dtype, rtol):
    classes = Classes(sizes=(2, 5, 3))
    A = normal(0, 10, 12)
    Z = np.eye(3)[np.asarray(classes.labels)]
    Q = np.eye(10) - Z @ np.diag(1 / Z.sum(0)) @ Z.T
    want = unit * np.linalg.eigvalsh(Q @ (A @ A.T) @ Q)[3:]
    got = within_class_eigenvalues(jnp.asarray(unit * A @ A.T, dtype), classes)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=rtol)


def test_classes_of_one_sample_have_nothing_within():
    kernel = BlockKernel(diagonal=3.0, within=2.0, between=0.5)
    classes = Classes(sizes=(1, 1))
    assert within_class_eigenvalues(kernel.as_matrix(classes), classes).shape == (0,)


@pytest.mark.parametrize("name", ["num_matvecs", "num_probes"])
def test_a_density_of_nothing_is_refused(name):
    c = case("plain")
    numbers = {"num_matvecs": 2, "num_probes": 2} | {name: 0}
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        spectral_density(NTKOperator(c.f, c.params, c.x), key=jax.random.key(0), **numbers)


# ---- the fastest engine, and gradients


def test_a_little_more_free_memory_is_no_new_trial(monkeypatch):
    c, tried = case("plain"), []
    monkeypatch.setattr(_fastest, "_found", {})
    monkeypatch.setattr(_fastest, "_seconds", lambda engine, *given: tried.append(engine.name) or 1.0)
    for memory in (300e6, 300e6 + 4096, 290e6):
        empirical_ntk(c.f, c.params, c.x, engine="auto", memory=memory)
    assert tried == ["layerwise", "jacobian", "ntvp"]


@pytest.mark.parametrize("engine", ["layerwise", "jacobian", "ntvp"])
def test_gradients_of_the_kernel_are_those_of_the_dense_one(engine):
    # Σ Θ_ks(x_i, x_j) c_ijks for any c, differentiated in the parameters, with and without jit.
    params = {"w": jnp.asarray(normal(0, 3, 4)), "v": jnp.asarray(normal(1, 4, 2))}
    x, weights = normal(2, 5, 3), normal(3, 5, 5, 2, 2)

    def f(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"]

    def dense(p):
        h = jnp.tanh(x @ p["w"])
        slope = jnp.einsum("ih,hk->ikh", 1 - h**2, p["v"])
        theta = jnp.einsum("ih,jh,ks->ijks", h, h, jnp.eye(2))
        return (weights * (theta + jnp.einsum("ij,ikh,jsh->ijks", x @ x.T, slope, slope))).sum()

    def ours(p):
        return (weights * empirical_ntk(f, p, x, engine=engine)).sum()

    want = jax.grad(dense)(params)
    for take in (jax.grad(ours), jax.jit(jax.grad(ours))):
        got = take(params)
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-10, atol=1e-10)
