"""A last layer fixed to a simplex, budgets of features and weights, and dot regression, in training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntkcollapse import ntk
from ntkcollapse.losses import DotRegression
from ntkcollapse.networks import Variables, mlp
from ntkcollapse.training import Stepper, TrainConfig, batch_loss, optimizer, train

X = np.random.default_rng(0).normal(size=(7, 5))
LABELS = np.array([0, 1, 2, 2, 1, 0, 0])


def network(**parts):
    return dataclasses.replace(mlp((6, 4), 3, param_dtype=jnp.float64, activation="tanh"), **parts)


def test_the_last_layer_is_a_simplex_and_stays_one():
    net = network(classifier="simplex-etf", weight_budget=2.0)
    start = net.init(jax.random.key(0), X)
    W, _ = net.head(start.params)
    np.testing.assert_allclose(W @ W.T, 2 * (1.5 * np.eye(3) - 0.5), atol=1e-13)
    # Decay in the loss, and an optimiser that brings a decoupled one besides: neither moves it.
    stepper = Stepper(net, optimizer("adamw", options=(("weight_decay", 0.1),)), weight_decay=0.1)
    state, record = stepper(stepper.start(start), jnp.asarray(X), jnp.asarray(LABELS))
    moved = state.variables.params
    assert np.array_equal(net.head(moved)[0], W)
    assert not np.array_equal(moved["trunk"]["linear_1"]["kernel"], start.params["trunk"]["linear_1"]["kernel"])

    # The gradient is that of the trunk and the bias alone.
    def objective(trunk, bias):
        params = {"trunk": trunk, "last_layer": {"kernel": W.T, "bias": bias}}
        R = net.features(params, X) @ W.T + bias[None] - jax.nn.one_hot(LABELS, 3)
        kernels = sum(jnp.sum(layer["kernel"] ** 2) for layer in trunk.values())
        return jnp.sum(R**2) / (2 * 7 * 3) + 0.05 * kernels

    gradients = jax.grad(objective, argnums=(0, 1))(start.params["trunk"], start.params["last_layer"]["bias"])
    np.testing.assert_allclose(record.gradient_norm, optax.tree.norm(gradients), rtol=1e-12)
    with pytest.raises(ValueError, match="a simplex ETF of C = 3 vectors needs at least C - 1 = 2"):
        dataclasses.replace(mlp((1,), 3), classifier="simplex-etf").init(jax.random.key(0), X)


def test_the_output_kernel_is_that_of_what_moves():
    """Θ = w_c Θ^h w_cᵀ + 1 (the bias), mean over outputs: without the features' own Gram matrix."""
    net = network(classifier="simplex-etf")
    variables = net.init(jax.random.key(0), X)
    features, outputs = net.evaluation({})
    J = jax.jacrev(lambda p: features(p, X))(variables.params)
    flat = np.concatenate([np.asarray(leaf).reshape(7, 4, -1) for leaf in jax.tree.leaves(J["trunk"])], axis=2)
    W = np.asarray(net.head(variables.params)[0])
    rows = np.einsum("cn,inp->icp", W, flat)
    expected = np.einsum("icp,jcp->ij", rows, rows) / 3 + 1
    for engine in ("layerwise", "jacobian"):
        theta = ntk.empirical_ntk(outputs, variables.params, X, outputs="mean", engine=engine)
        np.testing.assert_allclose(theta, expected, rtol=1e-10, atol=1e-12)
    # Nor do derivatives reach it in training mode, whoever takes them.
    slope = jax.grad(lambda params: net.training_outputs(Variables(params, {}), jnp.asarray(X))[0].sum())(
        variables.params
    )
    assert not np.any(slope["last_layer"]["kernel"])
    assert np.any(slope["trunk"]["linear_0"]["kernel"])


def test_budgets():
    plain, net = network(), network(feature_budget=0.81, weight_budget=0.04)
    params = plain.init(jax.random.key(0), X).params
    rows, held = np.asarray(plain.features(params, X)), np.asarray(net.features(params, X))
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths.min() < 0.9 < lengths.max()
    np.testing.assert_allclose(held, rows * np.minimum(1, 0.9 / lengths)[:, None], rtol=1e-12)
    np.testing.assert_allclose(net.training_features(params, X), held, rtol=1e-12)
    layer = params["last_layer"]
    np.testing.assert_allclose(net.outputs(params, X), held @ layer["kernel"] + layer["bias"][None], rtol=1e-12)
    # At 0, where lengths have no derivative.
    assert np.isfinite(jax.grad(lambda p: net.features(p, 0 * X).sum())(params)["trunk"]["linear_0"]["kernel"]).all()
    # W begins in its budget and is back in it after a step that would leave it.
    start = net.init(jax.random.key(0), X)
    np.testing.assert_allclose(np.sum(net.head(start.params)[0] ** 2), 3 * 0.04, rtol=1e-12)
    stepper = Stepper(net, optax.sgd(10.0))
    state, _ = stepper(stepper.start(Variables(start.params, {})), jnp.asarray(X), jnp.asarray(LABELS))
    np.testing.assert_allclose(np.sum(net.head(state.variables.params)[0] ** 2), 3 * 0.04, rtol=1e-12)


def test_dot_regression():
    f, Y = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3))), jnp.eye(3)[jnp.array([0, 2, 1, 1])]
    right = np.asarray(f)[np.arange(4), [0, 2, 1, 1]]
    np.testing.assert_allclose(batch_loss("dot-regression", f, Y), np.mean((right - 1) ** 2) / 2, rtol=1e-13)
    loss = DotRegression(target=2.0, scale=0.3)
    np.testing.assert_allclose(loss.gradient(f.T, Y.T), jax.grad(loss.value)(f.T, Y.T), rtol=1e-12)


SMALL = TrainConfig(
    network="mlp", network_options=("widths=(6,)", "activation=tanh"), dataset="orthogonal",
    dataset_options=("classes=3", "dimension=15"), per_class=4, test_per_class=1, epochs=100, batch_size=0,
    learning_rate=2.0, decay_every=0, measure=("train", "last-layer"), measure_log=2, probe_per_class=0,
    weight_decay=0.0, bias=False,
)  # fmt: skip


def test_a_run_under_dot_regression_goes_to_the_vertices():
    config = dataclasses.replace(SMALL, last_layer="simplex-etf", feature_budget=1.0, loss="dot-regression")
    run = train(config)
    assert np.array_equal(run.states.W[0], run.states.W[-1])
    assert run["train_accuracy"][-1] == 1
    # Where features end is √E_H w_y: after a hundred steps they are on their way.
    towards = np.einsum("tcn,tnc->tc", run.states.W, np.stack([run.classes.means(H) for H in run.states.H])).mean(1)
    assert towards[-1] > 0.9 > towards[0]
    assert not run.equation.plain
    assert "last layer is fixed" in run.equation.without_clock


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"last_layer": "etf"}, "last_layer: expected one of 'trained', 'simplex-etf'"),
        ({"last_layer": "simplex-etf", "last_layer_scale": 2.0}, "last_layer_scale: expected 1 with simplex-etf"),
        ({"loss": "dot-regression", "feature_budget": 1.0}, "expected last_layer 'simplex-etf' and bias=False"),
        ({"loss": "dot-regression", "last_layer": "simplex-etf", "bias": True, "feature_budget": 1.0}, "bias=True"),
        ({"loss": "dot-regression", "last_layer": "simplex-etf"}, "feature_budget: expected 1 / weight_budget"),
        (
            {"loss": "dot-regression", "last_layer": "simplex-etf", "feature_budget": 1.0, "weight_budget": 4.0},
            "Take feature_budget 0.25",
        ),
        ({"feature_budget": 0.0}, "feature_budget: expected numbers above zero"),
        ({"weight_budget": -1.0}, "weight_budget: expected numbers above zero"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)
