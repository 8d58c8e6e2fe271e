"""Networks of other makes in this package's own loop and recorder: dropout, batch statistics, checkpoints."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntkcollapse as nc
from ntkcollapse import networks
from ntkcollapse.data import Splits, gaussian_mixture
from ntkcollapse.training import TrainConfig, saved_networks, train
from tests.networks.own_networks import NNXPerceptron
from tests.training.test_recorder import Linen

DATA = gaussian_mixture(nc.Classes.balanced(3, 4), 5, seed=0)
CONFIG = TrainConfig(
    epochs=4, batch_size=6, learning_rate=0.5, decay_every=0, measure=("train",), measure_log=0, measure_every=1,
    probe_per_class=2, checkpoint_seconds=0.0,
)  # fmt: skip


class Stop(Exception):
    pass


def dropping():
    return networks.of(NNXPerceptron(nnx.Rngs(0), jnp.float32), DATA)


def drawn():
    """Without weights of its own: they are drawn by the seed of the run."""
    return networks.of(Linen(), DATA)


@pytest.mark.parametrize("make", [dropping, drawn])
def test_a_resumed_run_ends_in_the_same_bits(make, tmp_path):
    def stop(step):
        if step == 5:
            raise Stop

    whole, kept = train(CONFIG, splits=Splits(DATA, DATA), network=make(), keep_networks_at=(2, 8))
    options: dict[str, Any] = dict(splits=Splits(DATA, DATA), network=make(), keep_networks_at=(2, 8))
    with pytest.raises(Stop):
        train(CONFIG, tmp_path / "run", on_step=stop, **options)
    again, _ = train(CONFIG, tmp_path / "run", resume=True, **options | {"network": make()})
    for name in ("train_loss", "train_accuracy"):
        np.testing.assert_array_equal(again[name], whole[name])
    saved = saved_networks(CONFIG, tmp_path / "run", network=make())
    for step in (2, 8):
        for mine, theirs in zip(
            jax.tree.leaves(saved[step].variables), jax.tree.leaves(kept[step].variables), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
    assert float(whole["train_loss"][-1]) < float(whole["train_loss"][0])
    # Four epochs of two batches; dropout draws at each step.
    counts = [
        leaf for leaf in jax.tree.leaves(kept[8].variables.batch_stats) if leaf.dtype == np.uint32 and leaf.ndim == 0
    ]
    assert [int(count) for count in counts] == ([8] if make is dropping else [])


def test_weights_of_ones_own_are_where_training_starts():
    model = NNXPerceptron(nnx.Rngs(3), jnp.float32)
    _, kept = train(CONFIG, splits=Splits(DATA, DATA), network=networks.of(model, DATA), keep_networks_at=(0,))
    np.testing.assert_array_equal(kept[0].variables.params["head/kernel"], model.head.kernel[...])
    # And where there are none, they are those of the key.
    network = drawn()
    first, again, other = (network.init(jax.random.key(seed), DATA.inputs).params for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["Dense_0"]["kernel"], again["Dense_0"]["kernel"])
    assert np.abs(first["Dense_0"]["kernel"] - other["Dense_0"]["kernel"]).max() > 0.1


def test_the_recorder_takes_networks_of_this_package():
    network = networks.mlp((4, 4), 3, batch_norm=True)
    variables = network.init(jax.random.key(0), DATA.inputs)
    recorder = nc.Recorder(network, Splits(DATA, DATA), measure=("train", "test", "layers"))
    recorder(0, variables)
    recorder(1, *variables)
    run = recorder.trajectory
    for name, value in run.observables.items():
        if name not in ("step", "epoch", "seconds"):
            np.testing.assert_array_equal(value[0], value[1], err_msg=name)
    assert run.names["layers"][-1] == "output"
