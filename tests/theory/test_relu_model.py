"""The extended model with a ReLU, against an optimiser that knows its objective alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import Classes
from ntkcollapse.theory import models
from ntkcollapse.theory.models.deep_linear import DeepLastLayer
from tests.theory.model_cases import descend


def objective(classes: Classes, λ_1: float, λ_2: float, λ_H: float):
    """Written down once more, and nothing of the model used."""
    Y, N = np.asarray(classes.Y), classes.num_samples

    def value(parameters):
        H, W_1, W_2 = parameters
        R = W_2 @ jnp.maximum(W_1 @ H, 0) - Y
        return jnp.sum(R**2) / (2 * N) + λ_1 / 2 * jnp.sum(W_1**2) + λ_2 / 2 * jnp.sum(W_2**2) + λ_H / 2 * jnp.sum(H**2)

    return value


@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 2, 2)])
def test_relu_minimiser(sizes):
    classes, decays, n = Classes(sizes=sizes), (0.01, 0.03, 0.004), 4
    λ_1, λ_2, λ_H = decays
    answer = models.relu_features.minimizer(classes, jnp.asarray([λ_1, λ_2]), λ_H, widths=(n, n))
    start = jnp.zeros((n, sum(sizes))), jnp.zeros((n, n)), jnp.zeros((3, n))
    # From most random starts; some end in local minima above.
    value, (H, W_1, W_2) = descend(objective(classes, *decays), start, tries=1)
    np.testing.assert_allclose(value, answer.value, rtol=1e-8)
    # Flat to second order: 1e-8 in the value is 1e-4 in the state.
    behind = np.maximum(W_1 @ H, 0)
    M = np.asarray(classes.means(behind))
    np.testing.assert_allclose(behind, np.asarray(classes.expand(M)), atol=3e-4)
    np.testing.assert_allclose(M.T @ M, np.diag(answer.feature_norms), atol=1e-3)
    np.testing.assert_allclose(W_2 @ W_2.T, np.diag(answer.weight_norms), atol=1e-3)
    np.testing.assert_allclose(W_2 @ M, np.diag(answer.outputs), atol=1e-3)
    # No unit is active for two classes, and the rows of W_2 are the means.
    assert np.all(np.sort(M, axis=1)[:, :-1] < 1e-3)
    scale = np.sqrt(np.asarray(answer.weight_norms) / np.asarray(answer.feature_norms))
    np.testing.assert_allclose(W_2, scale[:, None] * M.T, atol=1e-3)


def test_nothing_is_learned_above_the_threshold():
    """By a jump: just below it every class has s = 1/2, just above it the optimiser finds nothing below Y = 0."""
    classes, λ_W = Classes.balanced(3, 4), jnp.asarray([0.05, 0.05])
    # Vanishing sizes go like the root of λ_H for two layers.
    critical = 0.01 * (4 / float(models.relu_features.threshold(classes, λ_W, 0.01))) ** 2
    below = models.relu_features.minimizer(classes, λ_W, 0.999 * critical)
    np.testing.assert_allclose(below.outputs, 0.5, atol=0.03)
    above = models.relu_features.minimizer(classes, λ_W, 2 * critical)
    for zero in (above.outputs, above.weight_norms, above.feature_norms):
        np.testing.assert_array_equal(zero, 0)
    np.testing.assert_allclose(above.value, 0.5, rtol=1e-12)
    start = jnp.zeros((4, 12)), jnp.zeros((4, 4)), jnp.zeros((3, 4))
    value, (_, _, W_2) = descend(objective(classes, 0.05, 0.05, 2 * critical), start, tries=2)
    np.testing.assert_allclose(value, 0.5, rtol=1e-8)
    assert float(jnp.abs(W_2).max()) < 1e-3
    with pytest.warns(UserWarning, match="nothing is learned"):
        models.relu_features(classes, λ_W, 2 * critical)


def test_relu_flow_is_the_gradient_of_its_objective():
    classes, λ_W, λ_H = Classes(sizes=(2, 3, 1)), jnp.asarray([0.02, 0.05]), 0.01
    flow = models.relu_features(classes, λ_W, λ_H)
    rng = np.random.default_rng(1)
    layers = tuple(jnp.asarray(rng.normal(size=s)) for s in ((5, 4), (3, 5)))
    start = DeepLastLayer(H=jnp.asarray(rng.normal(size=(4, 6))), layers=layers)
    slope = jax.grad(objective(classes, 0.02, 0.05, 0.01))((start.H, *layers))
    moved = flow(0.0, start)
    for velocity, gradient in zip((moved.H, *moved.layers), slope, strict=True):
        np.testing.assert_allclose(velocity, -gradient, rtol=1e-12)
    # Observed are the features behind the ReLU.
    first = flow.last_layer(start)
    np.testing.assert_allclose(first.H, np.maximum(layers[0] @ start.H, 0), rtol=1e-12)
    np.testing.assert_allclose(first.W, layers[1], rtol=1e-12)


@pytest.mark.usefixtures("as_users_call")
def test_other_depths_and_too_few_units_are_refused():
    classes = Classes.balanced(3, 2)
    with pytest.raises(ValueError, match=r"decay_W: expected shape \(2\), one decay for each of two weight layers"):
        models.relu_features.minimizer(classes, jnp.full(3, 0.01), 0.01)
    with pytest.raises(ValueError, match="widths: an orthogonal frame of C = 3 vectors needs as many dimensions"):
        models.relu_features.minimizer(classes, jnp.full(2, 0.01), 0.01, widths=(5, 2))
