"""A measured run together with its network at some of its records: what ladders are climbed from."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ntkcollapse.checkpoints import Checkpoints
from ntkcollapse.comparison.network_at import NetworkAt
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.data import Dataset, Splits
from ntkcollapse.data.dataset import as_splits
from ntkcollapse.networks import AbstractNetwork, Variables
from ntkcollapse.networks.kept import check_data, variables_from
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.trajectory import Trajectory


class MeasuredRun(NamedTuple):
    """A run measured on everything that its network is trained on, and the network itself at some of its records.

    trajectory: with optimiser steps, states H, W, b and a block kernel; networks: index of a record → the network at
    that moment.
    """

    trajectory: Trajectory
    networks: dict[int, NetworkAt]

    @classmethod
    def of(
        cls, trajectory: Trajectory, kept: Mapping[int, tuple[AbstractNetwork, Variables]], data: Dataset
    ) -> "MeasuredRun":
        """The run of a network on `data`, and what was kept on the way: optimiser step → network and its variables.

        What `training.train(..., keep_networks_at=steps)` returns is of this kind.

        Raises:
            ValueError: a network at a step that was not measured.
        """
        run = cls(trajectory, {})
        networks = {
            run.record(step): NetworkAt.of(network, variables, data) for step, (network, variables) in kept.items()
        }
        return run._replace(networks=networks)

    @classmethod
    def load(
        cls, path: str | os.PathLike, network: AbstractNetwork, data: Dataset | Splits | tuple[Any, Any]
    ) -> "MeasuredRun":
        """The run in a directory with the networks that were kept in it, of a network that only its own code can build.

        Args:
            path: of a run of `Recorder` or `train` with `keep_networks_at`.
            network: built again as it was, its weights do not matter.
            data: as they were, in any form that `Recorder` takes.
        Raises:
            FileNotFoundError: no run there.
            ValueError: it is of another network or of other data, or none was kept.
        """
        directory, data = RunDirectory(path), as_splits(data)[0].train
        trajectory, folder = Trajectory.load(path), Checkpoints(directory.networks, keep=None)
        if not folder.steps():
            raise ValueError(
                f"{path}: expected a run that kept its network at some steps, got one that kept none; record it with "
                "keep_networks_at=steps."
            )
        if trajectory.training_classes != data.classes:
            raise ValueError(
                f"data: expected the set that the run in {path} was trained on, of classes of "
                f"{trajectory.training_classes.sizes}, got {data.classes.sizes}."
            )
        kept, digests = {}, {"train": data.digest}
        for step in folder.steps():
            saved = folder.at(step)
            check_data(saved, digests, directory, "give the data as they were, in the same scale")
            kept[step] = (network, variables_from(saved, network, directory))
        return cls.of(trajectory, kept, data)

    @property
    def steps(self) -> list[int]:
        """The optimiser step of each record."""
        return [int(step) for step in np.asarray(self.trajectory["step"])]

    def record(self, step: int) -> int:
        """The index of the record at an optimiser step.

        Raises:
            ValueError: the run was not measured there.
        """
        steps = self.steps
        if step not in steps:
            some = ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
            raise ValueError(f"step: expected one that the run was measured at, among {some}; got {step}.")
        return steps.index(step)

    def at_steps(self, steps: Iterable[int]) -> "MeasuredRun":
        """The same run with the records at these steps alone.

        Raises:
            ValueError: the run was not measured at one of them.
        """
        kept = sorted(self.record(step) for step in set(steps))
        networks = {new: self.networks[old] for new, old in enumerate(kept) if old in self.networks}
        return MeasuredRun(self.trajectory.at_records(kept), networks)

    def start(self, step: int, *, homogeneity: float = 0.0) -> MeasuredStart:
        """The start of a prediction at an optimiser step that was measured; see `MeasuredStart`.

        Raises:
            ValueError: it was not measured; or as `MeasuredStart`.
        """
        return MeasuredStart(self.trajectory, self.record(step), self.networks, homogeneity=homogeneity)
