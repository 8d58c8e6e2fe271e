"""Predicted rates against dense kernels and finite differences; fitted ones against exponentials that are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ntkcollapse import BlockKernel, Classes, GroupedKernel, LastLayer
from ntkcollapse.theory.initial import collapsed, zero_invariant_scatter
from ntkcollapse.theory.rate_fit import NoExponential, compare_rates, fit_rate
from ntkcollapse.theory.rates import (
    Rates,
    collapse_rates,
    instantaneous_rates,
    largest_learning_rate,
    lazy_rates,
    output_kernel,
    output_kernel_at_collapse,
    uncoupled_rates,
    within_class_decay,
)
from tests.cases import UNEQUAL, kernels, random_state
from tests.references import load

BALANCED = Classes.balanced(3, 4)
KAPPA = BlockKernel(3.0, 2.0, 0.6)


def dense_output_kernel(state, K):
    """Θ as a CN × CN matrix from the Jacobian of the logits of the network f(x_i) = W A φ_i + b, ⟨φ_i, φ_j⟩ = K_ij."""
    C, N = state.W.shape[0], state.H.shape[1]
    n = state.H.shape[0]
    root = np.linalg.cholesky(K).T
    A = np.linalg.solve(root.T, np.asarray(state.H).T).T

    def logits(parameters):
        A, W, b = parameters
        return (W @ (A @ root) + b[:, None]).reshape(-1)

    J = jax.jacobian(logits)((jnp.asarray(A), state.W, state.b))
    J = np.concatenate([np.asarray(j).reshape(C * N, -1) for j in J], axis=1)
    assert J.shape[1] == n * N + C * n + C
    return J @ J.T


# Predicted


def test_lazy_rates_are_the_eigenvalues():
    values = np.linalg.eigvalsh(np.asarray(KAPPA.as_matrix(BALANCED)))
    np.testing.assert_allclose(lazy_rates(KAPPA, BALANCED), [values[0], values[-2], values[-1]], rtol=1e-14)


@pytest.mark.parametrize("classes", [BALANCED, UNEQUAL], ids=["balanced", "unequal"])
def test_output_kernel_is_the_average_of_the_jacobian_kernel(classes):
    state = random_state(5, classes)
    C, N = classes.num_classes, classes.num_samples
    theta = dense_output_kernel(state, np.asarray(KAPPA.as_matrix(classes))).reshape(C, N, C, N)
    mean = np.einsum("kikj->ij", theta) / C
    same = np.equal.outer(np.asarray(classes.labels), np.asarray(classes.labels))
    off = ~np.eye(N, dtype=bool)
    gamma = output_kernel(state, KAPPA, classes)
    expected = [np.diag(mean).mean(), mean[same & off].mean(), mean[~same].mean()]
    np.testing.assert_allclose([gamma.diagonal, gamma.within, gamma.between], expected, rtol=1e-12)


@pytest.mark.parametrize("classes", [BALANCED, UNEQUAL], ids=["balanced", "unequal"])
def test_instantaneous_rates(classes):
    for kernel in (KAPPA, kernels(UNEQUAL)["dense"]) if classes is UNEQUAL else (KAPPA,):
        state = random_state(5, classes, seed=2)
        K = np.asarray(kernel.as_matrix(classes))
        H, W = np.asarray(state.H), np.asarray(state.W)
        R = np.asarray(state.residual(classes))
        # One short step of the flow on either side; the central difference errs by its square, 1e-10.
        step = 1e-6
        sides = []
        for h in (step, -step):
            moved = LastLayer(H=H - h * W.T @ R @ K, W=W - h * R @ H.T, b=np.asarray(state.b) - h * R.sum(1))
            parts = classes.parts(moved.residual(classes))
            sides.append(np.array([np.log(np.linalg.norm(part)) for part in parts]))
        expected = (sides[1] - sides[0]) / (2 * step)
        np.testing.assert_allclose(instantaneous_rates(state, kernel, classes), expected, rtol=1e-6, atol=1e-6)
        theta = dense_output_kernel(state, K)
        for part, rate in zip(classes.parts(R), instantaneous_rates(state, kernel, classes), strict=True):
            part = np.asarray(part).reshape(-1)
            np.testing.assert_allclose(part @ theta @ R.reshape(-1) / (part @ part), rate, rtol=1e-10)


def test_instantaneous_rates_with_decay_scale_and_bias():
    """Against a short step of the equations written out: H, W, b decay at rates of their own, the loss is scaled."""
    state, K = random_state(5, UNEQUAL, seed=4), np.asarray(kernels(UNEQUAL)["dense"].as_matrix(UNEQUAL))
    H, W, b = (np.asarray(x) for x in (state.H, state.W, state.b))
    R = np.asarray(state.residual(UNEQUAL))
    for bias, moves in (("free", 1.0), ("frozen", 0.0)):
        sides = []
        for h in (1e-6, -1e-6):
            moved = LastLayer(
                H=H - h * (0.3 * W.T @ R @ K + 0.2 * H),
                W=W - h * (0.3 * R @ H.T + 0.5 * W),
                b=b - h * moves * (0.3 * R.sum(1) + 0.7 * b),
            )
            sides.append([np.log(np.linalg.norm(part)) for part in UNEQUAL.parts(moved.residual(UNEQUAL))])
        expected = (np.array(sides[1]) - np.array(sides[0])) / 2e-6
        options = {"scale": 0.3, "decay": {"H": 0.2, "W": 0.5, "b": 0.7}, "bias": bias}
        found = instantaneous_rates(state, kernels(UNEQUAL)["dense"], UNEQUAL, **options)
        # A central difference errs by the square of its step and by rounding over it, 1e-10.
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_instantaneous_rates_are_lazy_rates_of_a_wide_start():
    # W of orthogonal rows and features of size 0: Θ = F K + 11ᵀ for every output, the lazy kernel.
    W = 7.0 * np.linalg.qr(np.random.default_rng(0).normal(size=(6, 3)))[0].T
    state = LastLayer(H=np.zeros((6, 12)), W=W, b=np.array([0.3, 0.1, -0.2]))
    R = state.residual(BALANCED)
    rates = instantaneous_rates(state, KAPPA, BALANCED)
    lazy = lazy_rates(output_kernel(state, KAPPA, BALANCED), BALANCED)
    assert np.linalg.norm(BALANCED.parts(R).single) < 1e-14
    np.testing.assert_allclose(rates[1:], lazy[1:], rtol=1e-12)
    with_single = eqx.tree_at(lambda s: s.H, state, 1e-6 * np.random.default_rng(1).normal(size=(6, 12)))
    # Features of size 1e-6 against weights of 7, and rounding against a residual that small: 1e-8 each.
    np.testing.assert_allclose(instantaneous_rates(with_single, KAPPA, BALANCED), lazy, rtol=1e-7)


def test_collapse_rates_are_the_spectrum_of_the_output_kernel():
    state = collapsed(BALANCED, 5, KAPPA, key=jax.random.key(0))
    theta = dense_output_kernel(state, np.asarray(KAPPA.as_matrix(BALANCED)))
    rates = collapse_rates(KAPPA, BALANCED)
    C, N = 3, 12
    expected = np.sort(
        np.concatenate([
            np.repeat(np.asarray(rates.perpendicular), [(C - 1) * (N - C), (C - 1) ** 2, C - 1]),
            np.repeat(np.asarray(rates.along_ones), [N - C, C - 1, 1]),
        ])
    )  # fmt: skip
    np.testing.assert_allclose(np.linalg.eigvalsh(theta), expected, atol=1e-12)
    np.testing.assert_allclose(rates.largest, expected[-1], rtol=1e-14)
    gamma, direct = output_kernel_at_collapse(KAPPA, BALANCED), output_kernel(state, KAPPA, BALANCED)
    s = np.sqrt(4 / (1 + 4 * 1.4))
    formula = [s * 2 / 3 * 3.0 + 2 / 3 / s + 1, s * 2 / 3 * 2.0 + 2 / 3 / s + 1, s * 2 / 3 * 0.6 - 1 / (3 * s) + 1]
    for kernel in (gamma, direct):
        np.testing.assert_allclose([kernel.diagonal, kernel.within, kernel.between], formula, rtol=1e-13)


def test_what_uncoupled_outputs_cost_at_collapse():
    """The dense kernel with its blocks between outputs set to zero, and the rest averaged, as the assumption has it."""
    state = collapsed(BALANCED, 5, KAPPA, key=jax.random.key(0))
    C, N = 3, 12
    theta = dense_output_kernel(state, np.asarray(KAPPA.as_matrix(BALANCED))).reshape(C, N, C, N)
    blocks = np.mean([theta[k, :, k, :] for k in range(C)], axis=0)
    cost = uncoupled_rates(KAPPA, BALANCED)
    expected = np.sort(np.repeat(np.asarray(cost.assumed), [N - C, C - 1, 1]))
    np.testing.assert_allclose(np.linalg.eigvalsh(blocks), expected, rtol=1e-12)
    # Between outputs there is K alone: samples of one class and of two.
    for i, j in ((0, 1), (0, 11)):
        own = theta[0, i, 0, j] - float(state.H[:, i] @ state.H[:, j]) - 1
        np.testing.assert_allclose(theta[0, i, 1, j] / own, cost.coupling, rtol=1e-12)
    # The mean over C directions of the outputs, two of them orthogonal to 1.
    for assumed, across, along in zip(cost.assumed, cost.true.perpendicular, cost.true.along_ones, strict=True):
        np.testing.assert_allclose(assumed, (2 * across + along) / 3, rtol=1e-12)


def flow(y, K, n, xp):
    """The flow of the balanced problem, by numpy or jax.numpy."""
    Y = np.asarray(BALANCED.Y)
    (C, N), split = Y.shape, n * Y.shape[1]
    H, W, b = y[:split].reshape(n, N), y[split : split + C * n].reshape(C, n), y[split + C * n :]
    R = W @ H + b[:, None] - Y
    return -xp.concatenate([(W.T @ R @ K).reshape(-1), (R @ H.T).reshape(-1), R.sum(1)])


def test_scatter_decays_at_its_rate_near_collapse():
    state = zero_invariant_scatter(BALANCED, 4, KAPPA, key=jax.random.key(0))
    K = np.asarray(KAPPA.as_matrix(BALANCED))
    y0 = np.concatenate([np.ravel(x) for x in (state.H, state.W, state.b)])
    times = np.linspace(0, 12, 61)
    out = solve_ivp(lambda t, y: flow(y, K, 4, np), (0, 12), y0, method="LSODA", t_eval=times, rtol=1e-10, atol=1e-14)
    trace = [float(jnp.sum(BALANCED.deviations(y[:48].reshape(4, 12)) ** 2)) for y in out.y.T]
    fit = fit_rate(times, np.array(trace), window=(8, 12))
    np.testing.assert_allclose(fit.rate, collapse_rates(KAPPA, BALANCED).scatter, rtol=1e-4)
    verdict = compare_rates({"scatter": float(collapse_rates(KAPPA, BALANCED).scatter)}, {"scatter": fit})
    assert verdict["scatter"].agrees


@pytest.mark.parametrize(
    ("optimiser", "momentum"), [("gradient-descent", 0.0), ("nesterov", 0.9), ("heavy-ball", 0.9), ("nesterov", 0.3)]
)
def test_largest_learning_rate(optimiser, momentum):
    state = collapsed(BALANCED, 4, KAPPA, key=jax.random.key(0))
    K, scale = np.asarray(KAPPA.as_matrix(BALANCED)), 1 / 36
    y = jnp.concatenate([jnp.ravel(x) for x in (state.H, state.W, state.b)])
    J = np.asarray(jax.jacobian(lambda y: flow(y, K, 4, jnp))(y)) * scale
    bound = float(largest_learning_rate(KAPPA, BALANCED, scale=scale, optimiser=optimiser, momentum=momentum))
    eye = np.eye(len(J))

    def radius(lr):
        """Of the linear map (x, v) ↦ (x, v) of one step, with v the velocity."""
        A = lr * J
        if optimiser == "nesterov":
            # v' = βv + g(x), x' = x + βv' + g(x)
            top, bottom = np.hstack([A, momentum * eye]), np.hstack([eye + A + momentum * A, momentum**2 * eye])
        else:
            top, bottom = np.hstack([A, momentum * eye]), np.hstack([eye + A, momentum * eye])
        return np.abs(np.linalg.eigvals(np.vstack([bottom, top]))).max()

    # Directions along the manifold of minima have eigenvalue 1 exactly; J is not normal, which costs half the digits.
    assert radius(0.99 * bound) < 1 + 1e-6 < 1 + 1e-3 < radius(1.01 * bound)


def test_within_class_decay():
    A = np.random.default_rng(5).normal(size=(12, 30))
    measured = A @ A.T / 30 + 0.5 * np.asarray(BALANCED.Y).T @ np.asarray(BALANCED.Y)
    gamma = GroupedKernel.from_matrix(measured, BALANCED, groups=9)
    R = np.random.default_rng(0).normal(size=(3, 12))
    times = np.array([0.0, 0.5, 3.0, 2000.0])
    decay = within_class_decay(times, R, gamma, BALANCED)
    # Dense: the kernel between its projections on deviations, R_single e^{−Θt}.
    P = np.eye(12) - np.kron(np.eye(3), np.full((4, 4), 1 / 4))
    values, vectors = np.linalg.eigh(P @ measured @ P)
    for i, t in enumerate(times[:3]):
        moved = R @ P @ vectors * np.exp(-values * t)
        np.testing.assert_allclose(decay.norm[i], np.linalg.norm(moved), rtol=1e-12)
        np.testing.assert_allclose(decay.rate[i], np.sum(values * moved**2) / np.sum(moved**2), rtol=1e-12)
    np.testing.assert_allclose(decay.rate[3], values[3], rtol=1e-6)
    single = within_class_decay(0.7, R, KAPPA, BALANCED)
    np.testing.assert_allclose(single.norm, np.linalg.norm(R @ P) * np.exp(-0.7), rtol=1e-13)
    np.testing.assert_allclose(single.rate, 1.0, rtol=1e-13)


# Fitted


def test_fit_of_an_exact_exponential():
    t = np.sort(np.random.default_rng(0).uniform(0, 3, 40))
    fit = fit_rate(t, 5 * np.exp(-2.5 * t))
    np.testing.assert_allclose(fit.rate, 2.5, rtol=1e-12)
    assert fit.window == (t[0], t[-1])
    assert fit.uncertainty < 1e-12
    assert fit.r_squared > 1 - 1e-12
    np.testing.assert_allclose(fit.efolds, 2.5 * (t[-1] - t[0]), rtol=1e-12)
    assert fit_rate(t, 5 * np.exp(0.5 * t), window=(0, 3)).rate == pytest.approx(-0.5, rel=1e-12)


def test_window_avoids_plateaus_and_rounding():
    t = np.linspace(0, 60, 301)
    # A start that hesitates, a decay at rate 1, and rounding at 1e-15 with noise of its own.
    y = 1 / (1 + np.exp(t - 10)) + 1e-15 * np.random.default_rng(0).uniform(0.5, 1.5, len(t))
    fit = fit_rate(t, y)
    np.testing.assert_allclose(fit.rate, 1.0, rtol=0.03)
    assert fit.window[0] > 4
    assert fit.window[1] < 46
    assert fit.efolds > 25
    # A plateau after the decay that is far above rounding.
    fit = fit_rate(t, np.exp(-t) + 1e-6)
    np.testing.assert_allclose(fit.rate, 1.0, rtol=0.05)
    assert fit.window[1] < 15


def test_sparse_times_do_not_pass_curvature_for_noise():
    # Few times, more and more apart, on a decay that slows down: no rate holds over the whole of it.
    t = np.concatenate([[0.0], np.geomspace(0.05, 30, 28)])
    y = np.exp(-5 * t) + np.exp(-0.3 * t)
    fit = fit_rate(t, y)
    np.testing.assert_allclose(fit.rate, 0.3, rtol=0.05)
    assert fit.window[0] > 0.5
    given = fit_rate(t, y, window=(0, 30))
    assert given.drift > 1
    noise = fit_rate(t, np.exp(-0.3 * t + 0.05 * np.random.default_rng(0).normal(size=29)))
    assert noise.window[0] < 0.3
    assert noise.drift < 0.02
    with pytest.raises(ValueError, match="norms: expected a stretch"):
        fit_rate(t, np.random.default_rng(0).uniform(1, 3, size=29))


@pytest.mark.parametrize("part", ["single", "class_", "global_"])
def test_chosen_windows_of_a_trajectory_hold_its_local_rate(part):
    # A generic run, its 29 times further and further apart: local rates fall by a factor of 16 along it.
    run = load("a_generic")
    name = {"single": "R_single_norm", "class_": "R_class_centred_norm", "global_": "R_global_norm"}[part]
    fit = fit_rate(run["t"], run[name])
    for i in np.flatnonzero(np.isin(run["t"], fit.window)):
        state = LastLayer(H=run["H"][i], W=run["W"][i], b=run["b"][i])
        local = getattr(instantaneous_rates(state, run.kappa, run.classes), part)
        assert fit.rate / 2 < local < fit.rate * 2


def test_two_rates_are_not_taken_for_one():
    t = np.linspace(0, 3, 200)
    y = np.exp(-10 * t) + 0.003 * np.exp(-0.5 * t)
    fit = fit_rate(t, y)
    np.testing.assert_allclose(fit.rate, 10, rtol=0.06)
    assert fit.window[1] < 0.6
    # The drift says how much the rate changes over the window; the local rate at both ends is inside the interval.
    local = -np.gradient(np.log(y), t)
    low, high = fit.interval()
    inside = local[(t >= fit.window[0]) & (t <= fit.window[1])]
    assert fit.drift > 0.05
    assert low < np.median(inside) < high
    np.testing.assert_allclose(fit_rate(t, y, window=(1.5, 3)).rate, 0.5, rtol=1e-3)


@pytest.mark.parametrize(("correlation", "lowest"), [(0.0, 0.93), (0.5, 0.87)])
@pytest.mark.parametrize("window", [(0, 5), None], ids=["given", "chosen"])
def test_coverage(correlation, lowest, window):
    # 95 % intervals of 400 noisy decays hold the rate as often as the docstring says; the standard error of the
    # share is 1.1 %, and the bounds stand two of them below what is stated (95 % and "about 9 of 10").
    rng, t, held = np.random.default_rng(7), np.linspace(0, 4, 60), 0
    for _ in range(400):
        noise = rng.normal(size=60)
        for i in range(1, 60):
            noise[i] = correlation * noise[i - 1] + np.sqrt(1 - correlation**2) * noise[i]
        low, high = fit_rate(t, np.exp(-1.5 * t + 0.1 * noise), window).interval()
        held += low <= 1.5 <= high
    assert lowest <= held / 400 <= 0.985


def found_and_held(t, truth, noise, draws):
    """Share of noisy norms with a fit, and of those fits the share whose 95 % interval holds the truth."""
    held = []
    for seed in range(draws):
        try:
            low, high = fit_rate(t, np.exp(-truth * t + noise(np.random.default_rng(seed)))).interval()
        except NoExponential:
            continue
        held.append(low <= truth <= high)
    return len(held) / draws, float(np.mean(held)) if held else np.nan


@pytest.mark.parametrize("grid", ["linear", "logarithmic"])
@pytest.mark.parametrize("size", [0.2, 0.3])
@pytest.mark.parametrize("n", [30, 60, 200])
def test_extremes_of_a_plateau_are_no_exponential(n, size, grid):
    t = np.linspace(0, 1, n) if grid == "linear" else np.geomspace(0.01, 1, n)
    found, _ = found_and_held(t, 0.0, lambda rng: size * rng.normal(size=n), 100)
    assert found < 0.05


@pytest.mark.parametrize(("n", "most"), [(30, 0.2), (60, 0.3), (200, 0.55)])
def test_a_random_walk_is_seldom_an_exponential(n, most):
    # The shares that the docstring states are 0.1, 0.2 and 0.45; 100 draws know them to 0.03, 0.04 and 0.05.
    found, _ = found_and_held(np.linspace(0, 1, n), 0.0, lambda rng: np.cumsum(0.1 * rng.normal(size=n)), 100)
    assert found < most


@pytest.mark.parametrize("high", [1, 2, 3])
@pytest.mark.parametrize("spread", [0.15, 0.3])
def test_a_jump_to_a_plateau_is_no_exponential(high, spread):
    """A line through two levels has a small error: 4.8 ± 0.4 over 3 e-folds, and a rate nowhere."""
    t = np.concatenate([np.linspace(0, 0.01 * (high - 1), high), np.linspace(0.5, 0.73, 12)])
    levels = np.where(t < 0.4, 3.475, 0.19)
    found = 0
    for seed in range(100):
        try:
            fit_rate(t, levels * np.exp(spread * np.random.default_rng(seed).normal(size=len(t))))
            found += 1
        except NoExponential:
            pass
    assert found < 5


@pytest.mark.parametrize("grid", ["linear", "logarithmic"])
@pytest.mark.parametrize(("n", "size"), [(8, 0.01), (12, 0.1), (20, 0.1), (30, 0.2), (60, 0.3)])
def test_clear_exponentials_are_found(n, size, grid):
    """Six e-folds, 20 times the noise at least, are found and their rate is in the intervals."""
    t = np.linspace(0, 1, n) if grid == "linear" else np.geomspace(0.02, 1, n)
    found, held = found_and_held(t, 6.0, lambda rng: size * rng.normal(size=n), 100)
    # A share of 0.95 in 100 draws is known to 0.022. Of 8 times there is one window: where its thirds differ, none.
    assert found > (0.8 if n == 8 else 0.97)
    assert held > 0.88


def test_errors_weight_the_fit():
    # Noise of one size on a decay by 12: weighting by it gives the error that weighted regression has in theory.
    rng, t, errors, rates = np.random.default_rng(0), np.linspace(0, 2.5, 80), np.full(80, 0.01), []
    norms = np.exp(-t)
    for _ in range(200):
        norms = np.exp(-t) + errors * rng.normal(size=80)
        rates.append([fit_rate(t, norms, (0, 4), errors=e).rate - 1 for e in (errors, None)])
    weights = (np.exp(-t) / errors) ** 2
    expected = np.sum(weights * (t - np.average(t, weights=weights)) ** 2) ** -0.5
    weighted, plain = np.sqrt(np.mean(np.square(rates), axis=0))
    # 200 fits tell their spread to 5 %; noise in the weights themselves adds a little.
    np.testing.assert_allclose(weighted, expected, rtol=0.15)
    assert plain > 1.5 * expected
    fit = fit_rate(t, norms, (0, 4), errors=errors)
    np.testing.assert_allclose(fit.standard_error, expected, rtol=0.4)


def test_too_short_windows_are_refused():
    t = np.linspace(0, 1, 20)
    with pytest.raises(ValueError, match=r"window: expected at least 8 times .* got 4"):
        fit_rate(t, np.exp(-t), window=(0, 0.2))
    with pytest.raises(ValueError, match=r"norms: expected a stretch of at least 8 times and 0\.5 e-folds"):
        fit_rate(t, np.exp(-0.1 * t))
    with pytest.raises(ValueError, match="found none among 5 usable times"):
        fit_rate(t[:5], np.exp(-5 * t[:5]))
    with pytest.raises(ValueError, match="norms: expected a stretch"):
        fit_rate(t, np.exp(t))
    with pytest.raises(ValueError, match="norms: expected numbers zero or above"):
        fit_rate(t, -np.exp(-t))
    with pytest.raises(ValueError, match="times: expected strictly increasing"):
        fit_rate(t[::-1], np.exp(-t))


def test_verdicts():
    t = np.linspace(0, 2, 60)
    noise = 0.1 * np.random.default_rng(0).normal(size=60)
    fits = {"single": fit_rate(t, np.exp(-3 * t + noise)), "global": fit_rate(t, np.exp(-3 * t))}
    single = fits["single"].rate + 1.5 * fits["single"].uncertainty
    predicted = Rates(single=jnp.asarray(single), class_=jnp.asarray(5.0), global_=jnp.asarray(3.6))
    verdicts = compare_rates(predicted, fits, relative=1e-4)
    assert verdicts["single"].within_errors
    assert not verdicts["single"].within_percent
    assert verdicts["single"].deviation == pytest.approx(-1.5)
    assert not compare_rates(predicted, fits, relative=1e-4, standard_errors=1.4)["single"].agrees
    assert not verdicts["global"].agrees
    assert verdicts["global"].ratio == pytest.approx(3 / 3.6)
    assert compare_rates(predicted, fits, relative=0.2)["global"].agrees
    with pytest.raises(ValueError, match=r"none for \['global', 'single'\]"):
        compare_rates({"class": 1.0}, fits)
