"""Models with squared error, each on its exact answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import Classes, LastLayer
from ntkcollapse.simulation import simulate
from ntkcollapse.theory import models
from ntkcollapse.theory.method import Method
from ntkcollapse.theory.models.deep_linear import DeepLastLayer
from tests.cases import random_state
from tests.theory.model_cases import descend, penalised, scaled_start, simplex


def test_strong_collapse_from_small_starts():
    """Errors of SNC1, SNC2, SNC3 fall as ε², ε, ε."""
    C, m, n = 4, 5, 7
    classes = Classes.balanced(C, m)
    limit = models.unconstrained_features.limit(classes)
    flow = models.unconstrained_features(classes)
    errors = []
    for ε in (1e-2, 1e-3, 1e-4):
        start = scaled_start(n, classes, ε, bias=True)
        # Errors of order ε² = 1e-8 are looked for.
        run = simulate(start, flow, classes, np.array([0.0, 15.0]), method=Method(rtol=1e-10), columns=False)
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
    run = simulate(random_state(4, classes), flow, classes, np.array([0.0, 3000.0]), columns=False, observed=False)
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
    run = simulate(start, flow, classes, np.array([0.0, 1000.0, 3000.0]), method=Method(rtol=1e-8, atol=1e-10))
    # Slowest rate about λ_H = 0.01; the loss is of first order in the error of outputs, 1e-6 beside 1 − s = 0.04.
    answer = models.deep_linear.minimizer(classes, jnp.full(2, 0.02), 0.01)
    np.testing.assert_allclose(run["loss"][-1], jnp.sum((answer.outputs - 1) ** 2 * classes.weights) / 22, rtol=1e-4)
    np.testing.assert_allclose(
        classes.means(run.last_layer(-1).W @ run.states.H[-1]), np.diag(answer.outputs), atol=1e-6
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
    run = simulate(scaled_start(n, classes, 1.0), flow, classes, np.array([0.0, 60.0]), observed=False)
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
    run = simulate(start, flow, classes, times, method=Method(rtol=1e-8, atol=1e-10))
    seen = np.stack([models.central_path.signal_to_noise(H, classes) for H in run.states.H])
    # Solver tolerance 1e-8 per step, over some hundred steps.
    np.testing.assert_allclose(seen, models.central_path.law(times, seen[0], classes), rtol=1e-6)
    assert seen[-1].max() / seen[-1].min() < 0.5 * seen[0].max() / seen[0].min()
    # The constraint was left by the solver's error only, and that is on record.
    assert 0 < float(run.statistics["largest_correction"]) < 1e-5
    # Only singular values move: their vectors, of the centred means, stay. On the path the loss is theirs alone.
    first, last = (classes.means(H) - classes.means(H).mean(1)[:, None] for H in (run.states.H[0], run.states.H[-1]))
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
