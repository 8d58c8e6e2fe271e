"""Coding rates: exact values on frames and subspaces, and the maximum, which an optimiser does not pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from ntkcollapse import Classes
from ntkcollapse.collapse import maximal_rate_reduction, rate_reduction_yu2020

ε = 0.5


def test_exact_values_of_collapsed_frames():
    C, m, n = 3, 4, 5
    classes = Classes.balanced(C, m)
    Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(n, C)))
    within = np.log1p(n / ε**2) / 2
    # Orthogonal: C eigenvalues m. Simplex: C − 1 eigenvalues m C/(C − 1).
    values = {
        "orthogonal": (Q, C / 2 * np.log1p(n / (C * ε**2)) - within),
        "simplex": (Q @ (np.eye(C) - 1 / C), (C - 1) / 2 * np.log1p(n / ((C - 1) * ε**2)) - within),
    }
    for means, exact in values.values():
        # Lengths do not count.
        H = np.repeat(means, m, axis=1) * np.random.default_rng(1).uniform(0.1, 9, C * m)
        rates = rate_reduction_yu2020(H, classes, precision=ε)
        np.testing.assert_allclose(rates.within, within, rtol=1e-12)
        np.testing.assert_allclose(rates.reduction, exact, rtol=1e-12)
    assert values["orthogonal"][1] > values["simplex"][1]
    np.testing.assert_allclose(maximal_rate_reduction(classes, n, precision=ε), values["orthogonal"][1], rtol=1e-12)


def test_rates_from_either_gram_matrix_and_without_classes():
    """One class's worth of difference is none, and n > N goes through ZᵀZ."""
    rng = np.random.default_rng(2)
    for n in (3, 20):
        H, classes = rng.normal(size=(n, 9)), Classes(sizes=(2, 4, 3))
        rates = rate_reduction_yu2020(H, classes, precision=0.7, normalised=False)
        eigenvalues = np.linalg.eigvalsh(H @ H.T)
        np.testing.assert_allclose(rates.whole, np.log1p(n / (9 * 0.49) * eigenvalues).sum() / 2, rtol=1e-12)
        assert rates.reduction > 0
    same = np.tile(rng.normal(size=(4, 5)), 2)
    np.testing.assert_allclose(rate_reduction_yu2020(same, Classes.balanced(2, 5)).reduction, 0, atol=1e-12)


@pytest.mark.parametrize("ranks", [1, 2])
def test_nothing_passes_the_maximum(ranks):
    """Ascent from random features with Σ ‖z_i‖² = m_c in each class, of rank d_c by construction."""
    sizes, n = (5, 3), 4
    d, N = np.full(2, ranks), sum(sizes)
    shapes = [((n, r), (r, m)) for r, m in zip(d, sizes, strict=True)]
    splits = np.cumsum([np.prod(s) for pair in shapes for s in pair])[:-1]

    def features(x):
        flat = [p.reshape(s) for p, s in zip(jnp.split(x, splits), [s for pair in shapes for s in pair], strict=True)]
        parts = [flat[0] @ flat[1], flat[2] @ flat[3]]
        return [Z * jnp.sqrt(m / jnp.sum(Z**2)) for Z, m in zip(parts, sizes, strict=True)]

    def log_det(Z, scale):
        return jnp.linalg.slogdet(jnp.eye(n) + scale * Z @ Z.T)[1]

    @jax.jit
    @jax.value_and_grad
    def lost(x):
        parts = features(x)
        whole = log_det(jnp.concatenate(parts, axis=1), n / (N * ε**2)) / 2
        return sum(m / (2 * N) * log_det(Z, n / (m * ε**2)) for Z, m in zip(parts, sizes, strict=True)) - whole

    exact = maximal_rate_reduction(Classes(sizes=sizes), n, ranks=ranks, precision=ε)
    best = -np.inf
    for seed in range(4):
        x0 = np.random.default_rng(seed).normal(size=sum(np.prod(s) for pair in shapes for s in pair))
        out = minimize(lambda x: tuple(np.asarray(v) for v in lost(x)), x0, jac=True, options={"gtol": 1e-9})
        # Rounding of log-determinants of order 10.
        assert -out.fun < exact + 1e-10
        best = max(best, -out.fun)
        rates = rate_reduction_yu2020(
            np.concatenate(features(out.x), axis=1), Classes(sizes=sizes), precision=ε, normalised=False
        )
        np.testing.assert_allclose(rates.reduction, -out.fun, rtol=1e-9)
    np.testing.assert_allclose(best, exact, rtol=1e-7)
    if ranks > 1:
        assert exact > maximal_rate_reduction(Classes(sizes=sizes), n, precision=ε)


def test_where_the_even_spread_is_not_the_largest_it_is_refused():
    classes = Classes.balanced(2, 50)
    # Convex at 3; concave at 1, and yet not the largest.
    for precision in (3.0, 1.0):
        with pytest.raises(ValueError, match="precision: expected an ε so small"):
            maximal_rate_reduction(classes, 20, ranks=10, precision=precision)

    # There, one direction less has more: what the condition says.
    def of_rank(d, precision, a=20 / 100):
        x = 50 / d
        return d * (np.log1p(a * x / precision**2) - np.log1p(2 * a * x / precision**2) / 2)

    assert of_rank(9, 3.0) > of_rank(10, 3.0)
    assert of_rank(9, 1.0) > of_rank(10, 1.0)
    assert maximal_rate_reduction(classes, 20, ranks=10) > maximal_rate_reduction(classes, 20, ranks=9)
    with pytest.raises(ValueError, match="at most n = 20 together, got 11"):
        maximal_rate_reduction(classes, 20, ranks=11)
    with pytest.raises(ValueError, match="precision: expected numbers above zero"):
        rate_reduction_yu2020(np.ones((2, 100)), classes, precision=0.0)
