"""The conserved matrix: its forms agree, and what the theory says of it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes, LastLayer
from ntkcollapse.theory.invariant import (
    alignment,
    invariant,
    invariant_terms,
    necessary_condition_residual,
    paper_invariant,
    reduced_feature_gram,
)
from ntkcollapse.theory.reduced import ReducedStart
from tests.cases import UNEQUAL, kernels, random_state

BALANCED = Classes.balanced(4, 5)
KAPPA = BlockKernel(3.0, 2.0, 0.6)


def test_invariant_is_its_definition_and_the_papers_form():
    state = random_state(6, BALANCED)
    H, W = np.asarray(state.H), np.asarray(state.W)
    expected = W.T @ W - H @ np.linalg.inv(np.asarray(KAPPA.as_matrix(BALANCED))) @ H.T
    np.testing.assert_allclose(invariant(state, KAPPA, BALANCED), expected, atol=1e-12)
    np.testing.assert_allclose(5 * paper_invariant(state, KAPPA, BALANCED), expected, atol=1e-12)


def test_the_form_with_the_mean_feature():
    """The same matrix by another route, with C² in α; the mean counts λ_class/λ_global of itself."""
    state = random_state(6, BALANCED)
    H, W = np.asarray(state.H), np.asarray(state.W)
    terms = invariant_terms(state, KAPPA, BALANCED)
    expected = W.T @ W - H @ np.linalg.inv(np.asarray(KAPPA.as_matrix(BALANCED))) @ H.T
    np.testing.assert_allclose(5 * terms.total, expected, atol=1e-12)
    # C = 4, m = 5: λ_class = 1 + 5 · 1.4 = 8, λ_global = 8 + 20 · 0.6 = 20.
    np.testing.assert_allclose(terms.alpha, 16 * 5 * 0.6 / 20)
    mean = H.mean(1)
    np.testing.assert_allclose(terms.mean_feature, 2.4 / 8 * np.outer(mean, mean), rtol=1e-12)
    # Features that are one vector, all of it mean.
    same = LastLayer(H=np.repeat(mean[:, None], 20, axis=1), W=0 * W, b=state.b)
    lone = invariant_terms(same, KAPPA, BALANCED).total
    np.testing.assert_allclose(lone, -4 / 8 * (8 / 20) * np.outer(mean, mean), rtol=1e-12)


@pytest.mark.parametrize("kind", ["per class", "grouped"])
def test_feature_gram_from_the_reduction(kind):
    kernel, state = kernels(UNEQUAL)[kind], random_state(5, UNEQUAL)
    start = ReducedStart.of(state, kernel, UNEQUAL)
    expected = np.asarray(state.H) @ np.linalg.inv(np.asarray(kernel.as_matrix(UNEQUAL))) @ np.asarray(state.H).T
    gram = reduced_feature_gram(start.M, start.scatter, kernel, UNEQUAL.weights)
    np.testing.assert_allclose(gram, expected, rtol=1e-9, atol=1e-9)


def test_alignment():
    A = jnp.diag(jnp.array([1.0, 2.0, 0.0]))
    np.testing.assert_allclose(alignment(A, 3 * A), 1.0, rtol=1e-14)
    np.testing.assert_allclose(alignment(A, jnp.diag(jnp.array([0.0, 0.0, 1.0]))), 0.0)
    assert float(alignment(A, jnp.zeros((3, 3)))) == 0.0
    assert bool(jnp.isfinite(jax.grad(lambda s: alignment(A, s * A))(1.0)))


def collapsed(g: float, mean: np.ndarray) -> LastLayer:
    """An interpolating collapsed point: WWᵀ = Π/g, centred means g Wᵀ, S = 0, b = 1/C − W⟨h⟩."""
    C, n = 4, 6
    Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(n, C)))
    W = (np.eye(C) - 1 / C) @ Q.T / np.sqrt(g)
    M = g * W.T + mean[:, None]
    return LastLayer(H=np.repeat(M, 5, axis=1), W=W, b=1 / C - W @ mean)


@pytest.mark.parametrize("g", [0.3, 1.0, 2.5])
def test_collapse_satisfies_the_necessary_condition(g):
    mean = np.random.default_rng(1).normal(size=6)
    state = collapsed(g, mean)
    np.testing.assert_allclose(state.residual(BALANCED), 0, atol=1e-14)
    conserved = invariant(state, KAPPA, BALANCED)
    # Where collapse puts it: (1 − m g²/λ_class) WᵀW − (N/λ_global) ⟨h⟩⟨h⟩ᵀ.
    _, lambda_class, lambda_global = (float(x) for x in KAPPA.rates(BALANCED))
    W = np.asarray(state.W)
    expected = (1 - 5 * g**2 / lambda_class) * W.T @ W - 20 / lambda_global * np.outer(mean, mean)
    np.testing.assert_allclose(conserved, expected, atol=1e-12)
    assert float(necessary_condition_residual(conserved, state.W, jnp.asarray(mean))) < 1e-12
    assert float(necessary_condition_residual(conserved, state.W, jnp.zeros(6))) > 0.1


def test_necessary_condition_residual_is_the_least_squares_residual():
    rng = np.random.default_rng(2)
    A, W, h = rng.normal(size=(6, 6)), rng.normal(size=(4, 6)), rng.normal(size=6)
    A = A + A.T
    basis = np.stack([(W.T @ W).ravel(), np.outer(h, h).ravel()], axis=1)
    coefficients = np.linalg.lstsq(basis, A.ravel(), rcond=None)[0]
    expected = np.linalg.norm(A.ravel() - basis @ coefficients)
    np.testing.assert_allclose(necessary_condition_residual(jnp.asarray(A), jnp.asarray(W), jnp.asarray(h)), expected)
