"""What is sent to a device before anything is waited for: counted, since there may be no device to time."""

import jax
import numpy as np
import pytest

from ntkcollapse import _platforms
from ntkcollapse.data import Dataset
from ntkcollapse.networks import network
from ntkcollapse.ntk import NTKOperator, block_statistics, empirical, empirical_ntk, products
from ntkcollapse.ntk.engines import Layerwise, layerwise
from ntkcollapse.training import evaluation
from tests.ntk.zoo import normal
from tests.platforms import as_if

PARAMS = {"w": normal(0, 6, 5), "v": normal(1, 5, 3)}
X, LABELS = normal(2, 12, 6), np.arange(12) % 2


def two_layers(p, x):
    return jax.numpy.tanh(x @ p["w"]) @ p["v"]


def events(monkeypatch, module, *names):
    """The names of these functions of a module, in the order in which they are called."""
    called = []

    def counted(name, function):
        def call(*args, **options):
            called.append(name)
            return function(*args, **options)

        return call

    for name in names:
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return called


@pytest.mark.parametrize(("ahead", "order"), [(0, "srsrsr"), (2, "sssrrr")])
def test_results_are_fetched_behind(ahead, order, monkeypatch):
    as_if(monkeypatch, ahead=ahead)
    seen = []

    def sent():
        for n in range(3):
            seen.append("s")
            yield n

    for n, got in enumerate(_platforms.behind(sent())):
        seen.append("r")
        assert got == n
    assert "".join(seen) == order


def test_tiles_are_sent_before_the_first_is_fetched(monkeypatch):
    as_if(monkeypatch, at_once=0, ahead=2)
    called = events(monkeypatch, empirical, "check_finite")
    against = Layerwise.against
    monkeypatch.setattr(Layerwise, "against", lambda *args: called.append("sent") or against(*args))
    theta = empirical_ntk(two_layers, PARAMS, X, outputs="mean", memory=2e3)
    assert called[:4] == ["sent", "sent", "sent", "check_finite"]
    assert called.count("sent") == called.count("check_finite") > 5
    jacobian = jax.jacrev(lambda p: two_layers(p, X))(PARAMS)
    g = np.concatenate([np.asarray(leaf).reshape(12, 3, -1) for leaf in jax.tree.leaves(jacobian)], axis=2)
    np.testing.assert_allclose(theta, np.einsum("ikp,jkp->ij", g, g) / 3, rtol=1e-10)


def test_batches_are_not_waited_for_one_by_one(monkeypatch):
    def measured():
        called = events(monkeypatch, jax, "block_until_ready")
        sums = block_statistics(two_layers, PARAMS, X, LABELS, memory=4e3).output_pairs
        return sums, len(called)

    each, waits = measured()
    as_if(monkeypatch, ahead=2)
    ahead, fewer = measured()
    assert waits > 3
    assert fewer == -(-waits // 3)
    np.testing.assert_array_equal(each, ahead)


def test_layers_share_a_program(monkeypatch):
    called = events(monkeypatch, layerwise, "_add_products")
    each = block_statistics(two_layers, PARAMS, X, LABELS).output_pairs
    assert len(called) == 2
    as_if(monkeypatch, together=2**30)
    together = block_statistics(two_layers, PARAMS, X, LABELS).output_pairs
    assert len(called) == 3
    np.testing.assert_allclose(each, together, rtol=1e-12)


def test_one_wait_for_a_product(monkeypatch):
    theta = NTKOperator(two_layers, PARAMS, X, outputs="mean", memory=3e3)
    waits = events(monkeypatch, jax, "device_get")
    backward = events(monkeypatch, products, "_back")
    theta(np.ones(12))
    assert len(waits) == 1 < len(backward)


def test_evaluation_is_sent_ahead(monkeypatch):
    as_if(monkeypatch, ahead=2)
    monkeypatch.setattr(evaluation, "CHUNK", 3)
    net = network("mlp", 2, widths=(4,))
    data = Dataset.of(X.astype(np.float32), LABELS, name="x")
    variables = net.init(jax.random.key(0), data.inputs)
    waits, chunk = events(monkeypatch, jax, "device_get"), evaluation._chunk
    monkeypatch.setattr(evaluation, "_chunk", lambda *args: waits.append("sent") or chunk(*args))
    loss, _ = evaluation.evaluate(net, variables, data, "squared")
    assert waits == ["sent"] * 3 + ["device_get", "sent"] + ["device_get"] * 3
    outputs = np.asarray(net.outputs(variables.params, data.inputs, variables.batch_stats), float)
    assert loss == pytest.approx(np.square(outputs - np.eye(net.num_classes)[data.labels]).mean() / 2, rel=1e-5)
