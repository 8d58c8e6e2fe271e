"""Each initial condition has the property it is named for, by formulas written out here."""

import equinox as eqx
import jax
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes, DenseKernel
from ntkcollapse.theory.initial import INITIAL_CONDITIONS, initial_condition
from tests.cases import UNEQUAL

BALANCED = Classes.balanced(4, 5)
KAPPA = BlockKernel(3.0, 2.0, 0.6)
N_FEATURES = 6
ROUNDING = 1e-14
make = eqx.filter_jit(initial_condition)


def state_of(name, classes=BALANCED, seed: int | jax.Array = 0, scale=None):
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    state = make(name, classes, N_FEATURES, KAPPA, scale=scale, key=key)
    return tuple(np.asarray(x) for x in (state.H, state.W, state.b))


def kernel_matrix(classes):
    """K = (κd − κc) I + (κc − κn) Z Zᵀ + κn 1 1ᵀ."""
    Y = np.repeat(np.eye(len(classes.sizes)), classes.sizes, axis=1)
    return np.eye(Y.shape[1]) + 1.4 * Y.T @ Y + 0.6


def invariant(H, W, classes):
    return W.T @ W - H @ np.linalg.inv(kernel_matrix(classes)) @ H.T


def means_and_deviations(H, classes):
    Y = np.repeat(np.eye(len(classes.sizes)), classes.sizes, axis=1)
    M = H @ Y.T / np.array(classes.sizes)
    return M, H - M @ Y


LAMBDA_CLASS = 1 + 5 * 1.4
SCALE = np.sqrt(5 / LAMBDA_CLASS)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("zero-invariant", BALANCED),
        ("zero-invariant", UNEQUAL),
        ("zero-invariant-scatter", UNEQUAL),
        ("zero-invariant-scatter", BALANCED),
        ("zero-invariant-uncentred", BALANCED),
    ],
)
def test_zero_invariant(name, classes):
    H, W, b = state_of(name, classes)
    M, X = means_and_deviations(H, classes)
    np.testing.assert_allclose(invariant(H, W, classes), 0, atol=ROUNDING)
    np.testing.assert_allclose(H.sum(1), 0, atol=ROUNDING)
    np.testing.assert_allclose(b, np.array(classes.sizes) / classes.num_samples, rtol=1e-15)
    C = classes.num_classes
    assert np.linalg.matrix_rank(M, tol=1e-8) == C - 1
    uncentred = name == "zero-invariant-uncentred"
    assert np.linalg.matrix_rank(W, tol=1e-8) == C - 1 + uncentred
    assert (np.abs(W.sum(0)).max() > 1e-2) == uncentred
    assert (np.abs(X).max() > 1e-2) == (name != "zero-invariant")


@pytest.mark.parametrize("seed", range(4))
def test_zero_invariant_is_of_the_kind_that_collapses(seed):
    # Criterion: Π (W + Mtᵀ), Mt = √(m/λ_class) M, has rank C − 1. With det −1 it has one dimension less.
    H, W, _ = state_of("zero-invariant", seed=seed)
    Mt = SCALE * means_and_deviations(H, BALANCED)[0]
    assert np.linalg.matrix_rank(W + Mt.T, tol=1e-6) == 3
    H, W, _ = state_of("saddle", seed=seed)
    Mt = SCALE * means_and_deviations(H, BALANCED)[0]
    assert np.linalg.matrix_rank(W + Mt.T, tol=1e-6) == 2


@pytest.mark.parametrize("name", ["aligned", "saddle"])
def test_aligned_modes(name):
    H, W, b = state_of(name)
    scale = {"aligned": 0.01, "saddle": 0.1}[name]
    M, X = means_and_deviations(H, BALANCED)
    np.testing.assert_allclose(invariant(H, W, BALANCED), 0, atol=ROUNDING)
    np.testing.assert_allclose(X, 0, atol=ROUNDING)
    np.testing.assert_allclose(b, 1 / 4, rtol=1e-15)
    # Shared singular directions: W M is symmetric and commutes with W Wᵀ.
    np.testing.assert_allclose(W @ M, (W @ M).T, atol=ROUNDING)
    np.testing.assert_allclose(W @ M @ W @ W.T, W @ W.T @ W @ M, atol=ROUNDING)
    alpha = np.linalg.eigvalsh(W @ M)
    alpha = np.delete(alpha, np.argmin(np.abs(alpha)))
    assert (alpha < 0).sum() == (name == "saddle")
    assert (np.abs(alpha) >= 0.5 * scale - ROUNDING).all()
    assert (np.abs(alpha) <= 1.5 * scale + ROUNDING).all()
    assert np.ptp(np.abs(alpha)) > 1e-2 * scale


@pytest.mark.parametrize(("name", "sign"), [("non-collapse", -1), ("non-collapse-nc3", 1)])
def test_non_collapse(name, sign):
    H, W, b = state_of(name)
    M, X = means_and_deviations(H, BALANCED)
    I = invariant(H, W, BALANCED)
    values, vectors = np.linalg.eigh(I)
    extra = np.argmax(np.abs(values))
    np.testing.assert_allclose(values[extra], sign * SCALE / 4, rtol=1e-12)
    np.testing.assert_allclose(np.delete(values, extra), 0, atol=ROUNDING)
    v = vectors[:, extra]
    np.testing.assert_allclose(v @ M, 0, atol=ROUNDING)
    np.testing.assert_allclose(H.sum(1), 0, atol=10 * ROUNDING)
    np.testing.assert_allclose(W @ v, W.sum(0) @ v / 4, atol=ROUNDING)
    np.testing.assert_allclose(np.linalg.norm(v @ X), np.linalg.norm(X), rtol=1e-13)
    np.testing.assert_allclose((W.sum(0) @ v) ** 2 / 4 - v @ X @ X.T @ v, sign * SCALE / 4, rtol=1e-12)
    np.testing.assert_allclose(b, 1 / 4, rtol=1e-15)


def test_collapsed():
    H, W, b = state_of("collapsed")
    Π = np.eye(4) - 1 / 4
    np.testing.assert_allclose(W @ H + b[:, None], np.repeat(np.eye(4), 5, axis=1), atol=ROUNDING)
    np.testing.assert_allclose(W @ W.T, SCALE * Π, atol=ROUNDING)
    np.testing.assert_allclose(H[:, ::5], W.T / SCALE, atol=ROUNDING)
    np.testing.assert_allclose(invariant(H, W, BALANCED), 0, atol=ROUNDING)
    # Another scale: still interpolates, and the invariant is proportional to WᵀW.
    H, W, b = state_of("collapsed", scale=2.0)
    np.testing.assert_allclose(W @ H + b[:, None], np.repeat(np.eye(4), 5, axis=1), atol=ROUNDING)
    np.testing.assert_allclose(invariant(H, W, BALANCED), (1 - 1 / 16) * W.T @ W, atol=10 * ROUNDING)


@pytest.mark.parametrize("classes", [BALANCED, UNEQUAL])
@pytest.mark.parametrize("r", [0.6, -0.3])
def test_a_given_invariant(classes, r):
    H, W, _ = state_of("with-invariant", classes, scale=r)
    A, B, E = W.T @ W, H @ np.linalg.inv(kernel_matrix(classes)) @ H.T, invariant(H, W, classes)
    # The solve of K loses a digit or two.
    np.testing.assert_allclose(np.linalg.norm(E) / (np.linalg.norm(A) + np.linalg.norm(B)), abs(r), rtol=1e-12)
    assert (np.linalg.eigvalsh(np.sign(r) * E) > -ROUNDING).all()


@pytest.mark.parametrize("cosine", [0.6, 0.0, -0.9])
def test_a_given_alignment(cosine):
    H, W, b = state_of("with-alignment", UNEQUAL, scale=cosine)
    M, X = means_and_deviations(H, UNEQUAL)
    centred = M - M.mean(1)[:, None]
    at = np.sum(W.T * centred) / np.linalg.norm(W) / np.linalg.norm(centred)
    np.testing.assert_allclose(at, cosine, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(np.trace(invariant(H, W, UNEQUAL)), 0, atol=10 * ROUNDING)
    np.testing.assert_allclose(X, 0, atol=ROUNDING)
    np.testing.assert_allclose(W.sum(0), 0, atol=ROUNDING)
    np.testing.assert_array_equal(b, 1 / len(UNEQUAL.sizes))


def test_a_perturbed_collapse():
    plain, moved = (state_of("perturbed-collapse", scale=scale) for scale in (1e-12, 0.2))
    for rest, value, size in zip(plain, moved, (0.2, 0.2, 0.0), strict=True):
        # The smaller of both perturbations is the error.
        np.testing.assert_allclose(np.linalg.norm(value - rest), size * np.linalg.norm(rest), rtol=1e-10)
    H, W, b = plain
    np.testing.assert_allclose(W @ H + b[:, None], np.repeat(np.eye(4), 5, axis=1), atol=1e-10)


def test_random_starts_have_the_stated_sizes():
    classes, key = Classes.balanced(10, 200), jax.random.key(0)
    state = initial_condition("gaussian", classes, 50, KAPPA, scale=0.3, key=key)
    # 100 000 and 500 numbers: standard errors of 0.2 % and 3 %.
    np.testing.assert_allclose(np.std(state.H), 0.3, rtol=0.01)
    np.testing.assert_allclose(np.std(state.W), 0.3 / np.sqrt(50), rtol=0.12)
    assert not np.any(state.b)
    state = initial_condition("small", classes, 50, KAPPA, key=key)
    np.testing.assert_allclose(np.asarray([np.std(state.H), np.std(state.W)]), 1e-3, rtol=0.12)
    assert 2e-4 < np.std(state.b) < 3e-3


@pytest.mark.parametrize("name", INITIAL_CONDITIONS)
def test_keys_decide(name):
    first, again, other = state_of(name), state_of(name), state_of(name, seed=1)
    np.testing.assert_array_equal(first[1], again[1])
    assert np.abs(first[1] - other[1]).max() > 1e-4
    assert first[0].dtype == np.float64


def test_scales_and_keys_map():
    name = "collapsed"

    @eqx.filter_jit
    @jax.vmap
    def family(scale, key):
        return INITIAL_CONDITIONS[name](BALANCED, N_FEATURES, KAPPA, scale=scale, key=key)

    states = family(np.array([0.1, 0.2]), jax.random.split(jax.random.key(0), 2))
    alone = state_of(name, scale=0.2, seed=jax.random.split(jax.random.key(0), 2)[1])
    np.testing.assert_allclose(states.H[1], alone[0], atol=1e-14)


def test_bad_input():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="Did you mean 'aligned'"):
        initial_condition("alined", BALANCED, 6, KAPPA, key=key)
    with pytest.raises(ValueError, match="n: expected at least 3 features"):
        initial_condition("collapsed", BALANCED, 2, KAPPA, key=key)
    with pytest.raises(ValueError, match="n: expected at least 4 features"):
        initial_condition("zero-invariant-uncentred", BALANCED, 3, KAPPA, key=key)
    with pytest.raises(ValueError, match="scale: expected numbers above zero"):
        initial_condition("gaussian", BALANCED, 6, KAPPA, scale=0.0, key=key)
    for name in ("with-invariant", "with-alignment"):
        with pytest.raises(ValueError, match="scale: expected a number above -1 and below 1"):
            initial_condition(name, BALANCED, 6, KAPPA, scale=1.0, key=key)
    with pytest.raises(ValueError, match="classes of one size"):
        initial_condition("aligned", UNEQUAL, 6, KAPPA, key=key)
    with pytest.raises(ValueError, match="at least 2 samples a class"):
        initial_condition("non-collapse", Classes.balanced(4, 1), 6, KAPPA, key=key)
    with pytest.raises(ValueError, match="expected a BlockKernel"):
        initial_condition("aligned", BALANCED, 6, DenseKernel(np.eye(20)), key=key)
