"""What models say of trained networks: identities, quasi-interpolation, local elasticity."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from ntkcollapse import Classes, LastLayer
from ntkcollapse.simulation import simulate
from ntkcollapse.theory import models
from tests.cases import random_state
from tests.theory.model_cases import simplex


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
    end = simulate(
        random_state(5, classes), flow, classes, np.array([0.0, 8000.0]), columns=False, observed=False
    ).last_layer(-1)
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
