"""How weight decay pulls on features: Euler's identity for homogeneous ones, nothing behind batch normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import Classes
from ntkcollapse.commands.compare import _homogeneity, _start
from ntkcollapse.commands.settings import CompareConfig
from ntkcollapse.comparison import MeasuredRun, NetworkAt
from ntkcollapse.data import Dataset
from ntkcollapse.equation import Equation
from ntkcollapse.networks import mlp
from ntkcollapse.run_directory import RunDirectory
from tests.comparison import cases

CLASSES = Classes.balanced(num_classes=3, per_class=4)


def relu_layers(params, x):
    for U in params:
        x = jax.nn.relu(x @ U)
    return x


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_degree_of_relu_layers_without_biases_is_their_number(layers):
    keys = jax.random.split(jax.random.key(0), layers + 1)
    params = [jax.random.normal(key, (6, 6)) for key in keys[1:]]
    x = jax.random.normal(keys[0], (12, 6))
    p, share = NetworkAt(relu_layers, params, x, jnp.ones((3, 6)), jnp.zeros(3), CLASSES).degree()
    assert p == pytest.approx(layers, rel=1e-10)
    assert share == pytest.approx(0, abs=1e-10)


def test_biases_make_it_an_approximation_and_their_own_decay_is_none():
    """h = w x + v, of which w x alone decays: p = ⟨w x, h⟩/‖h‖²."""
    x = np.linspace(-1.0, 2.0, 12)[:, None]
    params = {"w": jnp.full((1, 1), 2.0), "v": jnp.full(1, 0.5)}
    network = NetworkAt(lambda p, x: x @ p["w"] + p["v"][None, :], params, x, jnp.ones((3, 1)), jnp.zeros(3), CLASSES)
    pull, h = 2 * x, 2 * x + 0.5
    p = float((pull * h).sum() / (h * h).sum())
    found, share = network.degree()
    assert found == pytest.approx(p)
    assert share == pytest.approx(float(np.linalg.norm(pull - p * h) / np.linalg.norm(pull)))


def test_batch_normalisation_leaves_no_pull():
    data = Dataset.of(np.random.default_rng(0).normal(size=(12, 5)), np.asarray(CLASSES.labels), name="noise")
    network = mlp((8, 6), 3, batch_norm=True, param_dtype=jnp.float64)
    variables = network.init(jax.random.key(1), data.inputs)
    p, _ = NetworkAt.of(network, variables, data).degree()
    # Blind to the scale of its weights, up to the 1e-5 that batch normalisation adds to variances.
    assert p == pytest.approx(0, abs=1e-3)


def test_compare_takes_the_degree_that_the_network_has():
    """Two ReLU layers without biases under a decay of λ: the theory decays its features at 2 λ, and says so."""
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.normal(size=shape)) for shape in ((5, 6), (6, 4))]
    network = NetworkAt(relu_layers, params, rng.normal(size=(12, 5)), rng.normal(size=(3, 4)), np.zeros(3), CLASSES)
    run = cases.run_of([network.last_layer] * 2, np.array([0.0, 1.0]), classes=CLASSES)
    run = run.replaced(
        observables=run.observables | {"step": np.array([0, 7])},
        equation=Equation(producer="network", weight_decay={"W": 0.5}),
    )
    measured = MeasuredRun(run, {0: network})
    p, said = _homogeneity(CompareConfig(), measured, 0, None)
    assert p == pytest.approx(2, rel=1e-10)
    assert said == "features decay at 2 λ, the pull of the decay on them to 100%"
    decay = _start(measured, 0, None, RunDirectory("unused"), p).flow_options["weight_decay"]
    assert decay == pytest.approx({"H": 1.0, "W": 0.5})
    # A degree that is named, and a network that is not known.
    assert _homogeneity(CompareConfig(homogeneity=3.0), measured, 0, None)[0] == 3.0
    assert _homogeneity(CompareConfig(), measured, 7, None)[0] == 0.0
