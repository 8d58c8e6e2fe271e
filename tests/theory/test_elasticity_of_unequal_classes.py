"""Elastic flows of unequal classes and along e_k − softmax, and what is read off class means, against scipy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from ntkcollapse import Classes, LastLayer
from ntkcollapse.theory import models

SIZES = (5, 2, 1)
CLASSES, SHARES = Classes(sizes=SIZES), np.array(SIZES) / 8
RNG = np.random.default_rng(0)


def intensities(α: float, β: float, C: int = 3) -> np.ndarray:
    return (α - β) * np.eye(C) + β


def drift(M: np.ndarray, p: np.ndarray, α: float, β: float, kind: str) -> np.ndarray:
    """Σ_l p_l E_kl T_kl X̄_l, pair by pair."""
    C, E = M.shape[1], intensities(α, β, M.shape[1])
    away = np.exp(M) / np.exp(M).sum(0) if kind == "softmax" else np.full((C, C), 1 / C)
    d = np.eye(C) - away
    out = np.zeros_like(M)
    for k in range(C):
        for l in range(C):
            T = np.eye(len(M)) if kind == "I" else np.outer(d[:, k], d[:, l]) / (d[:, l] @ d[:, l])
            out[:, k] += p[l] * E[k, l] * T @ M[:, l]
    return out


def integrated(M: np.ndarray, times: np.ndarray, p: np.ndarray, kind: str) -> np.ndarray:
    def field(_, y):
        return drift(y.reshape(M.shape), p, 0.9, 0.2, kind).ravel()

    out = solve_ivp(field, (times[0], times[-1]), M.ravel(), t_eval=times, rtol=1e-11, atol=1e-12)
    return out.y.T.reshape(-1, *M.shape)


@pytest.mark.parametrize("kind", ["I", "L", "softmax"])
def test_drift_pair_by_pair(kind):
    H = RNG.normal(size=(3, 8))
    flow = models.elastic(CLASSES, 0.9, 0.2, kind=kind, power=2.0)
    M = np.stack([h.mean(1) for h in np.split(H, np.cumsum(SIZES)[:-1], axis=1)], axis=1)
    moved = flow(2.0, LastLayer(H=H, W=np.zeros((3, 3)), b=np.zeros(3))).H
    np.testing.assert_allclose(moved, np.repeat(drift(M, SHARES, 0.9, 0.2, kind), SIZES, axis=1) / 4, atol=1e-13)


def test_closed_form_and_estimates_of_unequal_classes():
    M, times = RNG.normal(size=(4, 3)), np.array([0.0, 0.5, 1.5])
    flow = models.elastic(CLASSES, 0.9, 0.2)
    means = integrated(M, times, SHARES, "I")
    np.testing.assert_allclose(models.elastic.solution(times, jnp.asarray(M), flow), means, rtol=1e-8, atol=1e-9)
    generator = SHARES[:, None] * intensities(0.9, 0.2)
    np.testing.assert_allclose(means[-1], M @ expm(1.5 * generator), rtol=1e-8)
    growth = models.elastic.rates(CLASSES, 0.9, 0.2)
    np.testing.assert_allclose(growth, np.sort(np.linalg.eigvals(generator).real), rtol=1e-12)
    np.testing.assert_allclose(
        models.elastic.rates(Classes.balanced(3, 4), 0.9, 0.2), [0.7 / 3, 0.7 / 3, 1.3 / 3], rtol=1e-12
    )
    for kind in ("I", "L"):
        square = integrated(M[:3], times, SHARES, kind)
        estimate = models.elastic.estimate(times, square, kind=kind, classes=CLASSES)
        np.testing.assert_allclose(estimate.intra, 0.9, rtol=1e-6)
        np.testing.assert_allclose(estimate.inter, 0.2, rtol=1e-6)
    # Taken for classes of one size the numbers are wrong.
    assert abs(float(models.elastic.estimate(times, means).intra[0]) - 0.9) > 0.05


def test_all_intensities_between_classes():
    E = np.array([[1.0, 0.3, -0.2], [0.3, 0.7, 0.1], [-0.2, 0.1, 0.5]])
    M, times = RNG.normal(size=(5, 3)), np.array([1.0, 1.5, 3.0])
    means = np.stack([M @ expm((t - 1) * SHARES[:, None] * E) for t in times])
    found = models.elastic.matrix(times, means, classes=CLASSES)
    np.testing.assert_allclose(found, np.broadcast_to(E, (2, 3, 3)), atol=1e-10)
    # A class whose mean turns round has no real logarithm.
    assert np.isnan(models.elastic.matrix(times[:2], np.stack([M, M * np.array([1.0, 1.0, -1.0])]))).all()
    with pytest.raises(ValueError, match="at least as many features as there are classes, got 2 for C = 3"):
        models.elastic.matrix(times, means[:, :2])


def test_pushes_along_the_gradient_of_cross_entropy():
    """The L-model where means are symmetric; elsewhere another flow, whose intensities the midpoint rule finds."""
    p, times = np.full(3, 1 / 3), np.linspace(0.0, 0.4, 3)
    symmetric = 0.8 * np.eye(3) - 0.1
    np.testing.assert_allclose(
        integrated(symmetric, times, p, "softmax"), integrated(symmetric, times, p, "L"), rtol=1e-8
    )
    M = np.diag([1.0, 1.5, 0.7]) + 0.1 * RNG.normal(size=(3, 3))
    assert np.abs(integrated(M, times, p, "softmax") - integrated(M, times, p, "L")).max() > 1e-2
    off = []
    for steps in (2, 4):
        times = np.linspace(0.0, 0.4, steps + 1)
        estimate = models.elastic.estimate(
            times, integrated(M, times, SHARES, "softmax"), kind="softmax", classes=CLASSES
        )
        off.append(np.abs(np.array(estimate)[:, 0] - [0.9, 0.2]).max())
    # Second order in the interval.
    assert 3 < off[0] / off[1] < 5
    assert off[1] < 1e-2


def test_a_small_class_does_not_come_out_of_noise():
    """β = 0, α = c/t: each class grows like t^{c m_k/N}, above √t for more than N/(2c) samples alone."""
    flow, M = models.elastic(CLASSES, 1.6, 0.0, power=1.0), RNG.normal(size=(2, 3))
    grown = models.elastic.solution(np.array([1e4]), jnp.asarray(M), flow, start=1.0)[0]
    np.testing.assert_allclose(grown, M * 1e4 ** (1.6 * SHARES)[None, :], rtol=1e-10)
    rates = np.asarray(models.elastic.rates(CLASSES, 1.6, 0.0))
    np.testing.assert_array_equal(rates > 0.5, np.sort(SIZES) > 8 / 3.2)
