"""Where the training set and the state of a run lie: data-parallel over the devices there are."""

import warnings
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ntkcollapse.data import Dataset


class Placement(NamedTuple):
    """A training set on devices, and the shardings of what goes with it.

    Attributes:
        devices: those that share each batch.
        replicated: for what every device holds, the state.
        rows: for row indices of a batch, spread over the devices.
        inputs, labels: the set, placed.
    """

    devices: list
    replicated: NamedSharding
    rows: NamedSharding
    inputs: Array
    labels: Array

    @classmethod
    def of(cls, train: Dataset, batch_size: int) -> "Placement":
        """On all devices where their number divides the batch (0: the whole set), else on the first."""
        devices = jax.devices()
        size = batch_size or train.classes.num_samples
        if size % len(devices):
            warnings.warn(
                f"batch_size: {len(devices)} devices do not divide {size} samples; the run uses one of them.",
                stacklevel=2,
            )
            devices = devices[:1]
        mesh = Mesh(np.asarray(devices), ("batch",))
        replicated, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))
        # A full batch is spread as it lies; smaller ones are gathered from a copy on every device.
        where = replicated if batch_size else rows
        return cls(devices, replicated, rows, *(jax.device_put(part, where) for part in (train.inputs, train.labels)))
