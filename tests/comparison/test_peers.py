"""Rung 5 against neural-tangents: its `linearize`, and its closed form for gradient flow on the mean squared error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import ntk
from ntkcollapse.comparison import MeasuredStart, NetworkLinearised, Parameters
from ntkcollapse.comparison.rungs.network_linearised import network_linearised
from ntkcollapse.ntk._neural_tangents import neural_tangents
from tests.comparison import cases
from tests.comparison.cases import CLASSES, TIMES


@pytest.fixture(scope="module")
def nt():
    try:
        return neural_tangents()
    except ImportError as error:
        pytest.skip(str(error))


def test_linearised_network_is_that_of_linearize(nt):
    network = cases.tanh_network()
    p0 = Parameters.of(network)
    keys = iter(jax.random.split(jax.random.key(0), 10))
    p = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), p0)
    peer = nt.linearize(lambda p, x: network.outputs(tuple(p), x), tuple(p0))
    _, logits = NetworkLinearised(network)(p)
    np.testing.assert_allclose(logits, peer(tuple(p), network.inputs).T, rtol=1e-12, atol=1e-12)


def test_rung_5_is_gradient_descent_mse(nt):
    network = cases.tanh_network()
    run = cases.run_of([network.last_layer] * 4, TIMES)
    course = network_linearised(MeasuredStart(run, 0, {0: network}), jnp.asarray(TIMES), method="eigen")
    theta = ntk.empirical_ntk(network.outputs, (network.params, network.W, network.b), network.inputs)
    predictor = nt.predict.gradient_descent_mse(theta, CLASSES.Y.T, trace_axes=())
    f0 = network.last_layer.logits.T
    # Its loss is a mean over samples and outputs, so its time is ours times N C.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        peer = [predictor(float(t) * f0.size, f0) for t in TIMES]
    assert course.logits is not None
    for f, expected in zip(course.logits, peer, strict=True):
        np.testing.assert_allclose(f, jnp.asarray(expected).T, atol=1e-8)
