"""Each model of neural collapse on its exact answer."""

import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

from ntkcollapse import BlockKernel, Classes, CrossEntropy, DenseKernel, LastLayer, SquaredError
from ntkcollapse.commands.simulate import SimulateConfig, simulate_command
from ntkcollapse.simulation import simulate
from ntkcollapse.theory import models
from ntkcollapse.theory.integrate import integrate, named_solver
from ntkcollapse.theory.invariant import invariant
from ntkcollapse.theory.models.deep_linear import DeepLastLayer
from ntkcollapse.theory.models.layer_peeled import collapsed_odds
from ntkcollapse.theory.models.losses import LogCrossEntropy
from tests.cases import random_state


def simplex(C: int) -> np.ndarray:
    return np.eye(C) - 1 / C


def scaled_start(n: int, classes: Classes, size: float, seed: int = 0, bias: bool = False) -> LastLayer:
    state = random_state(n, classes, seed)
    return LastLayer(H=size * state.H, W=size * state.W, b=size * state.b if bias else 0 * state.b)


def descend(objective, start, *, tries: int = 1):
    """Least value and its arguments by L-BFGS from random starts: knows nothing of the model but its objective."""
    flat, unravel = ravel_pytree(start)
    both = jax.jit(jax.value_and_grad(lambda x: objective(unravel(x))))
    best = None
    for seed in range(tries):
        x0 = np.random.default_rng(seed).normal(size=flat.shape)
        out = minimize(
            lambda x: tuple(np.asarray(v) for v in both(x)),
            x0,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-11},
        )
        best = out if best is None or out.fun < best.fun else best
    assert best is not None
    return best.fun, unravel(jnp.asarray(best.x))


def penalised(flow, state: LastLayer):
    """What a flow with K = I and weight decay descends."""
    decay, f = flow.decay, state.logits if flow.bias == "free" else state.W @ state.H
    squares = decay.H * jnp.sum(state.H**2) + decay.W * jnp.sum(state.W**2) + decay.b * jnp.sum(state.b**2)
    return flow.loss.value(f, flow.classes.Y) + squares / 2


# --- the equation itself


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    sizes=st.sampled_from([(2, 3, 1), (3, 3, 3)]),
    n=st.sampled_from([2, 4]),
    seed=st.integers(0, 10_000),
    loss=st.sampled_from([SquaredError(0.7), CrossEntropy(), CrossEntropy(0.3)]),
    decay=st.sampled_from([0.0, 0.4]),
)
def test_the_invariant_for_random_kernels_losses_and_sizes(sizes, n, seed, loss, decay):
    """d/dt (WᵀW − H K⁻¹ Hᵀ) = −2λ (WᵀW − H K⁻¹ Hᵀ), for any positive K and any loss of the logits."""
    classes = Classes(sizes=sizes)
    A = np.random.default_rng(seed).normal(size=(classes.num_samples, classes.num_samples))
    kernel = DenseKernel(A @ A.T + 0.5 * np.eye(len(A)))
    state = random_state(n, classes, seed)
    flow = models.ntk_collapse(classes, kernel, weight_decay=decay, loss=loss)
    E, dE = jax.jvp(lambda s: invariant(s, kernel, classes), (state,), (flow(0.0, state),))
    # Terms of size ‖W‖‖G‖‖H‖ cancel: rounding of their size, times the condition of K (at most about 1e2).
    np.testing.assert_allclose(dE, -2 * decay * E, rtol=0, atol=1e-10 * max(1, float(jnp.abs(E).max())))


@eqx.filter_jit
def in_full(flow, start: LastLayer, times):
    return integrate(flow, start, times, solver=named_solver("tsit5"), rtol=1e-9, atol=1e-11, max_steps=20_000)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    sizes=st.sampled_from([(2, 3, 1), (2, 2, 2)]),
    n=st.just(4),
    seed=st.integers(0, 10_000),
    loss=st.sampled_from([SquaredError(0.7), CrossEntropy(1.3)]),
    decay=st.sampled_from([0.0, 0.3]),
)
def test_the_invariant_along_integrations(sizes, n, seed, loss, decay):
    """E(t) = E(0) e^{−2λt} at every saved time of an integration in full, for any positive K, balanced or not."""
    classes = Classes(sizes=sizes)
    A = np.random.default_rng(seed).normal(size=(6, 6))
    K = A @ A.T / 6 + 0.5 * np.eye(6)
    flow = models.ntk_collapse(classes, DenseKernel(K), weight_decay=jnp.asarray(decay), loss=loss)
    times = jnp.asarray([0.0, 0.5, 3.0])
    out = in_full(flow, random_state(n, classes, seed), times)
    H, W = np.asarray(out.states.H), np.asarray(out.states.W)
    E = np.swapaxes(W, 1, 2) @ W - H @ np.linalg.solve(K, np.swapaxes(H, 1, 2))
    # The state moves by its own size; E does not, but for the solver's 1e-9 a step over up to some hundred steps.
    assert np.linalg.norm(W[-1] - W[0]) > 0.1 * np.linalg.norm(W[0])
    expected = E[0] * np.exp(-2 * decay * times)[:, None, None]
    np.testing.assert_allclose(E, expected, rtol=0, atol=3e-7 * float(np.linalg.norm(E[0])))


def test_weight_decay_takes_the_invariant_to_zero():
    classes, λ = Classes(sizes=(2, 4, 3)), 0.3
    kernel = BlockKernel(3.0, 2.0, 0.6)
    flow = models.ntk_collapse(classes, kernel, weight_decay=λ, loss=CrossEntropy())
    start, times = random_state(5, classes), np.linspace(0.0, 4.0, 5)
    run = simulate(start, flow, classes, times, solver="tsit5", rtol=1e-9, atol=1e-11)
    first = float(run["invariant_norm"][0])
    # Solver error at rtol 1e-9 over this time, relative to a norm that falls by e^{−2.4}.
    np.testing.assert_allclose(run["invariant_norm"], first * np.exp(-2 * λ * times), rtol=1e-6)


def test_relative_rates_and_frozen_classifier():
    classes = Classes(sizes=(2, 3))
    state = random_state(3, classes)
    plain = models.unconstrained_features(classes)
    other = eqx.tree_at(lambda f: (f.rate_W, f.rate_b), plain, (0.25, 3.0))
    a, b = plain(0.0, state), other(0.0, state)
    np.testing.assert_allclose(b.H, a.H)
    np.testing.assert_allclose(b.W, 0.25 * a.W)
    np.testing.assert_allclose(b.b, 3.0 * a.b)
    assert plain.is_plain
    assert not other.is_plain


# --- squared error


def test_strong_collapse_from_small_starts():
    """Errors of SNC1, SNC2, SNC3 fall as ε², ε, ε."""
    C, m, n = 4, 5, 7
    classes = Classes.balanced(C, m)
    limit = models.unconstrained_features.limit(classes)
    flow = models.unconstrained_features(classes)
    errors = []
    for ε in (1e-2, 1e-3, 1e-4):
        start = scaled_start(n, classes, ε, bias=True)
        run = simulate(start, flow, classes, np.array([0.0, 15.0]), columns=False)
        end = run.last_layer(-1)
        # What is left is scatter of size ε seen by 1ᵀW of size ε, which falls like 1/t only: loss of order ε⁴.
        assert float(run["loss"][-1]) < 100 * ε**4
        errors.append(
            (
                np.linalg.norm(end.W @ end.W.T - limit.weight_gram),
                np.linalg.norm(end.H - classes.expand(end.W.T / np.sqrt(m))),
                np.linalg.norm(end.b - limit.bias),
            )
        )
    slopes = np.log10(np.array(errors[:-1]) / np.array(errors[1:]))
    # Leading powers; what comes after them in ε ≤ 0.01 moves the slope by a few per cent.
    np.testing.assert_allclose(slopes, np.broadcast_to([2.0, 1.0, 1.0], slopes.shape), atol=0.1)


@pytest.mark.parametrize("bias", ["free", "absent"])
def test_regularised_minimisers(bias):
    classes = Classes(sizes=(7, 4, 2))
    flow = models.regularised_features(classes, 0.03, 0.01, bias=bias)
    answer = models.regularised_features.minimizer(classes, 0.03, 0.01, bias=bias)
    value, end = descend(lambda s: penalised(flow, s), random_state(4, classes))
    np.testing.assert_allclose(value, answer.value, rtol=1e-10)
    # The objective is flat to second order: an error of 1e-12 in it is 1e-6 in the state.
    np.testing.assert_allclose(end.W @ end.W.T, answer.weight_gram, atol=2e-6)
    np.testing.assert_allclose(end.W @ end.H, classes.expand(answer.outputs), atol=2e-6)
    np.testing.assert_allclose(end.H.T @ end.H, classes.expand(classes.expand(answer.mean_gram).T), atol=2e-6)
    if bias == "free":
        np.testing.assert_allclose(end.b, answer.bias, atol=2e-6)


def test_regularised_minimisers_against_published_forms():
    C, m, λW, λH = 4, 5, 0.005, 0.002
    classes = Classes.balanced(C, m)
    c = C * np.sqrt(m * λW * λH)
    frame = models.regularised_features.minimizer(classes, λW, λH, bias="absent")
    np.testing.assert_allclose(frame.outputs, (1 - c) * np.eye(C), atol=1e-12)
    np.testing.assert_allclose(frame.mean_gram, (1 - c) * np.sqrt(λW / (m * λH)) * np.eye(C), atol=1e-12)
    np.testing.assert_allclose(frame.weight_gram, (1 - c) * np.sqrt(m * λH / λW) * np.eye(C), atol=1e-12)
    np.testing.assert_allclose(frame.value, c - c**2 / 2, rtol=1e-12)
    etf = models.regularised_features.minimizer(classes, λW, λH)
    np.testing.assert_allclose(etf.outputs, (1 - c) * simplex(C), atol=1e-12)
    np.testing.assert_allclose(etf.value, (C - 1) / C * (c - c**2 / 2), rtol=1e-12)
    # Unequal classes, λ_W = 0.06, λ_H = 0.02: one class vanishes, at the sizes of the published threshold.
    uneven = Classes(sizes=(40, 20, 6, 2))
    np.testing.assert_allclose(models.regularised_features.threshold(uneven, 0.06, 0.02), 5.549, atol=5e-4)
    answer = models.regularised_features.minimizer(uneven, 0.06, 0.02, bias="absent")
    np.testing.assert_allclose(np.diag(answer.outputs), [0.62755, 0.47327, 0.03833, 0.0], atol=5e-6)
    assert int(answer.alive) == 3
    with pytest.warns(UserWarning, match="nothing is learned"):
        models.regularised_features(classes, 1.0, 1.0)
    assert float(models.regularised_features.minimizer(classes, 1.0, 1.0).value) == pytest.approx((C - 1) / (2 * C))


def test_regularised_flow_reaches_its_minimiser():
    classes = Classes(sizes=(7, 4, 2))
    flow = models.regularised_features(classes, 0.03, 0.01)
    answer = models.regularised_features.minimizer(classes, 0.03, 0.01)
    run = simulate(random_state(4, classes), flow, classes, np.array([0.0, 3000.0]), columns=False)
    end = run.last_layer(-1)
    # Slowest rate λ_H = 0.01: e^{−30}; the rest is the solver at rtol 1e-6, whose error the flow contracts.
    np.testing.assert_allclose(end.W @ end.W.T, answer.weight_gram, atol=1e-6)
    np.testing.assert_allclose(end.b, answer.bias, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 3])
def test_deep_linear_minimiser(depth):
    classes = Classes(sizes=(6, 3, 2))
    λW, λH = jnp.full(depth, 0.02), 0.01
    flow = models.deep_linear(classes, λW, λH)
    answer = models.deep_linear.minimizer(classes, λW, λH)
    shapes = [(3, 4)] if depth == 1 else [(4, 4)] * (depth - 1) + [(3, 4)]
    start = DeepLastLayer(H=jnp.zeros((4, classes.num_samples)), layers=tuple(jnp.zeros(s) for s in shapes))
    value, end = descend(flow.objective, start, tries=4)
    np.testing.assert_allclose(value, answer.value, rtol=1e-9)
    # Flat to second order, as above.
    outputs = classes.means(end.last_layer.W @ end.H)
    np.testing.assert_allclose(outputs, np.diag(answer.outputs), atol=1e-5)
    if depth == 1:
        shallow = models.regularised_features.minimizer(classes, 0.02, 0.01, bias="absent")
        np.testing.assert_allclose(answer.value, shallow.value, rtol=1e-10)
    # Orthogonal frames layer by layer, balanced: λ_{l+1} W_{l+1}ᵀ W_{l+1} = λ_l W_l W_lᵀ, λ_1 W_1ᵀ W_1 = λ_H H Hᵀ.
    below = λH * end.H @ end.H.T
    for λ, W in zip(λW, end.layers, strict=True):
        np.testing.assert_allclose(λ * W.T @ W, below, atol=1e-6)
        below = λ * W @ W.T
    means = classes.means(end.H)
    np.testing.assert_allclose(means.T @ means, np.diag(np.diag(means.T @ means)), atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_deep_linear_classes_vanish_by_a_jump(depth):
    classes, λW, λH = Classes(sizes=(9, 5, 2)), jnp.full(depth, 0.02), 0.01
    at_limit = float(models.deep_linear.threshold(classes, λW, λH))
    for k, size in enumerate(classes.sizes):
        # λ_H so that class k is just at its threshold m*, which goes like λ_H^{1/L}.
        critical = λH * (size / at_limit) ** depth
        kept, gone = (models.deep_linear.minimizer(classes, λW, critical * x).outputs for x in (1 - 1e-6, 1 + 1e-6))
        np.testing.assert_allclose(kept[k], (depth - 1) / depth, atol=2e-5)
        assert float(gone[k]) == 0
        # Larger classes stay, smaller ones are gone.
        assert np.all(np.asarray(gone[:k]) > 0)
        assert np.all(np.asarray(kept[k + 1 :]) == 0)
    if depth == 1:
        shallow = models.regularised_features.threshold(classes, 0.02, λH)
        np.testing.assert_allclose(at_limit, shallow, rtol=1e-12)
    with pytest.warns(UserWarning, match="nothing is learned"):
        models.deep_linear(classes, 1e3 * λW, λH)


def test_deep_linear_flow_descends():
    classes = Classes(sizes=(6, 3, 2))
    flow = models.deep_linear(classes, jnp.full(2, 0.02), 0.01)
    rng = np.random.default_rng(0)
    layers = tuple(jnp.asarray(0.7 * rng.normal(size=s)) for s in ((4, 4), (3, 4)))
    start = DeepLastLayer(H=jnp.asarray(0.7 * rng.normal(size=(4, 11))), layers=layers)
    run = simulate(start, flow, classes, np.array([0.0, 1000.0, 3000.0]), rtol=1e-8, atol=1e-10)
    # Slowest rate about λ_H = 0.01; the loss is of first order in the error of outputs, 1e-6 beside 1 − s = 0.04.
    answer = models.deep_linear.minimizer(classes, jnp.full(2, 0.02), 0.01)
    np.testing.assert_allclose(run["loss"][-1], jnp.sum((answer.outputs - 1) ** 2 * classes.weights) / 22, rtol=1e-4)
    np.testing.assert_allclose(
        classes.means(run.last_layer(-1).W @ run.states["H"][-1]), np.diag(answer.outputs), atol=1e-6
    )
    with pytest.raises(ValueError, match="start: expected a DeepLastLayer for this model, got a LastLayer"):
        simulate(random_state(4, classes), flow, classes, np.array([0.0, 1.0]))


def test_batch_normalised_head():
    C, m, n, β = 3, 4, 5, 0.6
    classes = Classes.balanced(C, m)
    answer = models.batch_norm_head.minimizer(classes, β)

    def objective(parameters):
        # The network itself, with its batch normalisation, and none of the polar coordinates.
        z, γ, α, W = parameters
        centred = z - z.mean(1)[:, None]
        normed = centred / jnp.linalg.norm(centred, axis=1)[:, None]
        H = γ[:, None] * normed + α[:, None] / jnp.sqrt(1.0 * C * m)
        penalty = jnp.sum(γ**2) + jnp.sum(α**2) + jnp.sum(W**2)
        return jnp.sum((W @ H - classes.Y) ** 2) / 2 + β / 2 * penalty

    shapes = ((n, C * m), (n,), (n,), (C, n))
    value, (*_, W) = descend(objective, tuple(jnp.zeros(s) for s in shapes), tries=3)
    np.testing.assert_allclose(value, answer.value, rtol=1e-8)
    np.testing.assert_allclose(np.linalg.svd(W, compute_uv=False), answer.singular_values, atol=1e-5)
    # The flow's features in the head's own coordinates and back.
    H = random_state(n, classes).H
    gain, normed, shift = models.batch_norm_head.parameters(H)
    np.testing.assert_allclose(gain[:, None] * normed + shift[:, None] / np.sqrt(C * m), H, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(normed, axis=1), 1, rtol=1e-12)
    flow = models.batch_norm_head(classes, β)
    run = simulate(scaled_start(n, classes, 1.0), flow, classes, np.array([0.0, 60.0]))
    end = run.last_layer(-1)
    # Slowest rate β = 0.6.
    np.testing.assert_allclose(penalised(flow, end), answer.value, rtol=1e-8)
    with pytest.warns(UserWarning, match="β is at least √m"):
        models.batch_norm_head(classes, 2.5)


def test_central_path_law():
    C, m, n = 4, 12, 5
    classes = Classes.balanced(C, m)
    flow = models.central_path(classes)
    state = random_state(n, classes)
    state = LastLayer(H=state.H - state.H.mean(1)[:, None], W=state.W, b=state.b)
    with pytest.raises(ValueError, match="off by"):
        simulate(state, flow, classes, np.linspace(0.0, 1.0, 2))
    start = flow.retract(state)
    times = np.array([0.0, 1e2, 1e3, 1e4])
    run = simulate(start, flow, classes, times, rtol=1e-8, atol=1e-10)
    seen = np.stack([models.central_path.signal_to_noise(H, classes) for H in run.states["H"]])
    # Solver tolerance 1e-8 per step, over some hundred steps.
    np.testing.assert_allclose(seen, models.central_path.law(times, seen[0], classes), rtol=1e-6)
    assert seen[-1].max() / seen[-1].min() < 0.5 * seen[0].max() / seen[0].min()
    # The constraint was left by the solver's error only, and that is on record.
    assert 0 < float(run.statistics["largest_correction"]) < 1e-5
    # Only singular values move: their vectors, of the centred means, stay. On the path the loss is theirs alone.
    first, last = (
        classes.means(H) - classes.means(H).mean(1)[:, None] for H in (run.states["H"][0], run.states["H"][-1])
    )
    (U, _, V), (U1, _, V1) = (np.linalg.svd(np.asarray(M), full_matrices=False) for M in (first, last))
    np.testing.assert_allclose(np.abs(np.sum(U[:, :3] * U1[:, :3], axis=0)), 1, atol=1e-6)
    np.testing.assert_allclose(np.abs(np.sum(V[:3] * V1[:3], axis=1)), 1, atol=1e-6)
    ideal = np.sum(1 / (C + seen**2), axis=1) / 2
    np.testing.assert_allclose(run["loss"], ideal, rtol=1e-6)
    # The law solves its own differential equation, and grows like (4 C t/N)^{1/4}.
    ω0, t = jnp.asarray([0.3, 1.0, 2.0]), jnp.asarray(7.0)
    ω, speed = jax.jvp(lambda t: models.central_path.law(t, ω0, classes), (t,), (jnp.ones(()),))
    np.testing.assert_allclose(speed, C / (C * m) * ω / (C + ω**2) ** 2, rtol=1e-9)
    late = models.central_path.law(jnp.asarray([1e16]), ω0, classes)
    np.testing.assert_allclose(late, (4 / m * 1e16) ** 0.25, rtol=1e-5)


def test_parts_of_the_loss():
    classes = Classes(sizes=(6, 9, 7))
    state = random_state(4, classes)
    parts = models.central_path.loss_parts(state, classes)
    loss = np.sum(np.asarray(state.residual(classes)) ** 2) / (2 * classes.num_samples)
    np.testing.assert_allclose(sum(parts), loss, rtol=1e-12)
    on_path = models.central_path(classes).retract(state)
    assert float(models.central_path.loss_parts(on_path, classes).off_path) < 1e-28


# --- cross-entropy


def test_cross_entropy_minimiser_from_any_start():
    C, m, λW, λH = 3, 4, 0.04, 0.01
    classes = Classes.balanced(C, m)
    flow = models.cross_entropy_features(classes, λW, λH)
    answer = models.cross_entropy_features.minimizer(classes, λW, λH)
    starts = [scaled_start(4, classes, size, seed, bias=True) for seed, size in enumerate((0.1, 1.0, 3.0))]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *starts)
    times = jnp.asarray([0.0, 1000.0, 2000.0])
    runs = jax.vmap(lambda s: simulate(s, flow, classes, times, solver="kvaerno5", rtol=1e-8, atol=1e-10))(stacked)
    H, W, b = (runs.states[name][:, -1] for name in "HWb")
    for i in range(3):
        # Slowest rate λ_H = 0.01: e^{−20} of the start.
        np.testing.assert_allclose(W[i] @ W[i].T, answer.weight_scale * simplex(C), atol=1e-6)
        np.testing.assert_allclose(W[i] @ H[i], answer.scale * classes.expand(jnp.asarray(simplex(C))), atol=1e-6)
        end = LastLayer(H=H[i], W=W[i], b=b[i])
        np.testing.assert_allclose(penalised(flow, end), answer.value, rtol=1e-9)
    with pytest.warns(UserWarning, match="nothing is learned"):
        models.cross_entropy_features(classes, 1.0, 1.0)


def test_log_cross_entropy_where_cross_entropy_underflows():
    classes = Classes(sizes=(2, 3, 1))
    f = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)))
    Y, log_loss, loss = classes.Y, LogCrossEntropy(), CrossEntropy()
    np.testing.assert_allclose(log_loss.value(f, Y), np.log(loss.value(f, Y)), rtol=1e-12)
    np.testing.assert_allclose(log_loss.gradient(f, Y), loss.gradient(f, Y) / loss.value(f, Y), rtol=1e-11, atol=1e-14)
    # Margins of 5000: L = e^{−5000}. There log L = log Σ e^{−margin}, and moving all logits scales it.
    far = 5000 * Y + f
    excess = np.asarray(far - jnp.sum(far * Y, 0)[None, :] - 1e9 * Y)
    top = excess.max()
    np.testing.assert_allclose(log_loss.value(far, Y), top + np.log(np.exp(excess - top).sum()), rtol=1e-13)
    slope = jax.grad(lambda f: log_loss.value(f, Y))(far)
    np.testing.assert_allclose(log_loss.gradient(far, Y), slope, atol=1e-12)
    assert float(jnp.abs(slope).max()) > 0.01


def test_margin_of_unregularised_cross_entropy():
    classes = Classes.balanced(3, 2)
    flow = models.max_margin(classes)
    start = scaled_start(3, classes, 0.5)
    times = np.linspace(0.0, 18.0, 13)
    run = simulate(start, flow, classes, times, solver="kvaerno5", rtol=1e-6, atol=1e-8)
    assert float(run["loss"][-1]) < -1500
    seen = [models.max_margin.margins(H, W, classes) for H, W in zip(run.states["H"], run.states["W"], strict=True)]
    limit = float(models.max_margin.limit(classes))
    assert float(models.max_margin.limit(Classes.balanced(4, 5))) == pytest.approx(0.074536, abs=5e-7)
    # Approached like 1/log(1/L), here L < e^{−1500}: the smoothed margin lacks log(N(C − 1))/1500 = 1.7e-3, and
    # both what the start has left in log-slow directions.
    assert float(seen[-1].smoothed) / limit == pytest.approx(1, abs=5e-3)
    assert float(seen[-1].normalised) / limit == pytest.approx(1, abs=5e-3)
    assert float(seen[-1].normalised) < limit
    # The invariant of the flow is that of plain cross-entropy: the orbits are the same.
    assert float(run["invariant_drift"][-1]) < 1e-5
    smoothed = np.array([s.smoothed for s, log_loss in zip(seen, run["loss"], strict=True) if log_loss < 0])
    assert (np.diff(smoothed) > 0).all()
    assert float(run["nc2_seleznova2023"][-1]) < 0.05


def test_layer_peeled_minority_collapse():
    key = jax.random.key(0)
    balanced = models.layer_peeled.minimizer(np.ones(10), 5.0, 1.0, key=key)
    np.testing.assert_allclose(balanced.value, 0.5597815240, atol=5e-11)
    np.testing.assert_allclose(balanced.W @ balanced.W.T, 10 / 9 * simplex(10), atol=1e-5)
    curve = models.layer_peeled.cosine_curve(10 ** (np.arange(6) / 4), 10, 5, 5.0, 1.0, key=key)
    # The published curve to its printed digits.
    np.testing.assert_allclose(curve, [-0.111, -0.077, -0.017, 0.108, 0.518, 1.0], atol=1e-3)


@pytest.mark.parametrize(
    ("num_classes", "majority", "energy", "published", "digit"),
    [
        (10, 5, 5.0, 12.1924, 1e-4),
        (10, 5, 10.0, 81, 1),
        (10, 3, 5.0, 245, 1),
        (10, 7, 5.0, 4.0, 0.1),
        (4, 2, 5.0, 47.685, 1e-3),
    ],
)
def test_layer_peeled_thresholds(num_classes, majority, energy, published, digit):
    found = models.layer_peeled.threshold(num_classes, majority, energy, 1.0)
    # To the printed digits.
    np.testing.assert_allclose(found, published, rtol=0, atol=0.6 * digit)


def test_layer_peeled_threshold_is_where_minority_classifiers_merge():
    """Found by the criterion at the collapsed optimum, seen in the free minimum, where nothing is tied."""
    key, R0 = jax.random.key(0), models.layer_peeled.threshold(4, 2, 2.0, 1.0)
    below, above = models.layer_peeled.cosine_curve(jnp.asarray([0.97 * R0, 1.03 * R0]), 4, 2, 2.0, 1.0, key=key)
    assert float(below) < 0.98
    np.testing.assert_allclose(above, 1.0, atol=1e-6)
    # The collapsed optimum in its three angles, against descent in all coordinates with the minority tied together.
    ratio = 1.03 * R0
    sizes = np.array([ratio, ratio, 1.0, 1.0])
    free = models.layer_peeled.minimizer(sizes, 2.0, 1.0, key=key)
    tied = models.layer_peeled.minimizer(sizes, 2.0, 1.0, key=key, tied=(0, 1, 2, 2))
    odds = collapsed_odds(ratio, 4, 2, 2.0, 1.0)
    np.testing.assert_allclose(odds.value, tied.value, rtol=1e-10)
    np.testing.assert_allclose(odds.value, free.value, rtol=1e-10)
    P = jax.nn.softmax(tied.W @ tied.M, axis=0)
    np.testing.assert_allclose((odds.own, odds.other), (P[0, 0], P[1, 0]), rtol=1e-5)
    with pytest.raises(ValueError, match="majority: expected 2 to C - 2 = 2 classes, got 3"):
        models.layer_peeled.threshold(4, 3, 2.0, 1.0)


def test_layer_peeled_flow_stays_in_its_budgets():
    classes = Classes(sizes=(6, 3, 3))
    flow = models.layer_peeled(classes, 3.0, 1.0)
    start = flow.retract(scaled_start(4, classes, 1.0))
    run = simulate(start, flow, classes, np.array([0.0, 3000.0, 6000.0]), solver="tsit5")
    best = models.layer_peeled.minimizer(np.array(classes.sizes), 3.0, 1.0, key=jax.random.key(1))
    # Exponentially near the minimum by then; the rest is the solver's tolerance.
    np.testing.assert_allclose(run["loss"][-1], best.value, rtol=1e-6)
    for H, W in zip(run.states["H"], run.states["W"], strict=True):
        assert float(jnp.sum(W**2) / 3) <= 1 + 1e-12
        assert float(classes.means(jnp.sum(H**2, axis=0)).mean()) <= 3 + 1e-12


@pytest.mark.parametrize("loss", ["cross-entropy", "dot-regression"])
def test_fixed_etf_aligns_every_class(loss):
    classes = Classes(sizes=(6, 2, 1))
    W = np.sqrt(2.0) * models.fixed_etf.classifier(3, 4, key=jax.random.key(0))
    np.testing.assert_allclose(W @ W.T / 2, 1.5 * simplex(3), atol=1e-12)
    flow = models.fixed_etf(classes, 3.0, 2.0, loss=loss)
    start = LastLayer(H=0.3 * random_state(4, classes).H, W=W, b=jnp.zeros(3))
    run = simulate(start, flow, classes, np.array([0.0, 1e3, 1e5]), solver="tsit5")
    limit = models.fixed_etf.limit(W, 3.0, classes)
    np.testing.assert_array_equal(run.states["W"][-1], W)
    # Cross-entropy pulls along the sphere exponentially; the pull of dot regression vanishes as the square of the
    # angle, so that the angle falls like t^{−1/2}.
    np.testing.assert_allclose(run.states["H"][-1], limit, atol=1e-5 if loss == "cross-entropy" else 3e-2)


def test_spherical_features_and_logit_ball():
    classes = Classes.balanced(4, 2)
    flow = models.spherical_features(classes, 2.0, 1.5)
    answer = models.spherical_features.minimizer(classes, 2.0, 1.5)
    run = simulate(flow.retract(scaled_start(3, classes, 1.0)), flow, classes, np.array([0.0, 5e3, 1e4]))
    np.testing.assert_allclose(run["loss"][-1], answer.value, rtol=1e-7)
    end = run.last_layer(-1)
    np.testing.assert_allclose(end.W @ end.W.T, answer.weight_scale * simplex(4), atol=1e-4)
    np.testing.assert_allclose(end.W @ end.H, answer.scale * classes.expand(jnp.asarray(simplex(4))), atol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(end.H, axis=0), 2.0, rtol=1e-12)
    # Unit vectors: the printed value of Lu and Steinerberger per class.
    unit = models.spherical_features.minimizer(classes, 1.0, 1.0)
    np.testing.assert_allclose(unit.value, np.log1p(3 * np.exp(-4 / 3)), rtol=1e-14)

    ball = models.logit_ball(classes, 2.0)
    lowest = models.logit_ball.minimizer(classes, 2.0)
    start = LastLayer(H=0.1 * random_state(4, classes).H, W=jnp.eye(4), b=jnp.zeros(4))
    run = simulate(start, ball, classes, np.array([0.0, 5e3, 1e4]))
    np.testing.assert_allclose(run["loss"][-1], lowest.value, rtol=1e-7)
    np.testing.assert_allclose(run.states["H"][-1], classes.expand(lowest.scale * jnp.asarray(simplex(4))), atol=1e-4)


# --- networks, measured


def test_quasi_interpolation_on_the_model_and_on_networks():
    C, m, λW, λH = 4, 5, 0.005, 0.002
    classes = Classes.balanced(C, m)
    answer = models.regularised_features.minimizer(classes, λW, λH)
    values, U = np.linalg.eigh(answer.weight_gram)
    W = U * np.sqrt(np.maximum(values, 0))
    M = np.linalg.pinv(W, rcond=1e-6) @ answer.outputs
    state = LastLayer(H=classes.expand(jnp.asarray(M)), W=W, b=answer.bias)
    seen = models.homogeneous.quasi_interpolation(state.logits, classes)
    assert float(seen.residual) < 1e-10
    np.testing.assert_allclose(seen.epsilon, (C - 1) * np.sqrt(m * λW * λH), rtol=1e-9)
    predicted = models.homogeneous.weight_norm(seen.epsilon, λW, C)
    np.testing.assert_allclose(predicted, 1.0307, atol=5e-5)
    np.testing.assert_allclose(jnp.sum(state.W**2, axis=1), predicted, rtol=1e-9)
    identity = models.homogeneous.weight_identity(state, classes, λW)
    np.testing.assert_allclose(identity.penalty, identity.fit, rtol=1e-9)

    # The flow of three homogeneous layers ends there too, with λ_H = 2λ, and with W in its collapsed direction.
    flow = models.homogeneous(classes, 0.003, layers=3)
    end = simulate(random_state(5, classes), flow, classes, np.array([0.0, 8000.0]), columns=False).last_layer(-1)
    seen = models.homogeneous.quasi_interpolation(end.logits, classes)
    assert float(seen.residual) < 1e-5
    np.testing.assert_allclose(seen.epsilon, (C - 1) * np.sqrt(2 * m) * 0.003, rtol=1e-5)
    np.testing.assert_allclose(
        jnp.sum(end.W**2, axis=1), models.homogeneous.weight_norm(seen.epsilon, 0.003, C), rtol=1e-5
    )
    M = classes.means(end.H)
    direction = seen.epsilon / (0.003 * (C - 1)) * (M - M.mean(1)[:, None]).T
    np.testing.assert_allclose(end.W, direction, atol=1e-5)
    identity = models.homogeneous.weight_identity(end, classes, 0.003)
    np.testing.assert_allclose(identity.penalty, identity.fit, rtol=1e-5)
    with pytest.warns(UserWarning, match="nothing is learned"):
        models.homogeneous(classes, 0.2)

    # Centred collapse without a bias, at its floor.
    np.testing.assert_allclose(models.homogeneous.floor((C - 1) / C, C), 1 / (2 * C), rtol=1e-14)
    α = 0.6
    R = α * C / (C - 1) * simplex(C) - np.eye(C)
    np.testing.assert_allclose(models.homogeneous.floor(α, C), np.sum(R**2) / (2 * C), rtol=1e-12)


@pytest.mark.parametrize(
    ("decay", "bias", "scatter"), [(0.003, True, 0.0), (0.003, False, 0.0), (0.003, True, 1.0), (0.0, False, 1.0)]
)
def test_identities_of_a_trained_network(decay, bias, scatter):
    """A ReLU network with and without weight decay, with and without a bias, on prototypes or scatter."""
    classes, width, steps = Classes.balanced(3, 5), 24, 30_000
    rng = np.random.default_rng(0)
    prototypes = 2 * np.eye(6)[:, :3] * (scatter == 0)
    x = jnp.asarray(np.repeat(prototypes, 5, axis=1) + scatter * np.random.default_rng(1).normal(size=(6, 15)))
    shapes = ((width, 6), (width, width), (3, width))
    start = tuple(jnp.asarray(1.4 * rng.normal(size=s) / np.sqrt(s[1])) for s in shapes)
    # Steps that shrink by 10⁵ settle on the kinks of the ReLU instead of jumping over them.
    adam = optax.adam(optax.exponential_decay(1e-2, steps, 1e-5))

    def features(layers):
        return jax.nn.relu(layers[1] @ jax.nn.relu(layers[0] @ x))

    def objective(parameters):
        layers, b = parameters
        R = layers[2] @ features(layers) + bias * b[:, None] - classes.Y
        return jnp.sum(R**2) / (2 * 15) + decay / 2 * sum(jnp.sum(W**2) for W in layers)

    @jax.jit
    def train(parameters):
        def step(_, carry):
            parameters, state = carry
            updates, state = adam.update(jax.grad(objective)(parameters), state)
            return jax.tree.map(jnp.add, parameters, updates), state

        return jax.lax.fori_loop(0, steps, step, (parameters, adam.init(parameters)))[0]

    # optax's schedule adds an integer count to floats.
    with jax.numpy_dtype_promotion("standard"):
        layers, b = train((start, jnp.zeros(3)))
    state = LastLayer(H=features(layers), W=layers[2], b=b)
    penalty, fit = models.homogeneous.weight_identity(state, classes, decay)
    imbalance = float(models.homogeneous.layer_imbalance(layers))
    seen = models.homogeneous.quasi_interpolation(state.logits, classes)
    if decay == 0:
        # Interpolation, which leaves nothing to be symmetric; and layers keep the norms they came with.
        np.testing.assert_allclose(fit, 0, atol=1e-12)
        assert float(seen.epsilon) < 1e-12
        assert imbalance > 0.1
        return
    # A critical point to what the last steps leave: 6e-5 and 1e-3 measured.
    np.testing.assert_allclose(penalty, fit, rtol=5e-4)
    assert imbalance < 2e-3
    norms = jnp.sum(state.W**2, axis=1)
    if scatter == 0 and bias:
        # One input a class: the assumption holds, and with it the norm and the direction of every w_c.
        assert float(seen.residual) < 1e-4
        np.testing.assert_allclose(norms, models.homogeneous.weight_norm(seen.epsilon, decay, 3), rtol=2e-4)
        M = classes.means(state.H)
        direction = seen.epsilon / (2 * decay) * (M - M.mean(1)[:, None]).T
        np.testing.assert_allclose(state.W, direction, atol=1e-3)
    else:
        # Without a bias, or with samples that differ, it does not, and the measure says so: 0.57 and 0.92 measured.
        assert float(seen.residual) > 0.5


def test_local_elasticity_tends_to_the_kernel():
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.normal(size=s)) for s in ((8, 5), (8,))]
    x, others = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.normal(size=(3, 5)))

    def f(params, x):
        return params[1] @ jnp.tanh(params[0] @ x)

    gradients = jax.vmap(lambda z: ravel_pytree(jax.grad(f)(params, z))[0])
    kernel = gradients(others) @ gradients(x[None])[0]
    errors = []
    for step in (1e-3, 1e-4):
        seen = models.local_elasticity(f, params, x, others, loss_slope=1.7, step=step)
        errors.append(np.abs(np.asarray(seen.kernelised / kernel) - 1).max())
    # First order in the step.
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.05)
    assert errors[1] < 1e-2
    # The other similarity, of moves alone: |Θ(x, x')|/|Θ(x, x)|.
    relative = np.abs(kernel / float(jnp.sum(gradients(x[None]) ** 2)))
    np.testing.assert_allclose(seen.relative, relative, rtol=10 * errors[1])
    own = models.local_elasticity(f, params, x, x[None], loss_slope=1.7, step=1e-3)
    np.testing.assert_allclose(own.relative, 1.0, rtol=1e-12)


# --- stochastic


def looked_on(H, classes: Classes) -> LastLayer:
    """Features beside a classifier that only looks on."""
    C = classes.num_classes
    return LastLayer(H=H, W=jnp.zeros((C, H.shape[0])), b=jnp.zeros(C))


def test_elastic_means_and_their_estimated_intensities():
    classes = Classes.balanced(3, 4)
    flow = models.elastic(classes, 0.9, 0.2)
    start = random_state(2, classes)
    times = np.linspace(0.0, 2.0, 5)
    run = simulate(start, flow, classes, times, rtol=1e-9, atol=1e-11)
    means = jax.vmap(classes.means)(run.states["H"])
    np.testing.assert_allclose(means, models.elastic.solution(times, classes.means(start.H), flow), rtol=1e-7)
    # All samples of a class get the same push: deviations stay. So does the classifier.
    np.testing.assert_allclose(classes.deviations(run.states["H"][-1]), classes.deviations(start.H), atol=1e-12)
    np.testing.assert_array_equal(run.states["W"][-1], start.W)
    estimate = models.elastic.estimate(times, means)
    np.testing.assert_allclose(estimate.intra, 0.9, rtol=1e-6)
    np.testing.assert_allclose(estimate.inter, 0.2, rtol=1e-6)


def test_elasticity_from_measured_trajectories():
    """Intensities that fall like 1/t, an L-model, and class means that carry noise."""
    classes = Classes.balanced(3, 4)
    times = np.linspace(1.0, 3.0, 5)
    for kind in ("I", "L"):
        flow = models.elastic(classes, 0.9, 0.2, kind=kind, power=1.0)
        run = simulate(random_state(3, classes), flow, classes, times, rtol=1e-9, atol=1e-11)
        means = jax.vmap(classes.means)(run.states["H"])
        estimate = models.elastic.estimate(times, means, kind=kind)
        # Means over each interval of α/t and β/t.
        falling = np.diff(np.log(times)) / np.diff(times)
        np.testing.assert_allclose(estimate.intra, 0.9 * falling, rtol=1e-6)
        np.testing.assert_allclose(estimate.inter, 0.2 * falling, rtol=1e-6)
    with pytest.raises(ValueError, match="n = C features for the L-model"):
        models.elastic.estimate(times, means[:, :2], kind="L")

    # Simulated with noise, and estimated from class means of 100 samples.
    classes = Classes.balanced(3, 100)
    flow = models.elastic(classes, 0.9, 0.2, 0.1)
    start = looked_on(classes.expand(jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))), classes)
    times = np.array([0.0, 1.0, 2.0])
    run = simulate(start, flow, classes, times, key=jax.random.key(0), rtol=1e-3, atol=1e-2, columns=False)
    estimate = models.elastic.estimate(times, jax.vmap(classes.means)(run.states["H"]))
    # Noise σ/√m = 0.01 in each coordinate beside ‖x‖ of about 2: 0.5% of growth, times C in α, √2 in β; thrice that.
    np.testing.assert_allclose(estimate.intra, 0.9, atol=0.05)
    np.testing.assert_allclose(estimate.inter, 0.2, atol=0.03)


def test_elastic_l_model_tends_to_a_simplex():
    classes = Classes.balanced(4, 2)
    flow = models.elastic(classes, 3.0, 1.0, kind="L")
    run = simulate(random_state(4, classes), flow, classes, np.array([0.0, 30.0, 60.0]), rtol=1e-8, atol=1e-10)
    M = np.asarray(classes.means(run.states["H"][-1]))
    unit = M / np.linalg.norm(M, axis=0)
    # Differences die out relative to the mean as exp(−t β) ≥ e^{−60}.
    np.testing.assert_allclose(unit.T @ unit, 4 / 3 * simplex(4), atol=1e-6)
    # Noise spreads samples about those vertices and no more: variance σ² t in every entry.
    noisy = models.elastic(Classes.balanced(4, 100), 3.0, 1.0, 0.1, kind="L")
    start = looked_on(noisy.classes.expand(classes.means(random_state(4, classes).H)), noisy.classes)
    times = np.array([0.0, 5.0, 10.0])
    run = simulate(start, noisy, noisy.classes, times, key=jax.random.key(0), rtol=1e-3, atol=1e-2)
    M = np.asarray(noisy.classes.means(run.states["H"][-1]))
    unit = M / np.linalg.norm(M, axis=0)
    np.testing.assert_allclose(unit.T @ unit, 4 / 3 * simplex(4), atol=2e-3)
    # Relative error of a variance from 1,600 numbers: 3.5%; thrice that.
    scatter = jnp.mean(jnp.square(noisy.classes.deviations(run.states["H"][-1])))
    np.testing.assert_allclose(scatter, 0.1**2 * 10 * (1 - 1 / 100), rtol=0.1)


def test_elastic_sde_separates_at_the_threshold():
    """Error of telling two classes apart at t = 10⁴, against Φ(−t^{c/2 − 1/2}/2): falls only above c = C/2 = 1."""
    C, m, end = 2, 2000, 1e4
    classes = Classes.balanced(C, m)
    assert models.elastic.threshold(C) == 1.0
    start = looked_on(classes.expand(jnp.asarray([[-0.5, 0.5]])), classes)
    for c, published in ((0.5, 0.480), (1.0, 0.309), (1.5, 3e-7)):
        flow = models.elastic(classes, jnp.asarray(c), 0.0, 1.0, power=1.0)
        times = np.array([1.0, 3.0, end])
        run = simulate(start, flow, classes, times, key=jax.random.key(3), rtol=1e-3, atol=1e-1)
        # Pure Brownian motion about the class means; times between the solver's own steps are no less noisy.
        middle_of_run = classes.deviations(run.states["H"][1])
        np.testing.assert_allclose(jnp.var(middle_of_run) / 2, 1, rtol=0.1)
        H = np.asarray(run.states["H"][-1][0])
        sign = np.repeat([-1.0, 1.0], m)
        middle = H.mean()
        error = np.mean((H - middle) * sign < 0)
        predicted = float(models.elastic.error(end, 1.0, c, 1.0, C))
        assert predicted == pytest.approx(published, abs=1e-3)
        # Binomial error of 4000 samples, 0.008, and of the means' own noise √(t/m) = 2.2 beside D(t) ≥ 10, thrice.
        assert error == pytest.approx(predicted, abs=0.03)


def test_svag_stationary_variance():
    η, k, s = 0.5, 1.0, 1.0
    exact = models.svag.variance(k, s**2, η, jnp.asarray([1.0, 2.0, 4.0, 8.0, 16.0]))
    np.testing.assert_allclose(exact, [0.3333, 0.2857, 0.2667, 0.2581, 0.2540], atol=5e-5)
    # Towards the SDE's 1/4, in proportion to 1/l.
    np.testing.assert_allclose(models.svag.variance(k, s**2, η, 1e12), η * s**2 / (2 * k), rtol=1e-11)
    assert np.all(np.diff(exact) < 0)
    for l, variance in zip((1, 2, 4, 8, 16), exact, strict=True):
        transform = models.svag(η, l)

        def pair(w, g1, g2, transform=transform):
            state = transform.init(w)
            first, state = transform.update(g1, state)
            second, _ = transform.update(g2, state)
            assert float(jnp.abs(first)) == 0
            return float(w + second)

        # A step is linear in (w, noise, noise): read off its coefficients, and solve for the variance exactly.
        zero, one = jnp.zeros(()), jnp.ones(())
        contraction = pair(one, k * one, k * one)
        noise = pair(zero, s * one, zero) ** 2 + pair(zero, zero, s * one) ** 2
        np.testing.assert_allclose(noise / (1 - contraction**2), variance, rtol=1e-12)


def test_svag_with_l_1_is_sgd_and_drifts_like_it_for_all_l():
    """A small network: the same mean displacement over l double steps as one step of SGD, to first order."""
    rng = np.random.default_rng(0)
    params = {"V": jnp.asarray(rng.normal(size=(4, 3))), "w": jnp.asarray(rng.normal(size=4))}
    x, y = jnp.asarray(rng.normal(size=(3, 40))), jnp.asarray(rng.normal(size=40))

    def gradient(params, batch):
        return jax.grad(lambda p: jnp.mean((p["w"] @ jnp.tanh(p["V"] @ x[:, batch]) - y[batch]) ** 2))(params)

    def displacement(l, steps):
        transform, p = models.svag(0.01, l), params
        state = transform.init(p)
        for i in range(2 * steps):
            updates, state = transform.update(gradient(p, slice(4 * (i % 10), 4 * (i % 10) + 4)), state)
            p = jax.tree.map(jnp.add, p, updates)
        return ravel_pytree(jax.tree.map(jnp.subtract, p, params))[0]

    one = displacement(1, 1)
    sgd = ravel_pytree(gradient(params, slice(0, 4)))[0]
    np.testing.assert_allclose(one, -0.01 * sgd, rtol=1e-12)
    # Every batch of ten comes once as g₁ or g₂ in five double steps; noise of mean 0 is amplified by √(2l − 1)/2.
    assert float(jnp.linalg.norm(displacement(3, 15))) < 10 * float(jnp.linalg.norm(displacement(1, 5)))


def test_svag_on_a_small_network_tends_to_its_sde():
    """Excess loss of a network around its minimum under mini-batch noise, against exact second moments.

    Linear in the displacement δ around the minimum, a double step multiplies δ by 1 − (η/l)(c₁ H_B + c₂ H_B') and adds
    −(η/l)(c₁ g_B + c₂ g_B'), with Hessians H_B and gradients g_B of the batches, which are few: their second moments
    follow a linear recursion without sampling. The SDE's limit is Ṡ = −H S − S H + η cov(g_B + H_B δ).
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 2, 3)))
    params = {"V": jnp.asarray(rng.normal(size=(2, 2))), "w": jnp.asarray([1.5, -1.0])}
    teacher = jnp.einsum("k,kib->ib", params["w"], jnp.tanh(jnp.einsum("kj,ijb->kib", params["V"], x)))
    y = teacher + 0.003 * jnp.asarray(rng.normal(size=(8, 3)))
    flat, unravel = ravel_pytree(params)
    P, η, steps = flat.size, 0.6, 40

    def batch_loss(theta, i):
        p = unravel(theta)
        return jnp.mean((p["w"] @ jnp.tanh(p["V"] @ x[i]) - y[i]) ** 2) / 2

    batches = jnp.arange(8)

    def loss(theta):
        return jnp.mean(jax.vmap(batch_loss, (None, 0))(theta, batches)) + 0.05 * jnp.sum((theta - flat) ** 2)

    def gradient(theta, i):
        return jax.grad(batch_loss)(theta, i) + 0.1 * (theta - flat)

    best = flat
    for _ in range(5):
        best = best - jnp.linalg.solve(jax.hessian(loss)(best), jax.grad(loss)(best))
    hessian = np.asarray(jax.hessian(loss)(best))
    g = np.asarray(jax.vmap(lambda i: gradient(best, i))(batches))
    h = np.asarray(jax.vmap(lambda i: jax.jacfwd(gradient)(best, i))(batches))
    np.testing.assert_allclose(g.mean(0), 0, atol=1e-12)
    assert 0.5 < η * np.linalg.eigvalsh(hessian).max() < 1.5

    def excess(l):
        S, rate, root = np.zeros((P, P)), η / l, (2 * l - 1) ** 0.5
        c = (1 + root) / 2, (1 - root) / 2
        for _ in range(steps * l):
            # Batches are independent with mean Hessian and mean gradient 0: products of two means are the rest.
            moved = S - rate * (hessian @ S + S @ hessian)
            single = np.einsum("bij,jk,blk->il", h, S, h) / 8 + g.T @ g / 8
            moved += rate**2 * ((c[0] ** 2 + c[1] ** 2) * single + 2 * c[0] * c[1] * hessian @ S @ hessian)
            S = moved
        return np.trace(hessian @ S) / 2

    def simulated(l, chains=4000):
        transform = models.svag(η, l)

        def chain(key):
            picks = jax.random.randint(key, (2 * steps * l,), 0, 8)

            def step(carry, i):
                theta, state = carry
                updates, state = transform.update(gradient(theta, i), state)
                return (optax.apply_updates(theta, updates), state), None

            return jax.lax.scan(step, (best, transform.init(best)), picks)[0][0]

        ends = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(l), chains))
        return np.asarray(jax.vmap(loss)(ends) - loss(best))

    exact = {l: excess(l) for l in (1, 2, 4, 8, 64)}
    for l in (1, 4):
        seen = simulated(l)
        # Three standard errors of the mean over chains; what is of third order in δ is 0.3% of it.
        np.testing.assert_allclose(seen.mean(), exact[l], rtol=0, atol=3.5 * seen.std() / len(seen) ** 0.5)
    # SGD is off the SDE by more than a tenth, and the distance falls like 1/l.
    gaps = np.array([exact[l] - exact[64] for l in (1, 4)])
    assert gaps[0] > 0.1 * exact[64]
    assert gaps[1] < gaps[0] / 3


# --- bad input, and the table


UNEVEN = Classes(sizes=(2, 3))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: models.ntk_collapse.limit(BlockKernel(3.0, 2.0, 0.6), UNEVEN),
        lambda: models.ntk_collapse.minimizer(BlockKernel(3.0, 2.0, 0.6), UNEVEN, weight_decay=0.1),
        lambda: models.unconstrained_features.limit(UNEVEN),
        lambda: models.cross_entropy_features.minimizer(UNEVEN, 0.1, 0.1),
        lambda: models.max_margin.limit(UNEVEN),
        lambda: models.central_path.law(1.0, jnp.ones(1), UNEVEN),
        lambda: models.central_path.signal_to_noise(random_state(2, UNEVEN).H, UNEVEN),
        lambda: models.batch_norm_head(UNEVEN, 0.1),
        lambda: models.batch_norm_head.minimizer(UNEVEN, 0.1),
        lambda: models.spherical_features.minimizer(UNEVEN, 1.0, 1.0),
        lambda: models.elastic(UNEVEN, 1.0, 0.0, 0.1),
    ],
)
def test_models_that_need_balance_say_so(ask):
    with pytest.raises(ValueError, match="expected classes of one size, got sizes from 2 to 3"):
        ask()


@pytest.mark.parametrize("bias", ["free", "absent"])
def test_the_warning_of_a_trivial_minimiser_comes_at_its_threshold(bias):
    """Just where the closed form loses its last mode; unequal classes."""
    classes = Classes(sizes=(7, 4, 2))
    modes = np.eye(3) - (np.array(classes.sizes)[:, None] / 13 if bias == "free" else 0)
    largest = np.linalg.norm(modes * np.sqrt(classes.sizes)[None, :], ord=2)
    for factor, alive in ((0.999, 1), (1.001, 0)):
        decay = factor * largest / 13
        assert int(models.regularised_features.minimizer(classes, decay, decay, bias=bias).alive) == alive
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            models.regularised_features(classes, decay, decay, bias=bias)
        assert len(seen) == 1 - alive


CONSTRAINED = {
    "spherical_features": lambda classes: models.spherical_features(classes, 1.0, 1.0),
    "layer_peeled": lambda classes: models.layer_peeled(classes, 0.5, 0.5),
    "central_path": models.central_path,
    "fixed_etf": lambda classes: models.fixed_etf(classes, 0.5, 1.0, loss="cross-entropy"),
    "logit_ball": lambda classes: models.logit_ball(classes, 0.5),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_constraints_are_checked_at_the_start_and_corrected_on_the_way(name):
    classes = Classes(sizes=(6, 5, 4))
    flow = CONSTRAINED[name](classes)
    start, times = scaled_start(3, classes, 1.0), np.array([0.0, 1.0, 5.0])
    with pytest.raises(ValueError, match=r"start: expected a state that satisfies .*off by .*retract"):
        simulate(start, flow, classes, times)
    run = simulate(flow.retract(start), flow, classes, times, rtol=1e-4, atol=1e-6)
    # Steps of a part in 10⁴ leave a curved surface by about that, which is on record; what is saved lies on it.
    assert 0 < float(run.statistics["largest_correction"]) < 1e-2
    for H, W, b in zip(*(run.states[name] for name in "HWb"), strict=True):
        assert float(flow.constraint.violation(LastLayer(H=H, W=W, b=b), classes)) < 1e-9


def test_a_fixed_classifier_is_checked_and_mended():
    """Features in their ball do not make up for a classifier that is no simplex ETF."""
    classes, energy = Classes(sizes=(6, 5, 4)), 2.0
    flow = models.fixed_etf(classes, 3.0, energy, loss="cross-entropy")
    start = scaled_start(4, classes, 0.1)
    with pytest.raises(ValueError, match=r"start: expected a state that satisfies FixedFrame.*off by .*retract"):
        simulate(start, flow, classes, np.array([0.0, 1.0]))
    mended = flow.retract(start)
    np.testing.assert_array_equal(mended.H, start.H)
    np.testing.assert_allclose(mended.W @ mended.W.T, 1.5 * energy * simplex(3), atol=1e-12)
    # Nearest among them: no rotation of it is nearer. Of W = V Q, V fixed, the best Q maximises tr(Wᵀ start.W).
    rng = np.random.default_rng(0)
    for _ in range(20):
        A = 1e-2 * rng.normal(size=(4, 4))
        turned = mended.W @ jax.scipy.linalg.expm(A - A.T)
        assert jnp.linalg.norm(turned - start.W) >= jnp.linalg.norm(mended.W - start.W)
    again = flow.retract(mended)
    np.testing.assert_array_equal(again.W, mended.W)


def test_too_few_dimensions():
    with pytest.raises(ValueError, match="at least C - 1 = 3 dimensions, got 2"):
        models.fixed_etf.classifier(4, 2, key=jax.random.key(0))
    for minimiser in (models.cross_entropy_features.minimizer, models.spherical_features.minimizer):
        with pytest.raises(ValueError, match="at least C - 1 = 3 dimensions, got 2"):
            minimiser(Classes.balanced(4, 2), 0.01, 0.01, num_features=2)
    uneven = Classes(sizes=(3, 2, 2, 2))
    with pytest.raises(ValueError, match="at least C - 1 = 3 dimensions, got 2"):
        models.regularised_features.minimizer(uneven, 0.01, 0.01, num_features=2)
    with pytest.raises(ValueError, match="orthogonal frame of C = 4 vectors needs as many dimensions, got 3"):
        models.regularised_features.minimizer(uneven, 0.01, 0.01, bias="absent", num_features=3)
    flow = models.unconstrained_features(uneven)
    with pytest.warns(UserWarning, match=r"2 features cannot hold a simplex ETF of C = 4 vectors, which needs n ≥ C"):
        simulate(random_state(2, uneven), flow, uneven, np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"H: expected at most N - C = 5 features.*got 6"):
        models.central_path(uneven).retract(random_state(6, uneven))


def test_bad_input_is_named():
    flow = models.spherical_features(UNEVEN, 1.0, 1.0)
    with pytest.raises(ValueError, match="expected none of them beside a model"):
        simulate(random_state(3, UNEVEN), flow, UNEVEN, np.array([0.0, 1.0]), weight_decay=0.1)
    with pytest.raises(AttributeError, match="has no 'minimiser', but minimizer"):
        _ = models.spherical_features.minimiser
    with pytest.raises(ValueError, match=r"kind: expected one of 'I', 'L'; got 'M'"):
        models.elastic(Classes.balanced(2, 2), 1.0, 0.0, 0.1, kind="M")
    with pytest.raises(ValueError, match="amplification: expected a whole number of at least 1, got 0"):
        models.svag(0.1, 0)
    with pytest.raises(
        ValueError, match=r"2 - learning_rate \* curvature / amplification: expected numbers above zero"
    ):
        models.svag.variance(1.0, 1.0, 2.5, 1.0)
    with pytest.raises(ValueError, match="layers: expected at least 2"):
        models.homogeneous(UNEVEN, 0.1, layers=1)


def test_every_model_names_a_test_that_exists():
    here = Path(__file__).read_text()
    for entry in models.MODELS.values():
        file, name = entry.test.split("::")
        assert file == "tests/theory/test_models.py"
        assert f"def {name}(" in here
        assert entry.__doc__


def test_the_table_in_the_documentation_is_that_of_the_registry():
    page = Path(__file__).parents[2] / "docs" / "models.md"
    assert page.read_text() == models.table(), "python -m ntkcollapse.theory.models > docs/models.md"


def test_models_on_the_command_line(tmp_path):
    def command(**settings):
        simulate_command(SimulateConfig(classes=2, per_class=(3,), features=2, out=str(tmp_path / "run"), **settings))

    with pytest.raises(ValueError, match=r"parameters of layer_peeled: expected one of 'energy_H', 'energy_W'"):
        command(model="layer_peeled", parameters=("energy=3",))
    with pytest.raises(ValueError, match=r"parameters: layer_peeled takes energy_H, energy_W; .*missing"):
        command(model="layer_peeled", parameters=("energy_H=3",))
    with pytest.raises(ValueError, match="weight_decay, bias: expected none beside model 'max_margin'"):
        command(model="max_margin", weight_decay=(0.1,))
    assert not (tmp_path / "run").exists()
