"""Checkpoints: whole or not at all, checked when they are read, the one before kept until the new one stands."""

import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

from ntkcollapse.training.errors import CheckpointError

_NAME = re.compile(r"step_(\d+)$")
Arrays = dict[str, np.ndarray]


class Checkpoint(NamedTuple):
    """What was saved at a step: named arrays, and anything else that JSON can hold."""

    step: int
    arrays: Arrays
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, in a directory of their own; the newest `keep` stay.

    Written by orbax beside their final name and then renamed, so that a checkpoint is there in whole or not at all,
    whatever kills the process. Each holds the SHA-256 of every array: one that was damaged later is recognised when it
    is read, named in a warning, and the one before it is used.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        self.directory = Path(directory).absolute()
        self.keep = keep
        self._orbax = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(arrays=ocp.StandardCheckpointHandler(), notes=ocp.JsonCheckpointHandler())
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, in increasing order."""
        if not self.directory.is_dir():
            return []
        return sorted(int(m[1]) for p in self.directory.iterdir() if (m := _NAME.fullmatch(p.name)))

    def save(self, step: int, arrays: Arrays, notes: dict[str, Any]) -> Path:
        """Adds a checkpoint, or replaces that of the same step, then drops the oldest others.

        Raises:
            CheckpointError: it could not be written (a full disk, say); those before it are untouched.
        """
        path = self._path(step)
        arrays = {name: np.asarray(value) for name, value in arrays.items()}
        # By name: numpy's own short form of bfloat16 says two bytes of anything.
        written = {name: [v.dtype.name, list(v.shape), _digest(v)] for name, v in arrays.items()}
        notes = {"step": step, "notes": notes, "written": written}
        args = ocp.args.Composite(
            # Orbax stores no empty arrays; their shapes say all there is of them.
            arrays=ocp.args.StandardSave({n: v for n, v in arrays.items() if v.size}),  # pyright: ignore[reportCallIssue]
            notes=ocp.args.JsonSave({**notes, "digest": _text_digest(notes)}),  # pyright: ignore[reportCallIssue]
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._orbax.save(path, args=args, force=True)
        except Exception as error:
            self.clean()
            raise CheckpointError(
                f"{path}: could not be written ({_first_line(error)}). "
                f"Earlier checkpoints ({self.steps() or 'none'}) are untouched: free some space and resume."
            ) from error
        others = [other for other in self.steps() if other != step]
        for old in others[: len(others) - self.keep + 1]:
            shutil.rmtree(self._path(old), ignore_errors=True)
        return path

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read and is what was written; None where there is none at all.

        Warns:
            UserWarning: names each damaged one on the way.
        Raises:
            CheckpointError: there are checkpoints, all of them damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                return self._read(step)
            # Whatever a parser says of damaged bytes, the answer is the checkpoint before.
            except Exception as error:
                damaged.append(f"{self._path(step)} ({_first_line(error)})")
                warnings.warn(f"damaged checkpoint {damaged[-1]}: the one before it is used.", stacklevel=2)
        if damaged:
            raise CheckpointError("no checkpoint can be read: " + "; ".join(damaged))
        return None

    def clean(self) -> None:
        """Removes what interrupted writes left behind."""
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if not _NAME.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: damaged ones, where `newest` gave that of this step."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self._path(later))

    def _path(self, step: int) -> Path:
        return self.directory / f"step_{step}"

    def _read(self, step: int) -> Checkpoint:
        path = self._path(step)
        notes = self._orbax.restore(path, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))["notes"]
        digest = notes.pop("digest")
        if _text_digest(notes) != digest or notes["step"] != step:
            raise ValueError("its notes are not what was written")
        written = notes["written"]
        arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape, _) in written.items()}
        templates = {name: value for name, value in arrays.items() if value.size}
        restore = ocp.args.StandardRestore(templates)  # pyright: ignore[reportCallIssue]
        arrays |= self._orbax.restore(path, args=ocp.args.Composite(arrays=restore))["arrays"]
        for name, (_, _, digest) in written.items():
            if _digest(arrays[name]) != digest:
                raise ValueError(f"its array {name} is not what was written")
        return Checkpoint(step, arrays, notes["notes"])


def _digest(value: np.ndarray) -> str:
    value = np.ascontiguousarray(value)
    return hashlib.sha256(f"{value.dtype.str} {value.shape}".encode() + value.tobytes()).hexdigest()


def _text_digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
