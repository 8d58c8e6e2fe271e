"""Runs that are made again to be compared: what they are measured with."""

import jax
import jax.numpy as jnp
import numpy as np

from ntkcollapse.commands.network_runs import train_measured
from ntkcollapse.training import TrainConfig


def test_batch_normalisation_is_measured_with_the_whole_set_as_one_batch():
    options = ("widths=(8, 10)", "batch_norm=True")
    config = TrainConfig(network="mlp", network_options=options, dataset="digits", per_class=4, batch_size=10, epochs=1)
    # Kept in float64 beside a module that says float32: the command has jax's own promotion.
    with jax.numpy_dtype_promotion("standard"):
        run = train_measured(config, at=(0, 2), networks_at=(0,)).trajectory
    data, network = config.build_splits().train, config.build_network(10)
    # What training would see of all samples at once, from the initial weights.
    outputs, _ = network.training_outputs(network.init(jax.random.key(0), data.inputs), jnp.asarray(data.inputs))
    expected = 0.5 * np.sum((np.asarray(outputs) - np.eye(10)[data.labels]) ** 2)
    # The network is in float32. Means over the run's batches of ten give another loss, by percents.
    np.testing.assert_allclose(run["loss"][0], expected, rtol=1e-5)
