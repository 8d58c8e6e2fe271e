"""Batch-normalised heads under cross-entropy, with and without a ReLU, and what convex duality says of any state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import svdvals

from ntkcollapse import Classes, CrossEntropy, LastLayer, SquaredError
from ntkcollapse.losses import DotRegression, Loss
from ntkcollapse.theory import models
from tests.theory.model_cases import descend, scaled_start


def head(classes: Classes, β: float, relu: bool):
    """The network itself, with its batch normalisation, and none of the polar coordinates."""
    Y, N = np.asarray(classes.Y), classes.num_samples

    def objective(parameters):
        z, γ, α, W = parameters
        centred = z - z.mean(1)[:, None]
        normed = centred / jnp.linalg.norm(centred, axis=1)[:, None]
        H = γ[:, None] * normed + α[:, None] / jnp.sqrt(1.0 * N)
        f = W @ (jnp.maximum(H, 0) if relu else H)
        penalty = jnp.sum(γ**2) + jnp.sum(α**2) + jnp.sum(W**2)
        return jnp.sum(jax.nn.logsumexp(f, axis=0) - jnp.sum(f * Y, axis=0)) + β / 2 * penalty

    return objective


@pytest.mark.parametrize("relu", [False, True])
def test_heads_under_cross_entropy(relu):
    C, m, n, β = 3, 2, 4, 0.6
    classes = Classes.balanced(C, m)
    answer = models.batch_norm_head.minimizer(classes, β, loss="cross-entropy", relu=relu)
    shapes = ((n, C * m), (n,), (n,), (C, n))
    start = tuple(jnp.zeros(s) for s in shapes)
    value, (*_, W) = descend(head(classes, β, relu), start)
    # Kinks of the ReLU at the minimum stop the optimiser early.
    np.testing.assert_allclose(value, answer.value, rtol=1e-5 if relu else 1e-8)
    # Flat to second order.
    np.testing.assert_allclose(svdvals(W), answer.singular_values, atol=1e-2 if relu else 1e-3)


def test_what_is_learned_and_from_which_decay_on():
    classes, C, m = Classes.balanced(3, 4), 3, 4
    for relu, threshold in ((False, 2.0), (True, 2 * np.sqrt(2 / 3))):
        ask = {"loss": "cross-entropy", "relu": relu}
        below, above = (models.batch_norm_head.minimizer(classes, threshold * x, **ask) for x in (0.999, 1.001))
        assert float(below.singular_values[0]) > 0 == float(above.singular_values[0])
        np.testing.assert_allclose(above.value, C * m * np.log(C), rtol=1e-12)
        # Nothing is gained by any classifier at a decay above it.
        for seed in range(2):
            state = scaled_start(4, classes, 0.05, seed)
            H = np.maximum(state.H, 0) if relu else np.asarray(state.H)
            decayed = 1.001 * threshold / 2 * (np.sum(H**2) + np.sum(np.asarray(state.W) ** 2))
            assert float(CrossEntropy().value(state.W @ H, classes.Y)) + decayed > C * m * np.log(C)
    # A ReLU costs nothing under squared error, whose minimiser is nowhere negative.
    plain, rectified = (models.batch_norm_head.minimizer(classes, 0.6, relu=relu) for relu in (False, True))
    assert float(plain.value) == float(rectified.value)
    with pytest.raises(ValueError, match="loss: expected one of 'squared', 'cross-entropy'"):
        models.batch_norm_head.minimizer(classes, 0.6, loss="hinge")


@pytest.mark.parametrize("loss", [SquaredError(0.7), CrossEntropy(0.3)])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (6, 3, 2)])
def test_duality_gap(loss: Loss, sizes):
    """Zero where an optimiser ends, also for unequal classes; below every state, and never above the minimum."""
    classes, λ_W, λ_H = Classes(sizes=sizes), 0.2, 0.05
    Y = jnp.asarray(classes.Y)

    def objective(parameters):
        H, W = parameters
        return loss.value(W @ H, Y) + λ_W / 2 * jnp.sum(W**2) + λ_H / 2 * jnp.sum(H**2)

    value, (H, W) = descend(objective, (jnp.zeros((4, sum(sizes))), jnp.zeros((3, 4))))
    at_end = models.batch_norm_head.duality(LastLayer(H=H, W=W, b=np.zeros(3)), classes, λ_W, λ_H, loss=loss)
    np.testing.assert_allclose(at_end.primal, value, rtol=1e-12)
    # First order in the distance, which an error of 1e-14 in the value leaves at 1e-7.
    np.testing.assert_allclose(at_end.gap, 0, atol=1e-6)
    best = -np.inf
    for seed, size in enumerate((0.0, 0.1, 0.5, 1.0, 2.0)):
        state = scaled_start(4, classes, size, seed)
        bounds = models.batch_norm_head.duality(state, classes, λ_W, λ_H, loss=loss)
        assert float(bounds.dual) <= value + 1e-9 < float(bounds.primal)
        best = max(best, float(bounds.dual))
    assert best > 0


def test_duality_certifies_the_closed_forms():
    """An orthogonal frame and a simplex ETF, written down; what is not offered is named."""
    C, m, β = 3, 4, 0.6
    classes = Classes.balanced(C, m)
    for loss in ("squared", "cross-entropy"):
        answer = models.batch_norm_head.minimizer(classes, β, loss=loss)
        W = np.eye(C) if loss == "squared" else np.eye(C) - 1 / C
        W = W * float(answer.singular_values[0])
        state = LastLayer(H=np.repeat(W.T, m, axis=1) / np.sqrt(m), W=W, b=np.zeros(C))
        bounds = models.batch_norm_head.duality(state, classes, β, β, loss=loss)
        np.testing.assert_allclose(bounds, [answer.value, answer.value], rtol=1e-12)
    with pytest.raises(ValueError, match="loss: expected SquaredError or CrossEntropy, got DotRegression"):
        models.batch_norm_head.duality(state, classes, β, β, loss=DotRegression())
    biased = LastLayer(H=state.H, W=state.W, b=np.ones(C))
    with pytest.raises(ValueError, match="expected b = 0 where the bias is absent"):
        models.batch_norm_head.duality(biased, classes, β, β)
