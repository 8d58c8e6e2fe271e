"""Energies on the sphere, strong collapse, nearest neighbours: against sums over pairs, exact states, brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes, collapse
from ntkcollapse.collapse import ClassStatistics

RNG = np.random.default_rng(0)
C, N_FEATURES, M = 4, 6, 5


def frame(C: int, n: int) -> np.ndarray:
    """A simplex ETF as rows, in a random orientation."""
    Q, _ = np.linalg.qr(np.random.default_rng(C).normal(size=(n, C)))
    return (np.eye(C) - 1 / C) @ Q.T


def distances(W: np.ndarray) -> np.ndarray:
    units = W / np.linalg.norm(W, axis=1, keepdims=True)
    return np.array([np.linalg.norm(a - b) for a, b in itertools.combinations(units, 2)])


def test_energies_of_directions_by_hand():
    W = RNG.normal(size=(C, N_FEATURES))
    d, simplex = distances(W), np.sqrt(2 * C / (C - 1))
    np.testing.assert_allclose(collapse.nc2_log_energy_liu2023(W), np.mean(np.log(simplex / d)), rtol=1e-12)
    np.testing.assert_allclose(collapse.nc2_equidistance_wu2024(W), np.std(np.log(d)), rtol=1e-12)
    for s in (1.0, 2.5):
        riesz = np.mean((simplex / d) ** s) - 1
        np.testing.assert_allclose(collapse.nc2_riesz_energy_liu2023(W, power=s), riesz, rtol=1e-12)
    # Per s the Riesz energy tends to the logarithmic one; what is left is s/2 times the mean square of the logarithm.
    tiny = collapse.nc2_riesz_energy_liu2023(W, power=1e-5)
    np.testing.assert_allclose(tiny / 1e-5, np.mean(np.log(simplex / d)), rtol=1e-4)
    # Of class means the mean is taken away; lengths never count.
    means = W + 3.0
    statistics = ClassStatistics.from_columns(np.repeat(means.T, 2, axis=1), Classes.balanced(C, 2))
    centred = np.mean(np.log(simplex / distances(means - means.mean(0))))
    np.testing.assert_allclose(collapse.nc2_log_energy_liu2023(statistics), centred, rtol=1e-12)
    scaled = collapse.nc2_log_energy_liu2023(W * np.array([1e-12, 1.0, 5.0, 1e9])[:, None])
    np.testing.assert_allclose(scaled, np.mean(np.log(simplex / d)), rtol=1e-12)


def test_no_directions_have_less_energy_than_a_simplex():
    W = frame(C, N_FEATURES) * np.array([1.0, 2.0, 3.0, 0.1])[:, None]
    metrics = (collapse.nc2_log_energy_liu2023, collapse.nc2_riesz_energy_liu2023, collapse.nc2_equidistance_wu2024)
    for metric in metrics:
        np.testing.assert_allclose(metric(W), 0, atol=1e-14)
    for seed in range(20):
        # More vectors than a simplex has room for, too.
        V = np.random.default_rng(seed).normal(size=(C, 2))
        assert all(float(metric(V)) > 1e-6 for metric in metrics)
    # Five directions spread over a circle: equal angles are the best there is, above 0.
    circle = np.stack([np.cos(a := 2 * np.pi * np.arange(5) / 5), np.sin(a)], axis=1)
    best = float(collapse.nc2_log_energy_liu2023(circle))
    # ∏ over pairs of the distances of roots of unity is 5^{5/2}, on ten pairs.
    np.testing.assert_allclose(best, np.log(2.5) / 2 - np.log(5) / 4, rtol=1e-12)
    assert float(collapse.nc2_log_energy_liu2023(circle + 0.1 * RNG.normal(size=(5, 2)))) > best
    # Two that coincide.
    assert all(float(metric(np.eye(3)[[0, 1, 0]])) == np.inf for metric in metrics)
    assert np.isfinite(np.asarray(jax.grad(collapse.nc2_log_energy_liu2023)(jnp.asarray(W)))).all()


def strongly_collapsed(rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, Classes]:
    W = (M / rate) ** 0.25 * frame(C, N_FEATURES)
    return np.repeat(np.sqrt(rate / M) * W.T, M, axis=1), W, np.full(C, 1 / C), Classes.balanced(C, M)


@pytest.mark.parametrize("rate", [1.0, BlockKernel(3.0, 2.0, 0.6).lambda_class(Classes.balanced(C, M))])
def test_strong_collapse_and_known_distances_from_it(rate):
    H, W, b, classes = strongly_collapsed(float(rate))

    def strong(H, W, b):
        statistics = ClassStatistics.from_columns(H, classes)
        two = (f(statistics, W, lambda_class=rate) for f in (collapse.snc1_mixon2022, collapse.snc2_mixon2022))
        return np.array([*two, collapse.snc3_mixon2022(b)])

    np.testing.assert_allclose(strong(H, W, b), 0, atol=1e-14)
    # W half as long again: WWᵀ is 2.25 times itself, and features are half of their size away.
    np.testing.assert_allclose(strong(H, 1.5 * W, 1.2 * b), [1.25, 0.5, 0.2], rtol=1e-12)
    # Of any features: the distance itself, over the norm of those of strong collapse.
    moved = H + RNG.normal(size=H.shape)
    off = np.linalg.norm(moved - np.sqrt(rate / M) * np.repeat(W.T, M, axis=1)) / np.linalg.norm(H)
    np.testing.assert_allclose(strong(moved, W, b)[1], off, rtol=1e-12)


def test_strong_collapse_is_of_balanced_classes():
    statistics = ClassStatistics.from_columns(RNG.normal(size=(3, 5)), Classes(sizes=(2, 3)))
    W = RNG.normal(size=(2, 3))
    for metric in (collapse.snc1_mixon2022, collapse.snc2_mixon2022):
        with pytest.raises(ValueError, match="expected classes of one size, got sizes from 2 to 3"):
            metric(statistics, W)
    values = collapse.measure(statistics, W, np.array([0.5, 0.6]))
    assert np.isnan(values["snc1_mixon2022"])
    np.testing.assert_allclose(values["snc3_mixon2022"], 0.1 * np.sqrt(2), rtol=1e-12)


def test_nearest_neighbours_by_brute_force():
    """Rings about one centre: class means say nothing, neighbours everything."""
    angles, labels = RNG.uniform(0, 2 * np.pi, 120), np.arange(120) % 2
    H = (1.0 + labels) * np.stack([np.cos(angles), np.sin(angles)]) + 0.25 * RNG.normal(size=(2, 120)) + 100.0
    means = np.stack([H[:, labels == c].mean(1) for c in (0, 1)], axis=1)
    assert float(collapse.ncc_accuracy(H, labels, means)) < 0.75
    for k in (1, 4):
        square = np.square(H[:, :, None] - H[:, None, :]).sum(0)
        for own in (True, False):
            part = square[:, :80] if not own else square + np.diag(np.full(120, np.inf))
            votes = [np.bincount(labels[row], minlength=2).argmax() for row in np.argsort(part, axis=1)[:, :k]]
            train = None if own else (H[:, :80], labels[:80])
            accuracy = collapse.knn_accuracy(H, labels, train, neighbours=k)
            assert accuracy == pytest.approx(np.mean(np.array(votes) == labels), abs=1e-15)
            assert accuracy > 0.85
    with pytest.raises(ValueError, match="at most the 119 training features that there are besides the sample itself"):
        collapse.knn_accuracy(H, labels, neighbours=120)
