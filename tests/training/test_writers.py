"""The numbers of a recorder in the files of TensorBoard and Weights & Biases, read back by their own readers.

Skipped where they are not installed, as in the ordinary environment; `.ci/frameworks` has them.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import ntkcollapse as nc
from tests.training.test_recorder import DATA, network_of_functions

pytestmark = pytest.mark.filterwarnings("ignore")


def recorded(writer):
    network, params = network_of_functions()
    recorder = nc.Recorder(network, DATA, measure=("train",), writers=(writer,))
    for step in (0, 3):
        recorder(step, params, batch_loss=jnp.asarray(0.5 + step))
    return recorder.trajectory


def test_tensorboard(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tensorboard.SummaryWriter(tmp_path) as board:
        run = recorded(board)
    events = reader.EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train_loss", "train_accuracy", "batch_loss", "seconds"}
    for name in ("train_loss", "batch_loss"):
        # Its files are in single precision.
        np.testing.assert_allclose([event.value for event in events.Scalars(name)], run[name], rtol=1e-6)
        assert [event.step for event in events.Scalars(name)] == [0, 3]


def test_weights_and_biases(tmp_path):
    wandb = pytest.importorskip("wandb")
    with wandb.init(mode="offline", dir=tmp_path, project="ntkcollapse") as board:
        run = recorded(board)
        # A step is committed when the next one comes.
        summary = dict(board.summary)
    assert summary["batch_loss"] == 0.5
    np.testing.assert_allclose(summary["train_loss"], run["train_loss"][0], rtol=1e-6)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
