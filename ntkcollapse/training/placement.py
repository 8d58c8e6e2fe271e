"""Where the training set and the state of a run lie: data-parallel over the devices there are."""

import warnings
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ntkcollapse._platforms import shared_devices
from ntkcollapse.data import Dataset


class Placement(NamedTuple):
    """A training set on devices, and the shardings of what goes with it.

    Attributes:
        devices: those that share each batch.
        replicated: for what every device holds, the state.
        rows: for row indices of a batch, spread over the devices. rows_of_steps: for those of several, a row each.
        inputs, labels: the set, placed.
    """

    devices: list
    replicated: NamedSharding
    rows: NamedSharding
    rows_of_steps: NamedSharding
    inputs: Array
    labels: Array

    @classmethod
    def of(cls, train: Dataset, batch_size: int) -> "Placement":
        """On all devices where their number divides the batch (0: the whole set), else on the first.

        Raises:
            ValueError: it does not, and there are several processes, of which the others would have none.
        """
        devices = shared_devices()
        size = batch_size or train.classes.num_samples
        if size % len(devices):
            if jax.process_count() > 1:
                raise ValueError(
                    f"batch_size: expected a multiple of {len(devices)}, the devices of all processes, got {size}."
                )
            warnings.warn(
                f"batch_size: {len(devices)} devices do not divide {size} samples; the run uses one of them.",
                stacklevel=2,
            )
            devices = devices[:1]
        mesh = Mesh(np.asarray(devices), ("batch",))
        replicated, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))
        # A full batch is spread as it lies; smaller ones are gathered from a copy on every device.
        where = replicated if batch_size else rows
        of_steps = NamedSharding(mesh, PartitionSpec(None, "batch"))
        return cls(
            devices, replicated, rows, of_steps, *(jax.device_put(part, where) for part in (train.inputs, train.labels))
        )
