"""The npz format of Keras: x_train, y_train, x_test, y_test in one file."""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from ntkcollapse.data.formats.cifar import Arrays
from ntkcollapse.data.formats.errors import DataFileError, reading
from ntkcollapse.data.memory import affordable, spelled

_KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path | str) -> Arrays:
    """(x_train, y_train, x_test, y_test); labels of shape (N, 1) are flattened. Never unpickles.

    Raises:
        DataFileError: truncated or corrupt; an array is missing, holds objects, or is larger than memory or than its
            part of the file; labels of another shape.
    """
    path = Path(path)
    with reading(path):
        try:
            with path.open("rb") as handle:
                _check_sizes(path, handle)
                handle.seek(0)
                with np.load(handle, allow_pickle=False) as file:
                    arrays = [file[key] for key in _KEYS]
        except (
            ValueError,
            TypeError,
            AttributeError,
            OSError,
            MemoryError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            if isinstance(error, (DataFileError, FileNotFoundError)):
                raise
            raise DataFileError(path, f"not a readable npz file of arrays: {error}.") from error
    x_train, y_train, x_test, y_test = arrays
    for key, labels in (("y_train", y_train), ("y_test", y_test)):
        if labels.ndim not in (1, 2) or labels.size != len(labels):
            raise DataFileError(
                path, f"expected {key} of shape (N,) or (N, 1), one label an image; got {labels.shape}."
            )
    return x_train, y_train.reshape(-1), x_test, y_test.reshape(-1)


def _check_sizes(path: Path, handle: IO[bytes]) -> None:
    """What the arrays say of their size, before anything is unpacked: a few bytes unpack to any number of zeros."""
    with zipfile.ZipFile(handle) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        missing = [key for key in _KEYS if key not in members]
        if missing:
            raise DataFileError(path, f"expected the arrays {', '.join(_KEYS)}; {missing[0]} is missing.")
        total = 0
        for key in _KEYS:
            size = archive.getinfo(members[key]).file_size
            with archive.open(members[key]) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                declared = math.prod(shape) * dtype.itemsize
                if not dtype.hasobject and declared != size - member.tell():
                    raise DataFileError(
                        path, f"{key} says shape {shape} of {dtype}, {declared} bytes; it has {size - member.tell()}."
                    )
            total += size
    if total > affordable():
        raise DataFileError(
            path, f"its arrays have {spelled(total)}, more than fits into memory ({spelled(affordable())})."
        )
