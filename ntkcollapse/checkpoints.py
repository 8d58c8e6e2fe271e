"""Checkpoints: arrays and notes in one file, there whole or not at all, and checked when they are read."""

import hashlib
import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ntkcollapse._files import remove_leftovers, replacing

Arrays = dict[str, np.ndarray]

_NAME = re.compile(r"step_(\d+)\.npz")
# Folders, in which earlier versions kept theirs.
_FORMER_NAME = re.compile(r"step_(\d+)")


class CheckpointError(OSError):
    """A checkpoint could not be written, or none of those that are there can be read."""


class Checkpoint(NamedTuple):
    """What was saved at a step: named arrays, and anything else that JSON can hold."""

    step: int
    arrays: Arrays
    notes: dict[str, Any]


def save_arrays(file: Path, arrays: Mapping[str, Any], notes: Mapping[str, Any], *, mark: str | None = "part") -> None:
    """Writes named arrays and notes (what JSON can hold) to one file, all or nothing.

    The file is an uncompressed npz of the arrays' bytes; their names, types (bfloat16 and its kin included) and shapes
    stand in its notes with the SHA-256 of each. `mark` tells the writers of one file apart, see `_files.replacing`.

    Raises:
        OSError: it could not be written; what was there is untouched.
    """
    values = {name: np.asarray(value) for name, value in arrays.items()}
    written = [[name, value.dtype.name, list(value.shape), _digest(value)] for name, value in values.items()]
    text = np.frombuffer(json.dumps({"notes": dict(notes), "arrays": written}).encode(), np.uint8)
    entries = {f"array_{i}": _bytes(value) for i, value in enumerate(values.values())}
    entries |= {"notes": text, "notes_sha256": np.array(_digest(text))}
    with replacing(file, mark) as part, part.open("wb") as handle:
        np.savez(handle, **entries)  # pyright: ignore[reportArgumentType]


def load_arrays(file: Path) -> tuple[Arrays, dict[str, Any]]:
    """What `save_arrays` wrote: arrays and notes, compared with their digests.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or another file; the message says how, and does not name it.
    """
    try:
        with zipfile.ZipFile(file) as entries:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.infolist()):
                raise ValueError("it holds compressed arrays")
        with np.load(file) as saved:
            if _digest(saved["notes"]) != str(saved["notes_sha256"]):
                raise ValueError("its notes are not what was written")
            content, arrays = json.loads(saved["notes"].tobytes()), {}
            for i, (name, dtype, shape, digest) in enumerate(content["arrays"]):
                arrays[name] = saved[f"array_{i}"].view(jnp.dtype(dtype)).reshape(shape)
                if _digest(arrays[name]) != digest:
                    raise ValueError(f"its array {name} is not what was written")
            return arrays, content["notes"]
    except FileNotFoundError:
        raise
    # Parsers answer damaged bytes with errors of any type.
    except Exception as error:
        raise ValueError(_first_line(error)) from error


class Checkpoints:
    """Checkpoints by step, in a folder of their own; the newest `keep` stay, all of them without a number.

    One that was damaged after it was written is recognised when it is read, named in a warning, and the one before it
    is used.
    """

    def __init__(self, directory: Path, *, keep: int | None = 2):
        self.directory = Path(directory).absolute()
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, in increasing order."""
        return self._numbers(_NAME)

    def save(self, step: int, arrays: Mapping[str, Any], notes: Mapping[str, Any]) -> Path:
        """Adds a checkpoint, or replaces that of the same step, then drops the oldest others.

        Raises:
            CheckpointError: it could not be written (a full disk, say); those before it are untouched.
        """
        file = self._file(step)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            save_arrays(file, arrays, {"step": step, "notes": dict(notes)})
        except OSError as error:
            raise CheckpointError(
                f"{file}: could not be written ({_first_line(error)}). "
                f"Earlier checkpoints ({self.steps() or 'none'}) are untouched: free some space and resume."
            ) from error
        others = [other for other in self.steps() if other != step]
        for old in others[: len(others) - self.keep + 1] if self.keep else ():
            self._file(old).unlink(missing_ok=True)
        return file

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read and is what was written; None where there is none at all.

        Warns:
            UserWarning: names each damaged one on the way.
        Raises:
            CheckpointError: there are checkpoints, all of them damaged, or all of an earlier version.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                return self.at(step)
            except ValueError as error:
                damaged.append(str(error))
                warnings.warn(f"damaged checkpoint {error}: the one before it is used.", stacklevel=2)
        if damaged:
            raise CheckpointError("no checkpoint can be read: " + "; ".join(damaged))
        if former := self._numbers(_FORMER_NAME):
            raise CheckpointError(
                f"{self.directory / f'step_{former[-1]}'}: a checkpoint of an earlier version of ntkcollapse, from "
                "which this one cannot go on; finish the run with the version that began it, or start it anew."
            )
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        file = self._file(step)
        try:
            arrays, notes = load_arrays(file)
            if notes["step"] != step:
                raise ValueError("it is of another step than its name says")
        except ValueError as error:
            raise ValueError(f"{file} ({error})") from error
        return Checkpoint(step, arrays, notes["notes"])

    def clean(self) -> None:
        """Removes what interrupted writes left behind."""
        remove_leftovers(self.directory, _NAME.pattern)

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: damaged ones, where `newest` gave that of this step."""
        for later in self.steps():
            if later > step:
                self._file(later).unlink()

    def remove(self) -> None:
        """Removes all checkpoints, those of former versions too, and the folder where it holds nothing else."""
        self.clean()
        self.drop_after(-1)
        for step in self._numbers(_FORMER_NAME):
            former = self.directory / f"step_{step}"
            if (former / "notes").is_dir():
                shutil.rmtree(former)
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _numbers(self, name: re.Pattern[str]) -> list[int]:
        if not self.directory.is_dir():
            return []
        return sorted(int(match[1]) for path in self.directory.iterdir() if (match := name.fullmatch(path.name)))

    def _file(self, step: int) -> Path:
        return self.directory / f"step_{step}.npz"


def _bytes(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _digest(value: np.ndarray) -> str:
    digest = hashlib.sha256(f"{value.dtype.name} {value.shape}".encode())
    digest.update(_bytes(value).data)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return (text if type(error) is ValueError else f"{type(error).__name__}: {text}")[:300]
