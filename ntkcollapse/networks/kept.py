"""Networks in checkpoints: their variables as named arrays, and back."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from ntkcollapse.checkpoints import Arrays, Checkpoint
from ntkcollapse.data import Dataset
from ntkcollapse.networks.abstract_network import AbstractNetwork, Variables


class KeptNetwork(NamedTuple):
    """A network at a step of its training, with the batch statistics that it was measured with."""

    network: AbstractNetwork
    variables: Variables


def network_notes(data: Dataset) -> dict[str, Any]:
    """What it takes to know a network again without its data."""
    return {"classes": data.classes.num_classes, "inputs": list(data.inputs.shape[1:])}


def check_data(saved: Checkpoint, digests: Mapping[str, str], where: str | os.PathLike, remedy: str) -> None:
    """Whether what was saved is of these data.

    Args:
        saved: with their digests among its notes; networks that were kept by earlier versions have none, and pass.
        digests: of the parts "train" and "test", or of one of them.
        where, remedy: for the message.
    Raises:
        ValueError: it is of others.
    """
    known = saved.notes.get("data", {})
    for part, said in (("train", "training"), ("test", "test")):
        if part in digests and part in known and known[part] != digests[part]:
            raise ValueError(
                f"data: the {said} set differs from the one that the run in {where} was started on; {remedy}."
            )


def variables_from(saved: Checkpoint, network: AbstractNetwork, where: str | os.PathLike) -> Variables:
    """The variables in a checkpoint.

    Raises:
        ValueError: they are those of another network.
    """
    inputs = jax.ShapeDtypeStruct((2, *saved.notes["network"]["inputs"]), np.float32)
    like = jax.eval_shape(network.init, jax.random.key(0), inputs)
    return from_arrays("variables", saved, like, where)


def as_arrays(name: str, tree: PyTree) -> tuple[Arrays, dict[str, str]]:
    """The leaves of a tree for a checkpoint, and the note of its structure."""
    leaves, structure = jax.tree.flatten(tree)
    return {f"{name}/{i:05d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}, {f"{name}_structure": str(structure)}


def from_arrays(name: str, saved: Checkpoint, like: PyTree, where: str | os.PathLike) -> Any:
    """The tree that `as_arrays` took apart; `like` has its structure and shapes.

    Raises:
        ValueError: what was saved is of another structure or other shapes.
    """
    expected, structure = jax.tree.flatten(like)
    leaves = [value for key, value in saved.arrays.items() if key.startswith(f"{name}/")]
    same = saved.notes[f"{name}_structure"] == str(structure)
    if not same or [leaf.shape for leaf in leaves] != [leaf.shape for leaf in expected]:
        raise ValueError(f"network: what was saved in {where} is of another network or optimiser.")
    return jax.tree.unflatten(structure, leaves)
