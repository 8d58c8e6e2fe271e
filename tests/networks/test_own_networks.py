"""Networks of other makes: the parts that are read of them, and their kernels, against dense references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse.classes import Classes
from ntkcollapse.comparison import NetworkAt
from ntkcollapse.data import Batches, Dataset
from ntkcollapse.networks import Variables
from ntkcollapse.observables import observe
from ntkcollapse.training import recomputed_statistics
from tests.networks.own_networks import LABELS, cases

CASES = cases()


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]()


@pytest.fixture(scope="module")
def variables(case):
    params, state = case.network.init(jax.random.key(3), case.x)
    # flax keeps running averages in float32, and would compute with them so.
    double = lambda leaf: leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf  # noqa: E731
    return Variables(params, jax.tree.map(double, state))


@pytest.fixture(scope="module")
def parts(case, variables):
    """Features and outputs on all inputs."""
    network = case.network

    @jax.jit
    def both(variables, x):
        params, state = variables
        return network.features(params, x, state), network.outputs(params, x, state)

    return both(variables, case.x)


def test_outputs_are_the_last_layer_of_the_features(case, variables, parts):
    h, f = parts
    W, b = case.network.head(variables.params)
    assert h.shape == (len(LABELS), W.shape[1])
    assert h.dtype == f.dtype == jnp.float64
    # Sums of six products in float64.
    np.testing.assert_allclose(f, h @ W.T + (0 if b is None else b[None, :]), rtol=1e-12, atol=1e-14)


def test_features_are_those_of_the_twin(case, variables, parts):
    if case.twin is None:
        pytest.skip("written out in its framework only")
    with jax.numpy_rank_promotion("allow"):
        expected = case.twin(variables.params, case.x)
    for found, wanted in zip(parts, expected, strict=True):
        # Rounding of numbers of size 1 in float64.
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)


def test_layers_see_what_they_read(case, variables, parts):
    """The first sees the inputs, or an embedding of them, the last one the features; then comes the output."""
    seen = case.network.activations(variables)(case.x)
    *layers, last, output = seen
    assert output == "output"
    assert last == case.network.own.known.weight.removesuffix("/kernel").removesuffix("/weight").removesuffix("/w")
    for name, expected in ((last, parts[0]), (output, parts[1])):
        np.testing.assert_allclose(seen[name], expected, rtol=1e-11, atol=1e-12)
    if case.twin is not None and layers:
        np.testing.assert_array_equal(seen[layers[0]], case.x)


def test_kernels_and_metrics_against_the_dense_jacobian(case, variables, parts):
    network, (h, f) = case.network, parts
    jacobians = jax.jit(lambda params, state: tuple(jax.jacrev(g)(params, case.x) for g in network.evaluation(state)))(
        *variables
    )
    data = Dataset.of(case.x, LABELS, name="zoo")
    at = NetworkAt.of(network, variables, data.replace(case.x))
    for jacobian, found in zip(jacobians, (at.feature_kernel(), at.output_kernel()), strict=True):
        N, K = len(LABELS), found.shape[-1]
        J = np.concatenate([np.asarray(leaf).reshape(N, K, -1) for leaf in jax.tree.leaves(jacobian)], axis=2)
        dense = np.einsum("ikp,jlp->ijkl", J, J)
        # Sums over parameters in float64, in another order.
        np.testing.assert_allclose(found, dense, rtol=1e-9, atol=1e-11 * np.abs(dense).max())
    state, classes = network.last_layer(variables, case.x, LABELS)
    Y = np.eye(3)[LABELS].T
    assert classes == Classes.balanced(3, 4)
    assert float(observe(state, classes)["loss"]) == pytest.approx(0.5 * np.sum((np.asarray(f).T - Y) ** 2), rel=1e-10)
    means = np.asarray(h).reshape(3, 4, -1).mean(1)
    within = sum(np.sum((np.asarray(h)[LABELS == c] - means[c]) ** 2) for c in range(3)) / 12
    between = np.sum((means - means.mean(0)) ** 2) / 3
    assert float(observe(state, classes)["nc1_tirer2022"]) == pytest.approx(within / between, rel=1e-9)
    np.testing.assert_allclose(at.last_layer.H, np.asarray(h).T, rtol=1e-9, atol=1e-12)


def test_training_mode_moves_the_state_and_couples_samples(case, variables, parts):
    network = case.network
    if not network.couples(variables):
        assert not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(variables.batch_stats))
        return
    outputs, moved = jax.jit(network.training_outputs)(variables, case.x)
    again, _ = jax.jit(network.training_outputs)(variables._replace(batch_stats=moved), case.x)
    assert jax.tree.structure(moved) == jax.tree.structure(variables.batch_stats)
    assert [leaf.dtype for leaf in jax.tree.leaves(moved)] == [a.dtype for a in jax.tree.leaves(variables.batch_stats)]
    assert np.abs(outputs - parts[1]).max() > 1e-3
    # Dropout draws anew at every pass: of the zoo with batch normalisation, those of modules have one.
    assert (np.abs(outputs - again).max() > 1e-3) == (network.framework not in ("functions", "Haiku"))


def test_recomputed_statistics_make_evaluation_what_training_sees(case, variables):
    network = case.network
    if not network.couples(variables):
        pytest.skip("no batch normalisation")
    data = Dataset.of(case.x, LABELS, name="zoo")
    whole = recomputed_statistics(network, variables, data, Batches(data.classes, None, 0))
    features = jax.jit(network.training_features)
    coupled = features(whole.params, data.inputs, whole.batch_stats)
    # What training sees is of the batch: averages do not matter to it.
    np.testing.assert_allclose(features(whole.params, data.inputs, variables.batch_stats), coupled, rtol=1e-9)
    evaluated = jax.jit(network.features)(whole.params, data.inputs, whole.batch_stats)
    # The inputs of a set are in float32; statistics follow from differences of averages, which cost some digits.
    np.testing.assert_allclose(evaluated, coupled, rtol=1e-6, atol=1e-7)
