"""What a training run left in its directory: settings, status, its newest variables, the networks it kept."""

import dataclasses
import os
from typing import Any

from ntkcollapse.checkpoints import Checkpoints
from ntkcollapse.data import Splits
from ntkcollapse.networks import AbstractNetwork, Variables
from ntkcollapse.networks.kept import KeptNetwork, check_data, variables_from
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training.config import TrainConfig
from ntkcollapse.training.plan import FREE


def saved_config(path: str | os.PathLike) -> TrainConfig:
    """The settings that a run was started with.

    Raises:
        ValueError: no run there, or its settings were cut.
    """
    return RunDirectory(path).read_settings(TrainConfig)


def read_status(path: str | os.PathLike) -> dict[str, Any]:
    """How far a run has come and how it stands, see `RunDirectory.read_status`."""
    return RunDirectory(path).read_status()


def saved_variables(
    config: TrainConfig, out: str | os.PathLike, *, splits: Splits | None = None, network: AbstractNetwork | None = None
) -> tuple[AbstractNetwork, Variables, int]:
    """The network of a run, its variables in the newest checkpoint, and the step they are of.

    Args:
        config: the settings of the run.
        out: its directory.
        splits: data that the run should have been trained on; not compared without them.
        network: the one that was given to `train` in place of what the settings name.
    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: it is of other data or another network.
    """
    saved = Checkpoints(RunDirectory(out).checkpoints).newest()
    if saved is None:
        raise FileNotFoundError(f"{out}: no checkpoint here.")
    if splits is not None:
        digests = {name: part.digest for name, part in splits._asdict().items()}
        check_data(saved, digests, out, "give the same data")
    network = config.build_network(saved.notes["network"]["classes"]) if network is None else network
    return network, variables_from(saved, network, out), saved.step


def saved_networks(
    config: TrainConfig, out: str | os.PathLike, *, network: AbstractNetwork | None = None
) -> dict[int, KeptNetwork]:
    """The networks that `train` kept in a run's directory (``keep_networks_at``), by step; {} where it kept none.

    Args:
        config, out, network: as for `saved_variables`.
    Raises:
        ValueError: one of them is damaged, or of another network.
    """
    kept, folder = {}, Checkpoints(RunDirectory(out).networks, keep=None)
    for step in folder.steps():
        saved = folder.at(step)
        known = config.build_network(saved.notes["network"]["classes"]) if network is None else network
        kept[step] = KeptNetwork(known, variables_from(saved, known, out))
    return kept


def check_settings(config: TrainConfig, directory: RunDirectory) -> None:
    """Whether the run in a directory, if there is one, can go on with these settings, or has ended with them.

    Raises:
        ValueError: it was started with other settings, the first of which is named, or has ended further on.
    """
    if not directory.settings.exists():
        return
    there = saved_config(directory)
    for field in dataclasses.fields(TrainConfig):
        old, new = getattr(there, field.name), getattr(config, field.name)
        if old != new and field.name not in FREE:
            raise ValueError(
                f"{field.name}: expected {old!r} as the run in {directory} was started with, got {new!r}; "
                "resume with the same settings, or start another run."
            )
    if config.epochs < there.epochs and read_status(directory).get("outcome") == "finished":
        raise ValueError(
            f"epochs: expected at least the {there.epochs} that the run in {directory} has finished, got "
            f"{config.epochs}; start another run."
        )
