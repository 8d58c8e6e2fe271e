"""A run with its networks: records by optimiser step, and starts from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse.comparison import MeasuredRun
from ntkcollapse.data import Dataset
from ntkcollapse.networks import mlp
from tests.comparison import cases
from tests.comparison.cases import CLASSES

TIMES = np.array([0.0, 0.1, 0.2, 0.4])
STEPS = [0, 5, 10, 20]


def test_records_and_networks_are_found_by_their_step():
    data = Dataset.of(np.random.default_rng(3).normal(size=(12, 5)), np.asarray(CLASSES.labels), name="noise")
    net = mlp((8, 4), 3, param_dtype=jnp.float64)
    kept = {step: (net, net.init(jax.random.key(step), data.inputs)) for step in (5, 20)}
    layers = [net.last_layer(kept.get(step, kept[5])[1], data.inputs, data.labels)[0] for step in STEPS]
    trajectory = cases.run_of(layers, TIMES)
    trajectory = trajectory.replaced(observables=trajectory.observables | {"step": np.array(STEPS)})
    run = MeasuredRun.of(trajectory, kept, data)
    assert run.steps == STEPS
    assert sorted(run.networks) == [1, 3]
    assert run.networks[3].num_params == sum(x.size for x in jax.tree.leaves(kept[20][1].params))
    some = run.at_steps({20, 5})
    assert some.steps == [5, 20]
    assert some.networks == {0: run.networks[1], 1: run.networks[3]}
    start = some.start(5, homogeneity=2.0)
    assert (start.index, start.homogeneity) == (0, 2.0)
    np.testing.assert_array_equal(start.times, [0.1, 0.4])
    # The network that is kept there is the one that was measured: `MeasuredStart` refuses others.
    assert start.network is run.networks[1]
    with pytest.raises(ValueError, match="step: expected one that the run was measured at, among 0, 5, 10, 20; got 7"):
        run.start(7)
    with pytest.raises(ValueError, match="logits differ"):
        MeasuredRun.of(trajectory, {0: kept[20]}, data).start(0)
