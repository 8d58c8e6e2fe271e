"""A run small enough for tests: 240 digits, 40 steps of an MLP with batch normalisation."""

import dataclasses
from typing import Any

from ntkcollapse.networks import Network, ResNetTrunk
from ntkcollapse.training import TrainConfig, train
from ntkcollapse.trajectory import Trajectory

SMALL = TrainConfig(
    network="mlp",
    network_options=("widths=(8, 10)", "batch_norm=True"),
    dataset="digits",
    per_class=24,
    test_per_class=3,
    epochs=5,
    batch_size=30,
    learning_rate=0.5,
    decay_every=2,
    probe_per_class=2,
    measure=("batch", "train", "test"),
    measure_every=1,
    measure_log=0,
    checkpoint_seconds=1000.0,
)


def small(**changes: Any) -> TrainConfig:
    return dataclasses.replace(SMALL, **changes)


def convolutional() -> Trajectory:
    """Six steps of a residual network of eight channels, in batches of 80."""
    network = Network(ResNetTrunk(1, widths=(4, 8)), 10)
    return train(small(batch_size=80, epochs=2, learning_rate=0.1, measure_steps=(1, 2)), network=network)
