"""Few-shot errors against all choices of examples, distances from the simplex at known points, the expected AGOP."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from ntkcollapse import collapse
from ntkcollapse.data import Dataset

RNG = np.random.default_rng(3)


def test_few_shot_error_is_the_mean_over_all_choices_of_examples():
    rows = RNG.normal(size=(7, 2)) + np.repeat([[0.0, 0.0], [1.0, 0.5]], (3, 4), axis=0)
    labels = np.repeat([0, 1], (3, 4))
    errors = []
    for i, j in itertools.product(range(3), range(3, 7)):
        centres = rows[[i, j]]
        nearest = np.argmin(np.square(rows[:, None] - centres[None]).sum(-1), axis=1)
        wrong = [np.mean([nearest[k] != c for k in np.flatnonzero(labels == c) if k != s]) for c, s in ((0, i), (1, j))]
        errors.append(np.mean(wrong))
    order = RNG.permutation(7)
    found = collapse.few_shot_error_galanti2022(rows[order].T, labels[order], 1, key=jax.random.key(0), draws=4000)
    np.testing.assert_allclose(found.standard_error, np.std(errors) / np.sqrt(4000), rtol=0.05)
    # Five standard errors of the mean.
    np.testing.assert_allclose(found.error, np.mean(errors), atol=5 * np.std(errors) / np.sqrt(4000))
    with pytest.raises(ValueError, match="more than 3 features each"):
        collapse.few_shot_error_galanti2022(rows.T, labels, 3, key=jax.random.key(0))


def simplex(C, n):
    """Rows: C unit vectors of cosines −1/(C − 1), in n dimensions."""
    frame = np.eye(C) - 1 / C
    frame = frame / np.linalg.norm(frame[0])
    return np.pad(frame, ((0, 0), (0, n - C))) @ np.linalg.qr(RNG.normal(size=(n, n)))[0]


def test_distances_from_the_simplex_at_its_vertices_its_centre_and_outside():
    C, n = 4, 6
    vertices, centre = 3 * simplex(C, n), RNG.normal(size=n)
    off = np.linalg.svd(vertices)[2][-1]
    spread = 0.1 * np.repeat([[1.0], [-1.0]], C, axis=0) * off[None]
    train = collapse.ClassStatistics.from_features(
        np.tile(vertices, (2, 1)) + spread + centre, np.tile(np.arange(C), 2)
    )
    points = np.stack([vertices[1], 2 * vertices[2], -vertices[0], 0 * off, 5 * off]) + centre
    # −v_0 is 2 (1 − 1/(C − 1)) squared radii from each other vertex, at cosine 1/(C − 1).
    np.testing.assert_allclose(
        collapse.simplex_distance(points.T, train), [0, 1, np.sqrt(4 / 3), 1, np.sqrt(9 + 25) / 3], atol=1e-12
    )
    # The centre has no direction.
    points = np.delete(points, 3, axis=0)
    np.testing.assert_allclose(collapse.simplex_angle(points.T, train), [0, 0, 2 / 3, 1], atol=1e-12)
    # In the span of the simplex nothing is outside, and half of the square of a point that is half there.
    np.testing.assert_allclose(collapse.neco_ammar2024(points.T, train), [0, 0, 0, 1], atol=1e-12)
    half = (points[:1] + 3 * off[None]).T
    np.testing.assert_allclose(collapse.neco_ammar2024(half, train), 1 - np.sqrt(1 / 2), atol=1e-12)
    np.testing.assert_allclose(collapse.neco_ammar2024(half, train, dimension=n), 0, atol=1e-12)
    np.testing.assert_allclose(collapse.nc5_ammar2024(train, points[3:].T, centred=True), 0, atol=1e-12)
    # Vertex 1 itself: cosines 1 and three times −1/3.
    np.testing.assert_allclose(collapse.nc5_ammar2024(train, points[:1].T, centred=True), 0.5, atol=1e-12)
    means = vertices + centre
    cosines = means @ points[3] / np.linalg.norm(means, axis=1) / np.linalg.norm(points[3])
    np.testing.assert_allclose(collapse.nc5_ammar2024(train, points[3:].T), np.abs(cosines).mean(), atol=1e-12)


def test_auroc_against_sklearn_with_ties_and_infinities():
    inside, outside = RNG.integers(0, 6, 40).astype(float), RNG.integers(2, 8, 30).astype(float)
    expected = roc_auc_score(np.repeat([0, 1], (40, 30)), np.concatenate([inside, outside]))
    np.testing.assert_allclose(collapse.auroc(inside, outside), expected, rtol=1e-13)
    assert float(collapse.auroc(np.zeros(3), np.array([np.inf, 1.0]))) == 1
    with pytest.raises(ValueError, match="inside: expected at least one score"):
        collapse.auroc(np.zeros(0), outside)


def test_expected_outer_product_of_a_quadratic_of_normal_inputs():
    """Of ½ xᵀA x + bᵀx over N(μ, Σ): AΣA + (Aμ + b)(Aμ + b)ᵀ."""
    A, L, b, μ = RNG.normal(size=(3, 3)), RNG.normal(size=(3, 3)), RNG.normal(size=3), RNG.normal(size=3)
    A = A + A.T

    def f(x):
        return jnp.einsum("ni,ij,nj->n", x, A, x) / 2 + x @ b

    found = collapse.egop(
        f, lambda key, B: jax.random.normal(key, (B, 3)) @ L.T + μ[None, :], key=jax.random.key(1), samples=20_000,
        batches=20, chunk=1000,
    )  # fmt: skip
    slope = A @ μ + b
    expected = A @ L @ L.T @ A + np.outer(slope, slope)
    assert np.all(np.abs(found.matrix - expected) < 5 * found.standard_error)
    assert np.all(found.standard_error < 0.05 * np.abs(expected).max())
    # Of ½ x² over N(0, 1) the squared slope has variance 2; its estimate from 50 batches is off by a tenth.
    square = collapse.egop(
        lambda x: x[:, 0] ** 2 / 2, lambda key, B: jax.random.normal(key, (B, 1)), key=jax.random.key(2), samples=5000,
        batches=50,
    )  # fmt: skip
    np.testing.assert_allclose(square.standard_error, np.sqrt(2 / 5000), rtol=0.4)
    # The gradient of a linear function does not vary: nothing is left to chance.
    linear = collapse.egop(
        lambda x: x @ A, lambda key, B: jnp.ones((B, 3)), key=jax.random.key(1), samples=4, batches=2
    )
    np.testing.assert_allclose(linear.matrix, A @ A.T, rtol=1e-12)
    assert float(jnp.abs(linear.standard_error).max()) == 0
    with pytest.raises(ValueError, match="two batches"):
        collapse.egop(f, lambda key, B: jnp.ones((B, 3)), key=jax.random.key(1), samples=10, batches=3)


def test_learnt_metric_explains_a_low_rank_target_and_finds_its_outer_product():
    """x_1 x_2 of N(0, 1) in eight dimensions: its EGOP is the projector on the first two."""
    rng = np.random.default_rng(0)
    x, held_out = rng.normal(size=(200, 8)), rng.normal(size=(200, 8))
    y, truth = x[:, :1] * x[:, 1:2], held_out[:, :1] * held_out[:, 1:2]
    plain = collapse.kernel_regression(x, y, bandwidth=10.0, ridge=1e-3)
    machine = collapse.recursive_feature_machine(x, y, bandwidth=10.0, iterations=3)
    scores = [float(collapse.r_squared(p(held_out), truth)) for p in (plain, machine.predictor)]
    np.testing.assert_allclose(scores[0], r2_score(truth, np.asarray(plain(held_out))), rtol=1e-10)
    assert scores[0] < 0.7
    assert scores[1] > 0.9
    two = np.diag([1.0, 1.0, *6 * [0.0]])
    correlations = [float(collapse.ansatz_correlation(M, two)) for M in (plain.agop(), machine.metric)]
    assert correlations[0] < 0.98
    assert correlations[1] > 0.985
    with pytest.raises(ValueError, match="targets that vary"):
        collapse.r_squared(y, np.ones_like(y))


def test_some_classes_of_a_set():
    data = Dataset.of(np.arange(6.0)[:, None], np.array([2, 0, 1, 1, 0, 2]), name="six", class_names=("a", "b", "c"))
    part = data.of_classes((2, 0))
    assert part.inputs[:, 0].tolist() == [0, 5, 1, 4]
    assert part.labels.tolist() == [0, 0, 1, 1]
    assert part.class_names == ("c", "a")
    with pytest.raises(ValueError, match="two or more different classes among 0 to 2"):
        data.of_classes((1, 1))
