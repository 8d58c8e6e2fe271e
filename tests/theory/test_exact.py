"""Closed forms against stored arrays, against integration by scipy, and against their own limits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm, sqrtm
from scipy.optimize import minimize

from ntkcollapse import BlockKernel, Classes, LastLayer
from ntkcollapse.theory import exact
from tests.references import load

KAPPA = BlockKernel(3.0, 2.0, 0.6)
CLASSES = Classes.balanced(4, 5)


def derivative(t, y, n, classes: Classes, K, decay=(0.0, 0.0, 0.0), bias=True):
    """The flow as it is defined, in numpy."""
    C, N = classes.num_classes, classes.num_samples
    H, W, b = np.split(y, [n * N, n * N + C * n])
    H, W = H.reshape(n, N), W.reshape(C, n)
    R = W @ H + b[:, None] - np.asarray(classes.Y)
    lam_H, lam_W, lam_b = decay
    db = -R.sum(1) - lam_b * b if bias else 0 * b
    return np.concatenate([(-W.T @ R @ K - lam_H * H).ravel(), (-R @ H.T - lam_W * W).ravel(), db])


def integrate(H, W, b, classes, K, times, *, rtol=1e-12, atol=1e-14, method="DOP853", **options):
    n, N, C = len(H), classes.num_samples, classes.num_classes
    y0 = np.concatenate([np.ravel(H), np.ravel(W), np.ravel(b)])
    out = solve_ivp(
        lambda t, y: derivative(t, y, n, classes, K, **options), (0, times[-1]), y0,
        method=method, t_eval=times, rtol=rtol, atol=atol,
    )  # fmt: skip
    assert out.success
    return [(y[: n * N].reshape(n, N), y[n * N : n * N + C * n].reshape(C, n), y[n * N + C * n :]) for y in out.y.T]


def basis(C):
    """Orthonormal columns, orthogonal to 1."""
    return np.linalg.svd(np.eye(C) - 1 / C)[0][:, : C - 1]


# Modes


@pytest.mark.parametrize("name", ["b_logistic", "b5_E0_saddle"])
def test_logistic_modes_of_the_references(name):
    ref = load(name)
    a = exact.logistic_mode(ref["t"], ref["a_closed"][0], ref.kappa, ref.classes)
    np.testing.assert_allclose(a, ref["a_closed"], rtol=0, atol=1e-13)
    # and the trajectory itself, integrated to 1e-18 independently of any closed form
    M = np.stack([np.asarray(ref.classes.means(H)) for H in ref["H"]])
    seen = np.einsum("ck,tcn,tnd,dk->tk", ref["U"], ref["W"], M, ref["U"])
    np.testing.assert_allclose(a, seen, rtol=0, atol=1e-13)


def test_logistic_obeys_its_equation_and_keeps_digits():
    c = float(jnp.sqrt(5 * KAPPA.lambda_class(CLASSES)))
    law = lambda t, a: exact.logistic_mode(t, a, KAPPA, CLASSES)  # noqa: E731
    for a0 in (1e-8, 0.3, 1.0, 1.7, -1e-3, -2.0):
        a, slope = jax.jvp(lambda t, a0=a0: law(t, a0), (jnp.asarray(0.11),), (jnp.asarray(1.0),))
        np.testing.assert_allclose(slope, 2 * c * abs(a) * (1 - a), rtol=1e-10, atol=1e-13)
    assert law(0.0, np.array([0.0, 1.0])).tolist() == [0.0, 1.0]
    assert np.isfinite(jax.vmap(jax.grad(lambda a: law(3.0, a)))(jnp.array([-0.5, 0.0, 0.5]))).all()
    assert law(np.zeros((2, 3)), np.full(4, 0.1)).shape == (2, 3, 4)


@pytest.mark.parametrize("e0_sign", [1, -1])
@pytest.mark.parametrize("pair", [(0.3, 0.1), (-0.2, 0.5), (0.01, -0.3), (2.0, 3.0), (0.0, 0.4), (-1e-9, -1e-9)])
def test_scalar_mode_against_integration(pair, e0_sign):
    w0, h0 = pair if e0_sign > 0 else pair[::-1]
    lam, y, times = 2.3, 1.7, np.linspace(0, 4, 9)
    out = solve_ivp(
        lambda t, x: [-(x[0] * x[1] - y) * x[1], -lam * (x[0] * x[1] - y) * x[0]],
        (0, 4), [w0, h0], method="DOP853", t_eval=times, rtol=3e-14, atol=1e-15,
    )  # fmt: skip
    w, h = exact.scalar_mode(times, w0, h0, y, lam)
    np.testing.assert_allclose(w, out.y[0], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(h, out.y[1], rtol=1e-10, atol=1e-11)


def test_scalar_mode_is_the_formula_with_its_fixed_points():
    # P(t) through its two fixed points P±, the form in which the solution is usually written.
    lam, y, t = 2.3, 1.7, np.linspace(0, 3, 7)
    w0, h0 = 0.9, -0.2
    p, q = np.sqrt(lam) * w0 + h0, np.sqrt(lam) * w0 - h0
    k = 2 * np.sqrt(lam) * y
    om = np.hypot(k, p * q)
    plus, minus = k + om, -((p * q) ** 2) / (k + om)
    rho = (p**2 - plus) / (p**2 - minus) * np.exp(-om * t)
    P = np.sign(p) * np.sqrt((plus - minus * rho) / (1 - rho))
    w, h = exact.scalar_mode(t, w0, h0, y, lam)
    np.testing.assert_allclose(w, (P + p * q / P) / (2 * np.sqrt(lam)), rtol=1e-13)
    np.testing.assert_allclose(h, (P - p * q / P) / 2, rtol=1e-12)


def test_scalar_mode_special_starts():
    lam, y = 2.3, 1.7
    # Balanced: the logistic law of the product; anti-aligned: exactly p = 0, tends to 0 and never escapes.
    t = np.linspace(0, 2, 5)
    for sign in (1, -1):
        w, h = exact.scalar_mode(t, 0.1, sign * np.sqrt(lam) * 0.1, y, lam)
        kappa, classes = BlockKernel(lam + 1.0, 1.0, 1.0), Classes.balanced(2, 3)
        alpha = exact.logistic_mode(t * y / np.sqrt(3), sign * np.sqrt(lam) * 0.01 / y, kappa, classes)
        np.testing.assert_allclose(w * h / y, alpha, rtol=1e-13)
    w, h = exact.scalar_mode(np.array([1e3, np.inf]), np.full(2, 0.1), np.array([-np.sqrt(lam) * 0.1, 0.3]), y, lam)
    e = 0.1**2 - 0.3**2 / lam
    limit = np.sqrt((e + np.sqrt(e**2 + 4 * y**2 / lam)) / 2)
    np.testing.assert_allclose(w[:, 1], limit, rtol=1e-14)
    np.testing.assert_allclose(h[:, 1], y / limit, rtol=1e-14)
    np.testing.assert_allclose(w[:, 0] * h[:, 0], 0, atol=1e-100)
    gradient = jax.grad(lambda h: exact.scalar_mode(1.0, 0.1, h, y, lam)[0])(-np.sqrt(lam) * 0.1)
    assert np.isfinite(gradient)


@pytest.mark.parametrize("name", ["c_noncollapse", "c2_nc3_fails"])
def test_aligned_pair_of_the_references(name):
    ref = load(name)
    x, s = exact.aligned_pair(ref["t"], ref["omega2_closed"][0], ref["s2_closed"][0], ref.kappa.lambda_single)
    np.testing.assert_allclose(x, ref["omega2_closed"], rtol=0, atol=1e-13)
    np.testing.assert_allclose(s, ref["s2_closed"], rtol=0, atol=1e-13)
    W, v0, C = ref["W"], ref["v0"], ref.classes.num_classes
    np.testing.assert_allclose(x, (W.sum(1) @ v0) ** 2 / C, rtol=0, atol=1e-13)


def test_aligned_pair_at_zero_invariant_and_far_out():
    lam, t = 0.7, np.array([0.0, 1.0, 50.0])
    x, s = exact.aligned_pair(t, 0.4, 0.4 * lam, lam)
    np.testing.assert_allclose(x, 0.4 / (1 + 2 * lam * 0.4 * t), rtol=1e-14)
    np.testing.assert_allclose(s, lam * x, rtol=1e-14)
    x, s = exact.aligned_pair(1e6, np.array([0.4, 0.1]), np.array([0.1, 0.4]) * lam, lam)
    np.testing.assert_allclose(x, [0.3, 0.0], atol=1e-14)
    np.testing.assert_allclose(s, [0.0, 0.3 * lam], atol=1e-14)
    nearly, _ = exact.aligned_pair(t, 0.4, 0.4 * lam * (1 - 1e-13), lam)
    np.testing.assert_allclose(nearly, 0.4 / (1 + 2 * lam * 0.4 * t), rtol=1e-11)


def test_learning_time():
    t = exact.learning_time(np.array([1e-6, 0.2]), KAPPA, CLASSES, level=0.9)
    for i, a0 in enumerate((1e-6, 0.2)):
        np.testing.assert_allclose(exact.logistic_mode(t[i], a0, KAPPA, CLASSES), 0.9, rtol=1e-12)
    c = np.sqrt(5 * (1 + 5 * 1.4))
    np.testing.assert_allclose(exact.learning_time(1e-9, KAPPA, CLASSES), np.log(1e9) / (2 * c), rtol=1e-9)
    with pytest.raises(ValueError, match="start: expected α between 0 and 1"):
        exact.learning_time(1.5, KAPPA, CLASSES)


# The global mode


@pytest.mark.parametrize(("w", "h", "bias"), [(0.4, 0.9, 0.2), (-0.7, 1.5, -1.0), (0.5, None, 0.0), (1.0, 2.0, 3.0)])
def test_global_mode_limit(w, h, bias):
    lam, N, m = float(KAPPA.lambda_global(CLASSES)), 20, 5
    h = -np.sqrt(lam) * w if h is None else h
    r = lambda x: x[0] * x[1] + np.sqrt(N) * x[2] - np.sqrt(m)  # noqa: E731
    out = solve_ivp(
        lambda t, x: [-r(x) * x[1], -lam * r(x) * x[0], -np.sqrt(N) * r(x)],
        (0, 5), [w, h, bias], method="Radau", rtol=1e-11, atol=1e-13,
    )  # fmt: skip
    limit = exact.global_mode_limit(w, h, bias, KAPPA, CLASSES)
    # Radau at rtol 1e-11 over a few thousand time constants.
    np.testing.assert_allclose(limit, out.y[:, -1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(r(np.asarray(limit)), 0, atol=1e-13)


def test_global_mode_conserves_and_differentiates():
    lam, N = float(KAPPA.lambda_global(CLASSES)), 20
    limit = exact.global_mode_limit(0.4, 0.9, 0.2, KAPPA, CLASSES)
    log = lambda w, h: np.sqrt(N / lam) * np.log(abs(np.sqrt(lam) * w + h))  # noqa: E731
    np.testing.assert_allclose(limit.bias - log(limit.w, limit.h), 0.2 - log(0.4, 0.9), rtol=1e-13)
    np.testing.assert_allclose(limit.w**2 - limit.h**2 / lam, 0.4**2 - 0.9**2 / lam, rtol=1e-12)
    f = jax.jit(lambda w: exact.global_mode_limit(w, 0.9, 0.2, KAPPA, CLASSES).bias)
    central = (f(0.4 + 1e-5) - f(0.4 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(f)(0.4), central, rtol=1e-7)


def test_bias_relaxation():
    ref = load("f2_ufm_balanced")
    b = exact.bias_relaxation(ref["t"], ref["b"][0], ref.classes)
    assert np.abs(ref["b"][0] - 1 / 4).max() > 0.1
    np.testing.assert_allclose(b, ref["b"], rtol=0, atol=1e-13)


# Unaligned matrices


def class_gram(W, H, ref):
    lam, m = float(ref.kappa.lambda_class(ref.classes)), ref.classes.per_class
    Q = np.concatenate([W, np.sqrt(m / lam) * np.asarray(ref.classes.means(H)).T])
    return Q @ Q.T


def test_riccati_of_the_references():
    ref = load("b4_riccati")
    gram = exact.class_gram_solution(ref["t"], ref.start, ref.kappa, ref.classes)
    np.testing.assert_allclose(gram, ref["QQT_closed"], rtol=0, atol=1e-13)
    seen = [class_gram(W, H, ref) for W, H in zip(ref["W"], ref["H"], strict=True)]
    np.testing.assert_allclose(gram, seen, rtol=0, atol=1e-13)
    # t = ∞ in effect: the limit, where a naive evaluation overflows.
    late = exact.class_gram_solution(1e5, ref.start, ref.kappa, ref.classes)
    limit = exact.collapsed_limit(ref.kappa, ref.classes)
    np.testing.assert_allclose(late[:4, :4], limit.weight_gram, atol=1e-12)


@pytest.mark.parametrize("e", [0.6, -0.6])
def test_riccati_with_an_invariant(e):
    # WᵀW − Mt Mtᵀ = e P on a (C − 1)-dimensional space V: choose Mt (or W) there, and the other as a root.
    rng = np.random.default_rng(0)
    C, n, m, U = 4, 6, 5, basis(4)
    V = np.linalg.qr(rng.normal(size=(n, C - 1)))[0]
    A = rng.normal(size=(C - 1, C - 1)) / 2
    B = np.real(sqrtm(A @ A.T + abs(e) * np.eye(C - 1)))
    W, Mt = (U @ B @ V.T, V @ A @ U.T) if e > 0 else (U @ A.T @ V.T, V @ B @ U.T)
    lam = float(KAPPA.lambda_class(CLASSES))
    H = np.asarray(CLASSES.expand(np.sqrt(lam / m) * Mt))
    times = np.linspace(0, 1.2, 5)
    states = integrate(H, W, np.full(C, 1 / C), CLASSES, np.asarray(KAPPA.as_matrix(CLASSES)), times)
    gram = exact.class_gram_solution(times, LastLayer(H=H, W=W, b=np.full(C, 1 / C)), KAPPA, CLASSES)
    for G, (H, W, _) in zip(gram, states, strict=True):
        Q = np.concatenate([W, np.sqrt(m / lam) * np.asarray(CLASSES.means(H)).T])
        # DOP853 at rtol 1e-12 is what limits the agreement.
        np.testing.assert_allclose(G, Q @ Q.T, atol=1e-10)


def test_ufm_with_scatter():
    rng = np.random.default_rng(1)
    C, n, kd, classes = 3, 6, 1.7, Classes.balanced(3, 4)
    basis_of_range = np.linalg.qr(rng.normal(size=(n, C)))[0]
    H = basis_of_range @ rng.normal(size=(C, 12))
    H -= H.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh(H @ H.T / kd)
    W = np.linalg.qr(rng.normal(size=(C, C)))[0] @ np.diag(np.sqrt(values[-C:])) @ vectors[:, -C:].T
    times = np.linspace(0, 2, 5)
    states = integrate(H, W, np.full(C, 1 / C), classes, kd * np.eye(12), times)
    start = LastLayer(H=H, W=W, b=np.full(C, 1 / C))
    gram = exact.ufm_gram_solution(times, start, kd, classes)
    for G, (H, W, _) in zip(gram, states, strict=True):
        Q = np.concatenate([W, H.T / np.sqrt(kd)])
        np.testing.assert_allclose(G, Q @ Q.T, atol=1e-10)


def test_riccati_refuses_what_it_does_not_hold_for():
    good = load("b4_riccati")
    for change, message in (
        (lambda s: s.H + 0.1, "centred features"),
        (lambda s: s.H.at[0, 0].add(0.1).at[0, 1].add(-0.1), "no scatter"),
        (lambda s: 2 * s.H, "an invariant of 0"),
    ):
        bad = eqx.tree_at(lambda s: s.H, good.start, change(good.start))
        with pytest.raises(ValueError, match=message):
            exact.class_gram_solution(1.0, bad, good.kappa, good.classes)
    with pytest.raises(ValueError, match="WᵀW = H Hᵀ/κ_d"):
        exact.ufm_gram_solution(1.0, good.start, 1.0, good.classes)
    with pytest.raises(ValueError, match="classes of one size"):
        exact.class_gram_solution(1.0, load("d_imbalanced").start, good.kappa, load("d_imbalanced").classes)


# The lazy regime


@pytest.mark.parametrize("kind", ["balanced", "unequal", "per class"])
def test_frozen_residual_is_the_matrix_exponential(kind):
    classes = CLASSES if kind == "balanced" else Classes(sizes=(2, 4, 3))
    pairs = np.array([[2.0, 0.3, 0.1], [0.3, 1.5, 0.4], [0.1, 0.4, 1.0]])
    gamma = BlockKernel.from_class_pairs(np.array([3.0, 2.5, 2.0]), pairs) if kind == "per class" else KAPPA
    R = np.random.default_rng(0).normal(size=(classes.num_classes, classes.num_samples))
    times = np.array([0.0, 0.05, 0.7])
    dense = [R @ expm(-np.asarray(gamma.as_matrix(classes)) * t) for t in times]
    np.testing.assert_allclose(exact.frozen_residual(times, R, gamma, classes), dense, atol=1e-13)


def test_frozen_residual_parts_decay_at_the_three_rates():
    R = np.random.default_rng(0).normal(size=(4, 20))
    later = CLASSES.parts(exact.frozen_residual(0.1, R, KAPPA, CLASSES))
    now = CLASSES.parts(R)
    for part, rate in (("single", 1.0), ("class_", 1 + 5 * 1.4), ("global_", 1 + 5 * 1.4 + 20 * 0.6)):
        np.testing.assert_allclose(getattr(later, part), getattr(now, part) * np.exp(-0.1 * rate), atol=1e-14)


# Limits


def test_collapsed_limit_is_where_the_references_end():
    for name in ("b_logistic", "b4_riccati", "f2_ufm_balanced"):
        ref = load(name)
        limit = exact.collapsed_limit(ref.kappa, ref.classes)
        H, W, b = ref["H"][-1], ref["W"][-1], ref["b"][-1]
        M = np.asarray(ref.classes.means(H))
        tolerance = 1e-9 if ref["loss"][-1] < 1e-20 else 10 * np.sqrt(ref["loss"][-1])
        np.testing.assert_allclose(limit.weight_gram, W @ W.T, atol=tolerance)
        np.testing.assert_allclose(limit.outputs, W @ M, atol=tolerance)
        np.testing.assert_allclose(ref.classes.expand(ref.classes.expand(limit.mean_gram).T), H.T @ H, atol=tolerance)
        np.testing.assert_allclose(limit.bias, b, atol=tolerance)


@pytest.mark.parametrize(("name", "e_sign"), [("c_noncollapse", -1), ("c2_nc3_fails", 1)])
def test_non_collapsed_limit(name, e_sign):
    ref = load(name)
    assert np.sign(ref["e0"]) == e_sign
    limit = exact.non_collapsed_limit(float(ref["e0"]), ref.kappa, ref.classes)
    H, W = ref["H"][-1], ref["W"][-1]
    # The runs end where the slowest exponential has left about 1e-6.
    tolerance = 10 * np.sqrt(ref["loss"][-1]) + 1e-6
    X = np.asarray(ref.classes.deviations(H))
    np.testing.assert_allclose(limit.state.weight_gram, W @ W.T, atol=tolerance)
    np.testing.assert_allclose(limit.scatter, ref["v0"] @ X @ X.T @ ref["v0"], atol=tolerance)
    np.testing.assert_allclose(limit.weight_square, (W.sum(0) @ ref["v0"]) ** 2 / 3, atol=tolerance)
    np.testing.assert_allclose(limit.nc1_tirer2022, ref["NC1_tr"][-1], atol=tolerance)
    np.testing.assert_allclose(limit.nc3_seleznova2023, ref["NC3"][-1], atol=tolerance)


def test_imbalanced_limit():
    balanced = exact.imbalanced_limit(np.full(4, 1 / 4), KAPPA, CLASSES)
    for a, b in zip(balanced, exact.collapsed_limit(KAPPA, CLASSES), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)
    # Unconstrained features: b = d/N and W Wᵀ = (D − d dᵀ/N)^½.
    classes, d = Classes(sizes=(2, 5, 9)), np.array([2.0, 5.0, 9.0])
    limit = exact.imbalanced_limit(d / 16, BlockKernel(1.0, 0.0, 0.0), classes)
    np.testing.assert_allclose(limit.weight_gram, np.real(sqrtm(np.diag(d) - np.outer(d, d) / 16)), atol=1e-7)
    # A small start under a block kernel; b from the run, everything else predicted.
    kappa, rng = BlockKernel(1.0, 0.5, 0.1), np.random.default_rng(0)
    H, W = 1e-4 * rng.normal(size=(4, 16)), 1e-4 * rng.normal(size=(3, 4))
    K = np.asarray(kappa.as_matrix(classes))
    # All columns of a class start alike: no scatter.
    H = np.asarray(classes.expand(classes.means(H)))
    ((H, W, b),) = integrate(H, W, np.zeros(3), classes, K, [40.0], rtol=1e-9, atol=1e-12, method="LSODA")
    limit = exact.imbalanced_limit(b, kappa, classes)
    M = np.asarray(classes.means(H))
    # A start of size ε leaves an invariant, and with it an error, of order ε² = 1e-8 in W Wᵀ; W M is interpolated.
    np.testing.assert_allclose(limit.weight_gram, W @ W.T, atol=1e-6)
    np.testing.assert_allclose(limit.outputs, W @ M, atol=1e-6)
    # The direction along 1 that T misses where 1ᵀb = 1 is hit by ε alone.
    np.testing.assert_allclose(limit.mean_gram, M.T @ M, atol=1e-3)


@pytest.mark.parametrize("g", [1e-4, 0.5, 1.0, 30.0])
def test_feature_scale_and_invariant_of_a_collapsed_point(g):
    rng = np.random.default_rng(0)
    C, n, m = 4, 7, 5
    W = (np.eye(C) - 1 / C) @ np.linalg.qr(rng.normal(size=(n, C)))[0].T / np.sqrt(g)
    mean = rng.normal(size=n)
    H = np.repeat(g * W.T + mean[:, None], m, axis=1)
    I = W.T @ W - H @ np.linalg.inv(np.asarray(KAPPA.as_matrix(CLASSES))) @ H.T
    lam_c, lam_g = float(KAPPA.lambda_class(CLASSES)), float(KAPPA.lambda_global(CLASSES))
    e = float(exact.invariant_of_feature_scale(g, KAPPA, CLASSES))
    scale = 1 / g + g
    np.testing.assert_allclose(I, e * g * W.T @ W - 20 / lam_g * np.outer(mean, mean), atol=1e-12 * scale)
    np.testing.assert_allclose(e * g, 1 - m * g**2 / lam_c, rtol=1e-12)
    np.testing.assert_allclose(exact.feature_scale_of_invariant(e, KAPPA, CLASSES), g, rtol=1e-12)


def test_minimal_scatter_rank():
    rng = np.random.default_rng(3)
    classes, n = Classes.balanced(2, 6), 7
    H, W = rng.normal(size=(n, 12)), rng.normal(size=(2, n)) / 3
    kappa = BlockKernel(2.0, 1.0, 0.2)
    K = np.asarray(kappa.as_matrix(classes))
    ((H, W, _),) = integrate(H, W, np.zeros(2), classes, K, [30.0], rtol=1e-9, atol=1e-12, method="LSODA")
    X = np.asarray(classes.deviations(H))
    rank = np.linalg.matrix_rank(X, tol=1e-3)
    assert exact.minimal_scatter_rank(n, classes) == 3 <= rank < n


# Minimisers


def objective(x, sizes, gram_inverse, decay, bias):
    """J and its gradient, written out, at M = x[:nC], W = x[nC:2nC], b = x[2nC:]."""
    C = len(sizes)
    n = (len(x) - C) // (2 * C)
    M, W, b = x[: n * C].reshape(n, C), x[n * C : 2 * n * C].reshape(C, n), x[2 * n * C :] * bias
    lam_H, lam_W, lam_b = decay
    RD = (W @ M + b[:, None] - np.eye(C)) * sizes
    penalty = lam_W * np.sum(W**2) + lam_H * np.sum((M @ gram_inverse) * M) + lam_b * np.sum(b**2)
    dM, dW, db = W.T @ RD + lam_H * M @ gram_inverse, RD @ M.T + lam_W * W, (RD.sum(1) + lam_b * b) * bias
    return (np.sum(RD**2 / sizes) + penalty) / 2, np.concatenate([dM.ravel(), dW.ravel(), db])


DECAYS = [
    pytest.param((0.8, 0.3, 0.0), True, id="free bias"),
    pytest.param((30.0, 30.0, 0.0), True, id="above the threshold"),
    pytest.param((0.8, 0.3, 0.5), True, id="weakly decayed bias"),
    pytest.param((0.8, 0.3, 40.0), True, id="strongly decayed bias"),
    pytest.param((0.8, 0.3, 0.0), False, id="no bias"),
]


@pytest.mark.parametrize(("decay", "bias"), DECAYS)
def test_regularised_minimiser_against_descent(decay, bias):
    classes, n, C = Classes.balanced(3, 4), 5, 3
    names = dict(zip("HWb", decay, strict=True))
    found = exact.regularised_minimiser(KAPPA, classes, names, bias="free" if bias else "absent")
    gram_inverse = np.linalg.inv(np.asarray(KAPPA.class_gram(classes.weights)))
    best = minimize(
        objective, np.random.default_rng(0).normal(size=2 * n * C + C), jac=True,
        args=(np.array(classes.sizes), gram_inverse, decay, bias),
        method="BFGS", options={"gtol": 1e-10, "maxiter": 5000},
    )  # fmt: skip
    M, W, b = best.x[: n * C].reshape(n, C), best.x[n * C : 2 * n * C].reshape(C, n), best.x[2 * n * C :]
    # Descent stops at a gradient near 1e-9; flat directions, next to a threshold above all, leave more in the state.
    np.testing.assert_allclose(found.value, best.fun, rtol=1e-10)
    np.testing.assert_allclose(found.state.weight_gram, W @ W.T, atol=2e-6)
    np.testing.assert_allclose(found.state.outputs, W @ M, atol=2e-6)
    np.testing.assert_allclose(found.state.mean_gram, M.T @ M, atol=2e-6)
    if bias:
        np.testing.assert_allclose(found.state.bias, b, atol=2e-6)
    if decay == (0.8, 0.3, 0.0):
        Mc = M - M.mean(1, keepdims=True)
        np.testing.assert_allclose(Mc, found.feature_scale * (W - W.mean(0)).T, atol=2e-6)


def test_minimiser_thresholds():
    classes = Classes.balanced(3, 4)
    at = lambda Λ, b=0.0: exact.regularised_minimiser(KAPPA, classes, {"H": Λ, "W": Λ, "b": b})  # noqa: E731
    threshold = float(at(1.0).class_threshold)
    assert np.trace(at(0.999 * threshold).state.weight_gram) > 0 == np.trace(at(1.001 * threshold).state.weight_gram)
    edge = float(at(1.0).bias_threshold)
    assert at(1.0, 1.001 * edge).state.weight_gram.sum() > 1e-5
    np.testing.assert_allclose(at(1.0, 0.999 * edge).state.weight_gram.sum(), 0, atol=1e-15)
    # Published form without bias: unconstrained features, loss averaged over N, an orthogonal frame.
    C, m, lw, lh = 3, 4, 0.004, 0.006
    c = C * np.sqrt(m * lw * lh)
    frame = exact.regularised_minimiser(
        BlockKernel(1.0, 0.0, 0.0), classes, {"H": 12 * lh, "W": 12 * lw}, bias="absent"
    )
    np.testing.assert_allclose(frame.state.weight_gram, (1 - c) * np.sqrt(m * lh / lw) * np.eye(C), atol=1e-14)
    np.testing.assert_allclose(frame.state.mean_gram, (1 - c) * np.sqrt(lw / (m * lh)) * np.eye(C), atol=1e-14)
    np.testing.assert_allclose(frame.value / 12, c - c**2 / 2, rtol=1e-14)
    with pytest.raises(ValueError, match="weight_decay of H"):
        exact.regularised_minimiser(KAPPA, classes, {"W": 1.0})


def test_closed_forms_compile():
    ref = load("b4_riccati")
    jitted = eqx.filter_jit(exact.class_gram_solution)(ref["t"], ref.start, ref.kappa, ref.classes)
    np.testing.assert_allclose(jitted, ref["QQT_closed"], rtol=0, atol=1e-13)
    residual = eqx.filter_jit(exact.frozen_residual)(0.1, np.ones((4, 20)), KAPPA, CLASSES)
    np.testing.assert_allclose(residual, np.exp(-0.1 * 20.0), rtol=1e-13)
    assert eqx.filter_jit(exact.logistic_mode)(0.1, 0.2, KAPPA, CLASSES).shape == ()
