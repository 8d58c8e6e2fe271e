"""Krylov kernels against dense linear algebra, and their reduced flow against scipy's integration of every column."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.optimize import linprog
from scipy.sparse.linalg import aslinearoperator

from ntkcollapse import (
    BlockKernel,
    Classes,
    DenseKernel,
    Flow,
    GroupedKernel,
    KernelPath,
    KrylovKernel,
    LastLayer,
    Method,
    ReducedStart,
    Trajectory,
    observables,
    simulate,
)
from ntkcollapse.comparison import krylov_error
from ntkcollapse.ntk import NTKOperator
from ntkcollapse.theory import exact, extrapolation
from ntkcollapse.theory.rates import within_class_decay
from ntkcollapse.theory.reduced import ReducedFlow

BALANCED = Classes.balanced(num_classes=3, per_class=6)
UNEQUAL = Classes(sizes=(3, 7, 5))
n = 5
TIGHT = Method(rtol=1e-12)


def measured(classes: Classes, seed: int = 0) -> np.ndarray:
    """A full kernel of a decaying spectrum in which classes show, with cross terms of means and deviations."""
    rng = np.random.default_rng(seed)
    N, C = classes.num_samples, classes.num_classes
    A = rng.normal(size=(N, 2 * N)) * 0.8 ** np.arange(2 * N) + np.asarray(classes.Y).T @ rng.normal(size=(C, 2 * N))
    return A @ A.T / N + 0.05 * np.eye(N)


def a_start(classes: Classes, seed: int = 1) -> LastLayer:
    rng = np.random.default_rng(seed)
    N, C = classes.num_samples, classes.num_classes
    return LastLayer(H=0.5 * rng.normal(size=(n, N)), W=0.5 * rng.normal(size=(C, n)), b=0.1 * rng.normal(size=C))


def basis_by_hand(K, classes, blocks):
    """Orthonormal columns of [Z, K Z, ..., K^q Z], Z first, by QR of the powers: the definition."""
    Z = np.asarray(classes.Y).T
    powers = [Z]
    for _ in range(blocks):
        powers.append(K @ powers[-1])
        powers[-1] /= np.linalg.norm(powers[-1])
    return np.linalg.qr(np.concatenate(powers, axis=1))[0]


def dense_by_hand(K, classes, blocks):
    """U T Uᵀ + λ (1 − U Uᵀ) entry by entry."""
    U, N = basis_by_hand(K, classes, blocks), len(K)
    rest = np.eye(N) - U @ U.T
    rate = np.trace(rest @ K) / np.trace(rest) if U.shape[1] < N else 0.0
    return U @ U.T @ K @ U @ U.T + rate * rest


def by_scipy(start, K_at, classes, times, decay=(0.0, 0.0, 0.0), free=True):
    """H, W, b at the times, integrated in all columns."""
    shapes = [np.shape(x) for x in (start.H, start.W, start.b)]
    cuts = np.cumsum([np.prod(s) for s in shapes])[:-1].astype(int)
    Y = np.asarray(classes.Y)

    def speed(t, y):
        H, W, b = (x.reshape(s) for x, s in zip(np.split(y, cuts), shapes, strict=True))
        R = W @ H + b[:, None] - Y
        parts = (-W.T @ R @ K_at(t) - decay[0] * H, -R @ H.T - decay[1] * W, free * (-R.sum(1) - decay[2] * b))
        return np.concatenate([part.ravel() for part in parts])

    y = np.concatenate([np.ravel(x) for x in (start.H, start.W, start.b)])
    out = solve_ivp(speed, (times[0], times[-1]), y, method="DOP853", rtol=1e-12, atol=1e-14, t_eval=times).y.T
    return [[x.reshape(s) for x, s in zip(np.split(y, cuts), shapes, strict=True)] for y in out]


@pytest.mark.parametrize("classes", [BALANCED, UNEQUAL], ids=["balanced", "unequal"])
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_it_is_the_dense_kernel_of_the_family(classes, blocks):
    """Every verb against the matrix that the definition writes down."""
    K = measured(classes)
    kernel = KrylovKernel.of(K, classes, blocks=blocks)
    dense = dense_by_hand(K, classes, blocks)
    X = np.random.default_rng(2).normal(size=(2, 4, classes.num_samples))
    np.testing.assert_allclose(kernel.as_matrix(classes), dense, atol=1e-11)
    np.testing.assert_allclose(kernel.mv(X, classes), X @ dense, atol=1e-10)
    np.testing.assert_allclose(kernel.solve(X, classes), X @ np.linalg.inv(dense), rtol=1e-7, atol=1e-7)
    values, counts = kernel.eigenvalues(classes)
    np.testing.assert_allclose(np.repeat(values, counts.astype(int)), np.linalg.eigvalsh(dense), atol=1e-11)
    np.testing.assert_allclose(kernel.block_means(classes), DenseKernel(dense).block_means(classes), rtol=1e-10)
    U = basis_by_hand(K, classes, blocks)
    left_out = np.linalg.norm(K @ U - U @ (U.T @ K @ U), 2)
    np.testing.assert_allclose(kernel.residual, left_out, rtol=1e-9)
    kernel.check(classes)


def test_all_blocks_are_the_kernel_itself_and_none_the_class_pairs():
    K = measured(UNEQUAL)
    all_of_it = KrylovKernel.of(K, UNEQUAL, blocks=4)
    assert all_of_it.matrix.shape == (15, 15)
    np.testing.assert_allclose(all_of_it.as_matrix(UNEQUAL), K, atol=1e-12)
    assert float(all_of_it.residual) < 1e-12
    block = BlockKernel.from_class_pairs(
        np.array([3.0, 2.8, 2.9]), np.array([[2.0, 0.3, 0.1], [0.3, 1.8, 0.4], [0.1, 0.4, 1.9]])
    )
    none = KrylovKernel.of(block, UNEQUAL, blocks=0)
    np.testing.assert_allclose(none.as_matrix(UNEQUAL), block.as_matrix(UNEQUAL), atol=1e-13)
    # Indicators span what a block kernel does to class means: no block is left to make.
    np.testing.assert_allclose(KrylovKernel.of(block, UNEQUAL, blocks=3).basis.shape, (15, 0))


@pytest.mark.parametrize("classes", [BALANCED, UNEQUAL], ids=["balanced", "unequal"])
def test_a_direction_of_each_block_belongs_to_each_class(classes):
    """What couples a block to the one before it is symmetric and positive, and there is no other coupling."""
    kernel, C = KrylovKernel.of(measured(classes), classes, blocks=2), classes.num_classes
    for j in range(1, 3):
        B = np.asarray(kernel.matrix[C * j : C * (j + 1), C * (j - 1) : C * j])
        np.testing.assert_allclose(B, B.T, atol=1e-11)
        assert np.linalg.eigvalsh(B)[0] > 0
    np.testing.assert_allclose(kernel.matrix[2 * C :, :C], 0, atol=1e-11)


@pytest.mark.parametrize("classes", [BALANCED, UNEQUAL], ids=["balanced", "unequal"])
def test_two_ends_enclose_what_the_kernel_does_to_labels(classes):
    """Moments, the prescribed eigenvalue, and resolvents in the order of quadratic forms, from the same products."""
    K, Z, asked = measured(classes), np.asarray(classes.Y).T, []
    smallest = np.linalg.eigvalsh(K)[0]

    def product(X):
        asked.append(X.shape)
        return K @ X

    ends = KrylovKernel.ends_of(product, classes, blocks=1, node=smallest, trace=np.trace(K))
    assert len(asked) == 2
    lower, upper = (np.asarray(end.as_matrix(classes)) for end in ends)
    np.testing.assert_allclose(lower, KrylovKernel.of(K, classes, blocks=1).as_matrix(classes), atol=1e-12)
    np.testing.assert_allclose(np.trace(upper), np.trace(K), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.eigvalsh(ends[1].matrix)[:3], smallest, rtol=1e-8)
    for j in range(1, 6):
        expected = Z.T @ np.linalg.matrix_power(K, j) @ Z
        apart = np.linalg.norm(Z.T @ np.linalg.matrix_power(upper, j) @ Z - expected) / np.linalg.norm(expected)
        assert (apart < 1e-11) == (j <= 4), (j, apart)
    for s in (0.0, 0.1, 1.0):
        least, exact, most = (Z.T @ np.linalg.solve(A + s * np.eye(len(K)), Z) for A in (lower, K, upper))
        for larger, smaller in ((exact, least), (most, exact)):
            assert np.linalg.eigvalsh(larger - smaller)[0] > 1e-11 * np.linalg.norm(exact)
    for node in (0.0, -1.0, 1.01 * float(np.linalg.eigvalsh(ends[0].matrix)[0])):
        with pytest.raises(ValueError, match="node: expected one between 0 and the smallest eigenvalue"):
            KrylovKernel.ends_of(K, classes, blocks=1, node=node)
    whole = KrylovKernel.ends_of(K, classes, blocks=5 if classes == BALANCED else 4)
    assert whole[0] is whole[1]


def test_descent_in_the_metric_of_the_kernel_hardly_repels():
    """⟨∇L(y + e) − ∇L(y), e⟩ ≥ −(λ_max/16) ‖e‖⁴ − ‖R K^½‖₂ ‖e‖²: what the bound of the error rests on."""
    K, rng, Y = measured(UNEQUAL), np.random.default_rng(3), np.asarray(UNEQUAL.Y)
    values, vectors = np.linalg.eigh(K)

    def gradient(H, W, b):
        R = W @ H + b[:, None] - Y
        return R, (W.T @ R, R @ H.T, R.sum(1))

    root, tightest = (vectors * np.sqrt(values)) @ vectors.T, np.inf
    for size in np.geomspace(1e-3, 1e3, 200):
        y = [rng.uniform(0, 0.2) * rng.normal(size=shape) for shape in ((n, 15), (3, n), (3,))]
        R, at = gradient(*y)
        # Where repulsion is largest, and some noise.
        u, _, v = np.linalg.svd(R @ root)
        a = rng.normal(size=n)
        e = [np.outer(a, root @ v[0]), -np.outer(u[:, 0], a), np.zeros(3)]
        e = [size * (x + rng.uniform(0, 0.1) * rng.normal(size=x.shape)) for x in e]
        there = gradient(*(x + d for x, d in zip(y, e, strict=True)))[1]
        product = sum(np.sum((g - f) * d) for g, f, d in zip(there, at, e, strict=True))
        square = np.sum(e[0] @ np.linalg.inv(K) * e[0]) + np.sum(e[1] ** 2) + np.sum(e[2] ** 2)
        bound = values[-1] / 16 * square**2 + np.linalg.norm(R @ root, 2) * square
        assert product >= -bound * (1 + 1e-9)
        tightest = min(tightest, product / bound)
    # It is nearly attained.
    assert tightest < -0.5


@pytest.mark.parametrize("classes", [BALANCED, UNEQUAL], ids=["balanced", "unequal"])
def test_groups_of_rates_are_their_dense_kernel(classes, tmp_path):
    """Verbs, flow and file, against Ritz vectors of the features on the rest, by QR of the powers."""
    K, start = measured(classes), a_start(classes)
    kernel = KrylovKernel.of(K, classes, blocks=1).with_groups(K, start, classes, groups=2, products=1)
    N, U, H, W = len(K), basis_by_hand(K, classes, 1), np.asarray(start.H), np.asarray(start.W)
    rest = np.eye(N) - U @ U.T
    Q = np.linalg.qr(rest @ H.T)[0]
    values, vectors = np.linalg.eigh(Q.T @ K @ Q)
    energy = np.sum((W @ H @ Q @ vectors) ** 2, axis=0)
    # Half of the energy in each of two groups, what lies across by its middle.
    low = (np.cumsum(energy) - energy / 2) / energy.sum() <= 0.5
    dense = U @ U.T @ K @ U @ U.T
    rate = (np.trace(rest @ K) - values.sum()) / (N - U.shape[1] - n)
    dense += rate * (rest - Q @ Q.T)
    for group in (low, ~low):
        G = Q @ vectors[:, group]
        dense += np.average(values[group], weights=energy[group]) * G @ G.T
    np.testing.assert_allclose(kernel.as_matrix(classes), dense, atol=1e-10)
    assert len(kernel.rates) == 3
    X = np.random.default_rng(2).normal(size=(2, 4, N))
    np.testing.assert_allclose(kernel.solve(X, classes), X @ np.linalg.inv(dense), rtol=1e-7, atol=1e-7)
    eigenvalues, counts = kernel.eigenvalues(classes)
    np.testing.assert_allclose(np.repeat(eigenvalues, counts.astype(int)), np.linalg.eigvalsh(dense), atol=1e-10)
    np.testing.assert_allclose(kernel.block_means(classes), DenseKernel(dense).block_means(classes), rtol=1e-9)
    times = [0.0, 0.3, 1.5]
    run = simulate(start, kernel, classes, times, method=TIGHT, observed=False)
    assert run.settings["flow"] == "reduced"
    for name, part in zip("HWb", by_scipy(start, lambda t: dense, classes, times)[-1], strict=True):
        np.testing.assert_allclose(getattr(run.last_layer(-1), name), part, atol=1e-8 * np.abs(part).max())
    run.save(tmp_path)
    np.testing.assert_array_equal(Trajectory.load(tmp_path).last_layer(1).H, run.last_layer(1).H)


def resolvents_by_hand(K, start, classes, time, m):
    """Orthonormal columns of [Z, R_0ᵀ] and of what (K + s_k)⁻¹ makes of them, s_k = 4^k/(‖W‖² t), Z first."""
    H, W, b = (np.asarray(x) for x in (start.H, start.W, start.b))
    S = np.concatenate([np.asarray(classes.Y).T, (W @ H + b[:, None] - np.asarray(classes.Y)).T], axis=1)
    w = np.linalg.eigvalsh(W @ W.T)[-1]
    more = [np.linalg.inv(K + 4.0**k / (w * time) * np.eye(len(K))) @ S for k in range(m)]
    return np.linalg.qr(np.concatenate([S, *(X / np.linalg.norm(X, axis=0) for X in more)], axis=1))[0]


@pytest.mark.parametrize(
    ("classes", "resolvents"),
    [(BALANCED, 1), (UNEQUAL, 1), (Classes(sizes=(9, 8, 10)), 2)],
    ids=["balanced", "unequal", "two resolvents"],
)
def test_directions_for_a_flow_are_resolvents_of_indicators_and_residual(classes, resolvents):
    """T and the rate of the rest between the directions of the definition, with the trace known or not."""
    K, start = measured(classes), a_start(classes)
    U, N = resolvents_by_hand(K, start, classes, 40.0, resolvents), len(K)
    rest = np.eye(N) - U @ U.T
    dense = U @ U.T @ K @ U @ U.T + np.trace(rest @ K) / np.trace(rest) * rest
    # Block Lanczos from six columns fills the space, where resolvents are exact.
    for operator in (K, lambda X: K @ X):
        kernel = KrylovKernel.for_flow(operator, start, classes, 40.0, resolvents=resolvents, tolerance=1e-13)
        assert kernel.matrix.shape == (6 + 6 * resolvents,) * 2
        np.testing.assert_allclose(kernel.as_matrix(classes), dense, atol=1e-9)
        np.testing.assert_allclose(kernel.residual, np.linalg.norm(rest @ K @ U, 2), rtol=1e-7)


def test_directions_for_a_flow_at_their_most_and_least():
    """As many as there are samples are the kernel itself; of features that are their means indicators have all."""
    K, start = measured(UNEQUAL), a_start(UNEQUAL)
    whole = KrylovKernel.for_flow(K, start, UNEQUAL, 40.0, resolvents=4, tolerance=1e-13)
    np.testing.assert_allclose(whole.as_matrix(UNEQUAL), K, atol=1e-9)
    collapsed = LastLayer(H=UNEQUAL.expand(UNEQUAL.means(start.H)), W=start.W, b=start.b)
    assert KrylovKernel.for_flow(K, collapsed, UNEQUAL, 40.0, resolvents=1).matrix.shape == (6, 6)


def test_directions_for_a_flow_take_as_many_products_as_their_tolerance_asks_for():
    """The slowest resolvent is in the span up to the tolerance, and a looser one costs less."""
    classes, asked = Classes(sizes=(20, 35, 25)), []
    K, start = measured(classes), a_start(classes)
    w = np.linalg.norm(start.W, 2) ** 2

    def product(X):
        asked.append(X.shape[1])
        return K @ X

    counts = []
    for tolerance in (0.3, 1e-3):
        asked.clear()
        kernel = KrylovKernel.for_flow(product, start, classes, 3.0, tolerance=tolerance, trace=np.trace(K))
        counts.append(sum(asked))
        assert set(asked) == {6}
        U = np.concatenate([np.asarray(classes.Y).T / np.sqrt(classes.sizes), kernel.basis], axis=1)
        np.testing.assert_allclose(U.T @ U, np.eye(U.shape[1]), atol=1e-12)
        shifted = K + np.eye(80) / (w * 3.0)
        left = shifted @ U @ np.linalg.lstsq(shifted @ U, U[:, :6])[0] - U[:, :6]
        assert np.linalg.norm(left, axis=0).max() < tolerance
    assert counts[0] < counts[1] < 80
    # Without a trace: random vectors fill the three dimensions that two blocks leave, and the mean is exact.
    asked.clear()
    K, classes = measured(UNEQUAL), UNEQUAL
    kernel = KrylovKernel.for_flow(product, a_start(classes), classes, 1.0, resolvents=1, tolerance=0.1)
    assert asked == [6, 6, 3]
    np.testing.assert_allclose(np.trace(kernel.as_matrix(classes)), np.trace(K), rtol=1e-10)


def test_few_resolvents_hold_exponentials_of_any_spectrum():
    """Within twice the best sum of a constant and 1/(x + 4^k) for e^(−xτ/t), x ≥ 0, by linear programming."""
    classes, time, m = Classes(sizes=(24, 28, 28)), 40.0, 3
    rng = np.random.default_rng(5)
    Q = np.linalg.qr(rng.normal(size=(80, 80)))[0]
    start, rates = a_start(classes), np.geomspace(1e-3, 1e3, 80)
    w = np.linalg.norm(start.W, 2) ** 2
    K = (Q * rates / (w * time)) @ Q.T
    kernels = (
        KrylovKernel.for_flow(K, start, classes, time, resolvents=m, tolerance=1e-9),
        KrylovKernel.of(K, classes, blocks=7),
    )
    bases = [np.concatenate([np.asarray(classes.Y).T / np.sqrt(classes.sizes), k.basis], axis=1) for k in kernels]
    assert [U.shape for U in bases] == [(80, 24)] * 2
    x = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 200)])
    shapes = np.concatenate([np.ones((201, 1)), 4.0 ** np.arange(m) / (x[:, None] + 4.0 ** np.arange(m))], axis=1)
    for part in (1.0, 0.25, 1 / 16):
        above = np.concatenate([np.r_[shapes, -shapes], -np.ones((402, 1))], axis=1)
        limits, free = np.r_[np.exp(-part * x), -np.exp(-part * x)], [(None, None)] * (m + 2)
        best = linprog(np.eye(m + 2)[-1], A_ub=above, b_ub=limits, bounds=free).fun
        assert 0 < best < 0.07
        apart = []
        for U, kernel in zip(bases, kernels, strict=True):
            S = bases[0][:, :6]
            left = expm(-w * time * part * K) @ S - U @ expm(-w * time * part * np.asarray(kernel.matrix)) @ U.T @ S
            apart.append(np.linalg.norm(left, 2))
        # As many powers of the kernel from indicators alone do not.
        assert apart[0] < 2 * best < 0.2 < apart[1], (apart, best)


def test_directions_as_functions_of_a_sample():
    """With all blocks they are known on every sample; with fewer, up to what the last one leaves out."""
    K, Z = measured(UNEQUAL), np.asarray(UNEQUAL.Y).T / np.sqrt(UNEQUAL.sizes)
    whole, one = (KrylovKernel.of(K, UNEQUAL, blocks=q) for q in (4, 1))
    np.testing.assert_allclose(whole.extended(K[:7], UNEQUAL), np.hstack([Z, whole.basis])[:7], atol=1e-9)
    U = np.hstack([Z, one.basis])
    left_out = (K @ U - U @ (U.T @ K @ U)) @ np.linalg.inv(U.T @ K @ U)
    np.testing.assert_allclose(one.extended(K, UNEQUAL), U + left_out, atol=1e-9)
    np.testing.assert_allclose(one.extended(aslinearoperator(K[:4]), UNEQUAL), (U + left_out)[:4], atol=1e-9)
    W = np.random.default_rng(8).normal(size=(4, 15))
    operator = NTKOperator(lambda W, x: x @ W.T, W, np.eye(15)[:6], K, outputs="mean")
    np.testing.assert_allclose(one.extended(operator, UNEQUAL), one.extended(K[:6], UNEQUAL), atol=1e-9)
    with pytest.raises(ValueError, match="rows: expected shape"):
        one.extended(K[:, :4], UNEQUAL)


def test_estimated_error_is_of_the_size_of_the_true_one():
    """Within a factor of three of scipy's under the kernel itself, where features leave class means by it alone."""
    classes, decay = Classes(sizes=(6, 8, 7)), {"H": 0.01, "W": 0.02, "b": 0.0}
    K, start, times = measured(classes), a_start(classes), np.array([0.0, 3.0, 8.0])
    start = LastLayer(H=classes.expand(classes.means(start.H)), W=start.W, b=0 * start.b)
    names = ("residual_single", "residual_class", "residual_global")
    norms = {}
    kernels = {q: dense_by_hand(K, classes, q) for q in (1, 2)} | {"all": K}
    for q, dense in kernels.items():
        H, W, b = by_scipy(start, lambda t, dense=dense: dense, classes, times, tuple(decay.values()))[-1]
        parts = classes.parts(W @ H + b[:, None] - np.asarray(classes.Y))
        norms[q] = dict(zip(names, (float(np.linalg.norm(part)) for part in parts), strict=True))
    estimates = {}
    for q in (1, 2):
        ends = KrylovKernel.ends_of(K, classes, blocks=q)
        estimates[q] = krylov_error(start, ends, classes, times, weight_decay=decay)
        assert estimates[q].keys() == set(names)
        for name in names[:2]:
            true = abs(norms[q][name] / norms["all"][name] - 1)
            assert true / 3 < estimates[q][name][-1] < 3 * true, (q, name, true, estimates[q][name])
            assert estimates[q][name][0] < 1e-12
    for name in names[:2]:
        assert 0 < estimates[2][name][-1] < estimates[1][name][-1] / 2


def test_products_alone_are_asked_for():
    """A function that knows products with C vectors and nothing else; every kind of operator gives the same kernel."""
    K, asked = measured(BALANCED), []

    def product(X):
        asked.append(X.shape)
        return K @ X

    trace = float(np.trace(K))
    kernel = KrylovKernel.of(product, BALANCED, blocks=3, trace=trace)
    assert asked == [(18, 3)] * 4
    for operator in (K, DenseKernel(K), aslinearoperator(K), OneVector(K)):
        other = KrylovKernel.of(operator, BALANCED, blocks=3, trace=trace)
        np.testing.assert_allclose(other.as_matrix(BALANCED), kernel.as_matrix(BALANCED), atol=1e-12)
    known = KrylovKernel.of(K, BALANCED, blocks=4)
    # Without a trace, one block of random vectors more: they fill the three dimensions that are left.
    asked.clear()
    guessed = KrylovKernel.of(product, BALANCED, blocks=4)
    assert asked == [(18, 3)] * 6
    np.testing.assert_allclose(guessed.rates, known.rates, rtol=1e-9)


class OneVector:
    """As an `NTKOperator` of the mean over outputs: products with one vector."""

    def __init__(self, K):
        self.K, self.shape, self.dtype = K, (len(K),), np.dtype(float)

    def __call__(self, v):
        return self.K @ v


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        (BALANCED, {}),
        (UNEQUAL, {"weight_decay": {"H": 0.1, "W": 0.2, "b": 0.05}}),
        (UNEQUAL, {"bias": "frozen"}),
    ],
    ids=["balanced", "unequal with three decays", "bias at rest"],
)
def test_reduced_flow_is_the_full_flow(classes, options):
    """Every column and every observable, against scipy under the dense kernel."""
    K = measured(classes)
    kernel, dense = KrylovKernel.of(K, classes, blocks=2), dense_by_hand(K, classes, 2)
    start, times = a_start(classes), [0.0, 0.3, 1.5]
    decay = tuple(options.get("weight_decay", {"H": 0.0, "W": 0.0, "b": 0.0}).values())
    solved = by_scipy(start, lambda t: dense, classes, times, decay, options.get("bias", "free") == "free")
    run = simulate(
        start, Flow(kernel, classes, **options), times=times, method=TIGHT, observed="weight_decay" in options
    )
    assert run.settings["flow"] == "reduced"
    inverse = np.linalg.inv(dense)
    for i, (H, W, b) in enumerate(solved):
        layer = run.last_layer(i)
        for got, expected in ((layer.H, H), (layer.W, W), (layer.b, b)):
            np.testing.assert_allclose(got, expected, atol=1e-8 * np.abs(expected).max())
        if "weight_decay" not in options:
            E = np.asarray(layer.W.T @ layer.W - layer.H @ inverse @ layer.H.T)
            first = np.asarray(start.W.T @ start.W - start.H @ inverse @ start.H.T)
            np.testing.assert_allclose(E, first, atol=1e-10 * np.abs(first).max())
    if run.observables:
        H, W, b = solved[-1]
        expected = observables.observe(LastLayer(H=H, W=W, b=b), classes, DenseKernel(dense))
        for name, value in expected.items():
            np.testing.assert_allclose(run[name][-1], value, rtol=2e-7, atol=2e-8, err_msg=name)


@pytest.mark.parametrize(
    ("sizes", "features", "blocks", "size", "options"),
    [
        ((3, 7, 5), 1, 2, 1.0, {}),
        ((3, 7, 5), 2, 1, 1.0, {"weight_decay": {"H": 0.4, "W": 0.0, "b": 0.0}}),
        ((5, 4), 5, 2, 1.0, {}),
        ((1, 6, 4), 4, 2, 1.0, {}),
        ((1, 1, 1), 4, 0, 1.0, {}),
        ((3, 7, 5), 5, 2, 1e8, {}),
        ((3, 7, 5), 5, 2, 1e-8, {}),
    ],
    ids=["one feature", "n below C, decay of H alone", "two classes", "a class of one sample", "one sample a class",
         "kernel of 1e8", "kernel of 1e-8"],
)  # fmt: skip
def test_reduced_flow_of_unusual_shapes_and_sizes(sizes, features, blocks, size, options):
    """Against scipy in all columns; the start has features of rank one beside the class means."""
    classes, rng = Classes(sizes=sizes), np.random.default_rng(6)
    N, C = classes.num_samples, classes.num_classes
    K = size * measured(classes)
    kernel, dense = KrylovKernel.of(K, classes, blocks=blocks), size * dense_by_hand(K / size, classes, blocks)
    H = rng.normal(size=(features, C)) @ np.asarray(classes.Y) + np.outer(rng.normal(size=features), rng.normal(size=N))
    start = LastLayer(H=0.3 * H, W=0.5 * rng.normal(size=(C, features)), b=np.zeros(C))
    times = np.array([0.0, 0.1, 0.6]) / max(size, 1.0)
    decay = tuple(options.get("weight_decay", {"H": 0.0, "W": 0.0, "b": 0.0}).values())
    solved = by_scipy(start, lambda t: dense, classes, times, decay)
    run = simulate(start, Flow(kernel, classes, **options), times=times, method=TIGHT, observed=False)
    assert run.settings["flow"] == "reduced"
    for i, expected in enumerate(solved):
        for name, part in zip("HWb", expected, strict=True):
            size_of_part = np.abs(part).max() + np.abs(getattr(start, name)).max()
            np.testing.assert_allclose(getattr(run.last_layer(i), name), part, atol=1e-8 * size_of_part)


@pytest.mark.filterwarnings("ignore:simulate. the start is float32")
def test_reduced_flow_in_single_precision():
    start, times, K = a_start(UNEQUAL), np.array([0.0, 0.3, 1.5]), measured(UNEQUAL)
    solved = by_scipy(start, lambda t: dense_by_hand(K, UNEQUAL, 1), UNEQUAL, times)
    single = jax.tree.map(lambda x: x.astype(np.float32), start)
    kernel = KrylovKernel.of(K.astype(np.float32), UNEQUAL, blocks=1)
    run = simulate(single, kernel, UNEQUAL, times.astype(np.float32), method=Method(rtol=1e-5), observed=False)
    assert run.states.W.dtype == np.float32
    for name, part in zip("HWb", solved[-1], strict=True):
        np.testing.assert_allclose(getattr(run.last_layer(-1), name), part, atol=1e-4 * np.abs(part).max())


def test_reduced_flow_of_no_blocks_is_that_of_the_block_kernel():
    """To rounding: both integrate the same equation in the same coordinates."""
    start, times = a_start(UNEQUAL), [0.0, 0.5, 2.0]
    block = BlockKernel(3.0, 2.0, 0.6)
    expected = simulate(start, block, UNEQUAL, times, observed=False)
    run = simulate(start, KrylovKernel.of(block, UNEQUAL, blocks=0), UNEQUAL, times, observed=False)
    for name in ("M", "P", "W", "b"):
        np.testing.assert_allclose(getattr(run.states, name), getattr(expected.states, name), rtol=1e-9, atol=1e-11)
    assert run.states.X is None


def test_path_of_kernels_on_the_same_directions():
    """T and the rate of the rest are measured anew, and interpolated in time; saved and loaded with the run."""
    K, L, times = measured(UNEQUAL), measured(UNEQUAL, seed=3) + 0.2 * np.eye(15), [0.0, 0.5, 1.0]
    first = KrylovKernel.of(K, UNEQUAL, blocks=1)
    second = first.of_same_directions(L, UNEQUAL)
    U = basis_by_hand(K, UNEQUAL, 1)
    rest = np.eye(15) - U @ U.T
    dense = [U @ U.T @ A @ U @ U.T + np.trace(rest @ A) / np.trace(rest) * rest for A in (K, L)]
    np.testing.assert_allclose(second.as_matrix(UNEQUAL), dense[1], atol=1e-11)
    start = a_start(UNEQUAL)
    solved = by_scipy(start, lambda t: (1 - t) * dense[0] + t * dense[1], UNEQUAL, times)
    path = KernelPath.of([0.0, 1.0], [first, second])
    run = simulate(start, path, UNEQUAL, times, method=TIGHT, observed=False)
    assert run.settings["flow"] == "reduced"
    for name, expected in zip("HWb", solved[-1], strict=True):
        np.testing.assert_allclose(getattr(run.last_layer(-1), name), expected, atol=1e-8 * np.abs(expected).max())
    with pytest.raises(ValueError, match="kernels in one common basis"):
        KernelPath.of([0.0, 1.0], [first, KrylovKernel.of(L, UNEQUAL, blocks=1)])


@pytest.mark.parametrize("blocks", [0, 2])
def test_saved_and_loaded_with_its_trajectory(tmp_path, blocks):
    kernel = KrylovKernel.of(measured(UNEQUAL) if blocks else BlockKernel(3.0, 2.0, 0.6), UNEQUAL, blocks=blocks)
    run = simulate(a_start(UNEQUAL), kernel, UNEQUAL, [0.0, 0.1], observed=False)
    run.save(tmp_path)
    again = Trajectory.load(tmp_path)
    assert jax.tree.structure(run) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(run), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(again.last_layer(1).H, run.last_layer(1).H)


def test_derivatives_through_the_reduced_flow():
    """Reverse mode against differences, in T, the rate of the rest and the start; and vmap over kernels."""
    kernel, start = KrylovKernel.of(measured(UNEQUAL), UNEQUAL, blocks=1), a_start(UNEQUAL)
    times = np.array([0.0, 0.4])

    def final(p, method=TIGHT):
        moved = KrylovKernel(kernel.basis, kernel.matrix * (1 + 0.2 * p[0]), kernel.rates * (1 + p[1]))
        first = LastLayer(H=start.H * (1 + p[2]), W=start.W, b=start.b)
        run = simulate(first, moved, UNEQUAL, times, method=method, observed=False)
        # A part of the state alone.
        return jnp.sum(jnp.square(run.states.X[-1])) + jnp.sum(jnp.square(run.states.P[-1] @ run.states.W[-1].T))

    p, e, h = jnp.array([0.1, 0.2, -0.1]), jnp.array([0.5, -0.3, 0.8]), 1e-4
    slope = (final(p + h * e) - final(p - h * e)) / (2 * h)
    gradient = jax.jit(jax.grad(lambda p: final(p, Method(rtol=1e-6))))(p)
    np.testing.assert_allclose(gradient @ e, slope, rtol=1e-3)
    together = jax.jit(jax.vmap(final))(jnp.stack([p, 0 * p]))
    np.testing.assert_allclose(together, [final(p), final(0 * p)], rtol=1e-9)


def test_a_start_without_columns():
    """Class means, features along directions and scatter are enough; one for other directions is refused."""
    kernel, start, times = KrylovKernel.of(measured(UNEQUAL), UNEQUAL, blocks=1), a_start(UNEQUAL), [0.0, 0.5]
    reduced = ReducedStart.of(start, kernel, UNEQUAL)
    run = simulate(reduced, kernel, UNEQUAL, times, observed=False)
    expected = simulate(start, kernel, UNEQUAL, times, observed=False)
    np.testing.assert_array_equal(run.states.X, expected.states.X)
    # √w X are H V, and what is orthogonal to class means and directions has the scatter.
    np.testing.assert_allclose(reduced.X * np.sqrt(5.0), start.H @ kernel.basis, atol=1e-12)
    without = ReducedStart(reduced.M, reduced.scatter, reduced.W, reduced.b)
    with pytest.raises(ValueError, match=r"X: expected features along the 3 further directions .* got 0"):
        simulate(without, kernel, UNEQUAL, times)


def test_bad_input_says_what_is_wrong():
    K = measured(UNEQUAL)
    with pytest.raises(ValueError, match=r"blocks: expected at most 4, which fill the N - C = 12 .* got 5"):
        KrylovKernel.of(K, UNEQUAL, blocks=5)
    for blocks in (-1, False, True):
        with pytest.raises(ValueError, match="blocks: expected"):
            KrylovKernel.of(K, UNEQUAL, blocks=blocks)
    for trace in (np.nan, np.inf):
        with pytest.raises(ValueError, match="trace: expected"):
            KrylovKernel.of(K, UNEQUAL, blocks=1, trace=trace)
    with pytest.raises(ValueError, match="sizes: expected"):
        KrylovKernel.of(K, Classes(sizes=(3, 0, 12)), blocks=1)
    with pytest.raises(ValueError, match="got an operator on"):
        KrylovKernel.of(OneVector(K[:9, :9]), UNEQUAL, blocks=1)
    with pytest.raises(ValueError, match=r"operator: expected shape \(15, 15\)"):
        KrylovKernel.of(K[:4, :4], UNEQUAL, blocks=1)
    with pytest.raises(ValueError, match="operator: expected a symmetric kernel, got a relative asymmetry"):
        KrylovKernel.of(lambda X: np.triu(K) @ X, UNEQUAL, blocks=1)
    indefinite = K - 2 * np.outer(np.ones(15), np.ones(15))
    with pytest.raises(ValueError, match=r"positive-definite kernel, got the eigenvalue -.* on the directions"):
        KrylovKernel.of(indefinite, UNEQUAL, blocks=1)
    with pytest.raises(ValueError, match=r"got the eigenvalue -.* on what is orthogonal"):
        KrylovKernel.of(K - 0.2 * np.eye(15), UNEQUAL, blocks=0, trace=-1.0)
    with pytest.raises(ValueError, match="operator: expected finite numbers"):
        KrylovKernel.of(lambda X: X * np.nan, UNEQUAL, blocks=1)
    with pytest.raises(ValueError, match=r"operator: expected shape \(15, 3\), K X"):
        KrylovKernel.of(lambda X: X[:2], UNEQUAL, blocks=1)
    with pytest.raises(TypeError, match="operator: expected a matrix, a kernel, an NTKOperator or a function"):
        KrylovKernel.of("K", UNEQUAL, blocks=1)
    start = a_start(UNEQUAL)
    for time in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="time: expected"):
            KrylovKernel.for_flow(K, start, UNEQUAL, time)
    with pytest.raises(ValueError, match="resolvents: expected"):
        KrylovKernel.for_flow(K, start, UNEQUAL, 1.0, resolvents=0)
    with pytest.raises(ValueError, match="tolerance: expected"):
        KrylovKernel.for_flow(K, start, UNEQUAL, 1.0, tolerance=0.0)
    with pytest.raises(ValueError, match="start: expected a classifier W that is not zero"):
        KrylovKernel.for_flow(K, LastLayer(H=start.H, W=0 * start.W, b=start.b), UNEQUAL, 1.0)
    with pytest.raises(ValueError, match="H: expected"):
        KrylovKernel.for_flow(K, a_start(BALANCED), UNEQUAL, 1.0)
    kernel = KrylovKernel.of(K, UNEQUAL, blocks=1)
    with pytest.raises(ValueError, match="expected directions that sum to zero over each of these classes"):
        simulate(a_start(Classes(sizes=(5, 5, 5))), kernel, Classes(sizes=(5, 5, 5)), [0.0, 1.0])
    with pytest.raises(ValueError, match="basis: expected shape"):
        simulate(a_start(BALANCED), kernel, BALANCED, [0.0, 1.0])
    with pytest.raises(ValueError, match="H: expected"):
        simulate(a_start(BALANCED), kernel, UNEQUAL, [0.0, 1.0])


def test_a_kernel_of_low_rank_serves_as_far_as_it_is_positive():
    """Rank 8 of 15: positive on six directions and not on nine, whichever sign rounding gives the last eigenvalue."""
    for seed in range(6):
        A = np.random.default_rng(seed).normal(size=(15, 8))
        kernel = KrylovKernel.of(A @ A.T, UNEQUAL, blocks=1)
        np.testing.assert_allclose(kernel.as_matrix(UNEQUAL), dense_by_hand(A @ A.T, UNEQUAL, 1), atol=1e-11)
        for blocks in (2, 3, 4):
            with pytest.raises(ValueError, match=r"positive-definite kernel, got the eigenvalue .*e-1[0-9] on the dir"):
                KrylovKernel.of(A @ A.T, UNEQUAL, blocks=blocks)


def test_blocks_that_lose_rank_are_made_smaller():
    """Indicators that are nearly invariant: what is kept is orthonormal, and what rounding made is said or left out."""
    K = np.asarray(BlockKernel(3.0, 2.0, 0.6).as_matrix(UNEQUAL))
    rng = np.random.default_rng(4)
    v, w = (np.asarray(UNEQUAL.deviations(rng.normal(size=15))) for _ in range(2))
    # One cross term: each block can hold one direction, and the second finds nothing.
    a, b = (np.asarray(UNEQUAL.expand(np.array(x))) for x in ([1.0, 0.8, -0.7], [0.4, -0.9, 1.0]))
    one = K + 0.1 * (np.outer(a, v) + np.outer(v, a))
    kernel = KrylovKernel.of(one, UNEQUAL, blocks=2)
    assert kernel.basis.shape == (15, 1)
    np.testing.assert_allclose(np.abs(kernel.basis[:, 0]), np.abs(v) / np.linalg.norm(v), atol=1e-10)
    np.testing.assert_allclose(kernel.as_matrix(UNEQUAL), one, atol=1e-11)
    faint = one + 1e-12 * (np.outer(b, w) + np.outer(w, b))
    with pytest.warns(UserWarning, match="directions of block 1 lost orthogonality"):
        kernel = KrylovKernel.of(faint, UNEQUAL, blocks=1)
    U = np.concatenate([np.asarray(UNEQUAL.Y).T / np.sqrt(UNEQUAL.sizes), kernel.basis], axis=1)
    np.testing.assert_allclose(U.T @ U, np.eye(U.shape[1]), atol=1e-13)


def test_the_solved_jacobian_is_the_dense_one_without_what_the_classifier_does_to_propagators():
    """(1 − τ J)⁻¹ of the default integrator, against J by differences of the speed, which is of third degree."""
    kernel, start = KrylovKernel.of(measured(UNEQUAL), UNEQUAL, blocks=1), a_start(UNEQUAL)
    reduced = ReducedStart.of(start, kernel, UNEQUAL)
    decay = {"H": 0.3, "W": 0.2, "b": 0.1}
    flow = ReducedFlow(kernel, UNEQUAL.weights, reduced.scatter, scale=0.7, weight_decay=decay)
    problem = extrapolation._problem(flow, extrapolation._ON_HOST, np.dtype(float))
    rng = np.random.default_rng(0)
    y = problem.join(*(np.asarray(x) for x in (reduced.state.means, reduced.state.P, start.W, start.b)))
    y = y + 0.3 * rng.normal(size=y.shape)
    h = 1e-3
    # A central difference is off by h² times the third derivative, and that of half the step cancels it.
    columns = []
    for e in np.eye(len(y)):
        wide, narrow = ((problem.speed(0.0, y + k * e) - problem.speed(0.0, y - k * e)) / (2 * k) for k in (h, h / 2))
        columns.append((4 * narrow - wide) / 3)
    J = np.stack(columns, axis=1)
    places = [place for place, _ in problem.places]
    assert [shape for _, shape in problem.places] == [(5, 3), (5, 3), (1, 5, 5), (3, 5), (3,)]
    J[places[2], places[3]] = 0.0
    δ = rng.normal(size=y.shape)
    solver = extrapolation._Jacobian.at(problem, 0.0, y).solver
    errors = [np.abs(solver(τ)(δ) - np.linalg.solve(np.eye(len(y)) - τ * J, δ)).max() for τ in (1e-3, 1e-4)]
    # Two corrections leave the third power of τ times the residual's part of J; all else is exact.
    assert errors[0] < 1e-4
    assert errors[1] < 2e-3 * errors[0]


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_moments_from_the_labels_agree(blocks):
    """Zᵀ K̂^j Z = Zᵀ K^j Z for j ≤ 2q + 1, and not beyond: what block Lanczos is for."""
    K, Z = measured(UNEQUAL), np.asarray(UNEQUAL.Y).T
    ours = np.asarray(KrylovKernel.of(K, UNEQUAL, blocks=blocks).as_matrix(UNEQUAL))
    for j in range(1, 2 * blocks + 3):
        expected = Z.T @ np.linalg.matrix_power(K, j) @ Z
        apart = np.linalg.norm(Z.T @ np.linalg.matrix_power(ours, j) @ Z - expected) / np.linalg.norm(expected)
        assert (apart < 1e-11) == (j <= 2 * blocks + 1), (j, apart)


def test_frozen_residual_is_the_exponential_of_the_dense_kernel():
    """R e^(−Kt): its rates are the eigenvalues of T and that of the rest; nothing simpler is offered."""
    K = measured(UNEQUAL)
    kernel, dense, times = (
        KrylovKernel.of(K, UNEQUAL, blocks=1),
        dense_by_hand(K, UNEQUAL, 1),
        np.array([0.0, 0.2, 1.5]),
    )
    R = np.random.default_rng(5).normal(size=(3, 15))
    expected = [R @ expm(-t * dense) for t in times]
    np.testing.assert_allclose(exact.frozen_residual(times, R, kernel, UNEQUAL), expected, atol=1e-11)
    grouped = GroupedKernel.from_matrix(K, UNEQUAL, groups=3)
    expected = [R @ expm(-t * np.asarray(grouped.as_matrix(UNEQUAL))) for t in times]
    np.testing.assert_allclose(exact.frozen_residual(times, R, grouped, UNEQUAL), expected, atol=1e-11)
    with pytest.raises(NotImplementedError, match="class means drive deviations"):
        within_class_decay(times, R, kernel, UNEQUAL)
