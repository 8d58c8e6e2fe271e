"""NC1 to NC4: stored trajectories, an exact simplex ETF, hand-computed cases, symmetries, degenerate inputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import Classes, LastLayer, collapse
from ntkcollapse.collapse import ClassStatistics
from tests import references
from tests.cases import UNEQUAL, random_state

NC1 = (
    collapse.nc1_papyan2020,
    collapse.nc1_han2022,
    collapse.nc1_tirer2022,
    collapse.nc1_seleznova2023,
    collapse.mean_cdnv_galanti2022,
)
NC2 = (
    collapse.nc2_seleznova2023,
    collapse.nc2_equinorm_papyan2020,
    collapse.nc2_equiangle_papyan2020,
    collapse.nc2_maximal_angle_papyan2020,
)
NC3 = (collapse.nc3_seleznova2023, collapse.nc3_han2022, collapse.nc3_zhu2021)


@partial(jax.jit, static_argnames="classes")
@partial(jax.vmap, in_axes=(0, 0, None))
def measure(H, W, classes):
    statistics = ClassStatistics.from_columns(H, classes)
    return {
        "NC1_std": collapse.nc1_seleznova2023(statistics),
        "NC1_pinv": collapse.nc1_papyan2020(statistics),
        "NC1_tr": collapse.nc1_tirer2022(statistics),
        "NC2": collapse.nc2_seleznova2023(statistics),
        "NC3": collapse.nc3_seleznova2023(statistics, W),
    }


@pytest.mark.parametrize("name", references.CONSTANT)
def test_stored_trajectories(name):
    run = references.load(name)
    seen = measure(jnp.asarray(run["H"]), jnp.asarray(run["W"]), run.classes)
    # Stored values of NC1 below 1e-14 are rounding. The stored pseudo-inverse was taken of Σ_B, so that its own
    # rounding is that of the squared condition number of the class means.
    means = run["H"] @ np.asarray(run.classes.Y).T / np.asarray(run.classes.sizes)
    singular = np.linalg.svd(means - means.mean(2, keepdims=True), compute_uv=False)[:, run.classes.num_classes - 2]
    largest = np.linalg.svd(means - means.mean(2, keepdims=True), compute_uv=False)[:, 0]
    well = singular > 1e-3 * largest
    assert well.sum() >= 5
    expected = {key: run[key] for key in ("NC1_std", "NC1_pinv", "NC1_tr", "NC2", "NC3")}
    for key, value in seen.items():
        keep = well if key == "NC1_pinv" else slice(None)
        np.testing.assert_allclose(value[keep], expected[key][keep], rtol=1e-9, atol=1e-14, err_msg=key)


def hand_computed() -> tuple[ClassStatistics, np.ndarray]:
    """Two classes of two samples: Σ_W = diag(1/2, 2), Σ_B = v vᵀ with v = (2, 1/2)."""
    H = np.array([[0.0, 2.0, 5.0, 5.0], [1.0, 1.0, 0.0, 4.0]])
    return ClassStatistics.from_columns(H, Classes.balanced(2, 2)), np.array([[1.0, 0.0], [0.0, 2.0]])


def test_hand_computed():
    statistics, W = hand_computed()
    expected = (
        # tr(Σ_W v vᵀ) / |v|⁴ with vᵀ Σ_W v = 5/2 and |v|² = 17/4; tr Σ_W = 5/2; deviations 1, 0, 0, 2.
        (collapse.nc1_han2022(statistics), 2.5 / 4.25**2),
        (collapse.nc1_papyan2020(statistics), 1.25 / 4.25**2),
        (collapse.nc1_tirer2022(statistics), 2.5 / 4.25),
        (collapse.nc1_seleznova2023(statistics), 0.75),
        # WWᵀ = diag(1, 4): ‖G/‖G‖ − P/‖P‖‖² = 2 − 2 ⟨G, P⟩ / ‖G‖, and lengths 1 and 2.
        (collapse.nc2_zhu2021(W), np.sqrt(2 - 5 / np.sqrt(17))),
        (collapse.nc2_equinorm_papyan2020(W), 1 / 3),
        # ⟨Wᵀ, M̄⟩ = −1 with ‖W‖² = 5, ‖M̄‖² = 17/2; W M̄ = [[−2, 2], [−1, 1]].
        (collapse.nc3_han2022(statistics, W), 2 + 2 / np.sqrt(42.5)),
        (collapse.nc3_seleznova2023(statistics, W), np.sqrt(2 + 2 / np.sqrt(42.5))),
        (collapse.nc3_zhu2021(statistics, W), np.sqrt(2 + 2 / np.sqrt(10))),
    )
    for value, exact in expected:
        np.testing.assert_allclose(value, exact, rtol=1e-14)
    # Cosines of three rows: 0, −1, 0; the widest equal angles of three vectors have cosine −1/2.
    W = np.array([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0]])
    np.testing.assert_allclose(collapse.nc2_equiangle_papyan2020(W), np.sqrt(2) / 3, rtol=1e-14)
    np.testing.assert_allclose(collapse.nc2_maximal_angle_papyan2020(W), 0.5, rtol=1e-14)
    # Centred: rows lose their mean (−1/3, 1).
    centred = W - W.mean(0)
    np.testing.assert_allclose(
        collapse.nc2_equinorm_papyan2020(W, centred=True), np.std(n := np.linalg.norm(centred, axis=1)) / n.mean()
    )


def simplex(C: int, n: int, m: int, noise: float = 0.0) -> tuple[LastLayer, Classes]:
    """A rotated, shifted and scaled simplex ETF with W in proportion to it."""
    rng = np.random.default_rng(C)
    Q, _ = np.linalg.qr(rng.normal(size=(n, C)))
    M = 3 * Q @ (np.eye(C) - 1 / C)
    H = np.repeat(M + rng.normal(size=(n, 1)), m, axis=1) + noise * rng.normal(size=(n, C * m))
    return LastLayer(H=H, W=0.4 * M.T, b=-0.4 * M.T @ H.mean(1)), Classes.balanced(C, m)


def every_metric(statistics, W):
    of_statistics = [f(statistics) for f in (*NC1, *NC2)]
    return jnp.stack([*of_statistics, *(f(statistics, W) for f in NC3), *(f(W) for f in NC2)])


def test_zero_on_a_simplex_etf():
    state, classes = simplex(C=5, n=7, m=3)
    statistics = ClassStatistics.from_columns(state.H, classes)
    # NC2 and NC3 are distances of entries of order 1; rounding of √ of squared rounding at worst.
    np.testing.assert_allclose(every_metric(statistics, state.W), 0, atol=5e-15)
    assert float(collapse.nc4_mismatch(state.H, state.W, state.b, statistics.means)) == 0.0


def test_invariance():
    state, classes = simplex(C=5, n=7, m=3, noise=0.5)
    H = np.asarray(state.H)
    W = np.asarray(state.W) + np.random.default_rng(8).normal(size=state.W.shape)
    Q, _ = np.linalg.qr(np.random.default_rng(9).normal(size=(7, 7)))
    shift = np.arange(7.0)[:, None]
    before = every_metric(ClassStatistics.from_columns(H, classes), W)
    moved = every_metric(ClassStatistics.from_columns(2.5 * Q @ H + shift, classes), 0.3 * W @ Q.T)
    assert (np.asarray(before) > 1e-3).all()
    # All but the feature-wise standard deviation, which follows the scale and depends on the basis.
    keep = np.arange(before.size) != NC1.index(collapse.nc1_seleznova2023)
    np.testing.assert_allclose(moved[keep], before[keep], rtol=1e-10)
    scaled = ClassStatistics.from_columns(2.5 * H + shift, classes)
    np.testing.assert_allclose(collapse.nc1_seleznova2023(scaled), 2.5 * before[~keep][0], rtol=1e-12)
    assert abs(float(moved[~keep][0] / before[~keep][0]) - 2.5) > 1e-3


def test_weighting_by_sample_adds_up_to_the_covariance_of_all_samples():
    H = np.asarray(random_state(4, UNEQUAL).H)
    statistics = ClassStatistics.from_columns(H, UNEQUAL)
    total = np.cov(H, bias=True)
    np.testing.assert_allclose(
        statistics.within_class_covariance + statistics.between_class_covariance("sample"), total, atol=1e-14
    )
    np.testing.assert_allclose(statistics.global_mean("sample"), H.mean(1), atol=1e-14)
    for weighting, p in (("class", np.ones(3) / 3), ("sample", np.array(UNEQUAL.sizes) / 9)):
        M = np.stack([H[:, np.asarray(UNEQUAL.labels) == c].mean(1) for c in range(3)], axis=1)
        M = M - (M * p).sum(1, keepdims=True)
        covariance, within = (M * p) @ M.T, np.asarray(statistics.within_class_covariance)
        # Truncated by hand to the two directions that three classes span.
        eigenvalues, vectors = np.linalg.eigh(covariance)
        inverse = vectors[:, -2:] / eigenvalues[-2:] @ vectors[:, -2:].T
        np.testing.assert_allclose(
            collapse.nc1_han2022(statistics, weighting=weighting), np.trace(within @ inverse), rtol=1e-10
        )
        np.testing.assert_allclose(
            collapse.nc1_tirer2022(statistics, weighting=weighting),
            np.trace(within) / np.trace(covariance),
            rtol=1e-12,
        )
    with pytest.raises(ValueError, match="Did you mean 'sample'"):
        collapse.nc1_han2022(statistics, weighting="samples")


def test_rank_is_truncated_where_the_pseudo_inverse_of_a_matrix_is_not():
    """A common large mean in float32: the untruncated pseudo-inverse inverts the rounding of a zero."""
    rng = np.random.default_rng(0)
    C, n, m = 4, 10, 20
    means = rng.normal(size=(n, C)) + 100.0
    H = (np.repeat(means, m, axis=1) + 0.1 * rng.normal(size=(n, C * m))).astype(np.float32)
    classes = Classes.balanced(C, m)
    exact = float(collapse.nc1_papyan2020(ClassStatistics.from_columns(H.astype(np.float64), classes)))
    single = ClassStatistics.from_columns(H, classes)
    # float32 features about 100 leave the means five digits and their differences three.
    np.testing.assert_allclose(collapse.nc1_papyan2020(single), exact, rtol=2e-3)
    between = np.asarray(single.between_class_covariance())
    untruncated = np.trace(np.asarray(single.within_class_covariance) @ np.linalg.pinv(between, rcond=1e-15)) / C
    assert abs(untruncated / exact - 1) > 10


def test_degenerate_values_are_stated_and_do_not_spread():
    classes = Classes.balanced(3, 4)
    rng = np.random.default_rng(0)
    H = np.tile(rng.normal(size=(5, 4)), 3)
    for value in (H, np.ones((5, 12))):
        statistics = ClassStatistics.from_columns(value, classes)
        W = jnp.zeros((3, 5))
        assert float(collapse.nc1_papyan2020(statistics)) == np.inf
        assert float(collapse.nc1_tirer2022(statistics)) == np.inf
        np.testing.assert_allclose(collapse.nc2_seleznova2023(statistics), 1.0, rtol=1e-15)
        np.testing.assert_allclose(collapse.nc3_zhu2021(statistics, W), 1.0, rtol=1e-15)
        np.testing.assert_allclose(collapse.nc3_seleznova2023(statistics, W), 0.0)
        np.testing.assert_allclose(collapse.nc3_seleznova2023(statistics, W + 1), 1.0, rtol=1e-15)
        with pytest.raises(ValueError, match="zero between-class scatter"):
            statistics.check()


def test_gradients_are_finite():
    state, classes = simplex(C=4, n=6, m=3)
    noise = np.random.default_rng(0).normal(size=state.H.shape)

    @jax.jit
    def gradients(H, W):
        return jax.jacrev(lambda H, W: every_metric(ClassStatistics.from_columns(H, classes), W), (0, 1))(H, W)

    # Collapsed, generic, all class means the same.
    for H in (state.H, state.H + noise, jnp.ones_like(state.H)):
        for gradient in gradients(H, state.W):
            assert np.isfinite(np.asarray(gradient)).all()


def test_gradient_of_nc1_against_finite_differences():
    H = np.asarray(random_state(4, UNEQUAL).H)
    direction = np.random.default_rng(1).normal(size=H.shape)

    def value(t):
        return collapse.nc1_papyan2020(ClassStatistics.from_columns(H + t * direction, UNEQUAL))

    step = 1e-5
    difference = (value(step) - value(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(value)(0.0), difference, rtol=1e-6)  # the difference errs by step²


def test_rows_in_any_order_are_columns_in_class_order():
    H = np.asarray(random_state(4, UNEQUAL).H)
    shuffle = np.random.default_rng(3).permutation(9)
    columns = ClassStatistics.from_columns(H, UNEQUAL)
    rows = ClassStatistics.from_features(H.T[shuffle], np.asarray(UNEQUAL.labels)[shuffle])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), rows, columns)
    traced = jax.jit(lambda x, y: ClassStatistics.from_features(x, y, num_classes=3))(H.T, np.asarray(UNEQUAL.labels))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), traced, columns)
    np.testing.assert_allclose(rows.class_variances, np.asarray(rows.square_deviations).sum(0) / UNEQUAL.sizes)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_features_in_half_precision_are_summed_in_more(dtype):
    """bfloat16 counts to 256, float16 to 2048: sizes, means and scatter of 8000 samples need more."""
    labels = np.arange(8000) % 2
    features = jnp.asarray(np.random.default_rng(0).normal(size=(8000, 3)) + 2.0 * labels[:, None], dtype)
    exact = ClassStatistics.from_features(np.asarray(features, np.float64), labels)
    order = np.argsort(labels, kind="stable")
    columns = ClassStatistics.from_columns(features[order].T, Classes.balanced(2, 4000))
    for statistics in (ClassStatistics.from_features(features, labels), columns):
        np.testing.assert_array_equal(statistics.sizes, [4000, 4000])
        for found, expected in zip(jax.tree.leaves(statistics), jax.tree.leaves(exact), strict=True):
            # Sums of 4000 numbers of order 1 in float32.
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)
    kernel = collapse.KernelStatistics.from_gram(jnp.ones((600, 600), dtype), labels[:600])
    np.testing.assert_array_equal(kernel.sizes, [300, 300])


def test_nc4_counts_disagreements_and_the_bias_matters():
    rng = np.random.default_rng(0)
    H, W, b, means = (rng.normal(size=s) for s in ((4, 50), (3, 4), (3,), (4, 3)))
    H = H + 1e3  # a large common offset must not cost the distances their digits
    means = means + 1e3
    nearest = np.argmin(np.linalg.norm(H[:, :, None] - means[:, None, :], axis=0), axis=1)
    # The offset alone decides for one class, unless the bias takes it away.
    centred = b - W @ np.full(4, 1e3)
    found = []
    for bias in (centred, centred + 2 * b, None):
        logits = W @ H + (0 if bias is None else bias[:, None])
        found.append(np.mean(logits.argmax(0) != nearest))
        np.testing.assert_allclose(collapse.nc4_mismatch(H, W, bias, means), found[-1])
    assert len(set(found)) == 3
    np.testing.assert_array_equal(collapse.nearest_class_mean(H, means), nearest)


def test_no_simplex_in_too_few_dimensions():
    C, n = 6, 3
    statistics = ClassStatistics(
        sizes=jnp.ones(C), means=jnp.eye(n, C), scatter=jnp.zeros((n, n)), square_deviations=jnp.zeros((n, C))
    )
    with pytest.warns(UserWarning, match="cannot hold a simplex ETF"):
        assert float(collapse.nc2_seleznova2023(statistics)) > collapse.simplex_etf_floor(n, C)
    # The floor is reached where the Gram matrix is a projector of rank n orthogonal to 1.
    Q, _ = np.linalg.qr(np.concatenate([np.ones((C, 1)), np.random.default_rng(0).normal(size=(C, n))], axis=1))
    with pytest.warns(UserWarning, match="n ≥ C − 1"):
        value = collapse.nc2_zhu2021(Q[:, 1:])
    np.testing.assert_allclose(value, collapse.simplex_etf_floor(n, C), rtol=1e-12)


@pytest.mark.parametrize(
    ("features", "labels", "num_classes", "message"),
    [
        (np.ones((4, 2)), [0, 1, 1], None, r"labels: expected shape \(4\)"),
        (np.ones((4, 2)), [0, 1, 1, 3], None, "none of class 2"),
        (np.ones((4, 2)), [0, 1, 1, 0], 3, "none of class 2"),
        (np.ones((4, 2)), [0, 1, 1, 3], 3, "labels in 0, ..., 2 for C = 3 classes, got 3"),
        (np.ones((4, 2)), [0, -1, 1, 1], None, "got -1"),
        (np.ones((4, 2)), [0, 0, 0, 0], None, "got one only"),
        (np.ones((4, 2)), [0.0, 1.0, 0.0, 1.0], None, "convert with astype"),
        (np.ones(4), [0, 1, 0, 1], None, "one row a sample"),
        (np.ones((0, 2)), np.zeros(0, int), None, "at least one sample"),
        (np.array([[1.0, np.nan], [1.0, 1.0]]), [0, 1], None, "finite"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_input_is_refused(features, labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        ClassStatistics.from_features(features, labels, num_classes)


@pytest.mark.usefixtures("as_users_call")
def test_shapes_are_refused():
    statistics, W = hand_computed()
    with pytest.raises(ValueError, match="flax stores its transpose"):
        collapse.nc3_seleznova2023(statistics, np.ones((2, 3)))
    with pytest.raises(ValueError, match="one bias for each"):
        collapse.nc4_mismatch(np.ones((2, 5)), W, np.ones(3), np.ones((2, 2)))
    with pytest.raises(ValueError, match="H: expected shape"):
        ClassStatistics.from_columns(np.ones((2, 5)), Classes.balanced(2, 2))
    with pytest.raises(ValueError, match="traced labels"):
        jax.jit(lambda y: ClassStatistics.from_features(np.ones((4, 2)), y))(np.array([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="at least two classes"):
        ClassStatistics(jnp.ones(1), jnp.ones((2, 1)), jnp.ones((2, 2)), jnp.ones((2, 1)))
